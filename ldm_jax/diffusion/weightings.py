"""Loss weights: functions (level, prediction) -> weight of the squared error of that prediction's target, per sample.

A weight known for the error of x0 (or of eps) is carried to another prediction by determinants: at a fixed x_t the target's
error is -det/sigma times that of x0, and det/alpha times that of eps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import Level
from ldm_jax.diffusion.parameterization import PredictionType, determinant
from ldm_jax.diffusion.schedules import Discrete, Schedule
from ldm_jax.primitives.choices import choose

Weighting = Callable[[Level, PredictionType], Any]


def simple() -> Weighting:
    """1 for the network's own target (Ho et al. 2020, L_simple)."""
    return lambda level, prediction: jnp.ones_like(level.sigma)


def min_snr(gamma: float = 5.0) -> Weighting:
    """Hang et al. 2023: min(SNR, gamma) on x0; min(SNR, gamma) / SNR on eps, / (SNR + 1) on v."""
    return on_x0(lambda level: jnp.minimum(snr(level), gamma))


def truncated_snr(least: float = 1.0) -> Weighting:
    """Salimans & Ho 2022: max(SNR, 1) on x0."""
    return on_x0(lambda level: jnp.maximum(snr(level), least))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Choi et al. 2022: 1 / (k + SNR)^gamma on eps."""
    return on_eps(lambda level: (k + snr(level)) ** -gamma)


def edm(sigma_data: float = 0.5) -> Weighting:
    """Karras et al. 2022: (s^2 + sigma_data^2) / (s sigma_data)^2 on x0, s = noise_ratio; 1 on F (VE)."""
    return on_x0(lambda level: snr(level) + 1 / sigma_data**2)


def sigmoid(schedule: Schedule, bias: float = 0.0) -> Weighting:
    """sigmoid(bias - log_snr) in the form of Kingma & Gao 2023, 1/2 E_u[w(log_snr) (-d log_snr/du) |eps error|^2];
    SiD2 (Hoogeboom et al. 2024) uses biases -3 to -1."""
    return on_eps(lambda level: 0.5 * jax.nn.sigmoid(bias - level.log_snr) * -log_snr_slope(schedule, level))


def variational_bound(schedule: Schedule) -> Weighting:
    """The diffusion part of the evidence lower bound, in nats, for times uniform in [0, 1] (Kingma et al. 2021, eq. 14 and 18).
    A table: N/2 (SNR(t-1) / SNR(t) - 1) on eps, t = 0 getting what t = 1 has, as in the reference; else -1/2 dlog_snr/du.
    """
    if not isinstance(schedule, Discrete):
        return on_eps(lambda level: -0.5 * log_snr_slope(schedule, level))
    size = schedule.size
    return on_eps(lambda level: 0.5 * size * jnp.expm1(-log_snr_slope(schedule, level) / size))


def on_x0(weight: Callable[[Level], Any]) -> Weighting:
    """The weighting with this weight on the squared error of x0."""
    return lambda level, prediction: weight(level) * (level.sigma / determinant(prediction, level)) ** 2


def on_eps(weight: Callable[[Level], Any]) -> Weighting:
    """The weighting with this weight on the squared error of eps."""
    return lambda level, prediction: weight(level) * (level.alpha / determinant(prediction, level)) ** 2


def snr(level: Level) -> Any:
    """(alpha / sigma)^2."""
    return (level.alpha / level.sigma) ** 2


def log_snr_slope(schedule: Schedule, level: Level) -> Any:
    """d log_snr / du at this level, negative, u being the quantile of training time; for a table N times the difference to the
    entry before (to the one after, at t = 0)."""
    if isinstance(schedule, Discrete):
        gaps = jnp.asarray(schedule.size * np.diff(schedule.log_snr), jnp.float32)
        return gaps[jnp.maximum(jnp.round(level.t).astype(jnp.int32) - 1, 0)]
    log_snr = jnp.asarray(level.log_snr)
    _, slope = jax.jvp(schedule.quantile, (log_snr,), (jnp.ones_like(log_snr),))
    return 1 / slope


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "simple": simple,
    "min_snr": min_snr,
    "truncated_snr": truncated_snr,
    "p2": p2,
    "edm": edm,
    "sigmoid": sigmoid,
    "variational_bound": variational_bound,
}


def make_weighting(name: str, schedule: Schedule, **options: Any) -> Weighting:
    """The weighting called `name` in `WEIGHTINGS`; those that depend on the schedule, or on its sigma_data, are given it."""
    factory = choose(WEIGHTINGS, name, "weighting")
    if factory is edm:
        options = {"sigma_data": getattr(schedule, "sigma_data", 0.5)} | options
    return factory(schedule, **options) if factory in (sigmoid, variational_bound) else factory(**options)
