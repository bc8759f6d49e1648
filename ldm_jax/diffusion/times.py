"""Which levels training visits: functions (key, rows, batch_size, schedule) -> (Level [B], weight [B]).

`rows` int32 [B] are the numbers of the rows in a whole update of `batch_size` rows: the time of a row depends on (key, row)
alone, however the update is cut into parts. The weight corrects the loss for sampling a level more or less often than
uniformly, where that is what the sampler means (importance sampling); for the others it is 1, because their density is meant
to be part of the objective.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.level import Level
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.primitives.arrays import row_keys, row_normal
from ldm_jax.primitives.choices import choose

_INSIDE = 1e-5, 1 - 1e-5  # the ends of a flow have an infinite log-SNR, and some weightings ask for it

Times = Callable[[jax.Array, jax.Array, int, Schedule], tuple[Level, jax.Array]]


def uniform() -> Times:
    """u ~ U[0, 1): every entry of a table equally often."""
    return _quantiles(lambda key, rows, batch_size: _row_uniform(key, rows))


def low_discrepancy() -> Times:
    """Kingma et al. 2021 (VDM): u = (shift + row / batch_size) mod 1, one uniform shift per update."""
    return _quantiles(lambda key, rows, batch_size: (jax.random.uniform(key) + rows / batch_size) % 1.0)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> Times:
    """Esser et al. 2024 (SD3): logit(u) ~ N(mean, std)."""
    return _quantiles(lambda key, rows, batch_size: jax.nn.sigmoid(mean + std * row_normal(key, rows, ())))


def mode(scale: float = 1.29) -> Times:
    """Esser et al. 2024, eq. 20: f(u) = 1 - u - scale (cos^2(pi u / 2) - 1 + u)."""

    def draw(key: jax.Array, rows: jax.Array, batch_size: int) -> jax.Array:
        u = _row_uniform(key, rows)
        return 1 - u - scale * (jnp.cos(jnp.pi / 2 * u) ** 2 - 1 + u)

    return _quantiles(draw)


def log_normal(mean: float = -1.2, std: float = 1.2) -> Times:
    """EDM, Karras et al. 2022: log(noise_ratio) ~ N(mean, std)."""

    def times(key: jax.Array, rows: jax.Array, batch_size: int, schedule: Schedule) -> tuple[Level, jax.Array]:
        log_ratio = mean + std * row_normal(key, rows, ())
        return schedule.from_log_snr(-2 * log_ratio), jnp.ones(len(rows))

    return times


HISTORY = "history"  # the part of the training's parameters that holds one


class History(NamedTuple):
    """The last losses of every bin of u: `losses` [bins, kept], and how many each has seen, `counts` [bins]."""

    losses: jax.Array
    counts: jax.Array


def loss_history(bins: int = 1000, kept: int = 10) -> History:
    """An empty history; carry it in the training state."""
    return History(jnp.zeros((bins, kept)), jnp.zeros(bins, jnp.int32))


def record_losses(past: History, schedule: Schedule, log_snr: jax.Array, losses: jax.Array) -> History:
    """Adds the losses [B] at these levels (`loss_per_sample` and `log_snr` of the metrics)."""
    bins, kept = past.losses.shape
    found = jnp.clip((schedule.quantile(log_snr) * bins).astype(jnp.int32), 0, bins - 1)

    def add(past: History, new: tuple[jax.Array, jax.Array]) -> tuple[History, None]:
        at, loss = new
        return History(past.losses.at[at, past.counts[at] % kept].set(loss), past.counts.at[at].add(1)), None

    return jax.lax.scan(add, past, (found, losses))[0]


def importance(history: History, uniform_part: float = 1e-3) -> Times:
    """Nichol & Dhariwal 2021: levels with probability p ~ sqrt(E[loss^2]) and weight 1 / p; uniform until all bins are full."""
    bins, kept = history.losses.shape
    p = jnp.sqrt(jnp.mean(history.losses**2, 1))
    p = (1 - uniform_part) * p / jnp.maximum(p.sum(), 1e-12) + uniform_part / bins
    p = jnp.where(jnp.all(history.counts >= kept), p, 1 / bins)
    ends = jnp.cumsum(p)

    def times(key: jax.Array, rows: jax.Array, batch_size: int, schedule: Schedule) -> tuple[Level, jax.Array]:
        which, where = jax.random.split(key)
        at = jnp.minimum(jnp.searchsorted(ends, _row_uniform(which, rows) * ends[-1], side="right"), bins - 1)
        u = (at + _row_uniform(where, rows)) / bins
        return schedule.at(jnp.clip(u, *_INSIDE)), 1 / (bins * p[at])

    return times


def _row_uniform(key: jax.Array, rows: jax.Array) -> jax.Array:
    """U[0, 1) for each row number, [B]."""
    return jax.vmap(jax.random.uniform)(row_keys(key, rows))


def _quantiles(draw: Callable[[jax.Array, jax.Array, int], jax.Array]) -> Times:
    def times(key: jax.Array, rows: jax.Array, batch_size: int, schedule: Schedule) -> tuple[Level, jax.Array]:
        return schedule.at(jnp.clip(draw(key, rows, batch_size), *_INSIDE)), jnp.ones(len(rows))

    return times


TIMES: dict[str, Callable[..., Times]] = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "logit_normal": logit_normal,
    "mode": mode,
    "log_normal": log_normal,
}


def make_times(name: str, **options: Any) -> Times:
    """The time sampler called `name` in `TIMES`, with its own options. ValueError for a name that is not there."""
    return choose(TIMES, name, "times")(**options)
