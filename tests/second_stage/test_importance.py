"""Importance-sampled times, from a config to the step: the losses of past rows are part of the state."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build
from ldm_jax.diffusion.times import HISTORY

SMALL = {
    "data.image_size": 8, "first_stage.resolution": 8, "first_stage.ch": 8, "first_stage.ch_mult": (1, 1),
    "network.model_channels": 8, "network.channel_mult": (1,), "network.attention_resolutions": (),
    "network.num_head_channels": 8, "network.norm_num_groups": 4, "network.context_dim": 8, "conditioner.n_embed": 8,
    "conditioner.n_layer": 1, "diffusion_train.batch_size": 8, "diffusion_train.warmup_steps": 0,
    "diffusion.time_sampling": "importance", "diffusion_train.optimizer": "adamw",
}  # fmt: skip


def config_of(**overrides):
    config = importlib.import_module("configs.shapes").get_config()
    config.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in overrides.items()})
    return config.to_dict()


@pytest.fixture(scope="module")
def trained():
    program = build.make_program(config_of(), "diffusion")

    def filled(shape):
        rng = np.random.default_rng(0)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return jnp.ones(shape.shape, shape.dtype)
        return jnp.asarray(rng.standard_normal(shape.shape), shape.dtype)

    batch, constants = jax.tree.map(filled, (program.batch, program.constants))
    start = program.init_state(jax.random.key(0))
    step, states, told = jax.jit(program.step), [start], []
    for _ in range(3):
        state, metrics = step(states[-1], batch, jax.random.key(1), constants)
        states.append(state)
        told.append(metrics)
    return program, states, told


def test_every_row_is_remembered_and_nothing_else_of_it_is_trained(trained):
    _, states, told = trained
    for i, state in enumerate(states):
        history = state.params[HISTORY]
        assert int(history["counts"].sum()) == 8 * i
        assert int((history["losses"] > 0).sum()) == 8 * i  # no bin has seen more than it keeps
    assert all(np.isfinite(metrics["loss"]) and metrics["loss"].ndim == 0 for metrics in told)
    assert all(value.ndim == 0 for metrics in told for value in metrics.values())
    assert HISTORY not in states[-1].ema
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), states[0].params["network"], states[-1].params["network"])
    assert any(jax.tree.leaves(moved))


def test_the_remembered_losses_are_those_of_the_rows(trained):
    _, states, told = trained
    losses = states[1].params[HISTORY]["losses"]
    np.testing.assert_allclose(losses[losses > 0].mean(), told[0]["loss_simple"], rtol=1e-5)


def test_a_batch_in_parts_is_refused():
    with pytest.raises(ValueError, match="accumulate=1"):
        build.make_program(config_of(diffusion_train__accumulate=2), "diffusion")
