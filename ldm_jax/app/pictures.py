"""Settings -> pictures that say how they were drawn, and films. One drawing at a time, whoever asks."""

import dataclasses
import threading
from collections.abc import Mapping

import jax
import numpy as np

from ldm_jax.api import LatentDiffusion
from ldm_jax.app.settings import Settings, check, flags_of, offer, program_of
from ldm_jax.app.uploads import Picture
from ldm_jax.drawing import Drawn, draw, records, trajectory
from ldm_jax.pictures import encoded, encoded_film
from ldm_jax.training.metrics import to_uint8

MOST_WAITING = 16


@dataclasses.dataclass(frozen=True)
class Shot:
    """A picture: its PNG with the text chunks `texts`, as sample.py writes it, and its pixels under the file's name."""

    picture: Picture
    png: bytes
    texts: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Made:
    """What settings gave; `film`: a GIF of it, or None."""

    shots: tuple[Shot, ...]
    film: bytes | None


def make(ldm: LatentDiffusion, settings: Settings) -> Made:
    """Draws. ValueError in one sentence for what can't be drawn, before anything is compiled."""
    flags, picture = flags_of(offer(ldm), settings), settings.picture
    held = {} if picture is None else {picture.name: picture.scaled}
    if "mask" in flags:
        held[flags["mask"]] = settings.mask
    # the plain number 1 would be another program, without the half that is led away from
    one = flags["guidance_scale"] == 1 and "negative" not in flags
    asked = flags | ({"guidance_scale": np.float32(1)} if one else {})
    film = None
    if settings.task == "trajectory":
        drawn = trajectory(ldm, asked)
        film = encoded_film(drawn.images, 1500 // len(drawn.images) + 40, back=False, hold=1500)
        drawn = Drawn(drawn.images[-1:], drawn.words, 1)
    else:
        drawn = draw(ldm, asked, held)
    if drawn.film:
        film = encoded_film(drawn.images)
    shots = [
        Shot(Picture(f"{settings.task}_{settings.seed}_{i:04d}.png", pixels), encoded(pixels, texts), texts)
        for i, (pixels, texts) in enumerate(zip(to_uint8(drawn.images), records(ldm, flags, drawn), strict=True))
    ]
    return Made(tuple(shots), film)


class Studio:
    """A model that many ask at once: drawings come one after the other, and what was compiled is remembered."""

    def __init__(self, ldm: LatentDiffusion):
        self.ldm, self.offer = ldm, offer(ldm)
        self._drawing, self._counting = threading.Lock(), threading.Lock()
        self._asked, self._compiled = 0, set()

    @property
    def asked(self) -> int:
        """How many drawings are under way or waiting."""
        return self._asked

    def compiles(self, settings: Settings) -> bool:
        """Whether these settings need a program that this studio hasn't made yet. ValueError as `make`."""
        check(self.offer, settings)
        return program_of(self.offer, settings) not in self._compiled

    def make(self, settings: Settings) -> Made:
        """`make`, when those who asked before have theirs. ValueError also where too many wait, and where the device has no
        memory for so many pictures."""
        with self._counting:
            if self._asked >= MOST_WAITING:
                raise ValueError(f"{MOST_WAITING} drawings are waiting already: try again in a while")
            self._asked += 1
        try:
            with self._drawing:
                made = make(self.ldm, settings)
                self._compiled.add(program_of(self.offer, settings))
                return made
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ValueError(f"the device has too little memory for {settings.num} pictures at once: choose fewer") from error
        finally:
            with self._counting:
                self._asked -= 1
