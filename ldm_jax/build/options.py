"""Reading a config's fields."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldm_jax.primitives.choices import check_choice, choose
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.program import COMPILERS

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The section's fields but these."""
    return {name: value for name, value in section.items() if name not in names}


def compute_dtype(config: Mapping[str, Any]) -> Any:
    """config.dtype, of the networks' arithmetic."""
    if config.get("dtype") == "float16":
        raise ValueError("config.dtype='float16': small gradients vanish in it without loss scaling; choose 'bfloat16'")
    return choose(DTYPES, config["dtype"], "config.dtype") if "dtype" in config else jnp.float32


def compiler(config: Mapping[str, Any]) -> str:
    """config.compiler: whose options a training step is compiled with."""
    check_choice(config.get("compiler", COMPILERS[0]), COMPILERS, "config.compiler")
    return config.get("compiler", COMPILERS[0])


def dims(config: Mapping[str, Any]) -> int:
    """How many spatial axes the data have: the first stage's `dims`, or, where diffusion runs on pixels, the network's."""
    section = config.get("first_stage", {})
    own = section.get("dims") if section.get("kind") != "none" else None
    return own or config.get("network", {}).get("dims", 2)


def image_size(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The spatial shape of config.data.image_size: a side (of a square, or a cube), or a tuple of as many sides as the data
    have axes."""
    size = config["data"]["image_size"]
    return (size,) * dims(config) if isinstance(size, int) else tuple(size)


def make_stage_optimizer(section: Mapping[str, Any]):
    """The optimizer of config.first_stage_train or config.diffusion_train."""
    names = ("learning_rate", "steps", "warmup_steps", "decay", "b1", "b2", "weight_decay", "clip_norm", "mu_dtype")
    return make_optimizer(section["optimizer"], **{name: section[name] for name in names if name in section})


def with_lists(value: Any) -> Any:
    """A ConfigDict's JSON form: tuples as lists, what JSON would make of it."""
    if isinstance(value, Mapping):
        return {name: with_lists(v) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [with_lists(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
