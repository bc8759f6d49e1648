"""Reading a config's fields: names that are known, fields that exist, or an error that says which."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldm_jax.training.optimizer import make_optimizer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def choose(options: Mapping[str, Any], name: str, what: str) -> Any:
    """`options[name]`, or a ValueError that names what there is."""
    if name in options:
        return options[name]
    near = difflib.get_close_matches(str(name), options, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}={name!r} is not known.{hint} There are: {', '.join(map(repr, options))}.")


def module_from(cls: type, section: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """`cls(**section)`, saying which field of the config is wrong."""
    fields = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    given = {**section, **extra}
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"config.{where}.{name}: {cls.__name__} has no such field.{hint}")
    if missing := sorted(required - given.keys() - {"parent", "name"}):
        raise ValueError(f"config.{where} lacks {', '.join(missing)}")
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


def compute_dtype(config: Mapping[str, Any]) -> Any:
    return choose(DTYPES, config["dtype"], "config.dtype") if "dtype" in config else jnp.float32


def make_stage_optimizer(section: Mapping[str, Any]):
    """The optimizer of config.first_stage_train or config.diffusion_train."""
    names = ("learning_rate", "steps", "warmup_steps", "decay", "b1", "b2", "weight_decay", "clip_norm")
    return make_optimizer(section["optimizer"], **{name: section[name] for name in names})


def with_lists(value: Any) -> Any:
    """A ConfigDict's JSON form: tuples as lists, what JSON would make of it."""
    if isinstance(value, Mapping):
        return {name: with_lists(v) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [with_lists(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
