"""Scenes to pictures: signed distances, evaluated at pixel centres for many scenes at once.

An object's coverage of a pixel is clip(1/2 - d / pixel, 0, 1) with d its signed distance (negative inside), which is
exact for straight edges along the grid and anti-aliases the others. A patterned fill alternates between the colour
and an accent that lies further from the background than the colour does (darker on light, lighter on dark), so the
silhouette holds.
"""

from collections.abc import Sequence

import numpy as np

from ldm_jax.data.shapes.scene import COLOURS, SHAPES, Scene, Thing

PALETTE = np.array(list(COLOURS.values()), np.float32)
STRIPE_PERIOD = 4 / 32
DOT_PERIOD = 4.5 / 32
DOT_RADIUS = 1.35 / 32


def accent(colour: np.ndarray, dark_background: np.ndarray) -> np.ndarray:
    """The second colour [..., 3] of a patterned fill, for `dark_background` bool [...]."""
    return np.where(dark_background[..., None], colour + 0.6 * (1 - colour), colour * 0.5).astype(np.float32)


def distance(shape: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a shape inscribed in the square [-1, 1]^2, y pointing down."""
    name = SHAPES[shape]
    if name == "circle":
        return np.sqrt(x * x + y * y) - 1
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88
    if name == "triangle":
        height, slope = 1.8, np.float32(1 / np.hypot(1.8, 1.0))  # apex (0, -0.9), base from (-1, 0.9) to (1, 0.9)
        side = (height * np.abs(x) - (y + 0.9)) * slope
        return np.maximum(side, y - 0.9)
    if name == "star":
        # One edge of ten: from the tip (0, -1.05) to the notch at 36 degrees, radius 0.45; folding makes the others.
        y = y - 0.05
        sector = np.float32(2 * np.pi / 5)
        angle = np.arctan2(x, -y)
        angle = np.abs(angle - sector * np.round(angle / sector))
        radius = np.sqrt(x * x + y * y)
        tip, notch = np.array([0.0, 1.05]), 0.45 * np.array([np.sin(np.pi / 5), np.cos(np.pi / 5)])
        edge = notch - tip
        normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
        return radius * (np.sin(angle) * np.float32(normal[0]) + np.cos(angle) * np.float32(normal[1])) - np.float32(
            normal @ tip
        )
    if name == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.76) - 0.24
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 1, short - 0.34)  # cross


def coverage(shape: np.ndarray, x: np.ndarray, y: np.ndarray, diameter: np.ndarray, size: int) -> np.ndarray:
    """How much of every pixel of a size x size picture the shapes [n] cover: float32 [n, size, size]."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    radius = (np.asarray(diameter, np.float32) / 2)[:, None, None]
    u = (grid[None, None, :] - np.asarray(x, np.float32)[:, None, None]) / radius
    v = (grid[None, :, None] - np.asarray(y, np.float32)[:, None, None]) / radius
    u, v = np.broadcast_arrays(u, v)
    shape = np.asarray(shape)
    out = np.empty((len(shape), size, size), np.float32)
    for s in range(len(SHAPES)):
        of_shape = shape == s
        if of_shape.any():
            out[of_shape] = distance(s, u[of_shape], v[of_shape])
    return np.clip(0.5 - out * radius * size, 0, 1)


def render(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A scene as uint8 [size, size, 3] and its semantic map uint8 [size, size]: 0 background, 1 + shape elsewhere."""
    images, maps = render_all([scene], size)
    return images[0], maps[0]


def render_all(scenes: Sequence[Scene], size: int) -> tuple[np.ndarray, np.ndarray]:
    """`render` for many scenes: uint8 [n, size, size, 3] and [n, size, size]."""
    if size < 16:
        raise ValueError(f"size={size}: shapes need at least 16 pixels to be told apart")
    chunk = max(1, 2**18 // size**2)  # what fits the cache
    parts = [_render_chunk(scenes[i : i + chunk], size) for i in range(0, len(scenes), chunk)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


_STAR = 1.05 * np.sin(2 * np.pi / 5)
_EXTENT = {
    "circle": (-1, -1, 1, 1),
    "square": (-0.88, -0.88, 0.88, 0.88),
    "triangle": (-1, -0.9, 1, 0.9),
    "star": (-_STAR, -1, _STAR, 0.05 + 1.05 * np.cos(np.pi / 5)),
    "ring": (-1, -1, 1, 1),
    "cross": (-1, -1, 1, 1),
}


def bounding_box(thing: Thing) -> tuple[float, float, float, float]:
    """The tight box (x0, y0, x1, y1) of an object, as fractions."""
    left, top, right, bottom = _EXTENT[SHAPES[thing.shape]]
    r = thing.diameter / 2
    return thing.x + left * r, thing.y + top * r, thing.x + right * r, thing.y + bottom * r


def _render_chunk(scenes: Sequence[Scene], size: int) -> tuple[np.ndarray, np.ndarray]:
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    backgrounds = [scene.background for scene in scenes]
    start = np.array([b.start for b in backgrounds], np.float32)[:, None, None, :]
    end = np.array([b.end for b in backgrounds], np.float32)[:, None, None, :]
    angle = np.array([b.angle for b in backgrounds], np.float32)[:, None, None]
    dark = np.array([b.dark for b in backgrounds])
    dx, dy = np.cos(angle), np.sin(angle)
    along = ((grid[None, None, :] - 0.5) * dx + (grid[None, :, None] - 0.5) * dy) / (np.abs(dx) + np.abs(dy)) + 0.5
    images = start + (end - start) * along[..., None]
    maps = np.zeros(images.shape[:3], np.uint8)
    for place in range(max(len(scene.things) for scene in scenes)):
        rows = np.array([i for i, scene in enumerate(scenes) if len(scene.things) > place])
        things = [scenes[i].things[place] for i in rows]
        shape = np.array([t.shape for t in things])
        x, y, d = (np.array([getattr(t, name) for t in things], np.float32) for name in ("x", "y", "diameter"))
        alpha = coverage(shape, x, y, d, size)
        colour = PALETTE[[t.colour for t in things]]
        marks = _pattern(np.array([t.fill for t in things]), x, y, grid, size)[..., None]
        paint = colour[:, None, None] + marks * (accent(colour, dark[rows]) - colour)[:, None, None]
        images[rows] += alpha[..., None] * (paint - images[rows])
        maps[rows] = np.where(alpha > 0.5, (1 + shape)[:, None, None], maps[rows])
    return np.round(images * 255).astype(np.uint8), maps


def _pattern(fill: np.ndarray, x: np.ndarray, y: np.ndarray, grid: np.ndarray, size: int) -> np.ndarray:
    """How much of every pixel the accent covers: 0 for plain, horizontal stripes or staggered dots, anchored at the
    object's centre."""
    u = grid[None, None, :] - x[:, None, None]
    v = grid[None, :, None] - y[:, None, None]
    marks = np.zeros((len(fill), size, size), np.float32)
    striped, dotted = fill == 1, fill == 2
    phase = np.abs(v[striped] / STRIPE_PERIOD - np.round(v[striped] / STRIPE_PERIOD)) * STRIPE_PERIOD
    marks[striped] = np.clip(0.5 - (phase - STRIPE_PERIOD / 4) * size, 0, 1)
    row = np.round(v[dotted] / DOT_PERIOD)
    du = u[dotted] / DOT_PERIOD + 0.5 * (row % 2)
    du = (du - np.round(du)) * DOT_PERIOD
    dv = v[dotted] - row * DOT_PERIOD
    marks[dotted] = np.clip(0.5 - (np.sqrt(du * du + dv * dv) - DOT_RADIUS) * size, 0, 1)
    return marks
