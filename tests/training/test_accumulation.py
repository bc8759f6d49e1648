"""A batch looked at in parts: the same numbers, less memory, every device with its own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.primitives.arrays import row_normal
from ldm_jax.training import sharding
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.state import Gradient, accumulated, from_loss, make_init, make_train_step

WIDTH = 64


def loss_fn(params, batch, key, step):
    noise = row_normal(key, step.rows, batch["x"].shape[1:])
    h = jnp.tanh((batch["x"] + noise) @ params["net"]["fc1"]["kernel"]) @ params["net"]["fc2"]["kernel"]
    error = jnp.mean((h - batch["y"]) ** 2)
    return error, {"error": error, "rows": step.rows.sum(), "size": jnp.float32(step.batch_size)}


def init_params(key):
    shapes = {"fc1": (WIDTH, 4 * WIDTH), "fc2": (4 * WIDTH, WIDTH)}
    return {"net": {name: {"kernel": jax.random.normal(key, shape) / 8} for name, shape in shapes.items()}}


def batch_of(seed, size=32):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(size, WIDTH)).astype(np.float32) for name in ("x", "y")}


def run(accumulate, mesh=None, steps=3, batches=batch_of):
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer("adamw", 1e-3, steps, clip_norm=1.0)
    init = make_init(init_params, optimizer, True)
    state = sharding.init_sharded(mesh, init, 0)
    train_step = make_train_step(from_loss(loss_fn), optimizer, 0.9, accumulate)
    step = sharding.compile_step(mesh, train_step, jax.eval_shape(lambda: state))
    history = []
    for i in range(steps):
        state, metrics = step(state, sharding.to_device(mesh, batches(i)), jax.random.key(7))
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def near(a, b, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=atol)


def test_four_times_eight_is_thirty_two():
    whole, history = run(1)
    parts, looked = run(4)
    near((whole.params, whole.ema), (parts.params, parts.ema))
    for a, b in zip(history, looked):
        for name in ("loss", "error", "grad_norm"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6)
        assert b["size"] == 32 and b["rows"] * 4 == a["rows"] == 31 * 16
    assert int(parts.step) == 3


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_on_eight_devices_too(shape):
    whole, _ = run(1)
    parts, _ = run(4, sharding.make_mesh(*shape))
    # Adam divides by a gradient's own size: where that is small, the rounding of other sums counts most
    near((whole.params, whole.ema), (parts.params, parts.ema), atol=5e-6)


def test_no_row_changes_its_device():
    """The cut itself needs no communication: all that the program sends are gradients, weights and sums."""
    mesh = sharding.make_mesh(8)
    x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=sharding.batch_sharding(mesh))
    rows = jnp.arange(64, dtype=jnp.int32)

    def grad_fn(params, batch, key, step):
        return Gradient(jnp.float32(0), {}, {}, {"seen": batch["x"] * step.rows[:, None]})

    def cut(batch):
        found = accumulated(grad_fn, 4)({}, batch, None, sharding_step(rows))
        return found.assigned["seen"]

    with jax.set_mesh(mesh):
        text = jax.jit(cut, out_shardings=sharding.batch_sharding(mesh)).lower({"x": x}).compile().as_text()
    for collective in ("all-to-all", "all-gather", "collective-permute"):
        assert collective not in text, collective


def sharding_step(rows):
    from ldm_jax.training.state import Step

    return Step(jnp.int32(0), {}, rows, len(rows))


def test_a_row_that_is_not_finite_skips_the_whole_update():
    def batches(i):
        batch = batch_of(i)
        if i == 1:
            batch["x"][13, 2] = np.inf
        return batch

    state, history = run(4, steps=2, batches=batches)
    good, _ = run(4, steps=1)
    assert [int(h["skipped"]) for h in history] == [0, 1]
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.ema), (good.params, good.ema))


def test_assigned_values_are_means_over_the_parts():
    def grad_fn(params, batch, key, step):
        mean = batch["x"].mean()
        return Gradient(mean, {}, {"w": jnp.zeros(())}, {"centre": jnp.square(mean)})

    optimizer = make_optimizer("adamw", 1e-3, 2)
    init = make_init(lambda key: {"w": jnp.zeros(()), "centre": jnp.zeros(())}, optimizer, False)
    step = make_train_step(grad_fn, only_w(optimizer), accumulate=4)
    x = np.arange(8, dtype=np.float32)
    state = init(jax.random.key(0))
    state = state.__class__(state.step, state.params, {}, only_w(optimizer).init(state.params), state.skipped)
    state, _ = jax.jit(step)(state, {"x": x}, jax.random.key(0))
    assert float(state.params["centre"]) == np.mean([x[i::4].mean() ** 2 for i in range(4)])


def only_w(optimizer):
    from ldm_jax.training.optimizer import by_part

    return by_part({"w": optimizer})


def test_memory_falls_with_the_parts():
    def temporaries(parts):
        def loss(params, batch, key, step):
            h = batch["x"]
            for _ in range(6):
                h = jnp.tanh(h @ params["kernel"])
            return jnp.mean(h**2), {}

        optimizer = make_optimizer("adamw", 1e-3, 2)
        init = make_init(lambda key: {"kernel": jnp.ones((64, 64))}, optimizer, False)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        shapes = jax.eval_shape(init, jax.random.key(0))
        step = sharding.compile_step(mesh, make_train_step(from_loss(loss), optimizer, accumulate=parts), shapes)
        x = {"x": jax.ShapeDtypeStruct((4096, 64), jnp.float32)}
        compiled = step.lower(shapes, x, jax.eval_shape(lambda: jax.random.key(0))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, eighth = temporaries(1), temporaries(8)
    # the strided copy of the batch stays whole, activations fall to an eighth
    assert eighth < whole * 0.4, (whole, eighth)


@pytest.mark.parametrize("accumulate, message", [(0, "accumulate=0"), (5, "a batch of 32 rows can't be cut into accumulate=5")])
def test_a_cut_that_cannot_be_is_refused(accumulate, message):
    with pytest.raises(ValueError, match=message):
        run(accumulate)


def test_batch_sizes_know_of_the_parts():
    mesh = sharding.make_mesh(4, 2)
    assert sharding.check_batch_size(32, mesh, 4) == 32
    with pytest.raises(ValueError, match="batch_size=40 does not divide over 8 devices in 4 parts; .* 32 and 64"):
        sharding.check_batch_size(40, mesh, 4)
    assert sharding.check_batch_size(4, sharding.make_mesh(2, 2, 2)) == 4
