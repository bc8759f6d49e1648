"""A sentence with holes, for models of text: the known words are given, the rest is drawn."""

import functools
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax import models
from ldm_jax.conditioning.condition import Condition, check_numbers, module_of
from ldm_jax.data.tokenizer import END, TEXT_TOKENIZER, load_tokenizer
from ldm_jax.primitives.flags import of_condition

HOLE, REST = "___", "..."
_TAILS = 0.25  # of the training sentences that end in a hole of unknown length


class Infilling(Condition):
    """int32 [B, N], the tokens of a sentence with `vocab_size` in place of those that are not known -> context [B, N, D], by a
    transformer that is trained with the network.

    A user writes "the ___ dog sleeps.": ___ (two or more _) is one word to draw, and ... at the end that anything may follow.
    The empty condition knows no place. In training each word is a hole with a probability that is drawn for the sentence; in
    a quarter of the sentences so is all from some word on.
    """

    kind = "infill"
    flags = of_condition("infill")
    required = ("vocab_size", "n_embed", "n_layer")
    abilities = ("sample", "variation")
    of_pictures = True
    of_text = True
    guidance_scale = 1.0

    @functools.cached_property
    def module(self) -> Any:
        (length,) = self.setting.image_size
        known = {"vocab_size": self.section["vocab_size"] + 1, "max_seq_len": length, "dtype": self.setting.dtype}
        return module_of(models.TransformerEmbedder, self.section | known)

    @property
    def hole(self) -> int:
        """The token of what is not known."""
        return self.section["vocab_size"]

    @functools.cached_property
    def null(self) -> np.ndarray:
        return np.full((1, *self.setting.image_size), self.hole, np.int32)

    def apply(self, params, inputs):
        return {"context": self.module.apply({"params": params}, inputs)}

    @property
    def takes(self) -> str:
        most = self.setting.image_size[0] - 2
        return f"a sentence of at most {most} words, {HOLE} for each that is to be drawn, and {REST} at its end for any more"

    @property
    def _tokenizer(self) -> Any:
        if self.setting.tokenizer is None:
            raise ValueError(f"the vocabulary of this model is not known: its working directory has no {TEXT_TOKENIZER}")
        return self._fitting(self.setting.tokenizer)

    def _fitting(self, tokenizer: Any) -> Any:
        """The tokenizer, if the hole is none of its tokens."""
        if tokenizer.vocab_size > self.hole:
            raise ValueError(f"config.conditioner.vocab_size={self.hole}: the vocabulary has {tokenizer.vocab_size} tokens")
        return tokenizer

    def parse(self, values):
        return np.stack([self._parse_one(value) for value in values])

    def _parse_one(self, text: str) -> np.ndarray:
        if not isinstance(text, str):
            raise ValueError(f"a sentence is a str, this is {type(text).__name__}; this model takes {self.takes}")
        length, said = self.setting.image_size[0], text.strip()
        free = said.endswith(REST)
        pieces = re.split(r"_{2,}", said.removesuffix(REST))
        if len(pieces) == 1 and not free:
            raise ValueError(f"{text!r} has no hole: this model takes {self.takes}")
        tokens: list[int] = []
        for i, piece in enumerate(pieces):
            row = self._tokenizer.encode_one(piece, len(piece) + 2, strict=True)
            tokens += [self.hole] * bool(i) + row[1 : row.tolist().index(END)].tolist()
        if len(tokens) > length - 2:
            raise ValueError(f"{text!r} has {len(tokens)} words and holes, {len(tokens) - (length - 2)} more than fit")
        row = self._tokenizer.encode_one("", length)
        row[1 : 1 + len(tokens)], row[1 + len(tokens)], row[2 + len(tokens) :] = tokens, END, self._tokenizer.pad
        if free:
            row[1 + len(tokens) :] = self.hole
        return row

    def check_inputs(self, inputs):
        check_numbers(inputs, ("B", *self.setting.image_size), self.hole + 1, "tokens")

    def from_batch(self, batch):
        return batch["known"]

    def task(self):
        return functools.partial(with_holes, hole=self.section["vocab_size"])

    def check(self):
        if len(self.setting.image_size) != 1:
            raise ValueError("config.conditioner.kind='infill' is of text: config.data.medium='text'")
        super().check()

    def learn(self, source, folder: Path) -> None:
        """Nothing: the vocabulary is the data's, which the medium has learnt. ValueError where it has more tokens than fit."""
        self._fitting(load_tokenizer(folder / TEXT_TOKENIZER))

    @classmethod
    def recall(cls, section: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        return {} if folder is None else {"tokenizer": load_tokenizer(folder / TEXT_TOKENIZER)}

    def in_words(self, row, info) -> str:
        """What of a row's text is known when nothing is random, as in validation."""
        tokens = self._tokenizer.encode_one(row["text"], self.setting.image_size[0])
        rng = np.random.default_rng(zlib.crc32(row["name"].encode()))  # as `data.transform.of_task` draws
        return self.say(with_holes({"image": tokens[:, None]}, rng, self.hole)["known"])

    def say(self, tokens: np.ndarray) -> str:
        """Known tokens and holes [N] as a user would write them."""
        tokens = tokens.tolist()
        rest = tokens[-1] == self.hole
        tokens = tokens[: tokens.index(END)] if END in tokens else tokens
        while rest and tokens and tokens[-1] == self.hole:
            tokens.pop()
        words = [HOLE if token == self.hole else self._tokenizer.decode(np.array([token])) for token in tokens]
        return " ".join([*filter(None, words), *([REST] if rest else [])])

    def kept_words(self, inputs: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
        """Of known tokens and holes [B, N] and drawn tokens [B, N, 1]: the share of the known words that stand where they
        stood, and, of the sentences that have any, the share of those which keep all. Begin, end and padding are no words."""
        tokens = np.rint(np.asarray(drawn)[..., 0]).astype(np.int64)
        words = (np.asarray(inputs) != self.hole) & (np.asarray(inputs) > END)
        right = words & (tokens == inputs)
        told = words.any(-1)
        all_kept = told & (right == words).all(-1)
        return {"kept": float(right.sum() / max(words.sum(), 1)), "kept_all": float(all_kept.sum() / max(told.sum(), 1))}

    def read(self, given):
        return list(given["infill"]), list(given["infill"])


def with_holes(example: Mapping[str, Any], rng: np.random.Generator, hole: int) -> dict[str, np.ndarray]:
    """{"known": int32 [N]} of an example's tokens "image" [N, 1]."""
    tokens = np.rint(example["image"][:, 0]).astype(np.int32)
    words = tokens > END
    holes = words & (rng.random(len(tokens)) < rng.random())
    if rng.random() < _TAILS:
        holes[int(rng.integers(1, max(words.sum(), 1) + 1)) :] = True
    return {"known": np.where(holes, np.int32(hole), tokens)}
