"""The diffusion model's loss: the paper's equations 2 and 3 on latents, for any objective.

    L = E_{z ~ q(z|x), y, eps, t} || eps - eps_theta(z_t, t, tau_theta(y)) ||^2

    batch -> z (drawn anew from the posterior, or its mean) -> scaled -> objective: noised at random t -> network with
    tau_theta(y) -> error

With probability `null_probability` an example's condition is replaced by the empty one, so that one network learns both the
conditional and the unconditional model (classifier-free guidance, Ho & Salimans 2021). A prompt and a picture to change by it
are dropped each alone besides (`dropped_apart`).
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.conditioning import Condition
from ldm_jax.diffusion.objectives import Objective, Problem
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.diffusion.times import HISTORY, History, record_losses
from ldm_jax.first_stage import FirstStage, learnt
from ldm_jax.first_stage.latents import scale_latents
from ldm_jax.primitives.arrays import row_keys
from ldm_jax.training.state import GradFn, Gradient, LossFn, Step, from_loss

PyTree = Any
TEACHER = "teacher"  # the part of a training's constants that holds one
PRIOR = "prior"  # the part of a batch that holds pictures of the class


def drop_condition(
    inputs: PyTree, null_inputs: PyTree, probability: float, key: jax.Array, rows: jax.Array | None = None
) -> PyTree:
    """Replaces each example of `inputs` (leaves [B, ...]) by `null_inputs` (leaves [1, ...] or [B, ...]) with the given
    probability. `rows`: the examples' numbers in the batch, int32 [B], default 0 to B - 1: each is decided on its own."""
    leaves = jax.tree.leaves(inputs)
    if not leaves or probability == 0:
        return inputs
    rows = jnp.arange(len(leaves[0])) if rows is None else rows
    return replace_rows(inputs, null_inputs, dropped_rows(probability, key, rows))


def dropped_rows(probability: float, key: jax.Array, rows: jax.Array) -> jax.Array:
    """bool [B]: which of these rows lose their condition."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(row_keys(key, rows))


def dropped_apart(probability: float, key: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """bool [B] twice, for models that are told a prompt and a picture: which rows lose the one, and which the other. A share
    `probability` of them loses the prompt alone, as many both, and as many the picture alone (Brooks et al. 2023, section
    3.2.1)."""
    drawn = jax.vmap(jax.random.uniform)(row_keys(key, rows)) / probability
    return drawn < 2, (drawn >= 1) & (drawn < 3)


def replace_rows(inputs: PyTree, others: PyTree, which: jax.Array) -> PyTree:
    """`inputs` (leaves [B, ...]) with those of `others` (leaves [1, ...] or [B, ...]) in the rows `which`, bool [B]."""
    return jax.tree.map(lambda x, other: jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), other, x), inputs, others)


def make_loss(
    network: Any,
    stage: FirstStage,
    condition: Condition,
    objective: Objective,
    *,
    null_probability: float,
    teacher: Any = None,
):
    """`loss_fn(params, batch, key, step: Step) -> (loss, metrics)`; metrics of single rows are among them, see `scalars`.

    Args:
      network: the Linen module, called (x, t, cond), and with s where the objective gives it one.
      objective: such as `diffusion.make_objective` and `diffusion.few_steps` make.
      teacher: the Linen module of a frozen model, for objectives that learn from one.

    `params` has the parts "network", "conditioner", "first_stage" and "latents": {"scale", "shift"}, numbers or [C]; with a
    teacher TEACHER, {"network", "conditioner"}.
    Where the objective's times are "importance", also HISTORY, a `diffusion.times.History` as a dict.
    `batch` holds "image" [B, *size, 3] in [-1, 1], or in its place "moments" [B, ..., 2C] or "latents" [B, ..., C], raw; and
    the condition's "inputs", pictures as pictures. "augment" [B, any], where there is one, is told as cond["augment"].
    """

    def loss_fn(params: PyTree, batch: PyTree, key: jax.Array, step: Step):
        posterior_key, drop_key, objective_key, dropout_key = jax.random.split(key, 4)
        normalize = params["latents"]

        def to_latents(images: jax.Array) -> jax.Array:
            return scale_latents(stage.encode_mean(params["first_stage"], images), **normalize)

        known = {name: batch[name] for name in ("moments", "latents") if name in batch}
        encoded = known or stage.encode(params["first_stage"], batch["image"])
        x0 = scale_latents(learnt(stage, encoded, posterior_key, step.rows), **normalize)

        inputs, dropped = condition.encoded(batch["inputs"], to_latents), None
        if null_probability:
            null = condition.dropped(inputs, condition.encoded(condition.null, to_latents))
            if condition.image_guidance_scale is None:
                inputs = drop_condition(inputs, null, null_probability, drop_key, step.rows)
                dropped = dropped_rows(null_probability, drop_key, step.rows)
            else:
                which = dropped_apart(null_probability, drop_key, step.rows)
                inputs = jax.tree.map(
                    lambda x, other, i: replace_rows(x, other, which[i]), inputs, null, condition.led_by(inputs)
                )
                dropped = which[0] | which[1]
        rngs = {"dropout": jax.random.fold_in(dropout_key, step.rows[0])}

        def cond_of(params: PyTree, count: int, without: bool) -> PyTree:
            """Of the batch's first `count` rows."""
            told = {"augment": batch["augment"][:count]} if "augment" in batch else {}
            seen = jax.tree.map(lambda x: x[:count], inputs)
            if without:
                null = condition.dropped(seen, condition.encoded(condition.null, to_latents))
                seen = jax.tree.map(lambda x, null: jnp.broadcast_to(null, x.shape), seen, null)
            cond = condition.apply(params["conditioner"], seen)
            return {**(cond or {}), **told} if told else cond

        def apply(
            params: PyTree,
            x: jax.Array,
            t: jax.Array,
            s: jax.Array | None = None,
            *,
            without: bool = False,
            guidance: jax.Array | None = None,
        ) -> jax.Array:
            second, cond = {} if s is None else {"s": s}, cond_of(params, len(x), without)
            if getattr(network, "guidance_dim", 0) and guidance is not None:
                cond = dict(cond or {}) | {"guidance": guidance - 1}
            return network.apply({"params": params["network"]}, x, t, cond, train=True, rngs=rngs, **second)

        def taught(x: jax.Array, t: jax.Array, *, without: bool = False) -> jax.Array:
            frozen = {**params, **params[TEACHER]}
            return teacher.apply({"params": frozen["network"]}, x, t, cond_of(frozen, len(x), without))

        history = History(**params[HISTORY]) if HISTORY in params else None
        ema = {**params, **step.ema}
        problem = Problem(apply, params, ema, step.number, history=history, dropped=dropped, teacher=teacher and taught)
        return objective(problem, x0, objective_key, step.rows, step.batch_size)

    return loss_fn


def adapted(loss_fn: LossFn, part: str, change: Callable[[PyTree, PyTree], PyTree]) -> LossFn:
    """The same loss as a function of what is learnt of a frozen model, a part of the parameters: the model is that of `params`
    with the parts that `change(params, params[part])` gives, and its average follows the learnt part's."""

    def of(params: PyTree, batch: PyTree, key: jax.Array, step: Step):
        ema = change(params, step.ema[part]) if part in step.ema else {}
        return loss_fn({**params, **change(params, params[part])}, batch, key, step._replace(ema=ema))

    return of


def with_prior(loss_fn: LossFn, weight: float) -> LossFn:
    """The loss of a batch, and `weight` times that of its part PRIOR, a batch of as many pictures of the class (DreamBooth,
    Ruiz et al. 2023, eq. 2); where there is no such part, that of the batch alone."""

    def of(params: PyTree, batch: PyTree, key: jax.Array, step: Step):
        loss, metrics = loss_fn(params, {name: part for name, part in batch.items() if name != PRIOR}, key, step)
        if PRIOR not in batch:
            return loss, metrics
        other, _ = loss_fn(params, batch[PRIOR], jax.random.fold_in(key, 1), step)
        total = loss + weight * other
        return total, metrics | {"loss_prior": other, "loss": total}

    return of


def scalars(loss_fn: LossFn) -> LossFn:
    """The same loss, with those of its metrics that are one number."""

    def of(params: PyTree, batch: PyTree, key: jax.Array, step: Step):
        loss, metrics = loss_fn(params, batch, key, step)
        return loss, {name: value for name, value in metrics.items() if value.ndim == 0}

    return of


def recording(loss_fn: LossFn, schedule: Schedule, constants: Collection[str]) -> GradFn:
    """The gradient of a loss of `make_loss` whose times are importance-sampled (Nichol & Dhariwal 2021): every row's loss
    enters the part HISTORY of the parameters, which is set rather than descended."""
    gradient = from_loss(loss_fn, (*constants, HISTORY))

    def grad_fn(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> Gradient:
        found = gradient(params, batch, key, step)
        losses, log_snr = found.metrics["loss_per_sample"], found.metrics["log_snr"]
        history = record_losses(History(**params[HISTORY]), schedule, log_snr, losses)
        metrics = {name: value for name, value in found.metrics.items() if value.ndim == 0}
        return found._replace(metrics=metrics, assigned={HISTORY: history._asdict()})

    return grad_fn
