"""Latent diffusion models (Rombach et al., CVPR 2022) in JAX: pure functions over plain dicts of arrays.

    ldm = ldm_jax.load("runs/shapes")
    cond = ldm.embed(ldm.params, ["a red circle"] * 4)
    images = ldm.sample(ldm.params, jax.random.key(0), cond, sampler="dpmpp_2m", steps=20, guidance_scale=3.0)
"""

__version__ = "0.1.0"
__all__ = ["Autoencoder", "LatentDiffusion", "apply_lora", "load", "load_lora", "save"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    # Imported when first used: the rooms below can be used alone, and reading weights needs no jax.
    if name in __all__:
        from ldm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'ldm_jax' has no attribute {name!r}")
