"""The U-Net against CompVis's, stage by stage."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.models import UNet

from .reference import Case, assert_close, cases, to_params

pytestmark = pytest.mark.parity
INERT = {"image_size", "use_checkpoint", "legacy", "use_linear_in_transformer", "num_heads_upsample"}


def build(args: dict) -> UNet:
    fields = set(inspect.signature(UNet).parameters)
    assert set(args) - INERT <= fields
    return UNet(**{key: value for key, value in args.items() if key not in INERT})


def test_compvis_unets(fixtures_dir):
    for folder in cases(fixtures_dir, "A*_*"):
        case = Case(folder)
        net = build(case.config["args"])
        cond = {name: case[key] for name, key in (("context", "context"), ("concat", "c_concat")) if key in case.io}
        inputs = case["x"], case["t"].astype(jnp.float32), cond or None
        params = to_params(case.weights(), net, *inputs)
        run = jax.jit(partial(net.apply, capture_intermediates=True, mutable="intermediates"))
        out, stages = run({"params": params}, *inputs)
        assert_close(out, case["out"], case.limit(), folder.name)
        for key in case.io:
            if key.startswith("stage."):
                ours = stage(stages["intermediates"], key.removeprefix("stage."))
                theirs = case[key]
                assert_close(ours[0], theirs[0] if theirs.ndim == ours.ndim else theirs, case.limit(), key)
        if "eps_variant.out" in case.io:
            out, _ = run({"params": to_params(case.weights(variant=True), net, *inputs)}, *inputs)
            assert_close(out, case["eps_variant.out"], case.limit(variant=True), f"{folder.name} eps_variant")


def stage(intermediates: dict, name: str):
    """The output of the last submodule of `input_blocks.3`, say."""
    prefix = name.replace(".", "_") + "_"
    last = max(key for key in intermediates if key.startswith(prefix) and key.removeprefix(prefix).isdigit())
    return intermediates[last]["__call__"][0]
