"""Checkpoints: exact, kept as promised, and what happens when they are damaged."""

import concurrent.futures
import functools
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import Checkpoints, best_in, checksums, load_averaged, load_part, steps_in, verify
from ldm_jax.training.checkpoint_reader import describe
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.state import make_init

OPTIMIZER = make_optimizer("adamw", 1e-3, 100)


def init_params(key):
    return {"net": {"kernel": jax.random.normal(key, (64, 64)), "bias": jnp.zeros(64, jnp.bfloat16)}}


INIT = make_init(init_params, OPTIMIZER, ema=True)


@functools.cache
def state_at(step):
    state = sharding.init_sharded(sharding.make_mesh(1, 1, devices=jax.devices()[:1]), INIT, step)
    return jax.tree.map(lambda x: x, state.__class__(jnp.int32(step), state.params, state.ema, state.opt_state, state.skipped))


def target_on(mesh):
    shapes = jax.eval_shape(INIT, jax.random.key(0))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding.state_shardings(mesh, shapes)
    )


ONE = sharding.make_mesh(1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 to 4; the second has the best score."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, score in zip(range(1, 5), (3.0, 1.0, 2.0, 5.0)):
            checkpoints.save(step, state_at(step), score)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of them, to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


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


def test_what_is_read_is_computed_with_beside_arrays_on_other_devices(folder):
    elsewhere = jax.device_put(state_at(4).ema, jax.devices()[3])
    total = jax.tree.map(jnp.add, load_averaged(folder), elsewhere)
    assert equal(total, jax.tree.map(lambda x: x + x, state_at(4).ema))
    assert {x.device for x in jax.tree.leaves(total)} == {jax.devices()[3]}


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
    # nor is it one for whoever starts the same command again, by hand or not
    with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match="they were moved to .*damaged"):
        checkpoints.restore(target_on(ONE))
    shutil.rmtree(folder.parent / "damaged")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(target_on(ONE)) is None


def test_of_several_processes_the_one_that_cannot_save_says_so_at_once(tmp_path, monkeypatch):
    """Not at the next save, when all that was learnt since is lost too: they repeat none."""
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints._pending = concurrent.futures.Future()
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        assert not checkpoints.retry_due
        checkpoints._pending.set_exception(OSError("no room"))
        with pytest.raises(OSError, match="no room"):
            assert checkpoints.retry_due
        monkeypatch.undo()


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
    with pytest.raises(ValueError, match=r"4 is damaged: .* changed on disk .* older ones: \[2, 3\]; which=3"):
        load_averaged(folder)
    assert equal(load_averaged(folder, 3), state_at(3).ema)


def test_checksums_see_a_swap_and_a_flipped_bit_but_not_the_sharding():
    x = jnp.arange(64.0).reshape(8, 8)
    assert checksums({"x": x}) != checksums({"x": x[::-1]})
    assert checksums({"x": x}) != checksums({"x": x.at[3, 3].set(-x[3, 3])})
    mesh = sharding.make_mesh(8, 1)
    assert checksums({"x": x}) == checksums({"x": jax.device_put(x, sharding.batch_sharding(mesh))})


def test_where_all_are_kept_a_run_that_goes_back_drops_what_it_gives_up(tmp_path):
    """Snapshots of averages are read together: they must be of one run. Other checkpoints stay as they are."""
    for keep, steps, at_2 in ((None, [1, 2], 7), (3, [1, 2, 3], 2)):
        folder = tmp_path / str(keep)
        with Checkpoints(folder, keep=keep) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, state_at(step))
            checkpoints.save(2, state_at(7))  # the last one is still being written
        assert steps_in(folder) == steps and verify(folder) is None
        assert equal(load_part(folder, "params", 2), state_at(at_2).params)


def listing(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_only_the_newest_and_the_best_stay_scored_or_not(tmp_path):
    with Checkpoints(tmp_path / "a", keep=2) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, state_at(step))
    assert steps_in(tmp_path / "a") == [6, 7]
    with Checkpoints(tmp_path / "b", keep=1) as checkpoints:
        for step, score in ((1, None), (2, 0.5), (3, None), (4, 0.7)):
            checkpoints.save(step, state_at(step), score)
    with Checkpoints(tmp_path / "b", keep=1) as checkpoints:  # a resumed run knows the best
        assert checkpoints.best == (2, 0.5)
        for step, score in ((5, 0.6), (6, None), (7, float("nan"))):
            checkpoints.save(step, state_at(step), score)
        checkpoints.wait()
        assert checkpoints.steps == [2, 7]
        checkpoints.save(8, state_at(8), 0.1)
        checkpoints.save(9, state_at(9))
    assert steps_in(tmp_path / "b") == [8, 9] and best_in(tmp_path / "b") == (8, 0.1)
    assert equal(load_averaged(tmp_path / "b", "best"), state_at(8).ema)
    assert equal(load_averaged(tmp_path / "b"), state_at(9).ema)


@pytest.mark.parametrize("which, message", [("best", "under .* has a score"), (3, "which=3"), ("newest", "'last'")])
def test_which_is_refused_by_name(tmp_path, which, message):
    with Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(1, state_at(1))
    with pytest.raises(ValueError, match=message):
        load_averaged(tmp_path / "a", which)


def test_reading_changes_nothing_and_needs_no_permission(folder):
    leftover = folder / "26.orbax-checkpoint-tmp" / "x"
    leftover.mkdir(parents=True)
    (leftover / "data").write_text("half")
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = listing(folder)
    try:
        for which in ("last", "best", 3):
            load_averaged(folder, which)
        load_part(folder, "params")
        assert verify(folder) is None
        assert listing(folder) == before
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
    with Checkpoints(folder):
        pass
    assert not (folder / "26.orbax-checkpoint-tmp").exists() and steps_in(folder) == [2, 3, 4]


def test_params_and_average_are_read_alone_onto_any_mesh(folder):
    mesh = sharding.make_mesh(2, 2, 2)
    big = make_init(lambda key: {"net": {"fc1": {"kernel": jax.random.normal(key, (128, 256))}}}, OPTIMIZER, ema=True)
    with Checkpoints(folder.parent / "big") as checkpoints:
        checkpoints.save(1, sharding.init_sharded(sharding.make_mesh(1, 8), big, 3))
    for part in ("params", "ema", "averaged"):
        kernel = load_part(folder.parent / "big", part, mesh=mesh)["net"]["fc1"]["kernel"]
        assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
        assert equal(kernel, sharding.init_sharded(ONE, big, 3).params["net"]["fc1"]["kernel"])
    with pytest.raises(ValueError, match="has no post_hoc; it has counters, ema, opt_state, params"):
        load_part(folder, "post_hoc")


@pytest.mark.parametrize("item", ["params", "ema", "opt_state"])
def test_verify_reads_every_item(folder, item):
    damage(folder, 4, item)
    found = verify(folder)
    assert found is not None and ("changed on disk" in found or "can't be read" in found)
    assert verify(folder, 2) is None and verify(folder, 3) is None
    shutil.rmtree(folder / "3")
    (folder / "3").mkdir()
    assert "can't be read" in verify(folder, 3)


@pytest.mark.parametrize("saves", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_handles_and_threads_stay_few(tmp_path, saves):
    def count():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    state = state_at(1)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state)
        checkpoints.wait()
        early = count()
        for step in range(6, 6 + saves):
            checkpoints.save(step, state)
        checkpoints.wait()
        late = count()
    assert late[0] <= early[0] + 6 and late[1] <= early[1] + 2, (early, late)


def test_a_save_that_fails_is_repeated_and_leaves_nothing_behind(folder, monkeypatch):
    save, failures = ocp.save_checkpointables_async, []

    def sometimes(path, *arguments, **options):
        if len(failures) < 2:
            failures.append(path)
            (path.parent / f"{path.name}.orbax-checkpoint-tmp").mkdir(exist_ok=True)
            raise OSError(28, "No space left on device")
        return save(path, *arguments, **options)

    monkeypatch.setattr(ocp, "save_checkpointables_async", sometimes)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Checkpoints(folder) as checkpoints, pytest.warns(UserWarning, match="No space left on device.* unharmed"):
        checkpoints.save(5, state_at(5), wait=True)
        assert len(failures) == 2 and checkpoints.steps == [2, 4, 5]
    assert not list(folder.glob("*tmp*"))


def test_a_save_that_always_fails_is_an_error_of_one_line(folder, monkeypatch):
    def never(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp, "save_checkpointables_async", never)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(OSError, match="5 could not be written") as error, pytest.warns(UserWarning, match="Trying again"):
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(5, state_at(5), wait=True)
    assert "\n" not in str(error.value) and steps_in(folder) == [2, 3, 4]


def test_a_file_system_that_is_full_harms_no_older_checkpoint(folder, tmp_path, capfd, caplog):
    """A real limit: no file may grow beyond 2 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints = Checkpoints(folder)
    state = state_at(6)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        checkpoints.save(6, state)
        with pytest.raises(OSError, match="6 could not be written .* unharmed"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert "Traceback" not in capfd.readouterr().err and not caplog.records  # nor do Orbax's threads say it in theirs
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "4"] and verify(folder) is None
    checkpoints.save(6, state, wait=True)
    checkpoints.close()
    assert steps_in(folder) == [2, 4, 6]


LATE = """
import asyncio, logging, sys, tempfile, time
import tensorstore
from ldm_jax.training.checkpoint import pass_over_late_callbacks

async def begin(folder):
    store = await tensorstore.KvStore.open({"driver": "file", "path": folder})
    async def wait(written):
        await written
    for i in range(100):
        asyncio.ensure_future(wait(store.write(f"{i}", b"x" * 500_000)))
    await asyncio.sleep(0)

for _ in range(int(sys.argv[1])):
    pass_over_late_callbacks()
logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
loop = asyncio.new_event_loop()
with tempfile.TemporaryDirectory() as folder:
    loop.run_until_complete(begin(folder + "/"))
    loop.close()
    time.sleep(2)
raise RuntimeError("something else")
"""


def test_what_ends_after_a_failed_save_prints_nothing():
    said = [
        subprocess.run([sys.executable, "-c", LATE, times], capture_output=True, text=True).stderr for times in ("0", "2")
    ]
    assert "Event loop is closed" in said[0] and "Event loop is closed" not in said[1]
    assert said[1].count("Traceback") == 1 and said[1].strip().endswith("RuntimeError: something else")


def test_checkpoints_of_the_version_before_still_load(tmp_path):
    """It had Orbax keep the score."""
    parts = {name: getattr(state_at(3), name) for name in ("params", "ema", "opt_state")}
    parts["counters"] = {"step": jnp.int32(3), "skipped": jnp.int32(0)}
    meta = {"checksums": checksums(parts), "arrays": describe(parts)}
    with ocp.training.Checkpointer(str(tmp_path / "checkpoints")) as orbax:
        for step, score in ((3, 0.5), (6, 0.7)):
            orbax.save_checkpointables(step, dict(parts), force=True, metrics={"score": score}, custom_metadata=meta)
    assert best_in(tmp_path / "checkpoints") == (3, 0.5)
    assert equal(load_averaged(tmp_path / "checkpoints", "best"), state_at(3).ema)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert equal(checkpoints.restore(target_on(ONE)), state_at(3))


def test_parts_without_arrays_are_read_back(tmp_path):
    """A condition without parameters is an empty dict."""
    init = make_init(lambda key: {**init_params(key), "conditioner": {}}, OPTIMIZER, ema=True)
    state = sharding.init_sharded(ONE, init, 0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state)
    for part in ("params", "averaged"):
        read = load_part(tmp_path / "checkpoints", part)
        assert equal(read["net"], state.params["net"])
    assert verify(tmp_path / "checkpoints") is None
