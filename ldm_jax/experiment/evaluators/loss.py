"""The loss of held-out images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Spread
from ldm_jax.experiment.evaluators.model import Model
from ldm_jax.primitives.arrays import key_of
from ldm_jax.training import sharding
from ldm_jax.training.loop import Report
from ldm_jax.training.program import Program
from ldm_jax.training.state import Step, TrainState

PyTree = Any


def make_loss(model: Model) -> Callable[[TrainState], Report]:
    """The hook that takes the loss of held-out images, with the same noise and times at every validation: only the weights
    differ. Every process loads its share of them."""
    experiment, constants = model.experiment, model.constants
    config, condition, mesh = experiment.config, experiment.condition, experiment.mesh
    batch_size = config["diffusion_train"]["batch_size"]
    program: Program = build.make_diffusion_program(config, condition, cached=False)
    transform = experiment.transform(condition)
    source = Spread(experiment.sources["validation"], config["log"]["validation_images"])
    share = {"rows": sharding.local_rows(mesh, batch_size), "on_error": config["data"]["on_error"]}

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def loss_of(params: PyTree, batch: PyTree, mask: jax.Array, key: jax.Array) -> jax.Array:
        """The sum over the rows that count, and how many these are."""
        step = Step(jnp.zeros((), jnp.int32), {}, jnp.arange(batch_size, dtype=jnp.int32), batch_size)
        each = program.loss(params, batch, key, step)[1]["loss_per_sample"]
        return jnp.stack([jnp.where(mask, each, 0).sum(), mask.sum().astype(each.dtype)])

    def validate(state: TrainState) -> Report:
        params, losses = {**sharding.replicate(mesh, constants), **state.averaged}, []
        for name in program.not_averaged:  # an empty history of losses: all times count alike at every validation
            params[name] = jax.tree.map(jnp.zeros_like, params[name])
        for i, batch in enumerate(eval_batches(source, transform, batch_size, **share)):
            found = {"image": batch["image"], "inputs": condition.from_batch(batch)}
            with jax.set_mesh(mesh):
                found, mask = sharding.to_device(mesh, (found, batch["mask"]))
                losses.append(loss_of(params, found, mask, key_of(i)))
        total, count = np.float64(jax.device_get(losses)).sum(0)  # the host waits once, not for every batch
        return Report({"validation/loss": float(total / count)})

    return validate
