"""The loop: what it logs, when it stops, and that it asks for batches from where it is."""

import io
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tensorboardX.proto import event_pb2

from ldm_jax.experiment.stage import take_snapshot
from ldm_jax.training.checkpoint import Checkpoints, best_in, load_part, steps_in
from ldm_jax.training.judge import Judge
from ldm_jax.training.loop import Hook, Interrupted, Report, stop_signals, train
from ldm_jax.training.metrics import Log, clock, image_grid
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.state import from_loss, make_init, make_train_step

OPTIMIZER = make_optimizer("adamw", 1e-2, 100)
INIT = make_init(lambda key: {"kernel": jnp.ones(3)}, OPTIMIZER, ema=False)


def loss_fn(params, batch, key, step):
    return jnp.mean((params["kernel"] - batch) ** 2), {}


STEP = jax.jit(make_train_step(from_loss(loss_fn), OPTIMIZER))


def run(folder, batches, steps=10, step=STEP, state=None, **options):
    state = INIT(jax.random.key(0)) if state is None else state
    log = Log(folder, "stage", steps, int(state.step))
    with log, Checkpoints(folder / "checkpoints") as checkpoints:
        return train(
            state,
            step,
            batches if callable(batches) else iter(batches),
            steps=steps,
            batch_size=2,
            log=log,
            checkpoints=checkpoints,
            **{"key": jax.random.key(0), "log_every": 5, "checkpoint_every": 4, **options},
        )


def lines(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_logs_means_runs_hooks_and_keeps_the_best(tmp_path, capsys):
    calls = []

    def validate(state):
        calls.append(int(state.step))
        picture = image_grid(np.zeros((4, 8, 8, 3)))
        return Report({"validation/x": abs(len(calls) - 2)}, {"grid": (picture, "words")})

    state = run(tmp_path, [jnp.float32(i) for i in range(10)], hooks=[Hook(3, validate)], judge=Judge("validation/x"))
    assert int(state.step) == 10 and calls == [3, 6, 9, 10]
    logged = {line["step"]: line["train/loss"] for line in lines(tmp_path) if "train/loss" in line}
    assert set(logged) == {5, 10}
    weights, losses, probe = [], [], INIT(jax.random.key(0))
    for i in range(10):
        probe, metrics = STEP(probe, jnp.float32(i), jax.random.key(0))
        losses.append(float(metrics["loss"]))
        weights.append(probe)
    assert logged[5] == pytest.approx(np.mean(losses[:5])) and logged[10] == pytest.approx(np.mean(losses[5:]))
    assert (tmp_path / "images" / "grid_0000003.png").is_file()
    assert (tmp_path / "images" / "grid_0000003.txt").read_text() == "words"
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == [6, 8, 10] and checkpoints.best == (6, 0)
    assert "stage 10/10" in capsys.readouterr().out


def test_a_run_of_broken_steps_stops_with_a_diagnosis(tmp_path):
    batches = [jnp.float32(1)] * 3 + [jnp.float32(jnp.nan)] * 20
    with pytest.raises(FloatingPointError, match="4 steps in a row up to step 7 .* learning rate"):
        run(tmp_path, batches, steps=20, max_skipped=3)
    assert all(line.get("train/loss") is None or np.isfinite(line["train/loss"]) for line in lines(tmp_path))


def test_the_bar_of_a_terminal(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with Log(tmp_path, "diffusion", 10, many="sounds") as log:
        log.seconds_per_step = 2.0
        log.progress(4, 0.25, 37.2)
        log.say("between")
    shown = terminal.getvalue()
    assert "diffusion:" in shown and "4/10" in shown and "loss 0.25, 37 sounds/s, left 0:12" in shown and "between" in shown


def test_clock():
    assert [clock(s) for s in (5, 75, 3700)] == ["0:05", "1:15", "1:01:40"]


def test_grid_places_pictures_row_by_row():
    images = np.stack([np.full((4, 4, 3), v) for v in (-1.0, 0.0, 1.0)])
    grid = image_grid(images, columns=2, border=1)
    assert grid.shape == (11, 11, 3)
    assert grid[1, 1, 0] == 0 and grid[1, 6, 0] == 128 and grid[6, 1, 0] == 255 and grid[0, 0, 0] == 255


def numbers(start):
    return (jnp.float32(i) for i in range(start, 1000))


def test_zero_is_off_and_the_last_state_is_saved_all_the_same(tmp_path):
    def never(state):
        raise AssertionError

    state = run(tmp_path, numbers, log_every=0, checkpoint_every=0, hooks=[Hook(0, never)])
    assert int(state.step) == 10 and lines(tmp_path) == [] and steps_in(tmp_path / "checkpoints") == [10]
    with pytest.raises(ValueError, match="log_every=-1"):
        run(tmp_path, numbers, log_every=-1)


def test_a_best_state_is_saved_at_its_own_step_with_its_own_score(tmp_path):
    def judge(state):
        return Report({"off": abs(int(state.step) - 5) + 0.25})

    run(tmp_path, numbers, hooks=[Hook(1, judge)], judge=Judge("off"), checkpoint_every=4)
    assert best_in(tmp_path / "checkpoints") == (5, 0.25) and steps_in(tmp_path / "checkpoints") == [5, 8, 10]


def test_a_judge_of_nothing_finite_judges_nothing(tmp_path):
    run(tmp_path, numbers, hooks=[Hook(2, lambda state: Report({"x": float("nan")}))], judge=Judge("x"))
    assert best_in(tmp_path / "checkpoints") is None and steps_in(tmp_path / "checkpoints") == [8, 10]


def test_of_some_numbers_more_is_better(tmp_path):
    def judge(state):
        return Report({"accuracy": 1 - abs(int(state.step) - 6) / 10}, higher=frozenset({"accuracy"}))

    run(tmp_path, numbers, hooks=[Hook(1, judge)], judge=Judge("accuracy"))
    assert best_in(tmp_path / "checkpoints") == (6, -1.0)


def early(value_at, patience):
    """A judge with patience, and the hook that it listens to."""
    hook = Hook(1, lambda state: Report({"loss": value_at(int(state.step))}))
    return {"hooks": [hook], "judge": Judge("loss", patience), "checkpoint_every": 0}


@pytest.mark.parametrize("value", [lambda step: abs(step - 3), lambda step: math.nan if step > 3 else -step])
def test_a_run_stops_after_so_many_looks_without_a_better_one(tmp_path, capsys, value):
    state = run(tmp_path, numbers, **early(value, 4))
    assert int(state.step) == 7 and steps_in(tmp_path / "checkpoints")[-1] == 7
    assert best_in(tmp_path / "checkpoints")[0] == 3
    assert "stopped at step 7: 4 looks without a better loss than" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "higher", "best"), [(-3.0, False, "-3"), (-3.0, True, "-3"), (2.5, True, "2.5")])
def test_the_best_is_said_as_it_was_measured(tmp_path, value, higher, best):
    """Also of a number below zero, one of which more is better, and by who comes back to a stopped run."""
    names = frozenset({"loss"}) if higher else frozenset()
    judge = Judge("loss", 2)
    hook = Hook(1, lambda state: Report({"loss": value}, higher=names))
    run(tmp_path, numbers, hooks=[hook], judge=judge, checkpoint_every=0)
    again = Judge("loss", 2)
    again.recall(tmp_path / "checkpoints", 3)
    assert judge.in_words(3) == again.in_words(3) == f"stopped at step 3: 2 looks without a better loss than {best}"


def test_one_process_goes_on_judging_where_several_left(monkeypatch):
    """A share that is met again is no better one: what process 0 tells the others it tells to the last bit."""
    judge, found = Judge("accuracy"), ({"accuracy": 0.7}, frozenset({"accuracy"}))
    with monkeypatch.context() as several:
        several.setattr(jax, "process_count", lambda: 2)
        several.setattr(multihost_utils, "broadcast_one_to_all", lambda x: np.asarray(jnp.asarray(x)))  # JAX's types
        assert judge.look(*found) == (-0.7, True)
    assert judge.look(*found) == (-0.7, False) and judge.since == 1


def test_a_run_that_goes_on_keeps_its_patience(tmp_path):
    """Stopped after two looks without a better one of four, it has two left."""
    options = early(lambda step: abs(step - 3), 4)
    run(tmp_path, numbers, steps=5, **options)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore(INIT(jax.random.key(0)))
    again = early(lambda step: abs(step - 3), 4)
    assert int(run(tmp_path, numbers, state=state, **again).step) == 7
    assert again["judge"].tired and best_in(tmp_path / "checkpoints") == (3, 0.0)


def test_scores_of_another_judge_are_not_compared(tmp_path):
    run(tmp_path, numbers, steps=4, hooks=[Hook(2, lambda state: Report({"loss": 0.1}))], judge=Judge("loss"))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore(INIT(jax.random.key(0)))
    hooks = [Hook(2, lambda state: Report({"distance": 40.0 + int(state.step), "loss": 0.0}))]
    run(tmp_path, numbers, state=state, hooks=hooks, judge=Judge("distance"), checkpoint_every=0)
    assert best_in(tmp_path / "checkpoints") == (6, 46.0)



def test_lines_after_the_checkpoint_are_dropped_when_a_killed_run_goes_on(tmp_path):
    run(tmp_path, numbers, log_every=1)
    whole = {line["step"]: line["train/loss"] for line in lines(tmp_path)}
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"stage": "stage", "step": 11, "tra')  # killed while it wrote
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore(INIT(jax.random.key(0)))
        shutil.rmtree(tmp_path / "checkpoints" / "10")
        state = checkpoints.restore(jax.eval_shape(lambda: state))
    assert int(state.step) == 8
    run(tmp_path, numbers, log_every=1, state=state)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    assert {line["step"]: line["train/loss"] for line in lines(tmp_path)} == whole
    purges = [event.step for file in tmp_path.glob("events*") for event in events(file) if event.session_log.status]
    assert purges == [9]


def events(path):
    """TensorBoard's events of a file: records of a length, a checksum, the data, a checksum."""
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_curves_reach_tensorboard(tmp_path):
    run(tmp_path, numbers, log_every=5)
    (file,) = tmp_path.glob("events*")
    seen = {(e.step, v.tag): v.simple_value for e in events(file) for v in e.summary.value}
    for line in lines(tmp_path):
        assert seen[line["step"], "train/loss"] == pytest.approx(line["train/loss"])


def test_curves_are_in_order_when_the_clock_was_set_back(tmp_path):
    """TensorBoard reads files in the order of their names."""
    ahead, names = tmp_path / f"events.out.tfevents.{int(time.time()) + 10**7}.host.1.2", []
    for step in range(3):
        with Log(tmp_path, "stage", 10, step) as log:
            log.scalars(step + 1, {"a": 1.0})
        names += [name for name in sorted(os.listdir(tmp_path)) if "tfevents" in name and name not in names]
        if step == 0:
            (tmp_path / names[0]).rename(ahead)
            names = [ahead.name]
    assert len(names) == 3 and names == sorted(names)
    assert all("tfevents" in name for name in names)


def noisy(params, batch, key, step):
    """Not finite while the key's number says so: with another key it goes on."""
    bad = (step.number == 6) & (jax.random.key_data(key)[-1] == BAD)
    return jnp.mean((params["kernel"] - batch) ** 2) + jnp.where(bad, jnp.nan, 0.0), {}


BAD = np.uint32(jax.random.key_data(jax.random.fold_in(jax.random.key(0), 6))[-1])


def test_a_run_that_breaks_goes_back_to_its_last_checkpoint_with_another_key(tmp_path, capsys):
    step = jax.jit(make_train_step(from_loss(noisy), OPTIMIZER))
    state = run(tmp_path, numbers, step=step, max_skipped=0, log_every=1)
    whole = run(tmp_path / "whole", numbers, log_every=1)  # the key changes nothing but what breaks
    assert int(state.step) == 10 and int(state.skipped) == 0
    np.testing.assert_array_equal(state.params["kernel"], whole.params["kernel"])
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    assert "up to step 7 gave a loss or gradient that is not finite" in (said := capsys.readouterr().out)
    assert "back to step 4 with another key (1 of 3)" in said


def test_snapshots_are_of_the_run_that_went_on(tmp_path):
    """Noise differs after going back, and averages with it; snapshots of the run given up don't stay among them."""

    def drawn(params, batch, key, step):
        return jnp.mean((params["kernel"] - jax.random.normal(key, (3,))) ** 2) + batch, {}

    begun, seen = [], {}

    def batches(start):
        begun.append(start)
        return (jnp.float32(jnp.nan if i == 8 and len(begun) == 1 else 0) for i in range(start, 1000))

    def see(state):
        seen[int(state.step)] = np.asarray(state.post_hoc["0"]["kernel"])
        return Report()

    init = make_init(lambda key: {"kernel": jnp.ones(3)}, OPTIMIZER, False, post_hoc=(0.1,))
    step = jax.jit(make_train_step(from_loss(drawn), OPTIMIZER, post_hoc=(0.1,)))
    with Checkpoints(tmp_path / "averages", keep=None) as snapshots:
        hooks = [Hook(2, see), Hook(2, lambda state: take_snapshot(snapshots, state))]
        run(tmp_path, batches, step=step, state=init(jax.random.key(0)), max_skipped=0, checkpoint_every=5, hooks=hooks)
    assert begun == [0, 5] and steps_in(tmp_path / "averages") == [2, 4, 6, 8, 10]
    for at, average in seen.items():
        found = load_part(tmp_path / "averages", "post_hoc", at)["0"]["kernel"]
        np.testing.assert_array_equal(found, average, err_msg=str(at))


def test_rewinding_is_bounded(tmp_path):
    def broken(start):
        return (jnp.float32(jnp.nan if i == 6 else i) for i in range(start, 1000))

    began = []

    def counted(start):
        began.append(start)
        return broken(start)

    with pytest.raises(FloatingPointError, match="up to step 7 .* going back 2 times did not help"):
        run(tmp_path, counted, max_skipped=0, rewinds=2)
    assert began == [0, 4, 4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_stops_at_a_signal_saves_and_goes_on_exactly(tmp_path, number):
    whole, before = run(tmp_path / "whole", numbers), signal.signal(number, signal.SIG_DFL)  # which `nohup` ignores

    def stop(state):
        if int(state.step) == 3:
            os.kill(os.getpid(), number)
        return Report()

    with pytest.raises(Interrupted, match="stopped at step 4"):
        run(tmp_path / "part", numbers, hooks=[Hook(1, stop)], checkpoint_every=0)
    assert signal.signal(number, before) == signal.SIG_DFL
    with Checkpoints(tmp_path / "part" / "checkpoints") as checkpoints:
        state = checkpoints.restore(jax.eval_shape(INIT, jax.random.key(0)))
    state = run(tmp_path / "part", numbers, state=state)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


@pytest.mark.parametrize("stopped", [5, 10])
def test_looks_that_a_stop_came_before_are_taken_when_the_run_goes_on(tmp_path, stopped):
    """And judge as those of a run that was never stopped."""
    looked = []

    def look(state):
        looked.append(int(state.step))
        return Report({"loss": 10.0 - int(state.step)})

    def batches(start):
        for i in range(start, 100):
            if not looked and i == stopped - 1 or i == stopped - 1 == 9 and looked == [5]:
                os.kill(os.getpid(), signal.SIGTERM)
            yield jnp.float32(i)

    options = {"hooks": [Hook(5, look)], "prefetch": 0, "checkpoint_every": 0}
    with pytest.raises(Interrupted, match=f"stopped at step {stopped}"):
        run(tmp_path, batches, judge=Judge("loss"), **options)
    assert looked == [5][: stopped // 10] and best_in(tmp_path / "checkpoints") == ((5, 5.0) if looked else None)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore(INIT(jax.random.key(0)))
    judge = Judge("loss")
    judge.recall(tmp_path / "checkpoints", stopped)
    assert judge.missed
    run(tmp_path, numbers, state=state, judge=judge, **options)
    assert looked == [5, 10] and best_in(tmp_path / "checkpoints") == (10, 0.0)
    assert [line["loss"] for line in lines(tmp_path) if "loss" in line] == [5.0, 0.0]
    judge.recall(tmp_path / "checkpoints", 10)
    assert not judge.missed and judge.best == 0
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.verify(stopped) is None and checkpoints.verify(10) is None


def test_all_hooks_look_at_the_state_that_patience_ends_with(tmp_path):
    seen = []
    options = early(lambda step: 1.0, 3)
    options["hooks"].append(Hook(100, lambda state: seen.append(int(state.step)) or Report()))
    assert int(run(tmp_path, numbers, **options).step) == 4 and seen == [4]


def test_batches_are_made_ahead_and_none_too_many(tmp_path):
    made, seen = [], []

    def batches(start):
        for i in range(start, 1000):
            made.append(i)
            yield jnp.float32(i)

    def step(state, batch, key):
        seen.append((int(batch), len(made)))
        return STEP(state, batch, key)

    run(tmp_path, batches, step=step, prefetch=2)
    assert seen == [(i, min(i + 3, 10)) for i in range(10)]
    with pytest.raises(ValueError, match="ended at step 3, before step 10"):
        run(tmp_path / "short", [jnp.float32(1)] * 3)


def test_old_keys_are_taken(tmp_path):
    a, b = (run(tmp_path / name, numbers, key=key) for name, key in (("a", jax.random.key(1)), ("b", jax.random.PRNGKey(1))))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_times_percentiles_and_utilisation(tmp_path):
    run(tmp_path, numbers, log_every=10, flops_per_step=2e6, peak_flops=1e12)
    (line,) = lines(tmp_path)
    assert 0 < line["step_ms_p50"] <= line["step_ms_p90"] <= line["step_ms_p99"]
    assert line["mfu"] == pytest.approx(2e6 / (line["step_ms"] / 1e3 * 1e12))
    assert line["images_per_second"] == pytest.approx(2 / (line["step_ms"] / 1e3))


def test_the_time_left_follows_late_steps(tmp_path):
    with Log(tmp_path, "stage", 100) as log:
        log.seconds_per_step = 2.0
        assert log.left(70) == 60.0


def test_the_watchdog_shows_where_it_hangs(tmp_path, capfd):
    def hang(state):
        time.sleep(0.6)
        return Report()

    run(tmp_path, numbers, hooks=[Hook(5, hang)], watchdog_seconds=0.2)
    said = capfd.readouterr().err
    assert "no step has finished for" in said and "in hang" in said
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


def test_some_steps_are_traced(tmp_path):
    run(tmp_path, numbers, profile=(3, 5))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match=r"profile=\(5, 3\)"):
        run(tmp_path, numbers, profile=(5, 3))


def test_lines_wait_for_a_disk_that_fails(tmp_path):
    with Log(tmp_path, "stage", 10) as log:
        log.scalars(1, {"a": 1.0})
        (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.warns(UserWarning, match="its lines wait"):
            log.scalars(2, {"a": 2.0})
        log.scalars(3, {"a": 3.0})
        (tmp_path / "metrics.jsonl").rmdir()
        (tmp_path / "kept").rename(tmp_path / "metrics.jsonl")
        log.scalars(4, {"a": 4.0})
    assert [line["a"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_a_hangup_that_is_ignored_stops_nothing(tmp_path):
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_line_that_nobody_reads_ends_nothing(tmp_path, monkeypatch):
    """A `tee` that is gone, a disk that is full."""

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Log(tmp_path, "stage", 10) as log:
        monkeypatch.setattr("sys.stdout", Gone())
        log.scalars(1, {"a": 1.0})
        monkeypatch.undo()
    assert [line["a"] for line in lines(tmp_path)] == [1]


def test_a_signal_in_the_last_pictures_is_not_lost(tmp_path):
    def draw(state):
        os.kill(os.getpid(), signal.SIGTERM)
        return Report()

    with pytest.raises(Interrupted, match="stopped at step 10"):
        run(tmp_path, numbers, hooks=[Hook(10, draw)])
    assert steps_in(tmp_path / "checkpoints")[-1] == 10


class FakeWandb(types.ModuleType):
    """What of Weights & Biases is used; `broken`: its service is gone."""

    def __init__(self, broken=False):
        super().__init__("wandb")
        self.runs, self.Image, self.broken = [], lambda picture: ("image", picture.shape), broken

    def init(self, **options):
        run = types.SimpleNamespace(options=options, lines=[], finished=False)

        def log(values, step):
            if self.broken:
                raise ConnectionError("no network")
            run.lines.append((step, values))

        run.log, run.finish = log, lambda: setattr(run, "finished", True)
        self.runs.append(run)
        return run


def test_weights_and_biases_gets_what_the_log_has_and_goes_on_as_one_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 4):
        with Log(tmp_path / "run" / "stage", "stage", 8, start, "photos", {"seed": 3}) as log:
            log.scalars(start + 2, {"train/loss": 0.5})
            log.image(start + 2, "samples", np.zeros((4, 6, 3), np.uint8))
    first, second = fake.runs
    assert first.options["project"] == "photos" and first.options["config"] == {"seed": 3}
    assert first.options["name"] == "run/stage" and first.options["id"] == second.options["id"]
    assert second.lines == [(6, {"train/loss": 0.5}), (6, {"samples": ("image", (4, 6, 3))})] and second.finished


def test_a_service_that_is_gone_is_given_up_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(broken=True))
    with pytest.warns(UserWarning, match="no network; given up"), Log(tmp_path, "stage", 8, 0, "photos") as log:
        for step in (1, 2):
            log.scalars(step, {"train/loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("until", [4, 100])
def test_a_folder_that_is_gone_is_not_made_anew(tmp_path, monkeypatch, until):
    """A disk that is unplugged: one line at the end; where it is there again in time, nothing was lost."""
    monkeypatch.setattr("ldm_jax.training.checkpoint.time.sleep", lambda seconds: None)
    monkeypatch.setattr("ldm_jax.training.checkpoint.RETRIES", 2)

    def unplug(state):
        if int(state.step) == 3:
            while until > 10 and not list(tmp_path.glob("disk/stage/checkpoints/2/commit_success.txt")):
                time.sleep(0.01)  # a save under way would make its own folders anew
            (tmp_path / "disk").rename(tmp_path / "unplugged")
        if int(state.step) == until:
            (tmp_path / "unplugged").rename(tmp_path / "disk")
        return Report(images={"grid": (np.zeros((8, 8, 3), np.uint8), "words")})

    (tmp_path / "disk").mkdir()
    options = {"hooks": [Hook(1, unplug)], "checkpoint_every": 0 if until < 10 else 2, "log_every": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if until < 10:
            run(tmp_path / "disk" / "stage", numbers, **options)
        else:
            with pytest.raises(OSError, match="could not be written .*the folder is gone") as error:
                run(tmp_path / "disk" / "stage", numbers, **options)
            assert "\n" not in str(error.value)
            assert os.listdir(tmp_path) == ["unplugged"]
            (tmp_path / "unplugged").rename(tmp_path / "disk")
            with Checkpoints(tmp_path / "disk" / "stage" / "checkpoints") as checkpoints:
                state = checkpoints.restore(jax.eval_shape(INIT, jax.random.key(0)))
            assert int(state.step) == 2
            run(tmp_path / "disk" / "stage", numbers, state=state, log_every=1)
    assert [line["step"] for line in lines(tmp_path / "disk" / "stage")] == list(range(1, 11))
    assert steps_in(tmp_path / "disk" / "stage" / "checkpoints")[-1] == 10 and os.listdir(tmp_path) == ["disk"]
