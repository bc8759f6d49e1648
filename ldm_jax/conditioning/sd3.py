"""A caption as Stable Diffusion 3 is told it (Esser et al. 2024, section 4 and appendix B.3): through two frozen CLIP towers
and, where it is there, T5's encoder."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import models
from ldm_jax.conditioning.condition import check_numbers, module_of
from ldm_jax.conditioning.text import CLIPText
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.tokenizer import Tokenizers

PyTree = Any
T5 = "text_encoder_3"  # what the tower that may be missing is called


class SD3Text(CLIPText):
    """Token numbers int32 [B, T, L], a row for each of T towers, of which CLIP's read as many as they know -> context
    [B, 77 + max_sequence_length, D], CLIP's last but one layers side by side with zeros up to D, and behind them T5's tokens,
    or zeros without it; and vector [B, V], both CLIP towers' projected text side by side.

    A user gives a prompt, or {"prompt": ..., "prompt_2": ..., "prompt_3": ...}: another one for the second and the third tower.
    "(word:1.3)" is read as it stands. The empty condition is the empty prompt.

    config.conditioner: `towers`, the fields of each by name, T5's last; `max_sequence_length`, how many tokens of T5 there are.
    """

    kind = "sd3"
    required = ("path", "tokenizer")
    guidance_scale = 7.0

    @functools.cached_property
    def modules(self) -> dict[str, Any]:
        """The towers, by name."""
        dtype = self.setting.dtype
        return {
            name: module_of(models.T5Encoder if name == T5 else models.CLIPText, fields, dtype=dtype)
            for name, fields in self.section["towers"].items()
        }

    @property
    def module(self) -> Any:
        """The first tower."""
        return next(iter(self.modules.values()))

    @property
    def lengths(self) -> list[int]:
        """How many tokens each tower reads."""
        rest = self.section["max_sequence_length"]
        return [rest if name == T5 else tower.max_position_embeddings for name, tower in self.modules.items()]

    @property
    def length(self) -> int:
        return max(self.lengths)

    @property
    def inputs(self):
        return jax.ShapeDtypeStruct((1, len(self.modules), self.length), np.int32)

    def init(self, key):
        keys = jax.random.split(key, len(self.modules))
        tokens = [jax.ShapeDtypeStruct((1, length), np.int32) for length in self.lengths]
        towers = zip(keys, self.modules.items(), tokens)
        return {name: models.initialize(tower, k, ids) for k, (name, tower), ids in towers}

    def apply(self, params, inputs):
        found = {
            name: tower.apply({"params": params[name]}, inputs[:, i, :length])
            for i, ((name, tower), length) in enumerate(zip(self.modules.items(), self.lengths))
        }
        t5, clip = found.pop(T5, None), list(found.values())
        words = jnp.concatenate([features.hidden_states[-2] for features in clip], axis=-1)
        width = self.setting.network["context_dim"]
        words = jnp.pad(words, [(0, 0), (0, 0), (0, width - words.shape[-1])])
        if t5 is None:
            t5 = jnp.zeros((len(words), self.section["max_sequence_length"], width), words.dtype)
        vector = jnp.concatenate([features.embeds for features in clip], axis=-1)
        return {"context": jnp.concatenate([words, t5], axis=1), "vector": vector}

    def _rows(self, texts: Sequence[str], strict: bool = False) -> np.ndarray:
        """int32 [T, L], from a text for each tower."""
        rows = np.zeros((len(self.modules), self.length), np.int32)
        for row, tokenizer, text, length in zip(rows, self._tokenizer.parts, texts, self.lengths):
            row[:length] = tokenizer.encode_one(text, length, strict)
        return rows

    @property
    def _tokenizer(self):
        tokenizer = self.setting.tokenizer
        if tokenizer is not None:
            for (name, tower), part in zip(self.modules.items(), tokenizer.parts, strict=True):
                if part.vocab_size > tower.vocab_size:
                    known, size = tower.vocab_size, part.vocab_size
                    raise ValueError(f"config.conditioner.towers: {name} knows {known} tokens; the tokenizer has {size}")
        return tokenizer

    @property
    def tokenize(self):
        if self._tokenizer is None:
            return None
        return lambda text: self._rows([text] * len(self.modules))

    @property
    def takes(self) -> str:
        rows = len(self.modules)
        if self._tokenizer is None:
            return (
                f"tokens as an array, int32 [B, {rows}, {self.length}], because no tokenizers were found. For prompts, put "
                "their files (tokenizer.json; or vocab.json and merges.txt for CLIP) into folders `tokenizer`, `tokenizer_2` "
                "and, for T5, `tokenizer_3` of the model's folder"
            )
        others = ", ".join(f"prompt_{i}" for i in range(2, rows + 1))
        return f"a prompt of at most {min(self.lengths) - 2} word pieces, or a dict of prompt, {others}"

    def parse(self, values):
        if self._tokenizer is None:
            raise ValueError(f"this model takes {self.takes}")
        names = ["prompt", *(f"prompt_{i}" for i in range(2, len(self.modules) + 1))]
        rows = []
        for value in values:
            given = value if isinstance(value, Mapping) else {"prompt": value}
            known = "prompt" in given and {*given} <= {*names}
            if not known or not all(isinstance(prompt, str) for prompt in given.values()):
                raise ValueError(f"{value!r}: this model takes {self.takes}; a prompt is a str")
            rows.append(self._rows([given.get(name, given["prompt"]) for name in names], strict=True))
        return np.stack(rows)

    def check_inputs(self, inputs):
        most = max(tower.vocab_size for tower in self.modules.values())
        check_numbers(inputs, ("B", len(self.modules), self.length), most, "tokens")

    @classmethod
    def recall(cls, section, folder):
        towers = section["towers"].values()
        pairs = zip(section["tokenizer"], towers, strict=True)
        return {"tokenizer": Tokenizers(tuple(checkpoint_tokenizers.load(path, of.get("pad_token_id")) for path, of in pairs))}
