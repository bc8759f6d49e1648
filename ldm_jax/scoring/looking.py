"""Pictures in batches over the devices, numbered, from wherever they are; and their features.

A batch always has as many rows, so that a network is compiled once; rows beyond the last picture are copies of it, numbered -1.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax import evaluation
from ldm_jax.data.decode import suffixes
from ldm_jax.data.folder import folder
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import SPLIT_NAMES, MissingColumn, Source
from ldm_jax.data.transform import Transform
from ldm_jax.training import distributed, sharding


class Pictures(NamedTuple):
    """`rows` int64 [B], numbers or -1; `images` [B, H, W, 3] over the devices, uint8 or float in [-1, 1]."""

    rows: np.ndarray
    images: jax.Array


def full_batch(batch_size: int, mesh: Any) -> int:
    """`batch_size`, or the next multiple of the devices that batches are split over."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-batch_size // shards) * shards


def of_source(source: Any, transform: Transform, batch_size: int, mesh: Any, on_error: str) -> Iterator[Pictures]:
    """Every row of a source, through the training's transform without randomness: centre crop, no flip."""
    batch_size = full_batch(batch_size, mesh)
    own = sharding.local_rows(mesh, batch_size)
    for start, batch in zip(
        range(0, len(source), batch_size), eval_batches(source, transform, batch_size, rows=own, on_error=on_error)
    ):
        distributed.stop_point()
        rows = np.arange(start, start + batch_size)
        yield Pictures(np.where(rows < len(source), rows, -1), sharding.to_device(mesh, batch["image"]))


def of_array(images: np.ndarray, batch_size: int, mesh: Any) -> Iterator[Pictures]:
    """Every picture of uint8 [N, H, W, 3], which every process has."""
    batch_size = full_batch(batch_size, mesh)
    own = sharding.local_rows(mesh, batch_size)
    for start in range(0, len(images), batch_size):
        distributed.stop_point()
        rows = np.arange(start, start + batch_size)
        part = images[np.minimum(rows, len(images) - 1)[own]]
        yield Pictures(np.where(rows < len(images), rows, -1), sharding.to_device(mesh, part))


def look(
    run: Callable[[jax.Array], dict[str, np.ndarray]],
    batches: Iterable[Pictures],
    report: Callable[[int], None] = lambda count: None,
) -> evaluation.FeatureSet:
    """The features of all pictures. `run`: of `Features.on`; `report(count)`: after every batch."""
    return evaluation.join(features_of(run, batch, report) for batch in batches)


def features_of(
    run: Callable[[jax.Array], dict[str, np.ndarray]], batch: Pictures, report: Callable[[int], None] = lambda count: None
) -> evaluation.FeatureSet:
    """The features of one batch."""
    kept = batch.rows >= 0
    found = {name: value[kept] for name, value in run(batch.images).items()}
    report(int(kept.sum()))
    return evaluation.feature_set(batch.rows[kept], found)


class Labelled(NamedTuple):
    """`images` uint8 [N, H, W, 3]; `labels` int64 [N], or None; `class_names` that the labels are numbers of, or None; `notes`:
    sentences on what was passed by."""

    images: np.ndarray
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def read_pictures(path: str | Path, size: int = 0) -> Labelled:
    """Pictures and their labels, of a folder of images (of one with splits, those of training), or an array: .npy, or .npz with
    "arr_0" (and labels "arr_1", whole numbers or names), as guided-diffusion writes them.

    Args:
      size: pictures of a folder are brought to it as for training: the shorter side, then the middle. 0: they stay as they are.

    Raises:
      FileNotFoundError: there is none.
      ValueError: pictures of several sizes, and no `size`; arrays that are no pictures, or floating-point ones from 0 to 1.
    """
    path = Path(path)
    if path.is_dir():
        return _of_folder(path, size)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no folder of pictures, and no .npy or .npz file of them")
    arrays = _arrays_of(path)
    if "arr_0" not in arrays:
        raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}, and no pictures under 'arr_0'")
    given = arrays["arr_0"]
    images = evaluation.as_uint8(given, str(path), (size, size) if size else None)
    if given.dtype.kind == "f" and given.min() >= 0:
        raise ValueError(
            f"{path} holds floating-point numbers from {given.min():.4g} to {given.max():.4g}, none below 0. Black is -1 here: "
            "pictures from 0 to 1 would all be taken for bright ones; bring them to [-1, 1], or give uint8"
        )
    labels, names = _labels_of(arrays.get("arr_1"), len(images), path)
    return Labelled(images, labels, names)


def _arrays_of(path: Path) -> dict[str, np.ndarray]:
    if path.suffix.lower() in suffixes():
        raise ValueError(f"{path} is one picture: name the folder of pictures, or a .npy or .npz file of them")
    try:
        found = np.load(path, allow_pickle=False)
        return {name: found[name] for name in found.files} if hasattr(found, "files") else {"arr_0": found}
    except Exception as error:  # numpy raises zipfile's, zlib's and its own on damaged files
        what = "it holds Python objects, or is no such file" if "allow_pickle" in str(error) else error
        raise ValueError(f"{path} can't be read as an array of pictures (.npy, .npz): {what}") from None


def _labels_of(given: np.ndarray | None, count: int, path: Path) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels int64 [N], and the names that they are numbers of where names are given."""
    if given is None:
        return None, None
    if given.shape != (count,):
        raise ValueError(f"{path}: labels of shape {given.shape} for {count} pictures: expected one number or name a picture")
    if given.dtype.kind in "US":
        names, numbers = np.unique(given.astype(str), return_inverse=True)
        return numbers.astype(np.int64), tuple(names.tolist())
    if given.dtype.kind not in "iufb" or (given.astype(np.int64) != given).any():
        raise ValueError(f"{path}: labels of {given.dtype} are no classes: expected one whole number or name a picture")
    return given.astype(np.int64), None


def _of_folder(path: Path, size: int) -> Labelled:
    try:
        source = folder(path, columns=("image", "label"))
    except MissingColumn:
        source = folder(path, columns=("image",))
    if size:
        transform = Transform(size)
        images = [transform.view(source[i])["image"] for i in range(len(source))]
    else:
        as_is = Transform(1, short_side=-1)
        images = [as_is.fit(source[i])["image"] for i in range(len(source))]
        first = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
        if first is not None:
            there, here = (f"{image.shape[1]} x {image.shape[0]}" for image in (images[first], images[0]))
            raise ValueError(
                f"{path}: {source[first]['name']} is {there} pixels and the first picture {here}; say with --size to which "
                "side all are brought (the shorter side is resized, bicubic, then the middle is cut out)"
            )
    labels = np.int64([source[i]["label"] for i in range(len(source))]) if "label" in source.info.columns else None
    return Labelled(np.stack(images), labels, source.info.class_names, tuple(_passed_by(path, source)))


def _passed_by(path: Path, source: Source) -> Iterator[str]:
    """Sentences on what of a folder is not among its rows."""
    left = ", ".join(f"{count} {what}" for what, count in source.info.left_out)
    if left:
        yield f"{path}: left out: {left}"
    for split in sorted(SPLIT_NAMES.keys() - {"train"}):
        with contextlib.suppress(ValueError):
            more = folder(path, split, columns=("image",))
            yield f"{path}: its training split alone is looked at; {split} has {len(more)} more: name the folder of a split"
