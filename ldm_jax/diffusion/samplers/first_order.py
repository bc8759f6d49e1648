"""One evaluation a step, no memory: x_s = alpha_s x0 + sqrt(sigma_s^2 - var) eps + sqrt(var') z.

DDPM (Ho et al. 2020), DDIM (Song et al. 2021), Euler and Euler-ancestral (k-diffusion), consistency and LCM sampling
(Song et al. 2023; Luo et al. 2023) and flow Euler are all this step; they differ in the variance. With r the ratio of the
two SNRs, the posterior variance of x_s given x_t and x0 is sigma_s^2 (1 - r), in every process: 0 < r < 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.level import Denoiser, Level, diffuse, expand
from ldm_jax.diffusion.samplers.protocol import Sampler, State, gaussian, memoryless, noise_to
from ldm_jax.diffusion.schedules import Discrete, Schedule


def ddim(eta: float = 0.0) -> Sampler:
    """Song et al. 2021, eq. 12 and 16. eta 0 is deterministic (and Euler's method in any constant parameterization),
    eta 1 has the DDPM posterior's variance. 1 NFE per step."""
    return _explicit(None if eta == 0 else lambda level, to: (eta**2 * posterior_variance(level, to),) * 2)


def ddpm(variance: str = "small") -> Sampler:
    """Ho et al. 2020, algorithm 2: 'small' is the posterior variance, 'large' the forward process's (their beta). 1 NFE."""
    if variance not in ("small", "large"):
        raise ValueError(f"variance must be 'small' (posterior) or 'large' (forward process); got {variance!r}.")
    added = posterior_variance if variance == "small" else forward_variance
    return _explicit(lambda level, to: (posterior_variance(level, to), added(level, to)))


def euler() -> Sampler:
    """Euler's method: the same numbers as ddim(eta=0), on VP, VE and flow. 1 NFE per step."""
    return ddim(0.0)


def euler_ancestral(eta: float = 1.0) -> Sampler:
    """k-diffusion's ancestral Euler: with sigma_up^2 = eta^2 s_next^2 (1 - s_next^2/s^2), it is ddim(eta). 1 NFE per step."""
    return ddim(eta)


def consistency() -> Sampler:
    """Multistep consistency sampling, LCM, and stochastic flow: x_s = alpha_s x0 + sigma_s z. 1 NFE per step."""
    return _explicit(lambda level, to: (to.sigma**2,) * 2)


def tcd(schedule: Schedule, eta: float = 0.3) -> Sampler:
    """Trajectory consistency sampling (Zheng et al. 2024): DDIM down to the level s = (1 - eta) t_next, then noise up to
    the next one. Times are those of a table, rounded down, or quantiles of a continuous schedule. eta 0 is ddim. 1 NFE."""
    if eta == 0:
        return ddim()

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        x0, eps = denoise(state.x, level)
        if isinstance(schedule, Discrete):
            deeper = schedule(jnp.floor((1 - eta) * to.t + 1e-4))  # 0.7 * 10 must not round to 6
        else:
            deeper = schedule.at((1 - eta) * schedule.quantile(to.log_snr))
        below = deeper.sigma * to.alpha < to.sigma * deeper.alpha
        deeper = jax.tree.map(lambda a, b: jnp.where(below, a, b), deeper, to)
        x = diffuse(x0, eps, deeper)
        return State(noise_to(x, deeper, to, gaussian(key, x)), x0)

    return Sampler(memoryless, step)


def posterior_variance(level: Level, to: Level) -> Any:
    """Variance of x_to given x_level and x0: sigma_to^2 (1 - SNR_level / SNR_to)."""
    return to.sigma**2 - (level.alpha * to.sigma**2 / (to.alpha * level.sigma)) ** 2


def forward_variance(level: Level, to: Level) -> Any:
    """Variance of x_level given x_to (DDPM's beta); 0 where nothing is left to add, at `to` clean."""
    return jnp.where(to.sigma == 0, 0, level.sigma**2 - (level.alpha * to.sigma / to.alpha) ** 2)


def _explicit(variances: Callable[[Level, Level], tuple[Any, Any]] | None) -> Sampler:
    """`variances(level, to)`: how much eps gives up, and how much new noise comes; None: nothing does."""

    def step(state: State, denoise: Denoiser, level: Level, to: Level, key: jax.Array | None) -> State:
        x0, eps = denoise(state.x, level)
        if variances is None:
            return State(diffuse(x0, eps, to), x0)
        removed, added = variances(level, to)
        x = diffuse(x0, eps, Level(to.t, to.alpha, jnp.sqrt(jnp.maximum(to.sigma**2 - removed, 0))))
        return State(x + expand(jnp.sqrt(jnp.maximum(added, 0)), x) * gaussian(key, x), x0)

    return Sampler(memoryless, step)
