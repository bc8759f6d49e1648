"""What embeds pictures and texts: a contrastive probe, or CLIP."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import models, probes, weights
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import Tokenizer
from ldm_jax.primitives.arrays import unit


class Embedder(Protocol):
    """Pictures [N, H, W, 3] in [-1, 1], or texts, to unit vectors [N, D]. `size`: what pictures are best given at."""

    size: tuple[int, int]

    def __call__(self, images: np.ndarray) -> np.ndarray: ...

    def words(self, texts: Sequence[str]) -> np.ndarray: ...


def load_embedder(path: str | Path) -> Embedder:
    """A contrastive probe, or CLIP from a folder of transformers. ValueError or FileNotFoundError for anything else."""
    path = Path(path)
    if probes.is_probe(path):
        kind = probes.described(path)["kind"]
        if kind != "contrastive":
            raise ValueError(f"{path} is a {kind}; pictures are embedded by a contrastive probe")
        return probes.load(path)
    if (path / "config.json").is_file():
        return load_clip(path)
    raise FileNotFoundError(
        f"{path} is neither a probe (python -m ldm_jax.probes train --kind contrastive) nor a folder of CLIP"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """CLIP's towers as an embedder; `text` and `tokenizer` are None where the folder has none."""

    image: Any
    image_params: Any
    text: Any = None
    text_params: Any = None
    tokenizer: Tokenizer | None = None

    @property
    def size(self) -> tuple[int, int]:
        return (self.image.image_size,) * 2

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return probes.in_parts(functools.partial(self._look, self.image_params), probes.seen(images))

    def words(self, texts: Sequence[str]) -> np.ndarray:
        if self.text is None or self.tokenizer is None:
            raise ValueError("this CLIP has no text tower, or no tokenizer beside it: query with pictures")
        tokens = self.tokenizer.encode(texts, self.text.max_position_embeddings)
        return probes.in_parts(functools.partial(self._read, self.text_params), tokens)

    @functools.partial(jax.jit, static_argnums=0)
    def _look(self, params: Any, images: jax.Array) -> jax.Array:
        images = jnp.clip(jax.image.resize(images, (len(images), *self.size, 3), "cubic"), -1, 1)
        return unit(self.image.apply({"params": params}, models.clip_normalize(images)).embeds)

    @functools.partial(jax.jit, static_argnums=0)
    def _read(self, params: Any, tokens: jax.Array) -> jax.Array:
        return unit(self.text.apply({"params": params}, tokens).embeds)


def load_clip(path: Path) -> Clip:
    """CLIP from a folder of transformers; without a text tower or its tokenizer it embeds pictures alone."""
    towers = {
        name: (fields, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), params))
        for name, (fields, params) in weights.read_clip(path).items()
    }
    fields, params = towers["image"]
    clip = Clip(models.CLIPVision(**fields), params)
    if "text" not in towers or not checkpoint_tokenizers.found_in(path):
        return clip
    fields, params = towers["text"]
    tokenizer = checkpoint_tokenizers.load(path)
    return dataclasses.replace(clip, text=models.CLIPText(**fields), text_params=params, tokenizer=tokenizer)
