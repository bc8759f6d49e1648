"""A trained probe: what it says of pictures and texts, and its folder.

PROBE/probe.json, tokenizer.json, checkpoints/
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import models
from ldm_jax.data.tokenizer import Tokenizer, load_tokenizer
from ldm_jax.primitives.files import read_json, write_json
from ldm_jax.training.checkpoint import load_averaged

PyTree = Any
KINDS = {"classifier": models.Classifier, "segmenter": models.Segmenter, "contrastive": models.DualEncoder}
AT_ONCE = 64  # pictures looked at in one call of the network
FAR = 16.0  # beyond it are pixels from 0 to 255; what is drawn exceeds 1 a little
NAMES = ("probe.json", "judge.json")  # the second is what earlier versions wrote


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A trained network with what it needs to be used. `size`: (height, width) it was trained at, to which pictures of other
    sizes are brought; `options`: the network's fields; `measured`: what it got right on pictures it was not trained on."""

    kind: str
    size: tuple[int, int]
    options: Mapping[str, Any]
    params: PyTree
    class_names: tuple[str, ...] | None = None
    tokenizer: Tokenizer | None = None
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Pictures [N, H, W, 3] in [-1, 1] -> what this kind says of them. ValueError as of `seen`."""
        return in_parts(functools.partial(self._look, self.params), seen(images))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Pictures -> what a classifier reads its logits from, [N, D], for distances between sets of pictures."""
        if self.kind != "classifier":
            raise ValueError(f"features are a classifier's; this probe is a {self.kind}")
        return in_parts(functools.partial(self._read_off, self.params), seen(images))

    def words(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> unit vectors [N, D]. ValueError for a probe that learnt no captions."""
        if self.tokenizer is None:
            raise ValueError(f"this probe ({self.kind}) knows no words: train a contrastive one on pictures with captions")
        tokens = self.tokenizer.encode(texts, self.options["max_seq_len"])
        return in_parts(functools.partial(self._read, self.params), tokens)

    @functools.cached_property
    def network(self) -> Any:
        """The Linen module."""
        return KINDS[self.kind](**self.options)

    @functools.partial(jax.jit, static_argnums=0)
    def _look(self, params: PyTree, images: jax.Array) -> jax.Array:
        if self.kind == "contrastive":
            return self.network.apply({"params": params}, self._sized(images), method="image")
        logits = self.network.apply({"params": params}, self._sized(images))
        return jax.nn.softmax(logits) if self.kind == "classifier" else logits.argmax(-1)

    @functools.partial(jax.jit, static_argnums=0)
    def _read_off(self, params: PyTree, images: jax.Array) -> jax.Array:
        return self.network.apply({"params": params}, self._sized(images), method="features")

    def _sized(self, images: jax.Array) -> jax.Array:
        if images.shape[1:3] == self.size:
            return images
        return jax.image.resize(images, (len(images), *self.size, images.shape[-1]), "bilinear")

    @functools.partial(jax.jit, static_argnums=0)
    def _read(self, params: PyTree, tokens: jax.Array) -> jax.Array:
        return self.network.apply({"params": params}, tokens, method="text")


def seen(images: np.ndarray) -> np.ndarray:
    """Pictures as a network looks at them, float32. ValueError for whole numbers (pixels of 8 bits), numbers far beyond [-1, 1]
    or not finite, another rank than [N, H, W, C], and none at all: a network would say something of those, too."""
    images = np.asarray(images)
    if images.ndim != 4 or not images.size or images.dtype.kind in "iubcOSU":
        raise ValueError(f"pictures of {images.dtype}{list(images.shape)}: expected floating-point [N, H, W, C] in [-1, 1]")
    images = images.astype(np.float32)
    if not np.abs(images).max() <= FAR:
        raise ValueError(f"pictures with numbers from {images.min():g} to {images.max():g}: expected [-1, 1]")
    return images


def in_parts(look: Callable[[np.ndarray], jax.Array], rows: np.ndarray) -> np.ndarray:
    """`look` at a fixed number of rows at a time, so that it is compiled once."""
    found = []
    for start in range(0, len(rows), AT_ONCE):
        numbers = np.minimum(np.arange(start, start + AT_ONCE), len(rows) - 1)
        found.append(np.asarray(look(rows[numbers]))[: len(rows) - start])
    return np.concatenate(found)


def is_probe(path: str | Path) -> bool:
    """Whether the folder holds a probe."""
    return any((Path(path) / name).is_file() for name in NAMES)


def described(path: str | Path) -> dict[str, Any]:
    """What a probe's folder says of it: kind, size, options, class_names, measured. FileNotFoundError if there is none."""
    for name in NAMES:
        if (Path(path) / name).is_file():
            return read_json(Path(path) / name, "Train the probe again.")
    raise FileNotFoundError(f"{path} holds no probe: train one with python -m ldm_jax.probes train --out {path}")


def load(path: str | Path) -> Probe:
    """A probe from the folder that `train` wrote. FileNotFoundError or ValueError if there is none."""
    path = Path(path)
    said = described(path)
    names = tuple(said["class_names"]) if said["class_names"] else None
    tokenizer = load_tokenizer(path / "tokenizer.json") if (path / "tokenizer.json").is_file() else None
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in said["options"].items()}
    params = load_averaged(path / "checkpoints")
    return Probe(said["kind"], tuple(said["size"]), options, params, names, tokenizer, said["measured"])


def write(probe: Probe, out: Path) -> None:
    """Everything but the weights. ValueError if there is another probe."""
    said = {name: getattr(probe, name) for name in ("kind", "size", "options", "class_names")}
    said |= {"measured": dict(probe.measured)}
    if is_probe(out) and {**described(out), "measured": {}} != {**json.loads(json.dumps(said)), "measured": {}}:
        raise ValueError(f"{out} holds another probe; choose another folder, or remove it first")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "probe.json", said)
    if probe.tokenizer is not None:
        probe.tokenizer.save(out / "tokenizer.json")
