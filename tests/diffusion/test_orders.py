"""Every deterministic solver converges at its theoretical order, on the Gaussian oracle, in VP, VE and flow coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import diffuse, sample, schedules
from ldm_jax.diffusion.samplers import (
    ddim,
    deis,
    dpm2,
    dpm_multistep,
    dpm_solver,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    heun,
    ipndm,
    lms,
    plms,
    unipc,
)
from tests.diffusion.oracles import flow_map, gaussian

SCHEDULES = (schedules.Cosine(), schedules.VarianceExploding(1e-3, 1e4), schedules.RectifiedFlow())
STEPS = (32, 64, 128)

# plms and ipndm pretend that the grid is uniform, which on this one (uniform in log-SNR) leaves order 2 of their 4.
# UniPC's corrector adds one to the order. Gaussians are kind to some solvers, so only what must not happen is bounded above.
SOLVERS = {
    "ddim": (lambda schedule: ddim(), 1, 1.2),
    "heun": (lambda schedule: heun(), 2, 2.3),
    "heun of flow": (lambda schedule: heun("flow"), 2, 2.3),
    "dpm2": (dpm2, 2, 2.3),
    "dpmpp_2s": (dpmpp_2s, 2, 2.3),
    "plms": (lambda schedule: plms(), 2, 2.3),
    "ipndm": (lambda schedule: ipndm(), 2, 2.3),
    "lms 2": (lambda schedule: lms(2), 2, 2.3),
    "lms 4": (lambda schedule: lms(4), 3.75, 9),
    "deis 2": (lambda schedule: deis(2), 2, 2.3),
    "deis 3": (lambda schedule: deis(3), 3, 9),
    "dpmpp_2m": (lambda schedule: dpmpp_2m(), 2, 2.3),
    "dpmpp_2m, exact": (lambda schedule: dpm_multistep(2, exact=True), 2, 2.3),
    "dpmpp_3m": (lambda schedule: dpmpp_3m(), 3, 9),
    "dpmpp_3m, as published": (lambda schedule: dpmpp_3m(exact=False), 2, 2.4),
    "dpm_solver 2": (lambda schedule: dpm_solver(2), 2, 2.3),
    "dpm_solver 2 of eps": (lambda schedule: dpm_solver(2, "eps"), 2, 2.3),
    "dpm_solver 3": (lambda schedule: dpm_solver(3), 3, 9),
    "unipc 1": (lambda schedule: unipc(1, lower_final=False), 2, 2.3),
    "unipc 2": (lambda schedule: unipc(2, lower_final=False), 3, 9),
    "unipc 2, bh1": (lambda schedule: unipc(2, variant="bh1", lower_final=False), 3, 9),
    "unipc 3": (lambda schedule: unipc(3, lower_final=False), 3.75, 9),
    "unipc 3 of eps": (lambda schedule: unipc(3, "eps", lower_final=False), 4, 9),
}


def grid_of(schedule, steps, high=50.0, low=0.05):
    """Uniform in log-SNR. It starts where the denoiser hardly changes, so the low orders of the first steps do not show."""
    return schedule.from_log_snr(-2 * np.linspace(np.log(high), np.log(low), steps + 1))


def largest_error(factory, schedule, steps):
    grid = grid_of(schedule, steps)
    x0, eps = jnp.array([-0.3, 0.5, 1.2, 0.4])[:, None], jnp.array([0.7, -1.1, 0.3, 2.0])[:, None]
    x = diffuse(x0, eps, grid[0])
    found = jax.jit(lambda x: sample(gaussian(), factory(schedule), x, grid))(x)
    return float(jnp.abs(found - flow_map(x, grid[0], grid[-1])).max())


@pytest.mark.parametrize("name", SOLVERS)
def test_order(name):
    factory, order, most = SOLVERS[name]
    with jax.enable_x64(True):
        errors = np.array([[largest_error(factory, schedule, steps) for schedule in SCHEDULES] for steps in STEPS])
    slopes = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    print(name, slopes, errors[-1])
    assert np.all(slopes > order - 0.25) and np.all(slopes < most), (slopes, errors)
