"""The schedule that a CompVis file carries in its buffers, checked against the configured one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.weights.stored import Stored

BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def betas(diffusion: Mapping[str, Any]) -> np.ndarray:
    """The betas of a described schedule, float64 [timesteps]. ValueError for one that is no table."""
    from ldm_jax.diffusion import schedules  # imports jax: not before a table is needed

    start, end, size = diffusion["linear_start"], diffusion["linear_end"], diffusion["timesteps"]
    match diffusion["schedule"]:
        case "linear":
            return schedules.linear_betas(start, end, size)
        case "scaled_linear":
            return schedules.scaled_linear_betas(start, end, size)
        case "sqrt":
            return schedules.sqrt_betas(start, end, size)
        case "squared_cosine":
            return schedules.squared_cosine_betas(size=size)
    raise ValueError(f"no table of betas for the schedule {diffusion['schedule']!r}")


def buffers(diffusion: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All buffers that `DDPM.register_schedule` keeps, float32 [timesteps], for v_posterior 0; of `zero_terminal_snr` with
    a little signal at the last step, as diffusers has it."""
    beta = betas(diffusion)
    bar = np.cumprod(1 - beta)
    if diffusion.get("zero_terminal_snr"):
        from ldm_jax.diffusion.schedules import Discrete, zero_terminal_snr

        bar = zero_terminal_snr(Discrete(bar), last=2.0**-24).alpha_bar  # a number that can be divided by
        beta = 1 - bar / np.append(1.0, bar[:-1])
    previous = np.append(1.0, bar[:-1])
    variance = beta * (1 - previous) / (1 - bar)
    values = (
        beta,
        bar,
        previous,
        np.sqrt(bar),
        np.sqrt(1 - bar),
        np.log(1 - bar),
        np.sqrt(1 / bar),
        np.sqrt(1 / bar - 1),
        variance,
        np.log(np.maximum(variance, 1e-20)),
        beta * np.sqrt(previous) / (1 - bar),
        (1 - previous) * np.sqrt(1 - beta) / (1 - bar),
    )
    return {name: value.astype(np.float32) for name, value in zip(BUFFERS, values, strict=True)}


def check(diffusion: Mapping[str, Any], tensors: Mapping[str, Stored], where: str) -> None:
    """Raises ValueError if the file's betas or alphas_cumprod are not those of the configuration."""
    expected = buffers(diffusion)
    for name in ("betas", "alphas_cumprod"):
        if name not in tensors:
            continue
        stored, wanted = np.asarray(tensors[name]), expected[name]
        if stored.shape != wanted.shape:
            raise ValueError(f"{where}: {name} has {stored.shape[0]} steps, the configuration {wanted.shape[0]}")
        half = stored.dtype.itemsize < 4
        if not np.allclose(stored.astype(np.float64), wanted, rtol=8e-3 if half else 1e-4, atol=1e-7 if half else 0.0):
            raise ValueError(
                f"{where}: {name} runs from {stored[0]:.6g} to {stored[-1]:.6g} in the file, but from {wanted[0]:.6g} to "
                f"{wanted[-1]:.6g} by the configuration (schedule {diffusion['schedule']}, linear_start "
                f"{diffusion['linear_start']}, linear_end {diffusion['linear_end']}): the YAML belongs to another model"
            )
