"""The condition of a model, from config.conditioner and what surrounds it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.build.adaptation import make_word
from ldm_jax.build.autoencoder import make_first_stage
from ldm_jax.build.options import compute_dtype, image_size
from ldm_jax.conditioning import Condition, Setting, controlled, kind_of, words
from ldm_jax.conditioning import make_condition as make


def is_told(config: Mapping[str, Any]) -> bool:
    """Whether any stage needs the condition: the first needs none, and latents are kept with what the next will be told."""
    return any(stage != "first_stage" for stage in config["stages"])


def make_condition(
    config: Mapping[str, Any], class_names: Sequence[str] | None = None, tokenizer: Any = None, dtype: Any = None
) -> Condition:
    """How the model of `config` is told what to draw, with the word that config.diffusion_train.textual_inversion teaches it.

    `class_names`: of the data set, for classes and layouts. `tokenizer`: has encode_one(text, length, strict), for text;
    without it the model takes token numbers only. Fields that `Condition.recall` returns fit.
    """
    stage, section = make_first_stage(config), config["conditioner"]
    if word := make_word(config):
        section, tokenizer = words.told(section, tokenizer, word["word"], word["vectors"])
    setting = Setting(
        image_size(config),
        stage.factor,
        stage.channels,
        config.get("network", {}),
        dtype or compute_dtype(config),
        config["data"].get("path", ""),
        class_names,
        tokenizer,
    )
    if picture := config.get("diffusion_train", {}).get("control", {}).get("picture"):
        return controlled(kind_of(section), picture)(section, setting)
    return make(section, setting)
