"""Samplers of networks that predict average velocities: told how far to step, they are there in one evaluation."""

import dataclasses

import jax

from ldm_jax.diffusion.clock import Clock
from ldm_jax.diffusion.level import Denoiser, Level, Prediction, expand
from ldm_jax.diffusion.parameterization import target
from ldm_jax.diffusion.samplers.protocol import Sampler, State, memoryless
from ldm_jax.diffusion.schedules import Schedule


def flow_map(schedule: Schedule) -> Sampler:
    """MeanFlow (Geng et al. 2025, eq. 12) and shortcut models (Frans et al. 2024, eq. 3): x_r = x_t - (tau_t - tau_r) u, with u
    the network's velocity averaged from t to r, in the process's clock. 1 NFE per step."""
    clock = Clock(schedule)

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        predicted = Prediction(*denoise(state.x, dataclasses.replace(level, s=level.t - to.t)))
        u = target(clock.prediction, predicted, level)
        return State(state.x - expand(clock.of(level) - clock.of(to), state.x) * u, predicted.x0)

    return Sampler(memoryless, step)
