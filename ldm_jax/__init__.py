"""Latent diffusion models (Rombach et al., CVPR 2022) in JAX: pure functions over plain dicts of arrays.

    ldm = ldm_jax.load("runs/shapes")
    cond = ldm.embed(ldm.params, ["a red circle"] * 4)
    images = ldm.sample(ldm.params, jax.random.key(0), cond, sampler="dpmpp_2m", steps=20, guidance_scale=3.0)

    load(path)          of a working directory, a diffusers folder, a CompVis checkpoint or "hf:owner/name" -> LatentDiffusion
    save(ldm, path)     writes what diffusers reads, or, with format="compvis", CompVis's programs
    LatentDiffusion     sample, image_to_image, inpaint, outpaint, upscale, edit, invert, variation, interpolate, panorama;
                        embed, encode, decode, apply, denoiser
    Autoencoder         what `load` gives for a first stage alone
    load_lora(workdir)  the low-rank change that a training has learnt; apply_lora(params, factors, scale) puts it on

Rooms that can be used alone: diffusion (schedules, samplers, guidance, objectives), models (the networks), training, data,
weights (the world's checkpoints), evaluation. Commands: ldm-train, ldm-sample, ldm-eval, ldm-weights.
"""

import importlib

__version__ = "0.1.0"
ROOMS = ("data", "diffusion", "evaluation", "models", "training", "weights")
__all__ = [
    "Autoencoder", "LatentDiffusion", "apply_lora", "load", "load_lora", "save", "save_control", "save_embedding", *ROOMS,
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    # Imported when first used: the rooms below can be used alone, and reading weights needs no jax.
    if name in ROOMS:
        return importlib.import_module(f"ldm_jax.{name}")
    if name in __all__:
        from ldm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'ldm_jax' has no attribute {name!r}")
