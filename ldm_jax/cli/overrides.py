"""Fields of a config that a command line sets: --config.GROUP.FIELD=VALUE."""

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from ldm_jax.primitives.choices import did_you_mean
from ldm_jax.primitives.console import flag_error

# Fields that are one number, or several: sides, axes, levels.
ONE_OR_SEVERAL = ("image_size", "num_res_blocks", "transformer_depth", "num_heads", "kernel_size", "patch_size", "input_size")
# Groups that may have fields of networks and processes beside those that a config gives.
FURTHER = ("config.network", "config.first_stage", "config.diffusion")


def overridden(config: Any, overrides: Sequence[str]) -> Any:
    """The ConfigDict with its fields as --config.FIELD=VALUE says, those that it lacks and may have (`build.further_fields`)
    among them. ValueError, in one line, for a field that it can't have and for a value of another kind."""
    there, lacking = [], []
    for override in overrides:
        (there if check_field(config, field_of(override)) else lacking).append(override)
    config = _parsed(config, there)
    if lacking:
        from ldm_jax import build  # imported here, so that most typos answer at once

        further = build.further_fields(config)
        for override in lacking:
            add_field(config, override, further)
    return _parsed(config, lacking)


def field_of(override: str) -> str:
    """Which field it sets: "data.image_size" of "--config.data.image_size=64"."""
    return re.sub(r"^--?(no)?config\.|=.*", "", override, flags=re.S)


def _parsed(config: Any, overrides: Sequence[str]) -> Any:
    found, argv = flags.FlagValues(), ["train", *overrides]
    for override in overrides:
        _take_kind(config, override)
    try:
        config_flags.DEFINE_config_dict("config", config, lock_config=True, flag_values=found, sys_argv=argv)
        found(argv)
    except (flags.Error, TypeError) as error:
        raise ValueError(flag_error(error)) from None
    return found.config


def _take_kind(config: Any, override: str) -> None:
    """Makes a field of ONE_OR_SEVERAL, which flags otherwise keep to the kind of its default, of the kind that is given."""
    *groups, name = field_of(override).split(".")
    if name not in ONE_OR_SEVERAL or (given := _literal(override)) is None:
        return
    section = functools.reduce(lambda place, group: place[group], groups, config)
    several = isinstance(given, tuple)
    whole = all(isinstance(each, int) for each in (given if several else (given,)))
    if whole and several != isinstance(section[name], (tuple, list)):
        with config.ignore_type():
            section[name] = given


def _literal(override: str) -> Any:
    """The value that follows the equals sign, as Python reads it, a list as a tuple; None where it reads none."""
    try:
        given = ast.literal_eval(override.partition("=")[2])
    except (ValueError, SyntaxError):
        return None  # refused as it is parsed
    return tuple(given) if isinstance(given, list) else given


def check_field(config: Any, name: str) -> bool:
    """Whether the config has a field of this name, "data.image_size". ValueError where that is a group, and for one that it
    lacks in a group that has no further ones."""
    place, gone = config, "config"
    for part in name.split("."):
        known = list(place.keys()) if hasattr(place, "keys") else []
        if part not in known:
            if gone in FURTHER and name.count(".") == 1:
                return False
            raise ValueError(_no_such_field(name, did_you_mean(part, known), gone, known))
        place, gone = place[part], f"{gone}.{part}"
    if hasattr(place, "keys"):
        raise ValueError(f"--config.{name} is a group of fields: give one of them, such as --config.{name}.{next(iter(place))}")
    return True


def add_field(config: Any, override: str, further: Mapping[str, Any]) -> None:
    """Gives the config the field of an override, one of `further`, with its value there; ValueError for another."""
    name = field_of(override)
    if name not in further:
        group, field = name.split(".")
        more = (other.split(".")[1] for other in further if other.startswith(f"{group}."))
        known = list(dict.fromkeys([*config[group].keys(), *more]))
        raise ValueError(_no_such_field(name, did_you_mean(field, known), f"config.{group}", known))
    group, field = name.split(".")
    default, given = further[name], _literal(override)
    with config.unlocked():
        # flags keep to the kind of what is there; where nothing is, it is the value's own
        config[group][field] = config_dict.placeholder(str if given is None else type(given)) if default is None else default


def _no_such_field(name: str, near: str, group: str, known: Sequence[str]) -> str:
    return f"--config.{name}: no such field of the config.{near}{f' {group} has ' + ', '.join(known) if known else ''}"
