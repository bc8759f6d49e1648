"""Pictures turned, stretched and moved at random, and the numbers that tell a network what was done to each.

A network that is told in training what was done, and is told nothing when it draws, draws pictures to which nothing was done: a
small data set is seen in many ways, and none of its pictures is drawn tilted ("non-leaking augmentation": Karras et al.
2022, "Elucidating the design space of diffusion-based generative models", appendix F.2). Mirroring is left to `data.flip`, as
mirrored pictures are drawn where they belong to the data.
"""

import math

import numpy as np
from PIL import Image

NUMBERS = 7  # log2 size / SIZE; cosine - 1 and sine of the turn; log2 stretch / SIZE along (cosine, sine); way right, way down
SIZE = 0.2  # deviation of log2 of the size, and of the stretch
WAY = 1 / 8  # deviation of the way, in sides of the picture
_MOST = 3.0  # deviations that are drawn at most: what lies further out would show mirror images alone


def draw(rng: np.random.Generator, probability: float) -> np.ndarray:
    """float32 [NUMBERS] of one visit: each of size, turn, stretch and way is changed with the probability; zeros: none."""
    on = rng.random(4) < probability
    size, stretch, *way = np.clip(rng.standard_normal(4), -_MOST, _MOST)
    turn, along = rng.uniform(-math.pi, math.pi, 2)
    numbers = np.zeros(NUMBERS, np.float32)
    if on[0]:
        numbers[0] = size
    if on[1]:
        numbers[1:3] = math.cos(turn) - 1, math.sin(turn)
    if on[2]:
        numbers[3:5] = stretch * math.cos(along), stretch * math.sin(along)
    if on[3]:
        numbers[5:] = way
    return numbers


def apply(image: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] as `numbers` say, of the same size; beyond its edges lies its mirror image. Zeros: as it is."""
    if not np.any(numbers):
        return image
    height, width = image.shape[:2]
    to_middle = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    source = np.linalg.inv(to_middle) @ np.linalg.inv(matrix(numbers, min(height, width))) @ to_middle
    corners = (source @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]]))[:2].T
    edge = math.ceil(max(0.0, -corners.min(), *(corners.max(0) - (width, height)))) + 2  # two more for the filter
    wide = np.pad(image, ((edge, edge), (edge, edge), (0, 0)), mode="reflect")
    # PIL asks, for every pixel (x, y) of the result, where it comes from: a x + b y + c, d x + e y + f, edges at whole numbers.
    source[:2, 2] += edge
    how = Image.Transform.AFFINE, source[:2].reshape(-1), Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(wide).transform((width, height), *how))


def matrix(numbers: np.ndarray, side: int) -> np.ndarray:
    """[3, 3], where a point (x, y, 1), in pixels from the middle with y downwards, goes: sized, stretched along an axis, turned
    (clockwise, for y points down), moved."""
    size, cosine, sine, along_x, along_y, right, down = (float(number) for number in numbers)
    turn = np.array([[cosine + 1, -sine], [sine, cosine + 1]])
    strength = math.hypot(along_x, along_y)
    stretch = np.eye(2)
    if strength:
        axis = np.array([along_x, along_y]) / strength
        long = 2 ** (SIZE * strength)
        stretch = np.eye(2) / long + (long - 1 / long) * np.outer(axis, axis)
    result = np.eye(3)
    result[:2, :2] = turn @ stretch * 2 ** (SIZE * size)
    result[:2, 2] = WAY * side * right, WAY * side * down
    return result
