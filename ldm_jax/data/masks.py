"""Random holes to learn inpainting from, in the manner of LaMa (Suvorov et al. 2022): strokes, boxes, borders.

    thin, medium, thick   polylines of turning strokes, about 2, 6 and 14 % of the side wide
    box                   one to three rectangles
    border                all but a window, which touches none, one, two or three sides: outpainting

A mask is float32 [H, W, 1], 1 where there is to be painted. Its area always lies in the range that is asked for.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("thin", "medium", "thick", "box", "border")
AREA = (0.05, 0.5)  # of the picture
_WIDTHS = {"thin": (0.01, 0.03), "medium": (0.04, 0.08), "thick": (0.1, 0.18)}  # of the shorter side
_ATTEMPTS = 200


def random_hole(
    example: dict, rng: np.random.Generator, *, kinds: Sequence[str] = KINDS, area: tuple[float, float] = AREA
) -> dict:
    """A training example's {"hole": float32 [H, W, 1]}."""
    return {"hole": random_mask(*example["image"].shape[:2], rng, kinds, area)}


def random_mask(
    height: int,
    width: int,
    rng: np.random.Generator,
    kinds: Sequence[str] = KINDS,
    area: tuple[float, float] = AREA,
) -> np.ndarray:
    """A mask of one of `kinds`. ValueError for unknown kinds, and for an area that is no range or that can't be met."""
    check(kinds, area)
    low, high = area
    kind = kinds[rng.integers(len(kinds))]
    draw = {"box": _boxes, "border": _border}.get(kind, _strokes)
    for _ in range(_ATTEMPTS):
        mask = draw(height, width, rng, rng.uniform(low, high), kind)
        if low <= mask.mean() <= high:
            return mask[..., None]
    raise ValueError(f"area={tuple(area)}: no {kind} mask of {height} x {width} pixels found; widen the range")


def check(kinds: Sequence[str], area: tuple[float, float]) -> None:
    """Raises ValueError for kinds and areas that `random_mask` can't draw."""
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds={tuple(kinds)}: choose from {', '.join(KINDS)}")
    if len(area) != 2 or not 0 < area[0] < area[1] < 1:
        raise ValueError(f"area={tuple(area)}: two fractions of the picture, 0 < least < most < 1")


def _strokes(height: int, width: int, rng: np.random.Generator, target: float, kind: str) -> np.ndarray:
    """Polylines until the target is covered."""
    picture = Image.new("L", (width, height))
    pen, side = ImageDraw.Draw(picture), min(height, width)
    covered = 0.0
    while covered < target:
        thick = max(1.0, side * rng.uniform(*_WIDTHS[kind]))
        place = rng.uniform(0, 1, 2) * (width, height)
        angle = rng.uniform(0, 2 * math.pi)
        for _ in range(int(rng.integers(1, 7))):
            angle += rng.uniform(-1.5, 1.5)
            to = place + rng.uniform(0.08, 0.3) * side * np.array([math.cos(angle), math.sin(angle)])
            pen.line([*place, *to], 1, round(thick))
            _dot(pen, place, thick)
            _dot(pen, to, thick)
            place = np.clip(to, 0, (width, height))
            covered = np.asarray(picture).mean()
            if covered >= target:
                break
    return np.asarray(picture, np.float32)


def _dot(pen: ImageDraw.ImageDraw, place: np.ndarray, thick: float) -> None:
    if thick >= 3:
        pen.ellipse([*(place - thick / 2), *(place + thick / 2)], 1)


def _boxes(height: int, width: int, rng: np.random.Generator, target: float, kind: str) -> np.ndarray:
    mask = np.zeros((height, width), np.float32)
    count = int(rng.integers(1, 4))
    for _ in range(count):
        share, stretch = target / count, math.exp(rng.uniform(-0.5, 0.5))
        h = min(max(round(height * math.sqrt(share) * stretch), 1), height)
        w = min(max(round(width * share * height / h), 1), width)
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        mask[top : top + h, left : left + w] = 1
    return mask


def _border(height: int, width: int, rng: np.random.Generator, target: float, kind: str) -> np.ndarray:
    """Cuts the picture's sides away, one, two, three or all, in equal or unequal parts, until `target` is cut."""
    cut = rng.random(4) * (rng.permutation(4) < rng.integers(1, 5))  # top, bottom, left, right

    def window(size: float) -> tuple[int, int, int, int]:
        top, bottom, left, right = size * cut
        return round(top * height), round((1 - bottom) * height), round(left * width), round((1 - right) * width)

    def kept(size: float) -> float:
        top, bottom, left, right = window(size)
        return max(bottom - top, 0) * max(right - left, 0) / (height * width)

    size = _solve(lambda size: 1 - kept(size), target, 1 / max(cut.max(), 1e-3))
    top, bottom, left, right = window(size)
    mask = np.ones((height, width), np.float32)
    mask[top : max(bottom, top), left : max(right, left)] = 0
    return mask


def _solve(rising: Callable[[float], float], target: float, most: float) -> float:
    """Where a rising function first reaches `target`, by halving [0, most]."""
    low, high = 0.0, most
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high
