"""What one stage trains, as functions and shapes: enough to compile its step for any mesh, without data or files."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from ldm_jax.training import sharding
from ldm_jax.training.state import GradFn, LossFn, TrainState, make_init, make_train_step

PyTree = Any
COMPILERS = ("recommended", "default")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A stage's training step, taken apart.

    init           key -> params, random
    gradients      what learns from a batch, see `state.make_train_step`
    compiler       "recommended": with `sharding.compiler_options`; "default": without
    loss           the function that they are gradients of, where there is one
    optimizer      optax's
    batch          shapes and types of one update's whole batch, leading axis first
    constants      shapes and types of what is not trained, a dict of parts that `gradients` find among their params
    ema_decay      of the average, 0 for none; not_averaged: parts that no average is kept of
    post_hoc       relative widths of the averages that `ema.reconstruct` makes others from
    accumulate     in how many parts a batch is looked at
    """

    init: Callable[[jax.Array], PyTree]
    gradients: Sequence[GradFn]
    optimizer: optax.GradientTransformation
    batch: PyTree
    constants: PyTree = dataclasses.field(default_factory=dict)
    ema_decay: float = 0.0
    not_averaged: tuple[str, ...] = ()
    post_hoc: tuple[float, ...] = ()
    accumulate: int = 1
    compiler: str = "recommended"
    loss: LossFn | None = None

    def state_of(self, params: PyTree) -> TrainState:
        """The state at step 0 with these parameters."""
        keep = self.ema_decay > 0, self.not_averaged, self.post_hoc
        return make_init(lambda params: params, self.optimizer, *keep)(params)

    def init_state(self, key: jax.Array) -> TrainState:
        """The state at step 0 with random parameters."""
        return self.state_of(self.init(key))

    @functools.cached_property
    def shapes(self) -> TrainState:
        """Shapes and types of the state."""
        return jax.eval_shape(self.init_state, jax.random.key(0))

    def step(self, state: TrainState, batch: PyTree, key: jax.Array, constants: PyTree) -> tuple[TrainState, dict]:
        """One update: (state, metrics)."""
        advance = make_train_step(self.gradients, self.optimizer, self.ema_decay, self.accumulate, self.post_hoc)
        return advance(state, batch, key, constants)

    def compile(self, mesh: Any, constants: PyTree) -> sharding.CompiledStep:
        """The step over a mesh. `constants`: arrays, or their shapes if it is only lowered."""
        rows = jax.tree.leaves(self.batch)[0].shape[0]
        here = rows // (mesh.shape["data"] * mesh.shape["fsdp"] * self.accumulate)
        options = sharding.compiler_options(mesh, here) if self.compiler == "recommended" else {}
        return sharding.compile_step(mesh, self.step, self.shapes, constants, options)
