"""Pictures that a ControlNet is shown, made of the training pictures themselves: `PICTURES` names the functions.

A function takes a picture float32 [H, W, 3] in [-1, 1] and gives one of the same shape and range.
"""

import numpy as np

WEAK, STRONG = 0.05, 0.1  # slopes of a channel, in [0, 1] a pixel: edges hold a strong one, and go on along weak ones
SMOOTHING = 1.0  # the deviation of the blur before, in pixels
_GREY = np.float32([0.299, 0.587, 0.114])  # Rec. 601
_TURNED = ((0, 1), (1, 1), (1, 0), (1, -1))  # the neighbour where a slope of 0, 45, 90, 135 degrees points


def edges(image: np.ndarray) -> np.ndarray:
    """White lines of one pixel on black where a colour changes most (Canny 1986): blurred, slopes by Sobel of the channel that
    is steepest there, of which only the highest across an edge stay, and of these the weak ones only where they go on from a
    strong one. Grey alone would not see an orange thing on light grey."""
    from scipy import ndimage  # here, because importing it takes a third of a second

    smooth = ndimage.gaussian_filter((image + 1) / 2, (SMOOTHING, SMOOTHING, 0))
    down, right = (ndimage.sobel(smooth, axis) / 8 for axis in (0, 1))
    steepest = np.hypot(down, right).argmax(-1)[..., None]
    down, right = (np.take_along_axis(each, steepest, -1)[..., 0] for each in (down, right))
    slope = np.hypot(down, right)
    direction = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    around = np.pad(slope, 1)
    height, width = slope.shape
    highest = np.zeros(slope.shape, bool)
    for number, (y, x) in enumerate(_TURNED):
        one, other = (around[1 + s * y : 1 + s * y + height, 1 + s * x : 1 + s * x + width] for s in (1, -1))
        highest |= (direction == number) & (slope >= one) & (slope > other)
    weak, _ = ndimage.label(highest & (slope > WEAK), np.ones((3, 3)))
    strong = np.unique(weak[highest & (slope > STRONG)])
    lines = np.isin(weak, strong[strong > 0])
    return np.repeat(2 * lines[..., None].astype(np.float32) - 1, 3, -1)


def grey(image: np.ndarray) -> np.ndarray:
    """The picture without its colours: for models that colour."""
    return np.repeat((image @ _GREY)[..., None], 3, -1).astype(np.float32)


PICTURES = {"edges": edges, "grey": grey}
COLUMN = "conditioning"  # of a data set that has such pictures beside its own
