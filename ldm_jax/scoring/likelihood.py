"""Bits per dimension of held-out pictures, through the first stage: how many bits a picture's numbers would take, at most.

    log P(x) >= E_q(z|x) [log P(x|z) + log p(z) - log q(z|x)]                       (the evidence lower bound)

log p(z) is the diffusion model's, by its probability-flow ODE. The first stages of the paper have no likelihood of pixels:
their absolute error is one of a Laplace distribution, whose scale is set to that error on training pictures. A VQ first stage
has no density of latents; without a first stage, pixels get uniform noise of their rounding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, diffusion, evaluation
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Spread
from ldm_jax.evaluation.bits import HALF
from ldm_jax.first_stage import latents
from ldm_jax.primitives.arrays import key_of, row_keys, row_normal
from ldm_jax.scoring.looking import full_batch
from ldm_jax.training import distributed, sharding

PyTree = Any
CALIBRATION = 512  # training pictures for the scale of the reconstruction's distribution


class Terms(NamedTuple):
    """Of every picture, in nats [B]: log P(x|z), log p(z), -log q(z|x)."""

    reconstruction: jax.Array
    prior: jax.Array
    posterior: jax.Array


def check_density(spec: api.Specification) -> None:
    """ValueError for a model whose latents have no density."""
    if spec.first_stage.module is not None and spec.first_stage.module.quantizes:
        raise ValueError("a VQ first stage has no density of latents, and so no bits per dimension; a KL one has")


def measure_likelihood(
    spec: api.Specification,
    params: PyTree,
    sources: tuple[Any, Any],
    num: int,
    mesh: Any,
    *,
    batch_size: int = 64,
    on_error: str = "raise",
    steps: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Means over `num` held-out pictures, each with its own condition and without guidance. A picture's noise depends on the
    seed and its number alone, not on batches or devices.

    bits_per_dimension         of the pictures' numbers, at most; its parts `reconstruction`, `prior` and `posterior`
    standard_error             of it, over pictures
    latent_bits_per_dimension  -log2 of the scaled latents' density, a number of them
    laplace_scale              of the reconstruction's distribution

    Args:
      sources: (training, held-out) pictures, with the condition's columns.
      steps: of the ODE; two calls of the network and one derivative of it each.

    Raises:
      ValueError: a VQ first stage.
    """
    check_density(spec)
    stage = spec.first_stage
    terms = jax.jit(lambda params, batch, key, scale: _terms(spec, params, batch, key, scale, steps),
                    out_shardings=sharding.replicated(mesh))  # fmt: skip
    error = jax.jit(lambda params, batch, key: _error(spec, params, batch, key), out_shardings=sharding.replicated(mesh))
    key = key_of(seed)

    def over(source: Any, count: int, function: Any, *args: Any) -> list[np.ndarray]:
        """`function` of every batch's pictures, rows beyond the last left out."""
        found = []
        transform = build.make_transform(spec.config, spec.condition)
        size = full_batch(batch_size, mesh)
        rows = sharding.local_rows(mesh, size)
        for i, batch in enumerate(eval_batches(Spread(source, count), transform, size, rows=rows, on_error=on_error)):
            distributed.stop_point()
            inputs = None if spec.condition.kind == "none" else spec.condition.from_batch(batch)
            numbers = (i * size + rows).astype(np.int32)
            placed = sharding.to_device(mesh, {"image": batch["image"], "inputs": inputs, "number": numbers})
            with jax.set_mesh(mesh):
                out = jax.device_get(function(params, placed, key, *args))
            kept = sharding.whole(mesh, batch["mask"])
            found.append(np.stack(jax.tree.leaves(out), -1)[kept])
        return found

    scale = max(float(np.mean(np.concatenate(over(sources[0], CALIBRATION, error)))), HALF / 2)
    found = np.float64(np.concatenate(over(sources[1], num, terms, scale)))
    numbers = np.prod(spec.image_size) * stage.image_channels
    bits = -found / (numbers * np.log(2))
    bits[:, 1] -= np.log2(2 * HALF) * (stage.module is None)  # a value's mass: the density times what its noise is spread over
    total = bits.sum(1)
    size = np.prod(stage.latent_shape(*spec.image_size))
    latent = -found[:, 1] / (size * np.log(2)) + np.mean(np.log2(np.abs(spec.scale)))
    return {
        "bits_per_dimension": float(total.mean()),
        "standard_error": float(total.std(ddof=1) / np.sqrt(len(total))) if len(total) > 1 else float("nan"),
        "reconstruction": float(bits[:, 0].mean()),
        "prior": float(bits[:, 1].mean()),
        "posterior": float(bits[:, 2].mean()),
        "latent_bits_per_dimension": float(latent.mean()),
        "laplace_scale": scale,
    }


def _draw(spec: api.Specification, params: PyTree, batch: PyTree, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw latents drawn from the posterior, and -log q(z|x) [B]."""
    images, numbers = batch["image"], batch["number"]
    encoded = spec.first_stage.encode(params["first_stage"], images)
    if "latents" in encoded:  # pixels
        noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-HALF, maxval=HALF))
        return images + noise(row_keys(key, numbers)), jnp.zeros(len(images))
    mean, log_variance = latents.split_moments(encoded["moments"])
    noise = row_normal(key, numbers, mean.shape[1:])
    entropy = 0.5 * (noise**2 + log_variance + jnp.log(2 * jnp.pi))
    return mean + jnp.exp(0.5 * log_variance) * noise, entropy.sum(tuple(range(1, entropy.ndim)))


def _reconstruction(spec: api.Specification, params: PyTree, z: jax.Array) -> jax.Array:
    return jnp.clip(spec.first_stage.decode(params["first_stage"], z), -1, 1)


def _error(spec: api.Specification, params: PyTree, batch: PyTree, key: jax.Array) -> jax.Array:
    """The mean absolute error of every picture [B]."""
    images = batch["image"]
    again = _reconstruction(spec, params, _draw(spec, params, batch, key)[0])
    return jnp.mean(jnp.abs(images - again), axis=tuple(range(1, images.ndim)))


def _terms(spec: api.Specification, params: PyTree, batch: PyTree, key: jax.Array, scale: jax.Array, steps: int) -> Terms:
    images, axes = batch["image"], tuple(range(1, batch["image"].ndim))
    drawn, probes = jax.random.split(key)
    z, posterior = _draw(spec, params, batch, drawn)
    x = latents.scale_latents(z, spec.scale, spec.shift)
    cond = None if batch["inputs"] is None else spec.embed(params, batch["inputs"])
    grid = spec.recipe(None, "trailing").grid(steps)
    prior, _ = diffusion.log_likelihood(spec.denoiser(params, cond), x, grid, row_keys(probes, batch["number"]))
    prior += np.prod(x.shape[1:-1]) * jnp.sum(jnp.log(jnp.abs(jnp.broadcast_to(spec.scale, x.shape[-1:]))))
    if spec.first_stage.module is None:
        return Terms(jnp.zeros(len(images)), prior, posterior)
    again = _reconstruction(spec, params, z)
    return Terms(evaluation.discretized_laplace(images, again, scale).sum(axes), prior, posterior)
