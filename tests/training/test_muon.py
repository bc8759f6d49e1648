"""Muon's numbers are optax's; only the order of the products is ours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as of_optax

from ldm_jax.training.muon import ITERATIONS, RMS, muon, orthogonalised

SHAPES = {
    "conv": (3, 3, 8, 16), "square": (24, 24), "wide": (8, 64), "tall": (40, 16), "narrow": (30, 3), "film": (1, 3, 3, 6, 6),
}  # fmt: skip


def parameters(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2 * len(SHAPES))
    return {
        name: {"kernel": jax.random.normal(keys[2 * i], shape), "bias": jax.random.normal(keys[2 * i + 1], shape[-1:])}
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def dimensions(params):
    def one(path, x):
        if path[-1].key != "kernel" or min(x.shape[-1], x.size // x.shape[-1]) <= 4:
            return None
        return MuonDimensionNumbers(tuple(range(x.ndim - 1)), (x.ndim - 1,))

    return jax.tree_util.tree_map_with_path(one, params)


def test_updates_and_state_are_those_of_optax():
    rate, slow = optax.cosine_decay_schedule(1e-2, 10), optax.constant_schedule(1e-3)
    ours = muon(rate, slow, 0.9, 0.99, 0.1)
    theirs = of_optax(
        rate, weight_decay=0.1, adam_b1=0.9, adam_b2=0.99, adam_learning_rate=slow, consistent_rms=RMS,
        muon_weight_dimension_numbers=dimensions,
    )  # fmt: skip
    params, states = parameters(), []
    for optimizer in (ours, theirs):
        moved, state = params, optimizer.init(params)
        for step in range(3):
            updates, state = jax.jit(optimizer.update)(parameters(step + 1), state, moved)
            moved = optax.apply_updates(moved, updates)
        states.append((moved, state))
    names = [[jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)] for _, state in states]
    assert names[0] == names[1]  # a training that optax's began goes on
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), *states)
    assert np.abs(states[0][0]["conv"]["kernel"] - params["conv"]["kernel"]).max() > 1e-3


@pytest.mark.parametrize("shape", [(200, 12), (12, 200), (40, 40), (30, 20)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    """Also of a matrix whose smallest singular value is a thousandth of its largest."""
    short = min(shape)
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, short)))[0] for n in shape)
    values = np.geomspace(1, 1e-3, short)
    values /= np.linalg.norm(values)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(orthogonalised(jnp.asarray(u * values @ v.T, jnp.float32)))
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    np.testing.assert_allclose(found, u * values @ v.T, atol=1e-3)  # G knows small ones less well: up to 3.2e-4
    assert (values[: short // 2] > 0.65).all() and (values < 1.25).all()
