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
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2, "prediction_type": "v_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SAVED = {"timestep_spacing": "linspace", "steps_offset": 0, "final_sigmas_type": "zero"}  # defaults, which diffusers saves too
ARRIVED += [
    ("DPMSolverMultistepScheduler", 5, LINEAR | {"use_beta_sigmas": True}, [0.61089, 0.37802, -0.50677, -0.34908]),
    ("DPMSolverSinglestepScheduler", 5, LINEAR | {"use_exponential_sigmas": True}, [-0.20672, -0.0713, -0.03775, 0.37755]),
    ("UniPCMultistepScheduler", 5, LINEAR | {"use_exponential_sigmas": True}, [-0.80786, -0.30484, 0.23457, 0.83867]),
    ("DEISMultistepScheduler", 5, LINEAR | {"use_beta_sigmas": True}, [0.76701, 0.31856, -0.49541, -0.3767]),
    ("DPMSolverMultistepScheduler", 5, FLOW | SAVED, [-1.10848, -0.35396, 0.20169, 1.4311]),
    ("UniPCMultistepScheduler", 5, FLOW | SAVED, [-1.10853, -0.35341, 0.20154, 1.42755]),
    ("FlowMatchEulerDiscreteScheduler", 5, {"use_karras_sigmas": True, "shift": 3.0}, [-1.10694, -0.36271, 0.22621, 1.45359]),
    ("FlowMatchEulerDiscreteScheduler", 5, {"shift": 3.0, "use_exponential_sigmas": 1}, [-1.10494, -0.36697, 0.22429, 1.47083]),
    ("DPMSolverMultistepScheduler", 5, {"variance_type": "fixed_large"}, [-7.70485, -2.05, 1.90035, 8.91195]),  # DDPM's own
    ("DPMSolverSinglestepScheduler", 5, {"variance_type": "fixed_large"}, [-8.34207, -2.30579, 1.9546, 9.69242]),
    ("FlowMatchEulerDiscreteScheduler", 5, {"use_beta_sigmas": True, "shift": 3.0}, [-1.10915, -0.35569, 0.21803, 1.43106]),
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
    np.testing.assert_allclose(x.reshape(-1), wanted, rtol=5e-5, atol=3e-5)


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_times_of_levels_that_are_spaced_otherwise(name):
    """Those of Karras are whole there, the others not."""
    times = {k: schedulers.read({"_class_name": name, f"use_{k}_sigmas": True}).grid(6).t[1:-1] for k in ("karras", "beta")}
    assert (times["karras"] == np.round(times["karras"])).all() and (times["beta"] != np.round(times["beta"])).any()


def test_a_cosine_has_its_times_cut():
    """In one class, where all others round those of Karras."""
    settings = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    t = schedulers.read({"_class_name": "DPMSolverMultistepScheduler", **settings}).grid(20).t
    rounded = schedulers.read({"_class_name": "UniPCMultistepScheduler", **settings}).grid(20).t
    exact = schedulers.read({"_class_name": "HeunDiscreteScheduler", **settings}).grid(20).t
    np.testing.assert_array_equal(t, np.floor(exact + 1e-4))
    np.testing.assert_array_equal(rounded, np.round(exact))


def test_the_third_order_of_edm():
    """To exactly clean every last step is of order 1, so `euler_at_final` changes nothing; the step before stays of order 3."""
    settings = {"solver_order": 3, "lower_order_final": False}
    one, other = (
        schedulers.scheduler("EDMDPMSolverMultistepScheduler", **settings, euler_at_final=euler) for euler in (False, True)
    )
    x, grid = 80.0 * jnp.linspace(-2, 2, 4).reshape(1, 2, 2, 1), one.grid(6)
    denoise = one.denoiser(lambda x, t: jnp.sin(1.7 * x))
    found = [np.asarray(sample(denoise, r.sampler(6), x, grid, jnp.zeros((6, *x.shape)))) for r in (one, other)]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match="solver_order 3 has no counterpart with solver_type 'heun'"):
        schedulers.scheduler("EDMDPMSolverMultistepScheduler", solver_order=3, solver_type="heun")


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler"])
def test_one_step_that_goes_nowhere(name):
    recipe = schedulers.scheduler(name, timestep_spacing="leading", set_alpha_to_one=False)
    with pytest.raises(ValueError, match="visits t = 0 alone, where it also ends.*Take more steps"):
        recipe.grid(1)
    assert len(recipe.grid(2)) == 2  # the other one is a step
