"""Every config of the paper builds, and its networks have the published numbers of parameters; nothing is allocated."""

import functools
import importlib
import json

import pytest

from ldm_jax import build

from .test_layouts import FIRST_STAGES, NETWORKS


def config(name: str) -> dict:
    return importlib.import_module(f"configs.{name}").get_config().to_dict()


@functools.cache
def counts(parts: str) -> dict:
    return build.parameter_counts(json.loads(parts))


def counted(config: dict) -> dict:
    """Configs that differ in their training only are counted once."""
    parts = ("first_stage", "network", "conditioner", "data")
    return counts(json.dumps({name: config[name] for name in parts if name in config}, sort_keys=True))


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages(name):
    found = config(name)
    found = counted(found | {"data": {"image_size": 256}})
    assert (found["encoder"], found["decoder"], found["first_stage"]) == FIRST_STAGES[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    found, (network, conditioner, stage) = config(name), NETWORKS[name]
    found = counted(found | {"data": {"image_size": 256}})
    assert found.get("unet", found.get("dit")) == network
    assert found.get("conditioner", 0) == conditioner
    assert found["first_stage"] == FIRST_STAGES[stage][2]


@pytest.mark.parametrize("name", [*FIRST_STAGES, *NETWORKS])
def test_fields_are_those_of_the_default(name):
    """They have the default's sections and fields; only the networks' own differ."""
    default = importlib.import_module("configs.shapes").get_config()
    found = importlib.import_module(f"configs.{name}").get_config()
    alone = {"latents", "network", "conditioner", "diffusion", "diffusion_train", "sampling"}
    assert set(found) == set(default) - (alone if found.stages == ("first_stage",) else set())
    for section in set(found) - {"first_stage", "network", "conditioner"}:
        if hasattr(default[section], "keys"):
            extra = {"linear_start", "linear_end", "timesteps"} if section == "diffusion" else set()
            assert set(found[section]) - extra == set(default[section]), section
