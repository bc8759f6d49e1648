"""A caption as Stable Diffusion XL is told it (Podell et al. 2023, sections 2.1 and 2.2): through one or two frozen CLIP
towers, with the size and the crop of the picture that it is to look like."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import models
from ldm_jax.conditioning.condition import Setting, check_entries, check_numbers, module_of
from ldm_jax.conditioning.prompt_weights import weigh, weighted
from ldm_jax.conditioning.text import CLIPText
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import Tokenizers

PyTree = Any
# What the network is told of a picture, and in how many numbers. Sizes are (height, width), crops (top, left), in pixels.
TIME_IDS = {"original_size": 2, "crop": 2, "target_size": 2, "aesthetic_score": 1}
AESTHETIC, WORST = 6.0, 2.5  # of the picture to draw, and of what guidance steers away from


class XLText(CLIPText):
    """Token numbers int32 [B, T, L], a row for each of T towers -> context [B, L, D], the towers' last but one layers side by
    side; and vector [B, V], the last tower's projected text beside sinusoids of the numbers `sizes`.

    inputs are {"tokens", "sizes" float32 [B, N], "kept" float32 [B]}: `kept` 0 puts zeros in place of all text, which is the
    empty condition of models with `zero_empty`. With "embedded" [B, N dim] instead of sizes, the sinusoids are given. A user
    gives a prompt, or {"prompt": ..., "original_size": (height, width), "crop": (top, left), "target_size": (height, width)};
    "prompt_2" is another one for the second tower. Sizes are by default the training size.

    config.conditioner: `towers`, the fields of each by name; `time_ids`, which of `TIME_IDS` the network is told, in order;
    `time_embed_dim`, the width of a number's sinusoids.
    """

    kind = "sdxl"
    required = ("path", "tokenizer")
    told_sizes = True
    guidance_scale = 5.0

    def __init__(self, section: Mapping[str, Any], setting: Setting):
        super().__init__(section, setting)
        self.time_ids = tuple(section["time_ids"])

    @functools.cached_property
    def modules(self) -> dict[str, Any]:
        """The towers, by name."""
        dtype = self.setting.dtype
        return {name: module_of(models.CLIPText, fields, dtype=dtype) for name, fields in self.section["towers"].items()}

    @property
    def module(self) -> Any:
        """The last tower, whose projected text is told as well."""
        return list(self.modules.values())[-1]

    @property
    def inputs(self):
        numbers = sum(TIME_IDS[name] for name in self.time_ids)
        shapes = {"tokens": ((1, len(self.modules), self.length), np.int32), "sizes": ((1, numbers), np.float32)}
        return {name: jax.ShapeDtypeStruct(*of) for name, of in (shapes | {"kept": ((1,), np.float32)}).items()}

    def init(self, key):
        tokens = jax.ShapeDtypeStruct((1, self.length), np.int32)
        keys = jax.random.split(key, len(self.modules))
        return {name: models.initialize(tower, k, tokens) for k, (name, tower) in zip(keys, self.modules.items())}

    def apply(self, params, inputs):
        tokens = inputs["tokens"]
        found = [tower.apply({"params": params[name]}, tokens[:, i]) for i, (name, tower) in enumerate(self.modules.items())]
        context = jnp.concatenate([features.hidden_states[-2] for features in found], axis=-1)
        if "weights" in inputs:
            context = weigh(context, inputs["weights"])
        embedded = inputs["embedded"] if "embedded" in inputs else self._sinusoids(inputs["sizes"])
        kept = inputs["kept"]
        vector = jnp.concatenate([(found[-1].embeds * kept[:, None]).astype(jnp.float32), embedded], axis=-1)
        return {"context": context * kept[:, None, None].astype(context.dtype), "vector": vector}

    def _sinusoids(self, sizes: jax.Array) -> jax.Array:
        told = {name: self.setting.network[name] for name in ("flip_sin_to_cos", "freq_shift") if name in self.setting.network}
        return models.text_time_vector(sizes[:, :0], sizes, self.section["time_embed_dim"], **told)

    @functools.cached_property
    def null(self) -> PyTree:
        zeros = self.section.get("zero_empty", True)
        if not zeros and self.setting.tokenizer is None:
            return None
        tokens = np.zeros((len(self.modules), self.length), np.int32) if zeros else self.tokenize("")
        sizes = self._sizes({"aesthetic_score": WORST} if "aesthetic_score" in self.time_ids else {})
        return {"tokens": tokens[None], "sizes": sizes[None], "kept": np.full(1, 0.0 if zeros else 1.0, np.float32)}

    def nulls(self, n, size=None, like=None):
        found = super().nulls(n, size, like)
        if like is None:
            return found
        embedded = like["vector"][:, self.module.projection_dim :]  # the sizes that the picture itself is told
        if "aesthetic_score" in self.time_ids:
            dim = self.section["time_embed_dim"]
            worst = self._sinusoids(jnp.asarray(found["sizes"]))[:, -dim:]
            embedded = jnp.concatenate([embedded[:, :-dim], jnp.broadcast_to(worst, (len(embedded), dim))], axis=-1)
        return {name: value for name, value in found.items() if name != "sizes"} | {"embedded": embedded}

    def _sizes(self, given: Mapping[str, Any]) -> np.ndarray:
        """The numbers of `time_ids`: what is given, else the training size, no crop and a good score."""
        full = tuple(self.setting.image_size)
        usual = {"target_size": full, "original_size": given.get("target_size", full), "crop": (0, 0)}
        usual["aesthetic_score"] = AESTHETIC
        numbers = []
        for name in self.time_ids:
            value = np.asarray(given.get(name, usual[name]), np.float32).reshape(-1)
            if value.shape != (TIME_IDS[name],) or not np.isfinite(value).all():
                raise ValueError(f"{name}={given.get(name)!r}: {TIME_IDS[name]} finite number{'s' * (TIME_IDS[name] > 1)}")
            numbers.append(value)
        return np.concatenate(numbers)

    @property
    def _tokenizer(self):
        tokenizer, size = self.setting.tokenizer, min(tower.vocab_size for tower in self.modules.values())
        if tokenizer is not None and tokenizer.vocab_size > size:
            raise ValueError(f"config.conditioner.towers: one knows {size} tokens; the tokenizer has {tokenizer.vocab_size}")
        return tokenizer

    @property
    def takes(self) -> str:
        if self._tokenizer is None:
            rows, length = len(self.modules), self.length
            return (
                f"a dict of arrays, tokens int32 [B, {rows}, {length}], sizes float32 [B, "
                f"{sum(TIME_IDS[name] for name in self.time_ids)}] ({', '.join(self.time_ids)}) and kept float32 [B], 1 each, "
                "because no tokenizer was found. For prompts, put its files (tokenizer.json; or vocab.json and merges.txt) "
                "into the model's folder, or into a folder `tokenizer` there"
            )
        return f"{super().takes}, or a dict of prompt, {', '.join(self.time_ids)}"

    def parse(self, values: Sequence[Any]) -> PyTree:
        if self._tokenizer is None:
            raise ValueError(f"this model takes {self.takes}")
        given = [value if isinstance(value, Mapping) else {"prompt": value} for value in values]
        known = ("prompt", "prompt_2", *self.time_ids)
        for value in given:
            prompts = [value.get("prompt"), value.get("prompt_2", "")]
            if unknown := [name for name in value if name not in known] or [p for p in prompts if not isinstance(p, str)]:
                raise ValueError(f"{unknown[0]!r}: this model takes {self.takes}; a prompt is a str")
        firsts = [value["prompt"] for value in given]
        first = self._tokenizer.parts[0]
        plain, weights = weighted(firsts, lambda text: first.encode_one(text, self.length))
        seconds = [value.get("prompt_2", text) for value, text in zip(given, plain)]
        tokens = np.stack([self._tokenizer.encode_several(pair, self.length, strict=True) for pair in zip(plain, seconds)])
        sizes = np.stack([self._sizes(value) for value in given])
        inputs = {"tokens": tokens, "sizes": sizes, "kept": np.ones(len(given), np.float32)}
        return inputs if weights is None else inputs | {"weights": weights}

    def check_inputs(self, inputs):
        there = inputs if isinstance(inputs, Mapping) else ()
        told = "embedded" if "embedded" in there else "sizes"
        check_entries(inputs, "tokens", told, "kept", *(["weights"] if "weights" in there else []))
        most = min(tower.vocab_size for tower in self.modules.values())
        check_numbers(inputs["tokens"], ("B", len(self.modules), "L"), most, "tokens")

    def told(self, value, size, negative=None):
        of_picture = {"original_size": tuple(size), "target_size": tuple(size)}
        if negative is not None:
            of_picture["aesthetic_score"] = WORST
        prompt = {"prompt": super().told(value, size, negative)}
        return prompt | {name: number for name, number in of_picture.items() if name in self.time_ids}

    def from_batch(self, batch):
        """Training pictures are told as they are shown: of the training size, not cropped."""
        n = len(batch["tokens"])
        sizes = np.repeat(self._sizes({})[None], n, axis=0)
        return {"tokens": batch["tokens"], "sizes": sizes, "kept": np.ones(n, np.float32)}

    @classmethod
    def recall(cls, section, folder):
        pads = [fields.get("pad_token_id") for fields in section["towers"].values()]
        paths = section["tokenizer"]
        paths = [paths] * len(pads) if isinstance(paths, str) else paths
        return {"tokenizer": Tokenizers(tuple(checkpoint_tokenizers.load(path, pad) for path, pad in zip(paths, pads)))}
