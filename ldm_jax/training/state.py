"""The training state and the step that advances it.

    state_{n+1}, metrics = train_step(state_n, batch_n, key)

The state holds arrays only. The randomness of step n is `fold_in(key, n)`, so nothing about a generator needs storing and a
resumed run repeats no noise. Sharding is outside: the step is compiled by `sharding.compile_step`, which donates the state.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
LossFn = Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
GradFn = Callable[[PyTree, PyTree, jax.Array], tuple[tuple[jax.Array, dict[str, jax.Array]], PyTree]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 []; params, ema: dicts of arrays (`ema` is {} where no average is kept); opt_state: optax's;
    skipped: int32 [], how many steps in a row gave a loss or gradient that was not finite."""

    step: jax.Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    skipped: jax.Array

    @property
    def averaged(self) -> PyTree:
        """The parameters to use: the average where one is kept."""
        return self.ema or self.params


def make_init(init_params: Callable[[jax.Array], PyTree], optimizer: optax.GradientTransformation, ema: bool):
    """`init(key) -> TrainState` at step 0; the average starts as a copy of the parameters."""

    def init(key: jax.Array) -> TrainState:
        params = init_params(key)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, jax.tree.map(jnp.copy, params) if ema else {}, optimizer.init(params), zero)

    return init


def ema_decay_at(decay: float, step: jax.Array) -> jax.Array:
    """The reference's warm-up of the average (LitEma): min(decay, (1 + n) / (10 + n)) at the n-th update, n >= 1."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(grad_fn: GradFn, optimizer: optax.GradientTransformation, ema_decay: float = 0.0):
    """`train_step(state, batch, key) -> (state, metrics)`, a pure function.

    `grad_fn(params, batch, key) -> ((loss, metrics), gradients)`; for an ordinary loss it is
    `jax.value_and_grad(loss_fn, has_aux=True)`. A step whose loss or gradient is not finite changes neither parameters nor
    optimizer nor average; it is counted in `state.skipped`, which the loop watches.
    """

    def train_step(state: TrainState, batch: PyTree, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        (loss, metrics), grads = grad_fn(state.params, batch, jax.random.fold_in(key, state.step))
        grad_norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema = state.ema
        if ema:
            decay = ema_decay_at(ema_decay, step)
            ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, params)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        kept = (state.params, state.ema, state.opt_state)
        params, ema, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, ema, opt_state), kept)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        metrics = {"loss": loss, **metrics, "grad_norm": grad_norm, "skipped": skipped}
        return TrainState(step, params, ema, opt_state, skipped), metrics

    return train_step
