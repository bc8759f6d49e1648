"""The diffusion model's loss, as a function of callables: the paper's equations 2 and 3 on latents.

    L = E_{z ~ q(z|x), y, eps, t} || eps - eps_theta(z_t, t, tau_theta(y)) ||^2

    batch -> z (drawn anew from the posterior) -> scaled -> noised at random t -> network, told tau_theta(y) -> error

With probability `null_probability` an example's condition is replaced by the empty one, so that one network learns both the
conditional and the unconditional model (classifier-free guidance, Ho & Salimans 2021).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import latents

PyTree = Any


def drop_condition(inputs: PyTree, null_inputs: PyTree, probability: float, key: jax.Array) -> PyTree:
    """Replaces each example of `inputs` (leaves [B, ...]) by `null_inputs` (leaves [1, ...]) with the given probability."""
    leaves = jax.tree.leaves(inputs)
    if not leaves or probability == 0:
        return inputs
    drop = jax.random.bernoulli(key, probability, (leaves[0].shape[0],))
    return jax.tree.map(lambda x, null: jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), null, x), inputs, null_inputs)


def make_loss(
    network: Callable[..., jax.Array],
    condition: Callable[[PyTree, PyTree], PyTree],
    null_inputs: PyTree,
    objective: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    *,
    scale: float,
    shift: float,
    null_probability: float,
):
    """`loss_fn(params, batch, key, step=None) -> (loss, metrics)`.

    Args:
      network: (params, x, t, cond, dropout key) -> output, the raw network in training.
      condition: (conditioner params, inputs) -> cond.
      null_inputs: the empty condition, leaves [1, ...].
      objective: (network of (x, t), x0, key) -> (loss, metrics).
    `batch` holds "moments" [B, h, w, 2C] or "latents" [B, h, w, C], raw, and the condition's "inputs".
    """

    def loss_fn(params: PyTree, batch: PyTree, key: jax.Array, step: Any = None):
        posterior_key, drop_key, objective_key, dropout_key = jax.random.split(key, 4)
        z = latents.sample_posterior(batch["moments"], posterior_key) if "moments" in batch else batch["latents"]
        x0 = latents.scale_latents(z, scale, shift)

        inputs = drop_condition(batch["inputs"], null_inputs, null_probability, drop_key)
        cond = condition(params["conditioner"], inputs)

        def told(x, t):
            return network(params["network"], x, t, cond, dropout_key)

        loss, metrics = objective(told, x0, objective_key)
        return loss, {name: value for name, value in metrics.items() if value.ndim == 0}

    return loss_fn
