"""Which levels training visits: functions (key, batch, schedule) -> (Level [B], weight [B]).

The weight corrects the loss for sampling a level more or less often than uniformly, where that is what the sampler means
(importance sampling); for the others it is 1, because their density is meant to be part of the objective.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.level import Level
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.primitives.choices import choose

_INSIDE = 1e-5, 1 - 1e-5  # the ends of a flow have an infinite log-SNR, and some weightings ask for it

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


class History(NamedTuple):
    """The last losses of every bin of u: `losses` [bins, kept], and how many each has seen, `counts` [bins]."""

    losses: jax.Array
    counts: jax.Array


def history(bins: int = 1000, kept: int = 10) -> History:
    """An empty history; carry it in the training state."""
    return History(jnp.zeros((bins, kept)), jnp.zeros(bins, jnp.int32))


def remember(past: History, schedule: Schedule, log_snr: jax.Array, losses: jax.Array) -> History:
    """Adds the losses [B] at these levels (`loss_per_sample` and `log_snr` of the metrics)."""
    bins, kept = past.losses.shape
    found = jnp.clip((schedule.quantile(log_snr) * bins).astype(jnp.int32), 0, bins - 1)

    def add(past: History, new: tuple[jax.Array, jax.Array]) -> tuple[History, None]:
        at, loss = new
        return History(past.losses.at[at, past.counts[at] % kept].set(loss), past.counts.at[at].add(1)), None

    return jax.lax.scan(add, past, (found, losses))[0]


def importance(past: History, uniform_part: float = 1e-3) -> Times:
    """Nichol & Dhariwal 2021: levels with probability p ~ sqrt(E[loss^2]) and weight 1 / p; uniform until all bins are full."""
    bins, kept = past.losses.shape
    p = jnp.sqrt(jnp.mean(past.losses**2, 1))
    p = (1 - uniform_part) * p / jnp.maximum(p.sum(), 1e-12) + uniform_part / bins
    p = jnp.where(jnp.all(past.counts >= kept), p, 1 / bins)

    def times(key: jax.Array, batch: int, schedule: Schedule) -> tuple[Level, jax.Array]:
        which, where = jax.random.split(key)
        at = jax.random.choice(which, bins, (batch,), p=p)
        u = (at + jax.random.uniform(where, (batch,))) / bins
        return schedule.at(jnp.clip(u, *_INSIDE)), 1 / (bins * p[at])

    return times


def _quantiles(draw: Callable[[jax.Array, int], jax.Array]) -> Times:
    def times(key: jax.Array, batch: int, schedule: Schedule) -> tuple[Level, jax.Array]:
        return schedule.at(jnp.clip(draw(key, batch), *_INSIDE)), jnp.ones(batch)

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
    return choose(TIMES, name, "time sampling")(**options)
