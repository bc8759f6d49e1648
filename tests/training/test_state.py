"""The step: against an AdamW written out, skipping, the average's warm-up, and the same numbers on one device and on eight."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.training import sharding
from ldm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from ldm_jax.training.state import ema_decay_at, from_loss, make_init, make_train_step


def loss_fn(params, batch, key, step):
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    error = jnp.mean((jnp.tanh((batch["x"] + noise) @ params["kernel"]) - batch["y"]) ** 2)
    return error, {"error": error}


def init_params(key):
    return {"kernel": jax.random.normal(key, (64, 256)) / 8}


def batch_of(seed, size=16):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(size, 64)).astype(np.float32), "y": rng.normal(size=(size, 256)).astype(np.float32)}


def run(mesh, steps, optimizer, ema=0.9, batches=batch_of):
    init = make_init(init_params, optimizer, ema > 0)
    state = sharding.init_sharded(mesh, init, 0)
    step = make_train_step(from_loss(loss_fn), optimizer, ema)
    step = sharding.compile_step(mesh, step, jax.eval_shape(lambda: state))
    history = []
    for i in range(steps):
        state, metrics = step(state, sharding.to_device(mesh, batches(i)), jax.random.key(7))
        history.append(jax.device_get(metrics))
    return state, history


def mesh_of(data, fsdp):
    return sharding.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])


def test_adamw_is_adam_with_decoupled_decay():
    lr, b1, b2, decay = 1e-2, 0.8, 0.95, 0.1
    optimizer = make_optimizer("adamw", lr, 10, b1=b1, b2=b2, weight_decay=decay)
    params = jnp.asarray([1.0, -2.0])
    state = optimizer.init(params)
    expected, m, v = np.array([1.0, -2.0]), 0.0, 0.0
    for n in range(1, 6):
        grads = np.array([0.3 * n, -0.1])
        updates, state = optimizer.update(jnp.asarray(grads), state, params)
        params = optax.apply_updates(params, updates)
        m, v = b1 * m + (1 - b1) * grads, b2 * v + (1 - b2) * grads**2
        step = (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + 1e-8)
        expected = expected - lr * (step + decay * expected)
    np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_muon_gives_kernels_orthogonal_updates_and_leaves_biases_to_adam():
    optimizer = make_optimizer("muon", 1e-2, 10, weight_decay=0.0)
    params = {"conv": {"kernel": jnp.zeros((3, 3, 8, 16)), "bias": jnp.zeros(16)}}
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    singular = jnp.linalg.svd(updates["conv"]["kernel"].reshape(72, 16), compute_uv=False)
    assert singular.max() / singular.min() < 2  # Newton-Schulz leaves them between about 0.7 and 1.2
    # Adam's first step at a tenth of the rate, with Nesterov's look ahead: 1 + b1 (1 - b1) / (1 - b1^2)
    np.testing.assert_allclose(jnp.abs(updates["conv"]["bias"]), 1e-3 * (1 + 0.9 * 0.1 / 0.19), rtol=1e-3)


def test_learning_rate_warms_up_from_above_zero_and_ends_at_zero():
    schedule = learning_rate_schedule(1.0, 100, 10, "cosine")
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(10) == pytest.approx(1.0)
    assert schedule(55) == pytest.approx(0.5)
    assert schedule(100) == pytest.approx(0.0, abs=1e-6)
    assert learning_rate_schedule(1.0, 100, 0, "linear")(25) == pytest.approx(0.75)
    root = learning_rate_schedule(1.0, 100, 10, "inverse_sqrt")
    assert root(10) == pytest.approx(1.0) and root(40) == pytest.approx(0.5)
    wsd = learning_rate_schedule(1.0, 110, 10, "wsd")
    assert [float(wsd(step)) for step in (10, 89, 90, 100, 110)] == pytest.approx([1, 1, 1, 0.5, 0])
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be positive and finite"):
            make_optimizer("adamw", rate, 10)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_first_moments_in_half(name):
    params = {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    state = make_optimizer(name, 1e-2, 10, mu_dtype="bfloat16").init(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim} >= {"bfloat16"}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(name="adamm"), "optimizer='adamm'"),
        (dict(name="adamw", learning_rate=0.0), "must be positive"),
        (dict(name="adamw", decay="cosin"), "decay='cosin'"),
        (dict(name="adamw", warmup_steps=11), "warmup_steps=11"),
    ],
)
def test_optimizer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**{"learning_rate": 1e-3, "steps": 10, **options})


def test_average_warms_up_as_in_the_reference():
    assert ema_decay_at(0.9999, jnp.int32(1)) == pytest.approx(2 / 11)
    assert ema_decay_at(0.5, jnp.int32(1000)) == pytest.approx(0.5)


def test_the_same_numbers_on_one_device_and_on_eight_however_split():
    optimizer = make_optimizer("adamw", 1e-3, 5, clip_norm=0.5)
    alone, one = run(mesh_of(1, 1), 5, optimizer)
    for shape in ((8, 1), (2, 4)):
        state, many = run(mesh_of(*shape), 5, optimizer)
        for a, b in zip(one, many):
            np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-6)
        np.testing.assert_allclose(state.ema["kernel"], alone.ema["kernel"], rtol=1e-4, atol=1e-6)
    assert len(state.params["kernel"].addressable_shards[0].data) == 64
    assert state.params["kernel"].addressable_shards[0].data.shape == (64, 64)  # split over fsdp=4


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
    optimizer = make_optimizer("adamw", 1e-3, 5)

    def batches(i):
        batch = batch_of(i)
        if i in (2, 3):
            batch["x"][0, 0] = np.nan
        return batch

    state, history = run(mesh_of(1, 1), 4, optimizer, batches=batches)
    good, _ = run(mesh_of(1, 1), 2, optimizer)
    assert [int(h["skipped"]) for h in history] == [0, 0, 1, 2]
    assert int(state.step) == 4
    learnt, expected = ((s.params, s.ema, s.opt_state) for s in (state, good))
    jax.tree.map(np.testing.assert_array_equal, learnt, expected)


def test_the_state_is_donated():
    mesh, optimizer = mesh_of(1, 1), make_optimizer("adamw", 1e-3, 5)
    state = sharding.init_sharded(mesh, make_init(init_params, optimizer, True), 0)
    step = make_train_step(from_loss(loss_fn), optimizer, 0.9)
    old = state.params["kernel"]
    compiled = sharding.compile_step(mesh, step, jax.eval_shape(lambda: state))
    compiled(state, sharding.to_device(mesh, batch_of(0)), jax.random.key(0))
    assert old.is_deleted()


@pytest.mark.parametrize("data, fsdp", [(3, 1), (-1, 0), (2, 3)])
def test_a_mesh_that_does_not_fit_is_refused(data, fsdp):
    with pytest.raises(ValueError, match="mesh data="):
        sharding.make_mesh(data, fsdp)


def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do():
    with pytest.raises(ValueError, match="batch_size=12 does not divide over 8 devices; nearest that do: 8 and 16"):
        sharding.check_batch_size(12, sharding.make_mesh())


@pytest.mark.parametrize("platform, rows, told", [("tpu", 4, True), ("tpu", 2, True), ("tpu", 1, False), ("cpu", 4, False)])
def test_a_tpus_compiler_is_told_not_to_cut_a_few_images_into_strips(platform, rows, told):
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    options = sharding.compiler_options(mesh, rows)
    assert bool(options) == told and not any(options.values())
