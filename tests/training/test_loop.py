"""The loop: what it logs, when it stops, and that it asks for batches from where it is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.training.checkpoint import Checkpoints
from ldm_jax.training.loop import Hook, Report, train
from ldm_jax.training.metrics import Log, clock, image_grid
from ldm_jax.training.optimizer import make_optimizer
from ldm_jax.training.state import from_loss, make_init, make_train_step

OPTIMIZER = make_optimizer("adamw", 1e-2, 100)
INIT = make_init(lambda key: {"kernel": jnp.ones(3)}, OPTIMIZER, ema=False)


def loss_fn(params, batch, key, step):
    return jnp.mean((params["kernel"] - batch) ** 2), {}


STEP = jax.jit(make_train_step(from_loss(loss_fn), OPTIMIZER))


def run(folder, batches, steps=10, **options):
    state = INIT(jax.random.key(0))
    with Log(folder, "stage", steps) as log, Checkpoints(folder / "checkpoints") as checkpoints:
        return train(
            state,
            STEP,
            iter(batches),
            steps=steps,
            key=jax.random.key(0),
            batch_size=2,
            log=log,
            checkpoints=checkpoints,
            **{"log_every": 5, "checkpoint_every": 4, **options},
        )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_logs_means_runs_hooks_and_keeps_the_best(tmp_path, capsys):
    calls = []

    def validate(state):
        calls.append(int(state.step))
        picture = image_grid(np.zeros((4, 8, 8, 3)))
        return Report({"validation/x": 1.0}, {"grid": (picture, "words")}, score=abs(len(calls) - 2))

    state = run(tmp_path, [jnp.float32(i) for i in range(10)], hooks=[Hook(3, validate)])
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
        assert checkpoints.steps == [8, 10]  # 8 carries the best score so far, 0 at step 6
    assert "stage 10/10" in capsys.readouterr().out


def test_a_run_of_broken_steps_stops_with_a_diagnosis(tmp_path):
    batches = [jnp.float32(1)] * 3 + [jnp.float32(jnp.nan)] * 20
    with pytest.raises(FloatingPointError, match="4 steps in a row up to step 7 .* learning rate"):
        run(tmp_path, batches, steps=20, max_skipped=3)
    assert all(line.get("train/loss") is None or np.isfinite(line["train/loss"]) for line in lines(tmp_path))


def test_clock():
    assert [clock(s) for s in (5, 75, 3700)] == ["0:05", "1:15", "1:01:40"]


def test_grid_places_pictures_row_by_row():
    images = np.stack([np.full((4, 4, 3), v) for v in (-1.0, 0.0, 1.0)])
    grid = image_grid(images, columns=2, border=1)
    assert grid.shape == (11, 11, 3)
    assert grid[1, 1, 0] == 0 and grid[1, 6, 0] == 128 and grid[6, 1, 0] == 255 and grid[0, 0, 0] == 255
