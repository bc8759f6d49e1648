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

from ldm_jax.training import sharding
from ldm_jax.training.ema import check_widths, power_averages

PyTree = Any


class Step(NamedTuple):
    """What a loss may know of the update that it serves.

    number        int32 []: updates done so far
    ema           the average ({} if none is kept)
    rows          int32 [b]: which rows of the update's batch these are; with `primitives.arrays.row_keys` a row's noise does
                  not depend on how the batch is cut
    batch_size    rows in the update's whole batch
    """

    number: jax.Array
    ema: PyTree
    rows: jax.Array
    batch_size: int


class Gradient(NamedTuple):
    """What one look at a batch says: the loss, what to report, the gradient of some or all parts of the parameters (a part is a
    top-level name), and new values for what is set rather than descended, nested as the parameters are."""

    loss: jax.Array
    metrics: dict[str, jax.Array]
    grads: PyTree
    assigned: PyTree = {}


LossFn = Callable[[PyTree, PyTree, jax.Array, Step], tuple[jax.Array, dict[str, jax.Array]]]
GradFn = Callable[[PyTree, PyTree, jax.Array, Step], Gradient]


def from_loss(loss_fn: LossFn, constants: Collection[str] = ()) -> GradFn:
    """The gradient of `loss_fn(params, batch, key, step) -> (loss, metrics)` in all parameters but those named `constants`."""

    def grad_fn(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> Gradient:
        fixed = {name: params[name] for name in constants}
        moving = {name: part for name, part in params.items() if name not in constants}
        loss_of = jax.value_and_grad(lambda moving: loss_fn({**fixed, **moving}, batch, key, step), has_aux=True)
        (loss, metrics), grads = loss_of(moving)
        return Gradient(loss, metrics, grads)

    return grad_fn


def accumulated(grad_fn: GradFn, parts: int) -> GradFn:
    """The gradient of a batch, looked at in so many parts one after the other: the memory of one part, and sums in float32.

    Part i holds the rows i, i + parts, i + 2 parts, ...: every device keeps its own rows, however many devices there are, and
    `step.rows` says which they are. Loss, metrics and gradients are means over the parts, which is what the whole batch gives
    if the loss is a mean over rows and draws its noise by row. So are assigned values (codebooks, running means): what each
    part sets must be such that the mean is right, as of means and, `step.batch_size` known, of sums; else it is near at best.
    Those that are not floating point are the last part's.
    """
    if parts < 1:
        raise ValueError(f"accumulate={parts}: a batch is cut into at least 1 part")
    if parts == 1:
        return grad_fn

    def whole(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> Gradient:
        if step.batch_size % parts:
            raise ValueError(f"a batch of {step.batch_size} rows can't be cut into accumulate={parts} equal parts")

        def cut(x: jax.Array) -> jax.Array:
            return sharding.constrain_rows(x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), axis=1)

        def look(part: PyTree) -> Gradient:
            rows, batch = part
            found = grad_fn(params, batch, key, step._replace(rows=rows))
            metrics = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), found.metrics)
            return found._replace(metrics=metrics, grads=sharding.constrain(found.grads))

        def add(total: Gradient, part: PyTree) -> tuple[Gradient, None]:
            found = look(part)
            summed = jax.tree.map(lambda a, x: a + x.astype(a.dtype) if _is_float(x) else x, total, found)
            return summed._replace(grads=sharding.constrain(summed.grads)), None

        cuts = jax.tree.map(cut, (step.rows, batch))
        shapes = jax.eval_shape(look, jax.tree.map(lambda x: x[0], cuts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32 if _is_float(x) else x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, cuts)
        return jax.tree.map(lambda a, x: (a / parts).astype(x.dtype) if _is_float(x) else a, total, shapes)

    return whole


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 []; params: dict of arrays; ema: the average of those parts of it that are averaged ({}: none is kept);
    opt_state: optax's; skipped: int32 [], how many steps in a row gave a loss or gradient that was not finite; post_hoc: the
    averages of `ema.power_averages`, by their number ({}: none are kept)."""

    step: jax.Array
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    skipped: jax.Array
    post_hoc: PyTree = dataclasses.field(default_factory=dict)

    @property
    def averaged(self) -> PyTree:
        """The parameters to use: the average where one is kept."""
        return {**self.params, **self.ema}


def make_init(
    init_params: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    ema: bool,
    not_averaged: Collection[str] = (),
    post_hoc: Sequence[float] = (),
) -> Callable[[jax.Array], TrainState]:
    """`init(key) -> TrainState` at step 0; averages start as copies of the parameters, all but the parts `not_averaged`.
    `post_hoc`: the relative widths of the averages for `ema.reconstruct`."""
    check_widths(post_hoc)

    def init(key: jax.Array) -> TrainState:
        params = init_params(key)
        zero = jnp.zeros((), jnp.int32)
        averaged = {name: params[name] for name in params if name not in not_averaged}

        def copy() -> PyTree:
            return jax.tree.map(jnp.copy, averaged)

        powers = {str(i): copy() for i in range(len(post_hoc))}
        return TrainState(zero, params, copy() if ema else {}, optimizer.init(params), zero, powers)

    return init


def ema_decay_at(decay: float, step: jax.Array) -> jax.Array:
    """The reference's warm-up of the average (LitEma): min(decay, (1 + n) / (10 + n)) at the n-th update, n >= 1."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    grad_fn: GradFn | Sequence[GradFn],
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    post_hoc: Sequence[float] = (),
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, batch, key, constants=None) -> (state, metrics)`, a pure function.

    `grad_fn(params, batch, key, step) -> Gradient`; see `from_loss` for an ordinary loss. Several take turns: each sees the
    parameters as the one before left them, and moves the parts that it has gradients of (then `optimizer` must be one that
    leaves the others alone, `optimizer.by_part`). `constants` are parts of the parameters that are not trained. With
    `accumulate` the batch is looked at in so many parts (`accumulated`); there is still one update, one average and one key.
    `post_hoc`: relative widths, as `make_init` was given.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer nor average; it is counted in
    `state.skipped`, which the loop watches.
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay={ema_decay}: must lie in [0, 1); 0 keeps no average")
    turns = [accumulated(turn, accumulate) for turn in (grad_fn if isinstance(grad_fn, Sequence) else [grad_fn])]
    check_widths(post_hoc)

    def train_step(
        state: TrainState, batch: PyTree, key: jax.Array, constants: PyTree = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(key, state.step)
        params, opt_state = state.params, state.opt_state
        size = len(jax.tree.leaves(batch)[0]) if jax.tree.leaves(batch) and jnp.ndim(jax.tree.leaves(batch)[0]) else 1
        now = Step(state.step, state.ema, jnp.arange(size, dtype=jnp.int32), size)
        metrics, finite = {}, jnp.array(True)
        for turn, grad_fn in enumerate(turns):
            found = grad_fn({**(constants or {}), **params}, batch, jax.random.fold_in(key, turn) if turn else key, now)
            grads = sharding.constrain(found.grads)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            moved = optax.apply_updates({name: params[name] for name in updates}, updates)
            params = sharding.constrain(_assign({**params, **moved}, found.assigned))
            grad_norm = optax.tree.norm(grads)
            finite &= jnp.isfinite(found.loss) & jnp.isfinite(grad_norm)
            metrics = {"loss": found.loss, "grad_norm": grad_norm} | found.metrics | metrics
        step = state.step + 1
        ema = state.ema
        if ema:
            decay = ema_decay_at(ema_decay, step)
            ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, {name: params[name] for name in ema})
        powers = power_averages(state.post_hoc, params, step, post_hoc)

        kept = (state.params, state.ema, state.opt_state, state.post_hoc)
        new = (params, ema, opt_state, powers)
        params, ema, opt_state, powers = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, kept)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        return TrainState(step, params, ema, opt_state, skipped, powers), {**metrics, "skipped": skipped}

    return train_step


def _assign(params: PyTree, values: PyTree) -> PyTree:
    """`params` with the leaves that `values` has."""
    if not isinstance(values, Mapping):
        return values
    return {**params, **{name: _assign(params[name], value) for name, value in values.items()}}
