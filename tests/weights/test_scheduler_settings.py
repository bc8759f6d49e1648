"""Settings of a diffusers scheduler: those that it can't have are refused by name, before a recipe is made of them; where some
that it has lead, as numbers of diffusers."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import make_denoiser, sample
from ldm_jax.diffusion.schedules import Discrete
from ldm_jax.weights import schedulers

NAN = math.nan


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"num_train_timesteps": -5}, "num_train_timesteps=-5 must be a whole number from 2"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0 must be"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps=10.5 must be"),
        ({"num_train_timesteps": True}, "num_train_timesteps=True must be"),
        ({"num_train_timesteps": 10**9}, "at most 1e\\+06"),
        ({"steps_offset": -1}, "steps_offset=-1 must be a whole number from 0"),
        ({"beta_start": 0.1, "beta_end": 0.01}, "beta_start=0.1 is above beta_end=0.01"),
        ({"beta_start": NAN}, "beta_start=nan must be a number above 0"),
        ({"beta_end": math.inf}, "beta_end=inf must be"),
        ({"beta_end": 2}, "beta_end=2 must be .* at most 1"),
        ({"beta_end": "0.1"}, "beta_end='0.1' must be"),
        ({"beta_start": 0.0}, "beta_start=0.0 must be"),
        ({"trained_betas": [0.1, NAN]}, "trained_betas must be a list of numbers above 0 and at most 1"),
        ({"trained_betas": "abc"}, "trained_betas must be"),
        ({"trained_betas": [0.1, -0.1]}, "trained_betas must be"),
        ({"trained_betas": [0.1] * 5, "num_train_timesteps": 6}, "5 trained_betas for num_train_timesteps=6"),
        ({"clip_sample": "false"}, "clip_sample='false' must be true or false"),
        ({"clip_sample_range": 0}, "clip_sample_range=0 must be"),
        ({"dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio=1.5 must be"),
        ({"timestep_spacing": "leding"}, "timestep_spacing='leding' is not known. Did you mean 'leading'"),
    ],
)
def test_settings_that_no_scheduler_can_have_are_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        schedulers.read({"_class_name": "DDIMScheduler", **settings})


@pytest.mark.parametrize(
    "name, settings, said",
    [
        ("EDMEulerScheduler", {"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min=3.0 is above sigma_max=2.0"),
        ("EDMEulerScheduler", {"sigma_data": -1}, "sigma_data=-1 must be"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": NAN}, "shift=nan must be"),
        ("LCMScheduler", {"original_inference_steps": 2000, "num_train_timesteps": 1000}, "is above num_train_timesteps"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order=4 must be"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": "yes"}, "use_karras_sigmas='yes' must be true or false"),
    ],
)
def test_other_classes_have_the_same_checks(name, settings, said):
    with pytest.raises(ValueError, match=said):
        schedulers.read({"_class_name": name, **settings})


def test_what_can_be_meant_is_read():
    settings = {"num_train_timesteps": 50.0, "clip_sample": 1, "beta_start": None}
    recipe = schedulers.read({"_class_name": "DDIMScheduler", **settings})
    assert recipe.schedule.size == 50
    np.testing.assert_allclose(recipe.schedule.alpha_bar, np.cumprod(1 - np.linspace(1e-4, 2e-2, 50)))
    # parameters of other classes, left over, are passed by
    assert schedulers.read({"_class_name": "FlowMatchHeunDiscreteScheduler", "beta_start": NAN}).schedule.shift == 1.0


def test_a_table_has_no_nan():
    with pytest.raises(ValueError, match="decrease strictly"):
        Discrete(np.array([0.9, NAN, 0.1]))


KARRAS = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
ARRIVED = [  # from diffusers 0.42.1, in double precision, without the noise of steps
    ("DPMSolverSinglestepScheduler", 4, KARRAS, [-9.54202, -3.11048, 2.16678, 11.72685]),
    ("DPMSolverSinglestepScheduler", 5, KARRAS, [-9.01033, -2.28038, 2.03489, 10.97909]),
    ("DPMSolverSinglestepScheduler", 6, KARRAS | {"solver_order": 3}, [-9.02233, -1.0675, 1.81876, 7.12835]),
    ("UniPCMultistepScheduler", 5, KARRAS, [-5.84487, -0.73049, 1.74231, 6.11027]),
    ("DPMSolverMultistepScheduler", 5, KARRAS | {"solver_order": 3}, [-4.60944, -2.09334, 1.79129, 7.4013]),
    ("DEISMultistepScheduler", 5, {"use_karras_sigmas": True, "solver_order": 3}, [-7.20181, -2.2982, 1.94987, 9.8655]),
    ("TCDScheduler", 4, {"clip_sample": True}, [-7.43344, -1.90154, 0.5254, 10.24607]),
    ("TCDScheduler", 4, {"clip_sample": True, "thresholding": True}, [-7.43344, -1.90154, 0.5254, 10.24607]),
    ("DDIMScheduler", 4, {"clip_sample": True, "thresholding": True}, [-0.97899, -0.59213, 0.48027, 0.71486]),
]


@pytest.mark.parametrize("name, steps, settings, wanted", ARRIVED, ids=lambda value: value if isinstance(value, str) else "")
def test_where_settings_lead(name, steps, settings, wanted):
    """A last step of no length, which still corrects the one before it; clipping, which TCD takes and leaves; thresholding,
    which comes before clipping."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    recipe = schedulers.read({"_class_name": name, **betas, **settings})
    grid, x = recipe.grid(steps), jnp.linspace(-2, 2, 4).reshape(1, 2, 2, 1)

    def network(x, t):
        t = t.reshape(-1, 1, 1, 1) / 1000
        return 0.3 * jnp.sin(1.7 * x + t) + 0.5 * x / jnp.sqrt(1 + t)

    denoise = recipe.wrap(make_denoiser(network, recipe.prediction))
    x = sample(denoise, recipe.sampler(steps), x, grid, jnp.zeros((len(grid) - 1, *x.shape)))
    np.testing.assert_allclose(x.reshape(-1), wanted, atol=1e-3)
