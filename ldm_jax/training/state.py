"""The training state and the step that advances it.

    state_{n+1}, metrics = train_step(state_n, batch_n, key)

The state holds arrays only. The randomness of step n is `fold_in(key, n)`, so nothing about a generator needs storing and a
resumed run repeats no noise. Sharding is outside: the step is compiled by `sharding.compile_step`, which donates the state.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
LossFn = Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


class Gradient(NamedTuple):
    """What one look at a batch says: the loss, what to report, the gradient of some or all parts of the parameters (a part is a
    top-level name), and new values for what is set rather than descended, nested as the parameters are."""

    loss: jax.Array
    metrics: dict[str, jax.Array]
    grads: PyTree
    assigned: PyTree = {}


GradFn = Callable[[PyTree, PyTree, jax.Array, jax.Array], Gradient]


def from_loss(loss_fn: LossFn, constants: Collection[str] = ()) -> GradFn:
    """The gradient of `loss_fn(params, batch, key) -> (loss, metrics)` in all parameters but those named `constants`."""

    def grad_fn(params: PyTree, batch: PyTree, key: jax.Array, step: jax.Array) -> Gradient:
        fixed = {name: params[name] for name in constants}
        moving = {name: part for name, part in params.items() if name not in constants}
        loss_of = jax.value_and_grad(lambda moving: loss_fn({**fixed, **moving}, batch, key), has_aux=True)
        (loss, metrics), grads = loss_of(moving)
        return Gradient(loss, metrics, grads)

    return grad_fn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 []; params: dict of arrays; ema: the average of those parts of it that are averaged ({}: none is kept);
    opt_state: optax's; skipped: int32 [], how many steps in a row gave a loss or gradient that was not finite."""

    step: jax.Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    skipped: jax.Array

    @property
    def averaged(self) -> PyTree:
        """The parameters to use: the average where one is kept."""
        return {**self.params, **self.ema}


def make_init(
    init_params: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    ema: bool,
    not_averaged: Collection[str] = (),
):
    """`init(key) -> TrainState` at step 0; the average starts as a copy of the parameters, all but the parts `not_averaged`."""

    def init(key: jax.Array) -> TrainState:
        params = init_params(key)
        zero = jnp.zeros((), jnp.int32)
        averaged = {name: jax.tree.map(jnp.copy, params[name]) for name in params if ema and name not in not_averaged}
        return TrainState(zero, params, averaged, optimizer.init(params), zero)

    return init


def ema_decay_at(decay: float, step: jax.Array) -> jax.Array:
    """The reference's warm-up of the average (LitEma): min(decay, (1 + n) / (10 + n)) at the n-th update, n >= 1."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(grad_fn: GradFn | Sequence[GradFn], optimizer: optax.GradientTransformation, ema_decay: float = 0.0):
    """`train_step(state, batch, key, constants=None) -> (state, metrics)`, a pure function.

    `grad_fn(params, batch, key, step) -> Gradient`; see `from_loss` for an ordinary loss. Several take turns: each sees the
    parameters as the one before left them, and moves the parts that it has gradients of (then `optimizer` must be one that
    leaves the others alone, `optimizer.by_part`). `constants` are parts of the parameters that are not trained.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer nor average; it is counted in
    `state.skipped`, which the loop watches.
    """
    turns = grad_fn if isinstance(grad_fn, Sequence) else [grad_fn]

    def train_step(
        state: TrainState, batch: PyTree, key: jax.Array, constants: PyTree = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        params, opt_state = state.params, state.opt_state
        metrics, finite = {}, jnp.array(True)
        for turn, grad_fn in enumerate(turns):
            found = grad_fn({**(constants or {}), **params}, batch, jax.random.fold_in(key, turn) if turn else key, state.step)
            updates, opt_state = optimizer.update(found.grads, opt_state, params)
            moved = optax.apply_updates({name: params[name] for name in updates}, updates)
            params = _assign({**params, **moved}, found.assigned)
            grad_norm = optax.tree.norm(found.grads)
            finite &= jnp.isfinite(found.loss) & jnp.isfinite(grad_norm)
            metrics = {"loss": found.loss, "grad_norm": grad_norm} | found.metrics | metrics
        step = state.step + 1
        ema = state.ema
        if ema:
            decay = ema_decay_at(ema_decay, step)
            ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, {name: params[name] for name in ema})

        kept = (state.params, state.ema, state.opt_state)
        params, ema, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, ema, opt_state), kept)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        return TrainState(step, params, ema, opt_state, skipped), {**metrics, "skipped": skipped}

    return train_step


def _assign(params: PyTree, values: PyTree) -> PyTree:
    """`params` with the leaves that `values` has."""
    if not isinstance(values, Mapping):
        return values
    return {**params, **{name: _assign(params[name], value) for name, value in values.items()}}
