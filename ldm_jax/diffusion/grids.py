"""Sampling grids: which levels to visit. A grid for `steps` steps is a `Level` of steps + 1 entries, from noisy to clean;
the last entry is where to stop, not where to evaluate. `end` replaces it: the default is exactly clean (alpha 1, sigma 0),
`end=schedule(0)` is what CompVis and `set_alpha_to_one=False` do.

Spacings named after Lin et al. 2023, table 2 (leading, trailing, linspace); `karras`: Karras et al. 2022, eq. 5;
`exponential`: uniform in log(noise_ratio) = uniform in log-SNR, as DPM-Solver (Lu et al. 2022); `beta`: Lee et al. 2024.
All arithmetic is float64 NumPy: a grid is data, made before tracing. Every grid has exactly the steps asked for.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ldm_jax.diffusion.level import CLEAN, PURE_NOISE, Level
from ldm_jax.diffusion.schedules import Discrete, Schedule, make_schedule
from ldm_jax.primitives.choices import choose

GridLike = str | Level | Callable[[int], Level]  # a name in `GRIDS`, levels, or a function of the number of steps


def from_times(schedule: Schedule, times: Any, end: Level = CLEAN) -> Level:
    """The levels at these times of the schedule, noisiest first, then `end`."""
    return ending_at(schedule(np.asarray(times, np.float64)), end)


def from_log_snrs(schedule: Schedule, log_snrs: Any, end: Level = CLEAN) -> Level:
    """The levels at these log-SNRs, lowest first, then `end`."""
    return ending_at(schedule.from_log_snr(np.asarray(log_snrs, np.float64)), end)


def ending_at(levels: Level, end: Level) -> Level:
    """Appends the level to stop at."""
    return Level(*(np.append(a, float(b)) for a, b in zip(_fields(levels), _fields(end))))


def leading(schedule: Discrete, steps: int, offset: int = 1, stride: float | None = None, end: Level = CLEAN) -> Level:
    """t = floor(i N / steps) + offset, i < steps: CompVis's spacing with offset 1, DDIM's with 0. Never reaches t = N-1.

    The reference takes the stride N // steps and so makes 334 steps of 300, or leaves the noisy end out; here the stride is
    real unless given.
    """
    _check_steps(steps)
    size = _table_size(schedule, "leading")
    times = np.floor(np.arange(steps) * (size / steps if stride is None else stride)) + offset
    if steps > size or times[-1] > size - 1:
        raise ValueError(
            f"leading grid of {steps} steps with offset {offset} needs t = {times[-1]:.0f}, table ends at {size - 1}."
        )
    return from_times(schedule, times[::-1], end)


def trailing(schedule: Schedule, steps: int, end: Level = CLEAN) -> Level:
    """t = t_max (1 - i / steps): starts at the noisiest level. For a table, round(N - i N / steps) - 1."""
    _check_steps(steps)
    if isinstance(schedule, Discrete):
        return from_times(schedule, np.round(schedule.size * (1 - np.arange(steps) / steps)) - 1, end)
    low, high = schedule.span
    return from_times(schedule, high - (high - low) * np.arange(steps) / steps, end)


def linspace(schedule: Schedule, steps: int, end: Level = CLEAN) -> Level:
    """`steps` equidistant times with both ends of the schedule, the lower one being the last that is evaluated."""
    _check_steps(steps)
    low, high = schedule.span
    ends_clean = float(schedule(np.float64(low)).sigma) == 0 and float(end.sigma) == 0  # nothing to evaluate at `low`
    times = np.linspace(high, low, steps + 1)[:-1] if ends_clean else np.linspace(high, low, steps)
    return from_times(schedule, np.round(times) if isinstance(schedule, Discrete) else times, end)


def exponential(
    schedule: Schedule, steps: int, low: float | None = None, high: float | None = None, end: Level = CLEAN
) -> Level:
    """noise_ratio geometric from `high` to `low` (default: the schedule's ends, kept within a log-SNR of
    15 where those are clean or pure noise): uniform in log-SNR."""
    low, high = _ratios(schedule, steps, low, high)
    return from_log_snrs(schedule, -2 * np.log(exponentially_spaced(low, high, steps)), end)


def karras(
    schedule: Schedule, steps: int, rho: float = 7.0, low: float | None = None, high: float | None = None, end: Level = CLEAN
) -> Level:
    """noise_ratio^(1/rho) linear from `high` to `low` (default: the schedule's ends)."""
    low, high = _ratios(schedule, steps, low, high)
    return from_log_snrs(schedule, -2 * np.log(karras_spaced(low, high, steps, rho)), end)


def beta(
    schedule: Schedule,
    steps: int,
    a: float = 0.6,
    b: float = 0.6,
    low: float | None = None,
    high: float | None = None,
    end: Level = CLEAN,
) -> Level:
    """noise_ratio at the quantiles of a Beta(a, b) distribution between `low` and `high`: dense at both ends."""
    low, high = _ratios(schedule, steps, low, high)
    return from_log_snrs(schedule, -2 * np.log(beta_spaced(low, high, steps, a, b)), end)


def exponentially_spaced(low: float, high: float, steps: int) -> np.ndarray:
    """Geometric from `high` to `low`, float64 [steps]."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def karras_spaced(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """From `high` to `low`, their roots of degree `rho` linear, float64 [steps]."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def beta_spaced(low: float, high: float, steps: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """From `high` to `low` at the quantiles of a Beta(a, b) distribution, float64 [steps]."""
    from scipy import special  # here, because importing it takes a third of a second

    return low + (high - low) * special.betaincinv(a, b, 1 - np.linspace(0, 1, steps))


def check_grid(grid: Level) -> None:
    """ValueError unless the grid has at least one step and its noise_ratio falls strictly. Traced grids pass unseen."""
    if not all(isinstance(a, np.ndarray) for a in (grid.alpha, grid.sigma)):
        if any(_traced(a) for a in _fields(grid)):
            return
        grid = Level(*(np.asarray(a) for a in _fields(grid)))
    if grid.alpha.ndim != 1 or len(grid.alpha) < 2:
        raise ValueError(f"A grid holds the levels of at least 1 step, two entries; got shape {grid.alpha.shape}.")
    ratio = np.asarray(grid.noise_ratio)
    if not np.all(ratio[1:] < ratio[:-1]):
        where = int(np.argmax(~(ratio[1:] < ratio[:-1])))
        raise ValueError(
            f"The noise of a grid must fall: sigma/alpha goes from {ratio[where]:.6g} to {ratio[where + 1]:.6g} at step "
            f"{where}. Grids run from noisy to clean; are there more steps than levels?"
        )


# Ends, in noise_ratio, of schedules that reach exactly clean or pure noise: log-SNR 15 and -15, those of `Cosine`.
_RATIOS = math.exp(-7.5), math.exp(7.5)


def _traced(a: Any) -> bool:
    import jax

    return isinstance(a, jax.core.Tracer)


def _fields(level: Level) -> tuple[Any, Any, Any]:
    return level.t, level.alpha, level.sigma


def _check_steps(steps: int) -> None:
    if int(steps) != steps or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1; got {steps!r}.")


def _table_size(schedule: Schedule, spacing: str) -> int:
    if not isinstance(schedule, Discrete):
        raise ValueError(
            f"spacing {spacing!r} counts entries of a table; {schedule} is continuous: use 'trailing' or 'linspace'."
        )
    return schedule.size


def _ratios(schedule: Schedule, steps: int, low: float | None, high: float | None) -> tuple[float, float]:
    _check_steps(steps)
    ends = [schedule(np.float64(t)) for t in schedule.span]
    ends = [float(e.noise_ratio) if e.alpha > PURE_NOISE and e.sigma > 0 else other for e, other in zip(ends, _RATIOS)]
    low, high = float(ends[0] if low is None else low), float(ends[1] if high is None else high)
    if not 0 < low < high < np.inf:
        raise ValueError(
            f"The grid needs 0 < low < high < inf for noise_ratio = sigma/alpha; got low = {low}, high = {high}."
        )
    return low, high


GRIDS: dict[str, Callable[..., Level]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "log_snr": exponential,
    "exponential": exponential,
    "karras": karras,
    "beta": beta,
}


def make_grid(name: GridLike, schedule: str | Schedule, steps: int, **options: Any) -> Level:
    """The grid called `name` in `GRIDS`, for `steps` steps. One of your own, a function of the steps or a Level of so many, is
    checked and stays as it is. ValueError for a Level of other steps, and for options of what has its own."""
    if isinstance(name, str):
        return choose(GRIDS, name, "grid")(make_schedule(schedule), steps, **options)
    levels = name(steps) if callable(name) else name
    if not isinstance(levels, Level) or np.ndim(levels.alpha) != 1 or len(levels.alpha) != steps + 1:
        raise ValueError(
            f"grid is a {type(name).__name__}: give a name, a Level of {steps + 1} levels for {steps} steps, or a function of "
            "the number of steps that gives such a Level"
        )
    check_grid(levels)
    return levels
