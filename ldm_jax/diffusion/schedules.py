"""Noise schedules: frozen dataclasses, called as `schedule(t) -> Level`.

The argument is the schedule's own time, in `schedule.span = (t_min, t_max)`, noise growing with it; `Level.t` is the
network's time input, which may be another number (flow: 1000 sigma after the shift; EDM: log(sigma)/4). Every schedule also has

    input_scale(level)  what the network's input is multiplied by (EDM's c_in); None where that is 1
    at(u)               the level of quantile u in [0, 1] of training time (integers, uniformly, for a table)
    from_log_snr(l)     the level at this log-SNR: the inverse that solvers with stages between grid points need
    quantile(l)         the u at which the schedule has this log-SNR

Discrete tables (DDPM, Ho et al. 2020; squared cosine, Nichol & Dhariwal 2021; sigmoid, Jabri et al. 2022; zero terminal SNR,
Lin et al. 2023) are float64. Between the integers log_snr is linear in t, as in k-diffusion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import Level, from_log_snr, namespace
from ldm_jax.primitives.choices import choose

_FLOOR = -1000.0  # stands for log-SNR minus infinity: interpolates, and is 0 for alpha


@dataclass(frozen=True, eq=False)
class Discrete:
    """A table alpha_bar[t] for t = 0 .. N-1, non-increasing, in (0, 1]; its last entry may be 0 (zero terminal SNR)."""

    alpha_bar: np.ndarray
    log_snr: np.ndarray = field(init=False, repr=False)
    input_scale = None

    def __post_init__(self) -> None:
        table = np.asarray(self.alpha_bar, np.float64)
        if table.ndim != 1 or len(table) < 2 or not np.all(np.diff(table) < 0) or table[0] >= 1 or table[-1] < 0:
            raise ValueError(
                f"alpha_bar must be a table of at least 2 numbers that decrease strictly within 1 > alpha_bar >= 0; got shape "
                f"{table.shape} from {table.flat[0] if table.size else None} to {table.flat[-1] if table.size else None}. "
                "Did you pass betas? Use from_betas."
            )
        with np.errstate(divide="ignore"):
            log_snr = np.log(table) - np.log1p(-table)
        object.__setattr__(self, "alpha_bar", table)
        object.__setattr__(self, "log_snr", np.maximum(log_snr, _FLOOR))

    def __repr__(self) -> str:
        """One line, for errors."""
        return f"Discrete(alpha_bar {self.alpha_bar[0]:.4g} to {self.alpha_bar[-1]:.4g}, {self.size} entries)"

    @property
    def size(self) -> int:
        """The number N of entries."""
        return len(self.alpha_bar)

    @property
    def span(self) -> tuple[float, float]:
        """The schedule\'s own time at its least and its most noise."""
        return 0.0, self.size - 1.0

    def __call__(self, t: Any) -> Level:
        """The level at time t in [0, N - 1], whole or fractional."""
        xp = namespace(t)
        t = xp.asarray(t, np.float64 if xp is np else jnp.float32)
        below = xp.clip(xp.floor(t), 0, self.size - 2).astype(np.int32)
        table = xp.asarray(self.log_snr, t.dtype)
        return self._level(t, table[below] + (t - below) * (table[below + 1] - table[below]))

    def at(self, u: Any) -> Level:
        """The level of quantile u in [0, 1] of training time."""
        xp = namespace(u)
        return self(xp.clip(xp.floor(u * self.size), 0, self.size - 1))

    def from_log_snr(self, log_snr: Any) -> Level:
        """The level at this log-SNR."""
        xp = namespace(log_snr)
        t = xp.interp(-log_snr, -xp.asarray(self.log_snr), xp.arange(self.size))
        return self._level(t, log_snr)

    def quantile(self, log_snr: Any) -> Any:
        """The u of `at` at which the schedule has this log-SNR."""
        return (self.from_log_snr(log_snr).t + 0.5) / self.size

    @staticmethod
    def _level(t: Any, log_snr: Any) -> Level:
        alpha, sigma = from_log_snr(log_snr)
        return Level(t, namespace(log_snr).where(log_snr <= _FLOOR, 0.0, alpha), sigma)


def from_betas(betas: np.ndarray) -> Discrete:
    """The table of betas in (0, 1]: alpha_bar = cumprod(1 - beta)."""
    return Discrete(np.cumprod(1.0 - np.asarray(betas, np.float64)))


def linear_betas(start: float = 1e-4, end: float = 2e-2, size: int = 1000) -> np.ndarray:
    """DDPM's: linear from start to end, float64 [size]."""
    return np.linspace(start, end, size)


def scaled_linear_betas(start: float = 0.0015, end: float = 0.0195, size: int = 1000) -> np.ndarray:
    """Latent diffusion's: their square roots are linear, float64 [size]."""
    return np.linspace(start**0.5, end**0.5, size) ** 2


def squared_cosine_betas(offset: float = 8e-3, max_beta: float = 0.999, size: int = 1000) -> np.ndarray:
    """Nichol & Dhariwal 2021: those of alpha_bar = cos^2, at most `max_beta`, float64 [size]."""
    curve = np.cos((np.arange(size + 1) / size + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - curve[1:] / curve[:-1], max_beta)


def sigmoid_betas(start: float = 1e-4, end: float = 2e-2, size: int = 1000) -> np.ndarray:
    """GeoDiff's, diffusers': between start and end along a sigmoid over [-6, 6], float64 [size]."""
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, size)))


def sqrt_betas(start: float = 1e-4, end: float = 2e-2, size: int = 1000) -> np.ndarray:
    """CompVis's 'sqrt': square roots of a line, float64 [size]."""
    return np.linspace(start, end, size) ** 0.5


def linear(start: float = 1e-4, end: float = 2e-2, size: int = 1000) -> Discrete:
    """The table of `linear_betas`. (CompVis calls this one 'sqrt_linear'.)"""
    return from_betas(linear_betas(start, end, size))


def scaled_linear(start: float = 0.0015, end: float = 0.0195, size: int = 1000) -> Discrete:
    """The table of `scaled_linear_betas`. (CompVis calls this one 'linear'.)"""
    return from_betas(scaled_linear_betas(start, end, size))


def squared_cosine(offset: float = 8e-3, max_beta: float = 0.999, size: int = 1000) -> Discrete:
    """The table of `squared_cosine_betas`. (diffusers: squaredcos_cap_v2; CompVis: cosine.)"""
    return from_betas(squared_cosine_betas(offset, max_beta, size))


def sigmoid(start: float = 1e-4, end: float = 2e-2, size: int = 1000) -> Discrete:
    """The table of `sigmoid_betas`."""
    return from_betas(sigmoid_betas(start, end, size))


def sqrt(start: float = 1e-4, end: float = 2e-2, size: int = 1000) -> Discrete:
    """The table of `sqrt_betas`."""
    return from_betas(sqrt_betas(start, end, size))


def zero_terminal_snr(schedule: Discrete, last: float = 0.0) -> Discrete:
    """Lin et al. 2023, algorithm 1: shift and scale sqrt(alpha_bar) so that the last level is pure noise.

    `last`: what to put for the last alpha_bar instead of 0; diffusers' sigma-space classes put 2^-24. Of betas as steep as
    those of the squared cosine the entries before it can be smaller: these are raised to just above it, so that noise grows.
    """
    root = np.sqrt(schedule.alpha_bar)
    table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return Discrete(np.maximum(table, last * (1 + 1e-6 * np.arange(len(table))[::-1])))


@dataclass(frozen=True)
class Cosine:
    """Continuous VP cosine: log_snr = -2 log tan(pi t / 2) + 2 log(scale), t in [0, 1] kept off the ends.

    `scale` = base resolution / resolution shifts it for larger images (simple diffusion, Hoogeboom et al. 2023).
    The network's time input is `time_scale` t.
    """

    scale: float = 1.0
    log_snr_min: float = -15.0
    log_snr_max: float = 15.0
    time_scale: float = 1000.0
    input_scale = None

    @property
    def span(self) -> tuple[float, float]:
        """The schedule\'s own time at its least and its most noise."""
        return float(self._time(self.log_snr_max)), float(self._time(self.log_snr_min))  # no types of their own beside arrays

    def _time(self, log_snr: Any) -> Any:
        xp = namespace(log_snr)
        return xp.arctan(xp.exp(math.log(self.scale) - 0.5 * log_snr)) * (2 / np.pi)

    def __call__(self, t: Any) -> Level:
        """The level at time t, within `span`."""
        log_snr = -2 * namespace(t).log(namespace(t).tan(t * (np.pi / 2))) + 2 * math.log(self.scale)
        return Level(t * self.time_scale, *from_log_snr(log_snr))

    def at(self, u: Any) -> Level:
        """The level of quantile u in [0, 1] of training time."""
        low, high = self.span
        return self(low + (high - low) * u)

    def from_log_snr(self, log_snr: Any) -> Level:
        """The level at this log-SNR."""
        return Level(self._time(log_snr) * self.time_scale, *from_log_snr(log_snr))

    def quantile(self, log_snr: Any) -> Any:
        """The u of `at` at which the schedule has this log-SNR."""
        low, high = self.span
        return (self._time(log_snr) - low) / (high - low)


@dataclass(frozen=True)
class VarianceExploding:
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, t in [0, 1] (Song et al. 2021); Level.t is
    log(sigma) / 4 (EDM). `sigma_data` is the data's standard deviation, as the network's input scale assumes it."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    span = (0.0, 1.0)

    def input_scale(self, level: Level) -> Any:
        """c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2) of Karras et al. 2022, table 1: a network would see noise of
        deviation 80 without it."""
        return 1 / namespace(level.alpha, level.sigma).sqrt((level.alpha * self.sigma_data) ** 2 + level.sigma**2)

    def __call__(self, t: Any) -> Level:
        """The level at time t in [0, 1]."""
        log_sigma = math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min)
        return self.from_log_snr(-2 * log_sigma)

    def at(self, u: Any) -> Level:
        """The level of quantile u in [0, 1] of training time."""
        return self(u)

    def from_log_snr(self, log_snr: Any) -> Level:
        """The level at this log-SNR."""
        xp = namespace(log_snr)
        return Level(-log_snr / 8, xp.ones_like(log_snr), xp.exp(-0.5 * log_snr))

    def quantile(self, log_snr: Any) -> Any:
        """The u of `at` at which the schedule has this log-SNR."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - sigma, sigma = shift t / (1 + (shift - 1) t), t in [0, 1]; Level.t is `time_scale` sigma.

    Esser et al. 2024, eq. 23: `resolution_shift`; FLUX: `mu_shift`. Both return a `shift`.
    """

    shift: float = 1.0
    time_scale: float = 1000.0
    span = (0.0, 1.0)
    input_scale = None

    def __call__(self, t: Any) -> Level:
        """The level at time t in [0, 1]."""
        sigma = self.shift * t / (1 + (self.shift - 1) * t)
        return Level(self.time_scale * sigma, 1 - sigma, sigma)

    def at(self, u: Any) -> Level:
        """The level of quantile u in [0, 1] of training time."""
        return self(u)

    def from_log_snr(self, log_snr: Any) -> Level:
        """The level at this log-SNR."""
        xp = namespace(log_snr)
        sigma, alpha = 1 / (1 + xp.exp(0.5 * log_snr)), 1 / (1 + xp.exp(-0.5 * log_snr))
        return Level(self.time_scale * sigma, alpha, sigma)

    def quantile(self, log_snr: Any) -> Any:
        """The u of `at` at which the schedule has this log-SNR."""
        sigma = 1 / (1 + namespace(log_snr).exp(0.5 * log_snr))
        return sigma / (self.shift - (self.shift - 1) * sigma)


def resolution_shift(tokens: int, base_tokens: int) -> float:
    """Esser et al. 2024: shift = sqrt(tokens / base_tokens), tokens being latent positions."""
    return math.sqrt(tokens / base_tokens)


def mu_shift(tokens: int, base: tuple[int, float] = (256, 0.5), top: tuple[int, float] = (4096, 1.15)) -> float:
    """FLUX: shift = exp(mu), mu linear in the number of tokens through the two points (tokens, mu)."""
    slope = (top[1] - base[1]) / (top[0] - base[0])
    return math.exp(base[1] + slope * (tokens - base[0]))




class Schedule(Protocol):
    """What a noise schedule is: called with its own time t, it gives `Level(t, alpha, sigma)`, x_t = alpha x0 + sigma eps.

    A schedule of your own is any frozen (hashable) object with these; `SCHEDULES` names those that are here, and wherever one
    of these names is taken, such an object is too.

        span                (t_min, t_max) of its own time; noise grows with it
        input_scale         None, or level -> what the network's input is multiplied by (EDM's c_in)
        schedule(t)         float or array [...] -> Level of that shape; `Level.t` is what the network is told
        at(u)               the level of quantile u in [0, 1] of training time
        from_log_snr(l)     the level at log(alpha^2 / sigma^2) = l
        quantile(l)         the u at which it has this log-SNR
    """

    input_scale: Callable[[Level], Any] | None

    @property
    def span(self) -> tuple[float, float]: ...

    def __call__(self, t: Any) -> Level: ...

    def at(self, u: Any) -> Level: ...

    def from_log_snr(self, log_snr: Any) -> Level: ...

    def quantile(self, log_snr: Any) -> Any: ...

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "squared_cosine": squared_cosine,
    "sigmoid": sigmoid,
    "sqrt": sqrt,
    "cosine": Cosine,
    "ve": partial(VarianceExploding, sigma_min=0.01, sigma_max=50.0),
    "edm": VarianceExploding,
    "flow": RectifiedFlow,
}


def make_schedule(name: str | Schedule, **options: Any) -> Schedule:
    """The schedule called `name` in `SCHEDULES`; one that is made already, as it is. ValueError for options of that."""
    if isinstance(name, str):
        return choose(SCHEDULES, name, "schedule")(**options)
    if options or not (callable(name) and hasattr(name, "span")):
        raise ValueError(f"schedule={name!r}: give a name, with options, or a Schedule, which has its own")
    return name
