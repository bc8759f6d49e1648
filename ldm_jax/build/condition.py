"""The condition of a model, from config.conditioner and what surrounds it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.build.autoencoder import make_first_stage
from ldm_jax.build.options import compute_dtype, image_size
from ldm_jax.conditioning import Condition, Setting
from ldm_jax.conditioning import make_condition as make


def make_condition(
    config: Mapping[str, Any], class_names: Sequence[str] | None = None, tokenizer: Any = None, dtype: Any = None
) -> Condition:
    """How the model of `config` is told what to draw.

    `class_names`: of the data set, for classes and layouts. `tokenizer`: has encode_one(text, length, strict), for text;
    without it the model takes token numbers only. Fields that `Condition.recall` returns fit.
    """
    stage = make_first_stage(config)
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
    return make(config["conditioner"], setting)
