"""Schedulers by the names that people use, against diffusers' `from_config`: where they start, which times they visit, and
where they arrive, from unit noise. The network is a formula, and random steps add nothing."""

import importlib
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.build import make_recipe
from ldm_jax.diffusion import make_denoiser, sample, start
from ldm_jax.weights import pipelines, scheduler_names, schedulers
from ldm_jax.weights.scheduler_settings import PARAMETERS

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="needs the extra parity: pip install -e .[parity]")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity: pip install -e .[parity]")

STEPS = 8  # divides the 1000 times: DDIM in the reference always steps by 1000 // n, wherever the next one starts
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
FOLDERS = {  # the scheduler_config.json of published models
    "PNDM of version 1": {**TABLE, "_class_name": "PNDMScheduler", "set_alpha_to_one": False, "skip_prk_steps": True,
                          "steps_offset": 1, "trained_betas": None, "clip_sample": False},
    "DDIM of version 2": {**TABLE, "_class_name": "DDIMScheduler", "set_alpha_to_one": False, "steps_offset": 1,
                          "prediction_type": "v_prediction", "clip_sample": False, "skip_prk_steps": True},
    "bare": {**TABLE, "_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "Euler, trailing, pure noise": {**TABLE, "_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction",
                                    "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
}  # fmt: skip
NAMES = sorted(name for name in scheduler_names.NAMES if not name.endswith("Scheduler"))


def network(x, t, xp):
    return 0.3 * xp.sin(1.7 * x + t / 1000) + 0.5 * x / (1 + t / 1000) ** 0.5


def silent(monkeypatch, scheduler):
    """Its random numbers are 0, but for those of its start."""
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: torch.zeros(tuple(shape)))
    if hasattr(module, "BrownianTreeNoiseSampler"):
        monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *a, **k: lambda *a: torch.zeros(()))


def theirs(scheduler, noise, steps=STEPS):
    scheduler.set_timesteps(steps)
    x = torch.tensor(noise) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t.float(), torch)
        x = scheduler.step(output, t, x).prev_sample
    return x.numpy(), scheduler.timesteps.numpy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_scheduler_by_its_usual_name_is_the_one_of_from_config(folder, name, monkeypatch):
    config = FOLDERS[folder]
    cls, settings = scheduler_names.NAMES[name]
    if cls == "PNDMScheduler" and config.get("prediction_type") == "v_prediction":
        pytest.skip("diffusers averages v over past levels, where it is another mixture: see test_plms_of_a_v_network")
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler = getattr(diffusers, cls).from_config(own.config, **settings)
    silent(monkeypatch, scheduler)
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 2)).astype(np.float32)
    try:
        wanted, times = theirs(scheduler, noise)
    except (ValueError, NotImplementedError, IndexError) as error:
        pytest.skip(f"diffusers can't either: {error}")
    if not np.isfinite(wanted).all():
        pytest.skip("diffusers' numbers are not finite")
    recipe = make_recipe({"scheduler": config}, name)
    grid = recipe.grid(STEPS)
    denoise = recipe.wrap(make_denoiser(lambda x, t: network(x, t.reshape(-1, 1, 1, 1), jnp), recipe.prediction))
    x = start(jnp.asarray(noise), noise.shape, grid, recipe.start_scale)
    steps = jnp.zeros((len(grid) - 1, *noise.shape))
    with jax.disable_jit():
        final = sample(denoise, recipe.sampler(STEPS), x, grid, steps)
    assert np.round(grid.t[0]) == np.round(float(times[0]))
    end = grid.alpha[-1]
    over_alpha = cls.startswith(("Euler", "Heun", "LMS", "KDPM2"))
    np.testing.assert_allclose(final / (end if over_alpha else 1), wanted, atol=3e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("steps", [4, 9, 10])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["DPMSolverSingle", "DPMSolverMulti", "UniPCMulti", "DEISMulti"])
def test_a_last_step_of_no_length(name, order, steps):
    """Levels of Karras that end at the least one, which is where they stop: what the last step corrects counts."""
    name += "stepScheduler"
    config = TABLE | {"use_karras_sigmas": True, "solver_order": order}
    config |= {} if name.startswith("DEIS") else {"final_sigmas_type": "sigma_min"}
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 2)).astype(np.float32)
    wanted, _ = theirs(getattr(diffusers, name)(**config), noise, steps)
    recipe = schedulers.read({"_class_name": name, **config})
    grid = recipe.grid(steps)
    denoise = recipe.wrap(make_denoiser(lambda x, t: network(x, t.reshape(-1, 1, 1, 1), jnp), recipe.prediction))
    final = sample(denoise, recipe.sampler(steps), jnp.asarray(noise), grid, jnp.zeros((steps, *noise.shape)))
    np.testing.assert_allclose(final, wanted, atol=3e-5 * np.abs(wanted).max())


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SPACED = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]


def arrive(config, noise, steps, levels=slice(None)):
    recipe = schedulers.read(config)
    grid = recipe.grid(steps)[levels]
    x = start(jnp.asarray(np.moveaxis(noise, 1, -1)), (1, 4, 2, 4), grid, recipe.start_scale)
    draws = jnp.zeros((len(grid) - 1, *x.shape))
    return np.moveaxis(sample(recipe.denoiser(of_channels_last), recipe.sampler(steps), x, grid, draws), -1, 1)


def of_channels_last(x, t):
    return network(x, t.reshape(-1, 1, 1, 1), jnp)


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize(
    "name, settings",
    [("FlowMatchEulerDiscreteScheduler", {"shift": 3.0} | spaced) for spaced in ({}, *SPACED)]
    + [(f"{kind}stepScheduler", FLOW) for kind in ("DPMSolverMulti", "DPMSolverSingle", "UniPCMulti")]
    + [("EDMDPMSolverMultistepScheduler", {"solver_order": 3, "euler_at_final": euler}) for euler in (True, False)],
)
def test_what_diffusers_saves_of_a_scheduler(name, settings, steps):
    """All of its settings with the defaults, as they stand in a saved folder, draw what they draw there."""
    scheduler = getattr(diffusers, name)(**settings)
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 2)).astype(np.float32)
    if not hasattr(scheduler, "init_noise_sigma"):
        scheduler.init_noise_sigma = 1.0
        scheduler.scale_model_input = lambda x, t: x
    wanted, _ = theirs(scheduler, noise, steps)
    found = arrive(json.loads(scheduler.to_json_string()), noise, steps)
    np.testing.assert_allclose(found, wanted, atol=3e-5 * np.abs(wanted).max())


def test_deis_of_a_flow_stops_early_in_the_reference():
    """It stops at the last level that it visits, which of a flow is far from clean: the rest of the noise stays in the picture.
    Here the last step goes to clean; without it the two are the same."""
    config = FLOW | {"lower_order_final": False}
    scheduler = diffusers.DEISMultistepScheduler(**config)
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 2)).astype(np.float32)
    wanted, _ = theirs(scheduler, noise, 6)
    assert scheduler.sigmas[-1] > 0.3
    saved = json.loads(scheduler.to_json_string())
    np.testing.assert_allclose(arrive(saved, noise, 6, slice(None, -1)), wanted, atol=2e-4 * np.abs(wanted).max())
    assert schedulers.read(saved).grid(6).sigma[-1] == 0


def test_no_class_of_ours_has_parameters_that_diffusers_lacks():

    for name, taken in PARAMETERS.items():
        assert taken <= set(inspect.signature(getattr(diffusers, name)).parameters), name


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline"])
@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_pipeline_changes_its_scheduler(pipeline, name):
    cls = getattr(diffusers, pipeline)
    parts = {key: None for key in inspect_init(cls) if key not in ("self", "requires_safety_checker")}
    pipe = cls(**parts | {"scheduler": getattr(diffusers, name)(**TABLE)}, requires_safety_checker=False)
    ours = pipelines.scheduler_of(pipeline, {**TABLE, "_class_name": name})
    for key, value in ours.items():
        if not key.startswith("_"):
            assert pipe.scheduler.config[key] == value, key
    for key in ("steps_offset", "clip_sample", "skip_prk_steps"):
        if key in pipe.scheduler.config and pipe.scheduler.config[key] != getattr(diffusers, name)(**TABLE).config[key]:
            assert ours[key] == pipe.scheduler.config[key]


def inspect_init(cls):

    return inspect.signature(cls.__init__).parameters
