"""`vessels`, the embedded data set of volumes: bright spheres or tubes in noisy tissue, as a scan shows them; and its reader.

    uint8 [depth, height, width], label 0 (spheres) or 1 (tubes): one or two of them

Every volume is a pure function of (seed, split, number); nothing is stored.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.data.source import Info, MissingSplit, canonical_split, choose_columns, parse_split, slice_bounds

CLASSES = ("spheres", "tubes")
STREAMS = {"train": 0, "validation": 1}
TISSUE, VESSEL, NOISE = 0.2, 0.85, 0.03  # brightness, and its deviation
SPHERE = (0.13, 0.2)  # radii, as fractions of the shortest side
TUBE = (0.055, 0.08)
LENGTH = (0.55, 0.75)  # of a tube's axis
GAP = 0.08
LEAST = 0.001  # of all voxels: what is smaller is no object
LONG = 2.0  # the ratio of the longest to the second extent from which on an object is a tube


@dataclasses.dataclass(frozen=True)
class Body:
    """A tube of this radius from one end to the other; a sphere where they are one place. Fractions of the shortest side."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float


def draw_volume(seed: int, index: int, stream: int, size: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """Volume `index` of a stream, uint8, and its label."""
    rng = np.random.default_rng([seed, 224_737, stream, index])
    label = int(rng.integers(2))
    shortest = min(size)
    room = np.array(size) / shortest
    count = 1 + int(rng.integers(2))
    bodies: list[Body] = []
    while len(bodies) < count:
        body = _body(rng, label, room)
        if body is not None and all(_apart(body, other) for other in bodies):
            bodies.append(body)
        elif rng.random() < 0.02:  # no room for another
            count = max(len(bodies), 1)
    grid = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / shortest for n in size), indexing="ij"), -1)
    far = np.min([_distance(grid, body) for body in bodies], axis=0)
    inside = np.clip(0.5 - far * shortest, 0, 1)
    bright = TISSUE + (VESSEL - TISSUE) * inside + NOISE * rng.standard_normal(size)
    return np.round(255 * np.clip(bright, 0, 1)).astype(np.uint8), label


def _body(rng: np.random.Generator, label: int, room: np.ndarray) -> Body | None:
    low, high = (SPHERE, TUBE)[label]
    radius = low + (high - low) * float(rng.random())
    start = end = room * rng.random(3)
    if label:
        way = rng.standard_normal(3)
        end = start + way / np.linalg.norm(way) * (LENGTH[0] + (LENGTH[1] - LENGTH[0]) * float(rng.random()))
    margin = radius + 0.03
    if any((place < margin).any() or (place > room - margin).any() for place in (start, end)):
        return None
    return Body(tuple(map(float, start)), tuple(map(float, end)), radius)


def _distance(points: np.ndarray, body: Body) -> np.ndarray:
    """From points [..., 3] to the body's surface, negative inside."""
    start, way = np.array(body.start), np.subtract(body.end, body.start)
    along = np.clip((points - start) @ way / max(float(way @ way), 1e-12), 0, 1)
    return np.linalg.norm(points - start - along[..., None] * way, axis=-1) - body.radius


def _apart(a: Body, b: Body) -> bool:
    axis = np.linspace(a.start, a.end, 24)
    return bool(_distance(axis, b).min() > a.radius + GAP)


class Vessels:
    """Random access to the volumes of a split, "train" or "validation", or a part of one; columns `volume` and `label`."""

    def __init__(
        self, split: str, columns: Sequence[str] | None, size: tuple[int, int, int], counts: tuple[int, int], seed: int = 0
    ):
        name, part = parse_split(split)
        name = canonical_split(name)
        if name not in STREAMS:
            raise MissingSplit(f"vessels has no split {name!r} but 'train', 'validation'")
        if min(size) < 16:
            raise ValueError(f"vessels of {' x '.join(map(str, size))} voxels: at least 16 along each axis")
        count = counts[STREAMS[name]]
        self._numbers = range(count)[slice_bounds(part, count)] if part is not None else range(count)
        self._of = name, tuple(size), seed
        self.info = Info(f"vessels {split}", choose_columns("vessels", columns, ("volume", "label")), CLASSES)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self._numbers[index]
        name, size, seed = self._of
        volume, label = draw_volume(seed, number, STREAMS[name], size)
        found = {"volume": volume, "label": label}
        return {"name": f"{self.info.name}, number {number}", **{column: found[column] for column in self.info.columns}}

    def stamp(self) -> str:
        """What the rows depend on, as a hash."""
        return hashlib.sha256(repr((self._of, self._numbers, self.info.columns)).encode()).hexdigest()


def read_volume_back(volume: np.ndarray) -> list[int]:
    """The class of every bright object in a volume [D, H, W] or [D, H, W, 1] in [-1, 1], by how long it is beside how thick."""
    from scipy import ndimage  # here, because importing it takes a third of a second

    volume = np.asarray(volume).reshape(np.shape(volume)[:3])
    bright = volume > TISSUE + VESSEL - 1  # half way between the two
    parts, count = ndimage.label(bright, np.ones((3, 3, 3)))
    found = []
    for number in range(1, count + 1):
        places = np.argwhere(parts == number)
        if len(places) < LEAST * bright.size:
            continue
        spread = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(places.T)), 1e-6))
        found.append(int(spread[2] > LONG * spread[1]))
    return found


CHECKS = ("count", "kind", "all")


def prompts(num: int) -> list[tuple[str, int]]:
    """The classes in turn: names and numbers."""
    return [(CLASSES[i % len(CLASSES)], i % len(CLASSES)) for i in range(num)]


def read_volumes(volumes: np.ndarray) -> list[list[int]]:
    """`read_volume_back` of each of [n, D, H, W, 1] in [-1, 1]."""
    return [read_volume_back(volume) for volume in volumes]


def check_all(found: list[list[int]], labels: Sequence[int]) -> dict[str, np.ndarray]:
    """Whether volumes, as `read_volumes` saw them, show what was asked for: bool [n] for "count" (one or two objects), "kind"
    (all objects are of the class) and "all"."""
    count = np.array([1 <= len(each) <= 2 for each in found])
    kind = np.array([bool(each) and all(one == label for one in each) for each, label in zip(found, labels, strict=True)])
    return {"count": count, "kind": kind, "all": count & kind}
