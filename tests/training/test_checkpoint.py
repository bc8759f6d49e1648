"""Checkpoints: exact, kept as promised, and what happens when they are damaged."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import Checkpoints, checksums, load_averaged
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.state import make_init

OPTIMIZER = make_optimizer("adamw", 1e-3, 100)


def init_params(key):
    return {"net": {"kernel": jax.random.normal(key, (64, 64)), "bias": jnp.zeros(64, jnp.bfloat16)}}


INIT = make_init(init_params, OPTIMIZER, ema=True)


def state_at(step):
    state = sharding.init_sharded(sharding.make_mesh(1, 1, devices=jax.devices()[:1]), INIT, step)
    return jax.tree.map(lambda x: x, state.__class__(jnp.int32(step), state.params, state.ema, state.opt_state, state.skipped))


def target_on(mesh):
    shapes = jax.eval_shape(INIT, jax.random.key(0))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding.state_shardings(mesh, shapes)
    )


ONE = sharding.make_mesh(1, 1, devices=jax.devices()[:1])


@pytest.fixture
def folder(tmp_path):
    """Steps 1 to 4; the second has the best score."""
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step, score in zip(range(1, 5), (3.0, 1.0, 2.0, 5.0)):
            checkpoints.save(step, state_at(step), score)
    return tmp_path / "checkpoints"


def equal(a, b):
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def damage(folder, step, item):
    """Zeroes eight bytes in the middle of the largest data file."""
    path = max((folder / str(step) / item).rglob("d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = bytes(8)
    path.write_bytes(data)


def test_keeps_the_newest_and_the_best(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == [2, 3, 4]


def test_restores_every_bit_on_any_number_of_devices(folder):
    for mesh in (ONE, sharding.make_mesh(2, 4)):
        with Checkpoints(folder) as checkpoints:
            assert equal(checkpoints.restore(target_on(mesh)), state_at(4))
    assert equal(load_averaged(folder), state_at(4).ema)
    assert equal(load_averaged(folder, 2), state_at(2).ema)


def test_an_empty_folder_is_a_fresh_start(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore(target_on(ONE)) is None


@pytest.mark.parametrize("item", ["params", "ema", "opt_state"])
def test_silent_corruption_is_found_and_the_one_before_used(folder, item):
    damage(folder, 4, item)
    with Checkpoints(folder) as checkpoints, pytest.warns(UserWarning, match="4 IS DAMAGED"):
        assert equal(checkpoints.restore(target_on(ONE)), state_at(3))
    assert (folder.parent / "damaged" / "4").is_dir()
    with Checkpoints(folder) as checkpoints:  # the step can be written again
        checkpoints.save(4, state_at(4))
        checkpoints.wait()
        assert equal(checkpoints.restore(target_on(ONE)), state_at(4))


def test_truncated_missing_and_empty_checkpoints_are_passed_over(folder):
    path = max((folder / "4" / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:100])
    shutil.rmtree(folder / "3" / "opt_state")
    (folder / "7").mkdir()
    with Checkpoints(folder) as checkpoints, pytest.warns(UserWarning, match="IS DAMAGED"):
        assert int(checkpoints.restore(target_on(ONE)).step) == 2


def test_nothing_usable_is_an_error_not_a_fresh_start(folder):
    for step in (2, 3, 4):
        damage(folder, step, "params")
    with Checkpoints(folder) as checkpoints, pytest.warns(UserWarning), pytest.raises(ValueError, match="no checkpoint under"):
        checkpoints.restore(target_on(ONE))
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        load_averaged(folder)


def test_another_models_checkpoint_is_refused_with_what_differs(folder):
    other = make_init(lambda key: {"net": {"kernel": jnp.zeros((64, 32))}, "more": jnp.zeros(3)}, OPTIMIZER, ema=True)
    shapes = jax.eval_shape(other, jax.random.key(0))
    with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match="belongs to another model") as error:
        checkpoints.restore(shapes)
    assert "net/bias: not in the model" in str(error.value)
    assert "float32[64, 64] in the checkpoint, float32[64, 32] in the model" in str(error.value)
    assert checkpoints is not None and (folder / "4").is_dir()  # nothing was moved


def test_a_damaged_file_is_not_loaded_by_the_api_either(folder):
    damage(folder, 4, "ema")
    with pytest.raises(ValueError, match="changed on disk"):
        load_averaged(folder)


def test_checksums_see_a_swap_and_a_flipped_bit_but_not_the_sharding():
    x = jnp.arange(64.0).reshape(8, 8)
    assert checksums({"x": x}) != checksums({"x": x[::-1]})
    assert checksums({"x": x}) != checksums({"x": x.at[3, 3].set(-x[3, 3])})
    mesh = sharding.make_mesh(8, 1)
    assert checksums({"x": x}) == checksums({"x": jax.device_put(x, sharding.batch_sharding(mesh))})
