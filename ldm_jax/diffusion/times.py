"""Which levels training visits: functions (key, batch, schedule) -> (Level [B], weight [B]).

The weight corrects the loss for sampling a level more or less often than uniformly, where that is what the sampler means
(importance sampling); for the others it is 1, because their density is meant to be part of the objective.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from .level import Level, lookup
from .schedules import Schedule

Times = Callable[[jax.Array, int, Schedule], tuple[Level, jax.Array]]


def uniform() -> Times:
    """u ~ U[0, 1): every entry of a table equally often."""
    return _quantiles(lambda key, batch: jax.random.uniform(key, (batch,)))


def low_discrepancy() -> Times:
    """Kingma et al. 2021 (VDM): u_i = (u + i / B) mod 1, one draw per batch. Shuffled, so that shards see all of it."""

    def draw(key: jax.Array, batch: int) -> jax.Array:
        shift, order = jax.random.split(key)
        u = (jax.random.uniform(shift) + jnp.arange(batch) / batch) % 1.0
        return jax.random.permutation(order, u)

    return _quantiles(draw)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """Esser et al. 2024 (SD3): logit(u) ~ N(mean, std)."""
    return _quantiles(lambda key, batch: jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,))))


def mode(scale: float = 1.29) -> Times:
    """Esser et al. 2024, eq. 20: f(u) = 1 - u - scale (cos^2(pi u / 2) - 1 + u)."""

    def draw(key: jax.Array, batch: int) -> jax.Array:
        u = jax.random.uniform(key, (batch,))
        return 1 - u - scale * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1 + u)

    return _quantiles(draw)


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """EDM, Karras et al. 2022: log(noise_ratio) ~ N(mean, std)."""

    def times(key: jax.Array, batch: int, schedule: Schedule) -> tuple[Level, jax.Array]:
        log_ratio = mean + std * jax.random.normal(key, (batch,))
        return schedule.from_log_snr(-2 * log_ratio), jnp.ones(batch)

    return times


def _quantiles(draw: Callable[[jax.Array, int], jax.Array]) -> Times:
    def times(key: jax.Array, batch: int, schedule: Schedule) -> tuple[Level, jax.Array]:
        return schedule.at(jnp.clip(draw(key, batch), 0.0, 1.0)), jnp.ones(batch)

    return times


TIMES: dict[str, Callable[..., Times]] = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "logit_normal": logit_normal,
    "mode": mode,
    "log_normal": log_normal,
}


def make_times(name: str, **options) -> Times:
    """The time sampler called `name` in `TIMES`."""
    return lookup(TIMES, name, "time sampling")(**options)
