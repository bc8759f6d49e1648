"""`moving_shapes`, the embedded data set of short films: one shape that moves over a quiet background, and its reader.

    "a red circle moves left"      uint8 [frames, size, size, 3]

Every film is a pure function of (seed, split, number): nothing is stored, and any number can be had at any time. Pictures are
those of `shapes`: the same colours, shapes and rendering, and the reader reads every frame by `shapes.read_all`.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.data.shapes import COLOUR_NAMES, SHAPES, Found, Mix, Scene, Thing, read_all, render_all
from ldm_jax.data.shapes.scene import DIAMETERS, MARGIN, SIZE_JITTER, compose
from ldm_jax.data.source import Info, MissingSplit, canonical_split, choose_columns, parse_split, slice_bounds

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # y points down
NAMES = tuple(DIRECTIONS)
STREAMS = {"train": 0, "validation": 1}
ASKED = 2  # the stream of prompts, from which nothing is learnt
WAYS = ("{thing} moves {to}", "{thing} moving {to}", "{thing} goes {to}")
SLOWEST = 0.5  # of the way that there is: no film stands nearly still
ERROR = 1 / 32  # of a place that is read, a fraction of the picture


@dataclasses.dataclass(frozen=True)
class Film:
    """What a film shows: a scene of one thing, where it starts and ends (fractions of the picture), and the direction."""

    scene: Scene
    direction: int
    start: tuple[float, float]
    end: tuple[float, float]

    @property
    def words(self) -> tuple[str, str, str]:
        """Names of colour, shape and direction."""
        return (*self.scene.things[0].words, NAMES[self.direction])

    def scenes(self, frames: int) -> list[Scene]:
        """The scene of every frame: a straight way at one speed."""
        places = np.linspace(self.start, self.end, frames).tolist()
        thing = self.scene.things[0]
        moved = (dataclasses.replace(thing, x=x, y=y) for x, y in places)
        return [dataclasses.replace(self.scene, things=(each,)) for each in moved]


def draw_film(seed: int, index: int, stream: int = 0, first: tuple[int, int, int] | None = None) -> tuple[Film, str]:
    """Film `index` of a stream, and what is said of it. `first`: its shape, colour and direction, else random ones."""
    rng = np.random.default_rng([seed, 104_729, stream, index])
    shape, colour, direction = first or (int(rng.integers(n)) for n in (len(SHAPES), len(COLOUR_NAMES), len(NAMES)))
    size = int(rng.integers(2))
    diameter = DIAMETERS[1][size] + SIZE_JITTER * (2 * float(rng.random()) - 1)
    low, high = MARGIN + diameter / 2, 1 - MARGIN - diameter / 2
    near = low + (high - low) * (1 - SLOWEST) / 2 * float(rng.random())
    far = near + (high - near) * (SLOWEST + (1 - SLOWEST) * float(rng.random()))
    across = low + (high - low) * float(rng.random())
    axis, forward = (0, 1)[DIRECTIONS[NAMES[direction]][1] != 0], sum(DIRECTIONS[NAMES[direction]]) > 0
    ends = (near, far) if forward else (low + high - near, low + high - far)
    start, end = (tuple((along, across) if axis == 0 else (across, along)) for along in ends)
    background = compose(rng, 1, Mix((1, 0, 0), (1, 0, 0))).background
    thing = Thing(shape, colour, size, 0, *start, diameter)
    film = Film(Scene((thing,), background), direction, start, end)
    return film, caption(film, rng)


def caption(film: Film, rng: np.random.Generator) -> str:
    """One of the ways to say it: colour, shape and direction always, the size sometimes."""
    colour, shape, direction = film.words
    size = (("small", "little"), ("large", "big"))[film.scene.things[0].size][rng.integers(2)]
    words = f"{size} {colour} {shape}" if rng.random() < 0.3 else f"{colour} {shape}"
    to = f"to the {direction}" if direction in ("left", "right") and rng.random() < 0.3 else direction
    article = "an" if words[0] in "aeiou" else "a"
    return WAYS[rng.integers(len(WAYS))].format(thing=f"{article} {words}", to=to)


def render_film(film: Film, frames: int, size: int) -> np.ndarray:
    """uint8 [frames, size, size, 3]."""
    return render_all(film.scenes(frames), size)[0]


def prompts(n: int, seed: int = 0) -> list[tuple[str, Film]]:
    """n captions with their films, from a stream that no film of training comes from. Shape, colour and direction run through
    all combinations equally often."""
    found, left = [], []
    for index in range(n):
        if not left:
            left = [(s, c, d) for s in range(len(SHAPES)) for c in range(len(COLOUR_NAMES)) for d in range(len(NAMES))]
            np.random.default_rng([seed, 104_729, ASKED, index]).shuffle(left)
        film, said = draw_film(seed, index, ASKED, tuple(map(int, left.pop())))
        found.append((said, film))
    return found


class MovingShapes:
    """Random access to the films of a split, "train" or "validation", or a part of one; columns `film` and `caption`."""

    def __init__(
        self, split: str, columns: Sequence[str] | None, frames: int, size: int, counts: tuple[int, int], seed: int = 0
    ):
        name, part = parse_split(split)
        name = canonical_split(name)
        if name not in STREAMS:
            raise MissingSplit(f"moving_shapes has no split {name!r} but 'train', 'validation'")
        if frames < 2 or not 16 <= size <= 256:
            raise ValueError(f"moving_shapes of {frames} frames, {size} pixels wide: at least 2 frames, 16 to 256 pixels")
        count = counts[STREAMS[name]]
        self._numbers = range(count)[slice_bounds(part, count)] if part is not None else range(count)
        self._of = name, frames, size, seed
        self.info = Info(f"moving_shapes {split}", choose_columns("moving_shapes", columns, ("film", "caption")))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self._numbers[index]
        name, frames, size, seed = self._of
        film, said = draw_film(seed, number, STREAMS[name])
        row = {"film": render_film(film, frames, size)} if "film" in self.info.columns else {}
        said = {"caption": said} if "caption" in self.info.columns else {}
        return {"name": f"{self.info.name}, number {number}", **row, **said}

    def stamp(self) -> str:
        """What the rows depend on, as a hash."""
        return hashlib.sha256(repr((self._of, self._numbers, self.info.columns)).encode()).hexdigest()


CHECKS = ("shape", "colour", "bound", "direction", "all")


def read_films(films: np.ndarray) -> list[list[list[Found]]]:
    """The objects of every frame of films [n, frames, H, W, 3], uint8 or in [-1, 1], largest first."""
    films = np.asarray(films)
    found, frames = read_all(films.reshape(-1, *films.shape[2:])), films.shape[1]
    return [found[start : start + frames] for start in range(0, len(found), frames)]


def check_all(found: list[list[list[Found]]], asked: Sequence[Film]) -> dict[str, np.ndarray]:
    """Whether films, as `read_films` saw them, show what was asked for: bool [n] for each of

    shape, colour  every frame's largest object is of this shape, of this colour
    bound          both
    direction      it moves this way, by at least a tenth of the picture from the first frame to the last, never back by more
                   than the reader's error, and sideways by less than half as much
    all            bound and direction
    """
    if len(found) != len(asked):
        raise ValueError(f"{len(found)} films for {len(asked)} that were asked for")
    rows = [_compare(frames, film) for frames, film in zip(found, asked)]
    return {name: np.array([row[name] for row in rows], bool) for name in CHECKS}


def _compare(frames: list[list[Found]], film: Film) -> dict[str, bool]:
    thing = film.scene.things[0]
    if not all(frames):
        return dict.fromkeys(CHECKS, False)
    seen = [objects[0] for objects in frames]
    right = {name: all(getattr(each, name) == getattr(thing, name) for each in seen) for name in ("shape", "colour")}
    right["bound"] = right["shape"] and right["colour"]
    toward = np.array(DIRECTIONS[NAMES[film.direction]])
    steps = np.diff([(each.x, each.y) for each in seen], axis=0)
    along, across = steps @ toward, steps @ toward[::-1]
    right["direction"] = bool((along > -ERROR).all() and along.sum() >= 0.1 and abs(across.sum()) < along.sum() / 2)
    right["all"] = right["bound"] and right["direction"]
    return right
