"""Averages of any width after training, against their definition: a weighted mean over all updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldm_jax.training import ema
from ldm_jax.training.checkpoint import Checkpoints, load_post_hoc
from ldm_jax.training.state import Gradient, TrainState, make_init, make_train_step

WIDTHS = (0.05, 0.1)
STEPS = 400


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_width_and_exponent(width):
    gamma = ema.gamma_of(width)
    np.testing.assert_allclose(ema.width_of(gamma), width, rtol=1e-6)
    # the deviation of the profile tau^gamma on [0, 1], by sums
    tau = (np.arange(200_000) + 0.5) / 200_000
    weight = tau**gamma / (tau**gamma).sum()
    np.testing.assert_allclose(np.sqrt((weight * tau**2).sum() - (weight * tau).sum() ** 2), width, rtol=1e-3)


def test_published_exponents():
    """Karras et al. 2024, section 3.1: widths of 5 % and 10 % are gamma 16.97 and 6.94."""
    np.testing.assert_allclose([ema.gamma_of(0.05), ema.gamma_of(0.1)], [16.97, 6.94], atol=5e-3)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, float("nan")])
def test_widths_out_of_range(width):
    with pytest.raises(ValueError, match=r"lies in \(0, 0.28\]"):
        ema.gamma_of(width)


def training():
    """A parameter that follows a curve of its own, and what every update left."""

    def grad_fn(params, batch, key, step):
        return Gradient(jnp.zeros(()), {}, {"w": {"kernel": params["w"]["kernel"] - batch[0]}})

    optimizer = optax.sgd(0.5)
    state = make_init(lambda key: {"w": {"kernel": jnp.zeros(3)}}, optimizer, True, post_hoc=WIDTHS)(jax.random.key(0))
    step = jax.jit(make_train_step(grad_fn, optimizer, 0.9, post_hoc=WIDTHS))
    curve = np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 1, 3)), 0).astype(np.float32)
    history, states = [], {}
    for i in range(STEPS):
        state, _ = step(state, jnp.asarray(curve[i]), jax.random.key(0))
        history.append(np.asarray(state.params["w"]["kernel"], np.float64))
        states[i + 1] = state
    return np.array(history), states


@pytest.fixture(scope="module")
def trained():
    return training()


def exact(history, width, step):
    """The weighted mean over updates 1..step, by the recursion's own weights."""
    gamma, value = ema.gamma_of(width), None
    for t in range(1, step + 1):
        beta = (1 - 1 / t) ** (gamma + 1)
        value = history[t - 1] if value is None else beta * value + (1 - beta) * history[t - 1]
    return value


def test_kept_averages_are_those_of_their_definition(trained):
    history, states = trained
    for i, width in enumerate(WIDTHS):
        found = states[STEPS].post_hoc[str(i)]["w"]["kernel"]
        np.testing.assert_allclose(found, exact(history, width, STEPS), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def snapshots(trained, tmp_path_factory):
    """A folder with the averages of every 25th update."""
    folder = tmp_path_factory.mktemp("averages")
    with Checkpoints(folder, keep=None) as snapshots:
        for at in range(25, STEPS + 1, 25):
            state = trained[1][at]
            snapshots.save(at, TrainState(state.step, {}, {}, {}, state.skipped, state.post_hoc))
    return folder


@pytest.mark.parametrize("width, step", [(0.05, 400), (0.07, 400), (0.15, 400), (0.2, 400), (0.08, 350)])
def test_any_width_from_snapshots_on_disk(trained, snapshots, width, step):
    history, _ = trained
    found = load_post_hoc(snapshots, WIDTHS, width, "last" if step == STEPS else step)["w"]["kernel"]
    wanted = exact(history, width, step)
    spread = history[step // 2 : step].std(0)
    assert (np.abs(found - wanted) / spread).max() < 0.03
    # the test can tell widths apart: the average kept for another width is further away
    other = exact(history, 0.1 if width < 0.09 else 0.05, step)
    assert (np.abs(other - wanted) / spread).max() > 0.05


def test_what_is_not_there_is_said(trained, tmp_path):
    _, states = trained
    with pytest.raises(FileNotFoundError, match="diffusion_train.post_hoc"):
        load_post_hoc(tmp_path / "none", WIDTHS, 0.1)
    with Checkpoints(tmp_path / "one", keep=None) as snapshots:
        state = states[100]
        snapshots.save(100, TrainState(state.step, {}, {}, {}, state.skipped, state.post_hoc))
    with pytest.raises(ValueError, match="snapshots reach to step 100"):
        load_post_hoc(tmp_path / "one", WIDTHS, 0.1, 200)
    with pytest.raises(ValueError, match="holds 2 averages; the config names 1"):
        load_post_hoc(tmp_path / "one", WIDTHS[:1], 0.1)
    with pytest.raises(ValueError, match="ends at 'last' or at a step"):
        load_post_hoc(tmp_path / "one", WIDTHS, 0.1, "best")
