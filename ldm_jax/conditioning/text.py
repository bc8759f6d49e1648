"""A caption: "text" through the paper's transformer, trained with the network; "clip_text" through CLIP's frozen encoder."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import models
from ldm_jax.conditioning.condition import ABILITIES, Condition, check_entries, check_numbers, module_of
from ldm_jax.conditioning.prompt_weights import weigh, weighted
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.data.text_files import is_whole
from ldm_jax.data.tokenizer import KINDS, caption_texts, load_tokenizer, train_tokenizer
from ldm_jax.primitives.choices import check_choice, did_you_mean
from ldm_jax.primitives.flags import of_condition


class Text(Condition):
    """Token numbers int32 [B, L] -> context [B, L, D]; the empty caption is the null. Training captions are cut where they are
    too long; a user's prompts are refused then, and where they hold what the model can't know. In prompts, "(word:1.3)" weighs
    a part; then inputs are {"tokens", "weights" float32 [B, L]}."""

    kind = "text"
    columns = ("caption",)
    required = ("tokenizer",)
    flags = of_condition("prompt")
    companions = of_condition("negative")
    abilities = ABILITIES
    guidance_scale = 5.0

    @functools.cached_property
    def module(self) -> Any:
        return module_of(models.TransformerEmbedder, self.section, dtype=self.setting.dtype)

    @property
    def length(self) -> int:
        """L, the tokens of a prompt."""
        return self.module.max_seq_len

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, self.length), np.int32)

    @functools.cached_property
    def null(self) -> np.ndarray | None:
        return None if self.setting.tokenizer is None else self.tokenize("")[None]

    def _encode(self, params, tokens: jax.Array) -> jax.Array:
        return self.module.apply({"params": params}, tokens)

    def apply(self, params, inputs):
        if isinstance(inputs, Mapping):
            return {"context": weigh(self._encode(params, inputs["tokens"]), inputs["weights"])}
        return {"context": self._encode(params, inputs)}

    @property
    def _tokenizer(self) -> Any:
        tokenizer, size = self.setting.tokenizer, self.module.vocab_size
        if tokenizer is not None and tokenizer.vocab_size > size:
            raise ValueError(f"config.conditioner.vocab_size={size}: the tokenizer has {tokenizer.vocab_size} tokens")
        return tokenizer

    @property
    def tokenize(self):
        tokenizer, length = self._tokenizer, self.length
        return None if tokenizer is None else functools.partial(_tokenize, tokenizer, length)

    @property
    def takes(self) -> str:
        if self._tokenizer is not None:
            return f"a prompt of at most {self.length - 2} words or word pieces"
        return (
            f"tokens as an array, int32 [B, {self.length}], because no tokenizer was found. For prompts, put its files into "
            "the model's folder, or into a folder `tokenizer` there: tokenizer.json; or vocab.json and merges.txt (CLIP); or "
            "vocab.txt (BERT)"
        )

    def parse(self, values):
        if self._tokenizer is None:
            raise ValueError(f"this model takes {self.takes}")
        if wrong := [value for value in values if not isinstance(value, str)]:
            raise ValueError(f"a prompt is a str, this is {type(wrong[0]).__name__}; this model takes {self.takes}")
        if broken := [value for value in values if not is_whole(value)]:
            raise ValueError(f"prompt {broken[0]!r}: it has half of a character; write it as UTF-8")
        plain, weights = weighted(list(values), self.tokenize)
        tokens = np.stack([self._tokenizer.encode_one(prompt, self.length, strict=True) for prompt in plain])
        return tokens if weights is None else {"tokens": tokens, "weights": weights}

    def check_inputs(self, inputs):
        tokens = inputs
        if isinstance(inputs, Mapping):
            check_entries(inputs, "tokens", "weights")
            tokens, weights = inputs["tokens"], inputs["weights"]
            if np.shape(weights) != np.shape(tokens):
                raise ValueError(f"weights of shape {np.shape(weights)} for tokens of {np.shape(tokens)}: one a token")
        check_numbers(tokens, ("B", "L"), self.module.vocab_size, "tokens")

    def from_batch(self, batch):
        return batch["tokens"]

    def check(self):
        super().check()
        kind = str(self.section["tokenizer"])
        if Path(kind).suffix != ".json" and kind not in KINDS:
            near = did_you_mean(kind, KINDS)
            raise ValueError(
                f"config.conditioner.tokenizer={kind!r}: give {' or '.join(KINDS)}, which are made of the captions, or the "
                f"path of a tokenizer.json.{near}"
            )

    def check_files(self, folder):
        kind = str(self.section["tokenizer"])
        if Path(kind).suffix == ".json" and not (folder / "tokenizer.json").is_file():
            if not Path(kind).is_file():
                raise FileNotFoundError(
                    f"config.conditioner.tokenizer={kind!r}: there is no such file; name another one, or {' or '.join(KINDS)}, "
                    "which are made of the captions"
                )
            load_tokenizer(kind)

    def learn(self, source, folder: Path) -> None:
        path, kind = folder / "tokenizer.json", self.section["tokenizer"]
        if path.is_file():
            return
        if Path(kind).suffix == ".json":
            tokenizer = load_tokenizer(kind)
        else:
            tokenizer = train_tokenizer(caption_texts(source), kind, self.section["vocab_size"])
        for word in self.section.get("new_words", ()):
            tokenizer = tokenizer.with_word(word)
        tokenizer.save(path)

    @classmethod
    def recall(cls, section: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        return {} if folder is None else {"tokenizer": load_tokenizer(folder / "tokenizer.json")}

    def in_words(self, row, info) -> str:
        return row["caption"] if isinstance(row["caption"], str) else row["caption"][0]

    def read(self, given):
        return list(given["prompt"]), list(given["prompt"])


LAYERS = ("last", "penultimate")  # of CLIP, which are read


class CLIPText(Text):
    """The same through CLIP's text encoder (Radford et al. 2021), whose weights come from config.conditioner.path and are not
    trained; `layer`: "last", or "penultimate" as in Stable Diffusion 2."""

    kind = "clip_text"
    required = ("path", "tokenizer")
    frozen = True
    guidance_scale = 7.5

    @functools.cached_property
    def module(self) -> Any:
        return module_of(models.CLIPText, self.section, dtype=self.setting.dtype)

    @property
    def length(self) -> int:
        return self.module.max_position_embeddings

    def _encode(self, params, tokens):
        out = self.module.apply({"params": params}, tokens)
        return out.penultimate if self.section.get("layer") == "penultimate" else out.last

    @classmethod
    def check_fields(cls, section):
        super().check_fields(section)
        check_choice(section.get("layer", LAYERS[0]), LAYERS, "config.conditioner.layer")

    def check(self):
        self.task()

    def check_files(self, folder):
        path = self.section["path"]
        if not isinstance(path, str) or not Path(path).exists():
            raise FileNotFoundError(f"config.conditioner.path={path!r} does not exist: name a checkpoint with the encoder")
        type(self).recall(self.section, None)

    def learn(self, source, folder: Path) -> None:
        """Nothing: the tokenizer came with the encoder."""

    @classmethod
    def recall(cls, section: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        return {"tokenizer": checkpoint_tokenizers.load(section["tokenizer"], section.get("pad_token_id"))}


def _tokenize(tokenizer: Any, length: int, text: str) -> np.ndarray:
    return tokenizer.encode_one(text, length)
