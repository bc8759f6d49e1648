"""Optimizers by their names: what they are given, what is refused, and that each of them descends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.training.optimizer import OPTIMIZERS, make_optimizer

START = {"kernel": jnp.asarray([[3.0, -2.0], [1.0, 4.0]]), "bias": jnp.asarray([1.0, -1.0])}


def descend(optimizer, steps):
    """Of sum((x - 0.5)^2), from START."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: sum(jnp.sum((x - 0.5) ** 2) for x in jax.tree.leaves(p)))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (START, optimizer.init(START)), None, steps)[0][0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_one_descends(name):
    end = descend(make_optimizer(name, 0.05, 400, decay="linear", b1=0.9, b2=0.99, weight_decay=0.0), 400)
    before, after = (float(sum(jnp.sum((x - 0.5) ** 2) for x in jax.tree.leaves(params))) for params in (START, end))
    assert after < 0.5 * before, (name, before, after)


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("lion", lambda rate: optax.lion(rate, b1=0.8, b2=0.95, weight_decay=0.1, mu_dtype="bfloat16")),
        ("sgd", lambda rate: optax.sgd(rate, momentum=0.8)),
        ("adafactor", lambda rate: optax.adafactor(rate, weight_decay_rate=0.1, dtype_momentum="bfloat16")),
        ("adamw", lambda rate: optax.adamw(rate, b1=0.8, b2=0.95, weight_decay=0.1, mu_dtype="bfloat16")),
    ],
)
def test_they_are_optax_s_own_with_the_config_s_settings(name, theirs):
    plain = name == "sgd"
    settings = {"weight_decay": 0.0 if plain else 0.1, "mu_dtype": "float32" if plain else "bfloat16"}
    ours = make_optimizer(name, 0.1, 20, decay="linear", b1=0.8, b2=0.95, **settings)
    jax.tree.map(np.testing.assert_array_equal, descend(ours, 10), descend(theirs(optax.linear_schedule(0.1, 0.0, 20)), 10))


def test_what_an_optimizer_lacks_is_refused():
    with pytest.raises(ValueError, match="weight_decay=0.01: sgd of optax has none"):
        make_optimizer("sgd", 0.1, 10)
    make_optimizer("sgd", 0.1, 10, weight_decay=0.0)
    with pytest.raises(ValueError, match="weight_decay=0.9: adam of optax has none"):
        make_optimizer("adam", 0.1, 10, weight_decay=0.9, b1=0.9)
    with pytest.raises(ValueError, match="mu_dtype='bfloat16': lamb of optax has none"):
        make_optimizer("lamb", 0.1, 10, weight_decay=0.0, mu_dtype="bfloat16")
    with pytest.raises(ValueError, match="optimizer='adam_w': must be one of"):
        make_optimizer("adam_w", 0.1, 10)
