"""Reading a picture of shapes back: which objects, which colours, where. Exact on renders, tolerant of a decoder's errors.

1. Background: one affine plane per channel (what a linear gradient is), fitted by weighted least squares to pixels of
   low chroma, then refitted to the pixels near it.
2. Foreground: pixels further than a threshold from that plane; connected components (8 neighbours).
3. Colour: the palette entry c with the least mean distance of a component's pixels to the path from c to its accent,
   the two colours that a fill may show on this background. Falling short towards the background costs less than
   straying sideways, since blur and thin shapes mix the two.
4. Shape: the opacity a = <p - b, c - b> / |c - b|^2, clipped to [0, 1], has an area and a centroid that blur does not
   change. They fix centre and diameter under the hypothesis of each shape, which is then rendered and compared:
   sum min(a, r) / sum max(a, r), the intersection over union of soft masks. The best wins if it is good enough.

Only numpy; a thousand pictures of 32 pixels take about a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ldm_jax.data.shapes.render import PALETTE, accent, bounding_box, coverage
from ldm_jax.data.shapes.scene import COLOUR_NAMES, DIAMETERS, SHAPES, Scene, Thing, relation_of

FAR = 0.25  # RGB distance from the background that makes a pixel foreground
NEAR = 0.15  # and the one below which it helps to fit the background
GREY = 0.22  # chroma (max - min) of what may be background at first sight
LEAST_AREA = 0.012  # of the picture; the least object has 0.025
LARGEST = 0.8  # of the picture's side; a larger diameter is not an object but a painted picture
LEAST_MATCH = 0.60  # soft intersection over union below which a blob is no shape
SHORTFALL = 0.4  # what a unit of distance towards the background costs
FARTHEST_COLOUR = 0.30  # mean RGB distance to the palette above which a blob has no colour
_UNIT = 256  # resolution at which the area and centroid of every shape are measured


@dataclass(frozen=True)
class Found:
    """What was seen: indices as in Thing, or None where nothing fits; centre and diameter as fractions; the tight box
    (x0, y0, x1, y1); how well the shape matches, in [0, 1]."""

    shape: int | None
    colour: int | None
    x: float
    y: float
    diameter: float
    box: tuple[float, float, float, float]
    match: float

    @property
    def words(self) -> tuple[str, str]:
        """Names of colour and shape, "?" for what was not recognised."""
        return (
            "?" if self.colour is None else COLOUR_NAMES[self.colour],
            "?" if self.shape is None else SHAPES[self.shape],
        )


def read_back(image: np.ndarray) -> list[Found]:
    """The objects in one picture [H, W, 3], uint8 or float in [-1, 1], largest first."""
    return read_all(np.asarray(image)[None])[0]


def read_all(images: np.ndarray) -> list[list[Found]]:
    """`read_back` for many pictures [n, H, W, 3] of one size. From 128 pixels up, blocks are averaged to 64 or so."""
    images = _unit_range(images)
    pool = max(1, images.shape[1] // 64)
    if pool > 1 and images.shape[1] % pool == 0:
        n, size = len(images), images.shape[1] // pool
        images = images.reshape(n, size, pool, size, pool, 3).mean((2, 4))
    found = []
    for start in range(0, len(images), 256):
        found += _read_chunk(images[start : start + 256])
    return found


def check(image: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Whether a picture shows a scene, by attribute; see `check_all`."""
    return {name: bool(right[0]) for name, right in check_all(np.asarray(image)[None], [scene]).items()}


def check_all(images: np.ndarray, scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Whether pictures [n, H, W, 3] show n scenes: bool [n] for each of

    count      as many objects as asked for
    shape      a shape as asked for in every place, after the best assignment of what was found to what was asked
    colour     likewise; both are false where objects are missing
    bound      every object has its own shape and colour at once
    size       every size, small or large
    relation   the first of two objects lies as asked, seen from the second (true where the scene has no relation)
    all        count, bound and relation
    """
    if len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes")
    return compare_all(read_all(images), scenes)


def compare_all(found: Sequence[list[Found]], scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """The same of what `read_all` found in them."""
    rows = [_compare(each, scene) for each, scene in zip(found, scenes, strict=True)]
    return {name: np.array([row[name] for row in rows], bool) for name in _NAMES}


_NAMES = ("count", "shape", "colour", "bound", "size", "relation", "all")


def _compare(found: list[Found], scene: Scene) -> dict[str, bool]:
    things = scene.things
    right = {"count": len(found) == len(things)}
    if len(found) < len(things):
        return right | dict.fromkeys(_NAMES[1:], False)

    def score(order: tuple[Found, ...]) -> tuple[int, bool]:
        same = sum((f.shape == t.shape) + (f.colour == t.colour) for f, t in zip(order, things))
        return same, _related(order, scene)

    best = max(permutations(found[: len(things) + 2], len(things)), key=score)
    middle = sum(DIAMETERS[len(things)]) / 2
    right["shape"] = all(f.shape == t.shape for f, t in zip(best, things))
    right["colour"] = all(f.colour == t.colour for f, t in zip(best, things))
    right["bound"] = right["shape"] and right["colour"]
    right["size"] = all((f.diameter > middle) == (t.size == 1) for f, t in zip(best, things))
    right["relation"] = _related(best, scene)
    right["all"] = right["count"] and right["bound"] and right["relation"]
    return right


def _related(order: Sequence[Found], scene: Scene) -> bool:
    return scene.relation is None or relation_of(order[0].x, order[0].y, order[1].x, order[1].y) == scene.relation


def _unit_range(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"pictures of shape {images.shape}: expected [n, size, size, 3]")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"pictures of dtype {images.dtype}: expected uint8, or floats in [-1, 1]")
    return np.clip(np.nan_to_num(images.astype(np.float32)) * 0.5 + 0.5, 0, 1)


def _read_chunk(images: np.ndarray) -> list[list[Found]]:
    n, size = images.shape[:2]
    background = _fit_background(images)
    away = np.sqrt(np.sum((images - background) ** 2, -1))
    labels = _components(away > FAR)
    ids, areas = np.unique(labels, return_counts=True)
    ids = ids[(ids > 0) & (areas > LEAST_AREA * size * size)]
    found: list[list[Found]] = [[] for _ in range(n)]
    if not len(ids):
        return found
    owners = (ids - 1) // (size * size)
    masks = labels[owners] == ids[:, None, None]
    pixels, behind = images[owners], background[owners]
    colours, misfit = _colours(pixels, masks, behind)
    opacity = _opacity(pixels, behind, PALETTE[colours]) * _grow(masks)
    shapes, x, y, diameters, matches = _shapes(opacity)
    for i, owner in enumerate(owners):
        if diameters[i] > LARGEST:
            continue
        seen = Thing(int(shapes[i]), int(colours[i]), 0, 0, float(x[i]), float(y[i]), float(diameters[i]))
        found[owner].append(
            Found(
                seen.shape if matches[i] >= LEAST_MATCH else None,
                seen.colour if misfit[i] <= FARTHEST_COLOUR else None,
                seen.x,
                seen.y,
                seen.diameter,
                bounding_box(seen),
                float(matches[i]),
            )
        )
    return [sorted(row, key=lambda f: -f.diameter) for row in found]


def _fit_background(images: np.ndarray) -> np.ndarray:
    """The affine plane [n, size, size, 3] behind the objects."""
    n, size = images.shape[:2]
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    basis = np.stack(
        [np.ones((size, size), np.float32), np.tile(grid, (size, 1)), np.tile(grid[:, None], (1, size))], -1
    ).reshape(-1, 3)
    pixels = images.reshape(n, -1, 3)
    weights = (np.ptp(pixels, axis=-1) < GREY).astype(np.float32)
    plane = np.zeros_like(pixels)
    for step in range(4):
        if step:
            weights = (np.sum((pixels - plane) ** 2, -1) < NEAR**2 * (4 if step == 1 else 1)).astype(np.float32)
        weighted = basis * weights[..., None]
        gram = np.swapaxes(weighted, 1, 2) @ basis + 1e-3 * size * size * np.diag([1e-3, 1, 1]).astype(np.float32)
        plane = basis @ np.linalg.solve(gram, np.swapaxes(weighted, 1, 2) @ pixels)
    return plane.reshape(images.shape)


def _components(mask: np.ndarray) -> np.ndarray:
    """Connected components of bool [n, H, W]: 0 outside, elsewhere 1 + the least flat index of the component.

    Minimum over neighbours, then over pointers (a label points at a pixel, whose label may be less already): rounds
    grow with the logarithm of a component's length.
    """
    shape = mask.shape
    outside = mask.size
    labels = np.where(mask, np.arange(mask.size).reshape(shape), outside)
    while True:
        least = labels.copy()
        for axis in (1, 2):
            ahead, behind = [slice(None)] * 3, [slice(None)] * 3
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            ahead, behind = tuple(ahead), tuple(behind)
            before = least.copy()
            np.minimum(least[ahead], before[behind], out=least[ahead])
            np.minimum(least[behind], before[ahead], out=least[behind])
        least[~mask] = outside
        flat = np.append(least.ravel(), outside)
        least = flat[flat[least]]
        if np.array_equal(least, labels):
            return np.where(mask, labels + 1, 0)
        labels = least


def _grow(masks: np.ndarray) -> np.ndarray:
    """Masks one pixel wider, to include anti-aliased edges."""
    wide = masks.copy()
    for axis in (1, 2):
        before = wide.copy()
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        wide[tuple(ahead)] |= before[tuple(behind)]
        wide[tuple(behind)] |= before[tuple(ahead)]
    return wide


def _opacity(pixels: np.ndarray, behind: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """How much colours [m, 3] cover what lies behind, in [0, 1]."""
    span = colours[:, None, None, :] - behind
    return np.clip(np.sum((pixels - behind) * span, -1) / np.maximum(np.sum(span**2, -1), 1e-4), 0, 1)


def _colours(pixels: np.ndarray, masks: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best palette index for each blob [m], and its mean distance to that colour's path.

    Pixels count by how far they are from the background, which leaves out half-covered edges.
    """
    weights = masks * np.sum((pixels - behind) ** 2, -1)
    totals = np.maximum(weights.sum((1, 2)), 1e-6)
    dark = (np.sum(behind.mean(-1) * masks, (1, 2)) / masks.sum((1, 2))) < 0.5
    distances = []
    for colour in PALETTE:
        way = (accent(np.broadcast_to(colour, (len(pixels), 3)), dark) - colour)[:, None, None, :]
        along = np.clip(np.sum((pixels - colour) * way, -1) / np.sum(way**2, -1), 0, 1)
        expected = colour + along[..., None] * way
        offset, span = pixels - expected, behind - expected
        short = np.maximum(np.sum(offset * span, -1), 0) / np.sqrt(np.maximum(np.sum(span**2, -1), 1e-6))
        apart = np.sqrt(np.maximum(np.sum(offset**2, -1) - (1 - SHORTFALL**2) * short**2, 0))
        distances.append(np.sum(weights * apart, (1, 2)) / totals)
    distances = np.stack(distances, -1)
    return distances.argmin(-1), distances.min(-1)


def _measure() -> tuple[np.ndarray, np.ndarray]:
    """Area [6] and height of the centroid [6] of every shape with diameter 1 and centre 0."""
    count = len(SHAPES)
    masks = coverage(np.arange(count), np.full(count, 0.5), np.full(count, 0.5), np.full(count, 0.9), _UNIT)
    grid = (np.arange(_UNIT, dtype=np.float32) + 0.5) / _UNIT - 0.5
    total = masks.sum((1, 2))
    return total / (_UNIT * 0.9) ** 2, np.sum(masks * grid[None, :, None], (1, 2)) / total / 0.9


_AREA, _CENTROID = _measure()


def _shapes(opacity: np.ndarray) -> tuple[np.ndarray, ...]:
    """For every soft mask [m, size, size] the best shape, its centre x, y, diameter and match, each [m]."""
    m, size, _ = opacity.shape
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    total = np.maximum(opacity.sum((1, 2)), 1e-6)
    x = np.sum(opacity * grid[None, None, :], (1, 2)) / total
    centroid = np.sum(opacity * grid[None, :, None], (1, 2)) / total
    fits = []
    for shape in range(len(SHAPES)):
        diameter = np.sqrt(total / size**2 / _AREA[shape])
        y = centroid - _CENTROID[shape] * diameter
        model = coverage(np.full(m, shape), x, y, diameter, size)
        common = np.minimum(opacity, model).sum((1, 2))
        fits.append((common / (total + model.sum((1, 2)) - common), y, diameter))
    match, y, diameter = (np.stack(part, -1) for part in zip(*fits))
    best = match.argmax(-1)
    rows = np.arange(m)
    return best, x, y[rows, best], diameter[rows, best], match[rows, best]
