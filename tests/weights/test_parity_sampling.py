"""Whole trajectories of loaded checkpoints with our samplers, against the reference implementations' own."""

import functools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import models, weights
from ldm_jax.diffusion import CLEAN, grids

from . import cases

pytestmark = pytest.mark.parity
LATENTS, IMAGES = 1e-4, 1e-3


def embed(checkpoint: weights.Checkpoint, values: np.ndarray) -> jnp.ndarray:
    fields = checkpoint.description["conditioner"]
    kind = fields["kind"]
    classes = {"class": models.ClassEmbedder, "text": models.TransformerEmbedder, "layout": models.TransformerEmbedder}
    module = classes[kind](**{name: fields[name] for name in fields if name in classes[kind].__dataclass_fields__})
    return module.apply({"params": cases.loaded(checkpoint.params["conditioner"])}, jnp.asarray(values, jnp.int32))


def test_compvis_samplers(fixtures_dir):
    found = cases.folders(fixtures_dir, "D", "config.yaml")
    if not found:
        pytest.skip("no CompVis checkpoint")
    for folder in found:
        io, config = cases.arrays(folder / "io.npz"), json.loads((folder / "config.json").read_text())
        for which in ("raw", "ema"):
            checkpoint = weights.read(folder / "model.ckpt", ema=which == "ema")
            net, scale = cases.Network(checkpoint), checkpoint.description["latents"]["scale"]
            schedule = cases.schedule(checkpoint)
            _, decode, _ = cases.autoencoder(checkpoint)
            inputs = [name for name in io if name.startswith("uncond_")]
            for name in inputs:
                cases.compare(f"{folder.name} uncond", embed(checkpoint, io[name]), io["uncond"], 2e-5)
                cases.compare(f"{folder.name} cond", embed(checkpoint, io[name[7:]]), io["cond"], 2e-5)
            conditions = {"context": io["cond"]}, {"context": io["uncond"]}
            guided = functools.partial(cases.run, net, checkpoint, conditions=conditions, scale=config["guidance_scale"])
            runs = {f"ddim_{which}": ("ddim", {}), f"plms_{which}": ("plms", {})}
            if which == "ema":
                runs["ddim_eta_ema"] = ("ddim", {"eta": config["ddim_eta_case"]})
            for name, (sampler, options) in runs.items():
                times = np.sort(io[f"{name}.timesteps"])[::-1]
                grid = grids.from_times(schedule, times, end=schedule(0.0))
                final, path = guided(sampler, io["x_T"], grid, noise=io.get(f"{name}.noise"), **options)
                cases.compare(f"{folder.name} {name} path", path, io[f"{name}.x"][1:], LATENTS)
                cases.compare(f"{folder.name} {name} final", final, io[f"{name}.final"], LATENTS)
                if f"{name}.image" in io:
                    cases.compare(f"{folder.name} {name} image", decode(final / scale), io[f"{name}.image"], IMAGES)


SAMPLERS = {
    "PNDMScheduler": "plms",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "LMSDiscreteScheduler": "lms",
    "HeunDiscreteScheduler": "heun",
}
EXPLODING = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler")


class Scheduler:
    """A diffusers scheduler in our words: grid, sampler, and the scale of its samples."""

    def __init__(self, name: str, config: dict, checkpoint: weights.Checkpoint, steps: int):
        self.name, schedule = name, cases.schedule(checkpoint)
        size, spacing = schedule.size, config.get("timestep_spacing", "linspace")
        multistep = name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # they count the end as a time
        if spacing == "linspace":
            times = np.linspace(0, size - 1, steps + multistep)[::-1][:steps]
            times = times if name in EXPLODING else np.round(times)
        elif spacing == "leading":
            times = (np.arange(steps + multistep) * (size // (steps + multistep)))[::-1][:steps] + config.get("steps_offset", 0)
        else:
            times = np.round(np.arange(size, 0, -size / steps)) - 1
        final = "final_sigmas_type" if multistep or name in EXPLODING else "set_alpha_to_one"
        clean = config.get(final, True) in (True, "zero")
        self.grid = grids.from_times(schedule, times, end=CLEAN if clean else schedule(0.0))
        ratio = self.grid[0].noise_ratio
        self.start = 1.0
        if name in EXPLODING:  # they hold x / alpha, and start from noise times sigma_max, or sqrt(sigma_max^2 + 1)
            self.start = (ratio if spacing in ("linspace", "trailing") else math.hypot(ratio, 1)) * self.grid.alpha[0]
        self.sampler = SAMPLERS[name]

    def recorded(self, latents: np.ndarray) -> np.ndarray:
        """Its record of latents after every evaluation as ours after every step, variance preserving."""
        if self.name == "HeunDiscreteScheduler":
            latents = np.concatenate([latents[1::2], latents[-1:]])
        if self.name == "PNDMScheduler":
            latents = latents[1:]
        if self.name in EXPLODING:
            latents = latents * self.grid.alpha[1:].reshape(-1, *[1] * (latents.ndim - 1))
        return latents


def to_unit(image: jnp.ndarray) -> np.ndarray:
    return np.clip(np.asarray(image) / 2 + 0.5, 0, 1)


def test_stable_diffusion_schedulers(fixtures_dir):
    found = [p for p in cases.folders(fixtures_dir, "E", "model_index.json") if (p / "io_pipeline.npz").exists()]
    if not found:
        pytest.skip("no Stable Diffusion pipeline")
    for folder in found:
        case, checkpoint = json.loads((folder / "case.json").read_text()), weights.read(folder)
        io, raw = cases.arrays(folder / "io_pipeline.npz"), dict(np.load(folder / "io_pipeline.npz"))
        net, scale = cases.Network(checkpoint), checkpoint.description["latents"]["scale"]
        _, decode, _ = cases.autoencoder(checkpoint)
        conditions = {"context": io["prompt_embeds"]}, {"context": io["negative_prompt_embeds"]}
        guided = functools.partial(cases.run, net, checkpoint, conditions=conditions, scale=case["guidance_scale"])
        for entry in case["schedulers"]:
            name = entry["name"]
            scheduler = Scheduler(entry["scheduler"], entry["config"], checkpoint, case["steps"])
            start = io["latents"] * np.float32(scheduler.start)
            final, path = guided(scheduler.sampler, start, scheduler.grid, noise=io.get(f"{name}.noise"))
            what = f"{folder.name} {name}"
            cases.compare(f"{what} path", path, scheduler.recorded(io[f"{name}.latents"]), LATENTS)
            cases.compare(f"{what} image", to_unit(decode(final / scale)), raw[f"{name}.image"], IMAGES)


LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
UNCONDITIONAL = {  # the case names them; beyond the table of betas they have the classes' defaults
    "ddim": ("DDIMScheduler", LEADING),
    "pndm": ("PNDMScheduler", LEADING),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpmpp2m": ("DPMSolverMultistepScheduler", {}),
}


def test_unconditional_schedulers(fixtures_dir):
    found = [p for p in cases.folders(fixtures_dir, "E", "model_index.json") if (p / "io.npz").exists()]
    if not found:
        pytest.skip("no unconditional pipeline")
    for folder in found:
        case, checkpoint = json.loads((folder / "case.json").read_text()), weights.read(folder)
        raw, io = dict(np.load(folder / "io.npz")), cases.arrays(folder / "io.npz")
        net, scale = cases.Network(checkpoint), checkpoint.description["latents"]["scale"]
        _, decode, _ = cases.autoencoder(checkpoint)
        for name in case["schedulers"]:
            scheduler = Scheduler(*UNCONDITIONAL[name], checkpoint, case["steps"])
            start = io["latents"] * np.float32(scheduler.start)
            final, _ = cases.run(net, checkpoint, scheduler.sampler, start, scheduler.grid)
            what = f"{folder.name} {name}"
            cases.compare(f"{what} final", final / scale, io[f"{name}.final_latents_unscaled"], LATENTS)
            cases.compare(f"{what} image", to_unit(decode(final / scale)), raw[f"{name}.image"], IMAGES)
