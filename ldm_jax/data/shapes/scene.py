"""The vocabulary and the grammar of `shapes`: what a picture holds, and how it is said in words.

A scene is one to three objects on a quiet background. All lengths are fractions of the picture's side, so that a
scene can be rendered at any resolution. `draw_scene(seed, index)` is a pure function: scene number `index` of a
stream never depends on how many others were drawn.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = {
    "red": (0.86, 0.08, 0.10),
    "orange": (0.98, 0.50, 0.05),
    "yellow": (1.00, 0.86, 0.10),
    "green": (0.10, 0.68, 0.20),
    "cyan": (0.10, 0.80, 0.85),
    "blue": (0.10, 0.25, 0.90),
    "purple": (0.50, 0.12, 0.75),
    "pink": (1.00, 0.45, 0.75),
}
COLOUR_NAMES = tuple(COLOURS)
FILLS = ("plain", "striped", "dotted")
SIZES = ("small", "large")
RELATIONS = ("above", "below", "left", "right")
# Diameters (small, large) by number of objects: 12 and 20 pixels of 32 for one object.
DIAMETERS = {1: (12 / 32, 20 / 32), 2: (9.5 / 32, 13.5 / 32), 3: (9 / 32, 12 / 32)}
SIZE_JITTER = 0.75 / 32  # two sizes never meet: small + jitter < large - jitter
MARGIN = 1 / 32
GAP = 1.75 / 32  # free space between the bounding squares of two objects


@dataclass(frozen=True)
class Thing:
    """One object: indices into SHAPES, COLOUR_NAMES, SIZES and FILLS, centre and diameter as fractions."""

    shape: int
    colour: int
    size: int
    fill: int
    x: float
    y: float
    diameter: float

    @property
    def words(self) -> tuple[str, str]:
        """Names of colour and shape."""
        return COLOUR_NAMES[self.colour], SHAPES[self.shape]


@dataclass(frozen=True)
class Background:
    """A linear gradient from RGB `start` to `end` (equal: a plain background) towards `angle` in radians."""

    dark: bool
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    angle: float


@dataclass(frozen=True)
class Scene:
    """`relation` is where the first of two objects lies, seen from the second; None for one or three objects."""

    things: tuple[Thing, ...]
    background: Background
    relation: str | None = None


@dataclass(frozen=True)
class Mix:
    """What scenes hold. `counts`: how often there are one, two and three objects; `fills`: how often they are plain, striped
    and dotted; `spread`: how far a single object may be from the middle, from 0 to 1, the whole picture."""

    counts: tuple[float, float, float] = (0.6, 0.3, 0.1)
    fills: tuple[float, float, float] = (0.6, 0.2, 0.2)
    spread: float = 1.0

    def __post_init__(self):
        for name in ("counts", "fills"):
            shares = getattr(self, name)
            if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
                raise ValueError(f"shapes {name}={shares}: three numbers >= 0, not all zero")
        if not 0 <= self.spread <= 1:
            raise ValueError(f"shapes spread={self.spread}: from 0, all in the middle, to 1")


def _draw_share(rng: np.random.Generator, shares: tuple[float, float, float]) -> int:
    return int(np.searchsorted(np.cumsum(shares) / sum(shares), rng.random(), side="right"))


def draw_scene(seed: int, index: int, stream: int = 0, mix: Mix = Mix()) -> tuple[Scene, str]:
    """Scene `index` of a stream and its caption."""
    rng = np.random.default_rng([seed, stream, index])
    scene = compose(rng, 1 + _draw_share(rng, mix.counts), mix)
    return scene, caption(scene, rng)


def prompts(n: int, objects: int = 1, seed: int = 0, mix: Mix = Mix()) -> list[tuple[str, Scene]]:
    """n captions with the scenes they describe, from a stream that no training picture comes from.

    Shape and colour of the first object run through all combinations equally often. With two objects the caption
    always says how they lie to each other, so that `check(image, scene)["relation"]` judges what was asked.
    """
    if objects not in DIAMETERS:
        raise ValueError(f"objects={objects}: a scene holds 1, 2 or 3 objects")
    found = []
    pairs: list[tuple[int, int]] = []
    for index in range(n):
        rng = np.random.default_rng([seed, 7919, objects, index])
        if not pairs:
            pairs = [(s, c) for s in range(len(SHAPES)) for c in range(len(COLOURS))]
            rng.shuffle(pairs)
        scene = compose(rng, objects, mix, first=pairs.pop())
        found.append((caption(scene, rng, state_relation=True), scene))
    return found


def compose(rng: np.random.Generator, count: int, mix: Mix, first: tuple[int, int] | None = None) -> Scene:
    """A random scene of `count` objects that neither touch nor repeat a (shape, colour) pair."""
    pairs: list[tuple[int, int]] = [] if first is None else [(int(first[0]), int(first[1]))]
    while len(pairs) < count:
        pair = (int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS))))
        if pair not in pairs:
            pairs.append(pair)
    relation = RELATIONS[rng.integers(4)] if count == 2 else None
    while True:
        sizes = [int(s) for s in rng.integers(2, size=count)]
        diameters = [DIAMETERS[count][s] + SIZE_JITTER * (2 * float(rng.random()) - 1) for s in sizes]
        centres = _place(rng, diameters, relation)
        if centres is not None:
            break
    if count == 1:
        centres = [tuple(0.5 + mix.spread * (c - 0.5) for c in centres[0])]
    fills = [_draw_share(rng, mix.fills) for _ in range(count)]
    things = tuple(
        Thing(shape, colour, size, fill, x, y, d)
        for (shape, colour), size, fill, (x, y), d in zip(pairs, sizes, fills, centres, diameters)
    )
    return Scene(things, _background(rng), relation)


def relation_of(x0: float, y0: float, x1: float, y1: float) -> str:
    """Where (x0, y0) lies, seen from (x1, y1): the dominant axis decides; y points down."""
    dx, dy = x0 - x1, y0 - y1
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _place(rng: np.random.Generator, diameters: list[float], relation: str | None) -> list[tuple[float, float]] | None:
    for _ in range(40):
        us = rng.random((len(diameters), 2)).tolist()
        centres = [tuple(MARGIN + d / 2 + u * (1 - 2 * MARGIN - d) for u in pair) for pair, d in zip(us, diameters)]
        if relation is not None:
            centres = _arrange(centres, diameters, relation)
        apart = all(
            max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= (da + db) / 2 + GAP
            for i, (a, da) in enumerate(zip(centres, diameters))
            for b, db in zip(centres[:i], diameters[:i])
        )
        if apart and (relation is None or _clearly(centres, relation)):
            return centres
    return None


def _arrange(centres: list, diameters: list[float], relation: str) -> list:
    """Spreads two centres over the free room along the relation's axis, in its order."""
    axis = 0 if relation in ("left", "right") else 1
    order = (0, 1) if relation in ("left", "above") else (1, 0)
    room = 1 - 2 * MARGIN - GAP - sum(diameters)
    near, far = sorted((centres[0][axis] * room, centres[1][axis] * room))
    first, second = order
    along = [0.0, 0.0]
    along[first] = MARGIN + near + diameters[first] / 2
    along[second] = MARGIN + far + diameters[first] + GAP + diameters[second] / 2
    return [(a, c[1]) if axis == 0 else (c[0], a) for a, c in zip(along, centres)]


def _clearly(centres: list, relation: str) -> bool:
    (x0, y0), (x1, y1) = centres
    along, across = sorted((abs(x0 - x1), abs(y0 - y1)), reverse=True)
    return relation_of(x0, y0, x1, y1) == relation and across <= 0.6 * along


def _background(rng: np.random.Generator) -> Background:
    dark = bool(rng.random() < 0.4)
    low, high = (0.05, 0.20) if dark else (0.78, 0.97)
    tint = 0.03 * (2 * rng.random(3) - 1)
    start, end = low + (high - low) * rng.random(2)
    if rng.random() < 0.5:
        end = start
    elif abs(start - end) < 0.6 * (high - low):
        start, end = (low, high) if start < end else (high, low)

    def colour(grey: float) -> tuple[float, float, float]:
        return tuple(float(c) for c in np.clip(grey + tint, 0, 1))

    return Background(dark, colour(start), colour(end), float(rng.random() * 2 * math.pi))


def caption(scene: Scene, rng: np.random.Generator, state_relation: bool = False) -> str:
    """One of many ways to say the scene. Colour and shape of every object are always said; size, fill, place and
    background sometimes; the relation of two objects mostly (`state_relation`: always)."""
    said = [_noun_phrase(thing, rng) for thing in scene.things]
    if len(said) == 1:
        body = said[0] + (f" {_place_words(scene.things[0])}" if rng.random() < 0.2 else "")
    elif len(said) == 2:
        if state_relation or rng.random() < 0.8:
            ways = {
                "above": ("above", "over"),
                "below": ("below", "under"),
                "left": ("to the left of", "left of"),
                "right": ("to the right of", "right of"),
            }[scene.relation]
            body = f"{said[0]} {_choice(rng, ways)} {said[1]}"
        else:
            body = f"{said[0]} {_choice(rng, ('and', 'next to'))} {said[1]}"
    else:
        body = f"{said[0]}, {said[1]} and {said[2]}"
    if rng.random() < 0.2:
        kind = "dark" if scene.background.dark else "light"
        gradient = " gradient" if scene.background.start != scene.background.end else ""
        body = f"{body} on a {kind}{gradient} background"
    if rng.random() < 0.25:
        body = f"{_choice(rng, ('a picture of', 'an image of', 'a drawing of'))} {body}"
    return body


def objects_named(text: str) -> list[tuple[str, str]]:
    """Colour and shape of every object that a caption names, in order; a shape without a colour before it has ""."""
    found, colour = [], ""
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in COLOURS:
            colour = word
        elif word in SHAPES:
            found.append((colour, word))
            colour = ""
    return found


def _noun_phrase(thing: Thing, rng: np.random.Generator) -> str:
    colour, shape = thing.words
    size = _choice(rng, (("small", "little"), ("large", "big"))[thing.size]) if rng.random() < 0.4 else ""
    fill = _choice(rng, (("plain", "solid"), ("striped",), ("dotted",))[thing.fill])
    if rng.random() < (0.8 if thing.fill == 0 else 0.3):
        fill = ""
    words = " ".join(word for word in (size, fill, colour, shape) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _place_words(thing: Thing) -> str:
    column = "left" if thing.x < 0.42 else "right" if thing.x > 0.58 else ""
    row = "top" if thing.y < 0.42 else "bottom" if thing.y > 0.58 else ""
    if row and column:
        return f"in the {row} {column}"
    if column:
        return f"on the {column}"
    return f"at the {row}" if row else "in the middle"


def _choice(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]
