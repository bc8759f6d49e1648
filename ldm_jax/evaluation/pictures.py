"""What is measured: pictures as their PNG files would hold them, and what is odd about a set of them.

Distances compare what people can save. So every picture, drawn or real, is rounded to 8 bits first.
"""

from collections.abc import Sequence

import numpy as np

BALANCE = 0.1  # total variation of class frequencies from which on a warning is due


def as_uint8(images: np.ndarray, what: str = "pictures", size: Sequence[int] | None = None) -> np.ndarray:
    """uint8 [N, H, W, 3] of pictures, uint8 or floating-point in [-1, 1], rounded to the nearest of 256 values.

    Raises:
      ValueError: another shape (or not `size`, height and width), numbers that aren't finite or lie outside of [-1, 1].
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(f"{what} of shape {images.shape}: expected [N, H, W, 3], one or more")
    if size is not None and tuple(size) != images.shape[1:3]:
        there, here = (f"{w} x {h}" for h, w in (images.shape[1:3], size))
        raise ValueError(f"{what} are {there} pixels and should be {here}: distances compare pictures of one size")
    if images.dtype == np.uint8:
        return images
    if images.dtype.name == "bfloat16":  # no number type of numpy's own
        images = images.astype(np.float32)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{what} are {images.dtype}: give uint8, or floating-point numbers in [-1, 1]")
    bad = ~np.isfinite(images).all((1, 2, 3))
    if bad.any():
        raise ValueError(f"{np.count_nonzero(bad)} of {len(images)} {what} are not finite, first number {np.argmax(bad)}")
    least, most = float(images.min()), float(images.max())
    if least < -1.001 or most > 1.001:
        raise ValueError(f"{what} have values from {least:.4g} to {most:.4g}: expected -1 to 1, or uint8")
    return np.clip(np.round((images.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def odd_in(images: np.ndarray, what: str = "pictures") -> list[str]:
    """Sentences on uint8 pictures [N, H, W, 3] that are seldom meant: all grey, of one colour, all the same."""
    notes, count = [], len(images)
    grey = (images == images[..., :1]).all((1, 2, 3))
    flat = (images == images[:, :1, :1]).all((1, 2, 3))
    if flat.any():
        notes.append(f"{np.count_nonzero(flat)} of {count} {what} are of one colour all over")
    if grey.all():
        notes.append(f"all {count} {what} are grey: networks trained on colours see them as a kind of their own")
    elif count > 1 and grey.sum() > 0.05 * count:
        notes.append(f"{np.count_nonzero(grey)} of {count} {what} are grey")
    if count > 1 and (images[1:] == images[:1]).all():
        notes.append(f"all {count} {what} are the same")
    return notes


def uneven_classes(drawn: Sequence[int], real: Sequence[int], names: Sequence[str] | None = None) -> list[str]:
    """A sentence where the classes drawn are balanced otherwise than the real pictures' (by a total variation of more than a
    tenth); distances would count that as a fault of the pictures."""
    drawn, real = np.asarray(drawn, np.int64), np.asarray(real, np.int64)
    if not (len(drawn) and len(real)):
        return []
    classes = int(max(drawn.max(), real.max())) + 1
    shares = [np.bincount(labels, minlength=classes) / len(labels) for labels in (drawn, real)]
    apart = np.abs(shares[0] - shares[1])
    if apart.sum() / 2 <= BALANCE:
        return []
    worst = int(apart.argmax())
    name = names[worst] if names else worst
    return [
        f"classes are balanced otherwise than in the reference ({apart.sum() / 2:.0%} would have to change): class {name} is "
        f"{shares[0][worst]:.1%} of what is drawn and {shares[1][worst]:.1%} there"
    ]
