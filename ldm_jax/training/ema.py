"""Averages whose width is chosen after training (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", section 3 and appendix C).

A power-function average weighs the parameters of update tau by tau^gamma, up to the present update t:

    theta_gamma(t) = beta_t theta_gamma(t - 1) + (1 - beta_t) theta(t),   beta_t = (1 - 1 / t)^(gamma + 1)

Its relative width is the deviation of that profile, relative to t: sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2). Two such
averages are kept while training, and snapshots of them; the average of any other width is near to a linear combination of the
snapshots, whose coefficients are the least-squares fit of the profiles.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
WIDEST = 0.28  # gamma = 0.03; at gamma = 0 the width is 1 / sqrt(12)


def gamma_of(width: float) -> float:
    """The exponent of the profile of relative width `width`, in (0, 0.28]: the positive root of
    (gamma + 2)^2 (gamma + 3) = (gamma + 1) / width^2. ValueError outside."""
    check_widths([width])
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-6]))


def width_of(gamma: float) -> float:
    """The relative width of the profile with this exponent, gamma > 0."""
    return float(np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2))


def check_widths(widths: Sequence[float]) -> None:
    """ValueError unless every relative width lies in (0, 0.28]."""
    for width in widths:
        if not 0 < width <= WIDEST:
            raise ValueError(f"post_hoc={width}: an average's relative width lies in (0, {WIDEST}]; 0.05 and 0.1 are usual")


def power_averages(averages: PyTree, params: PyTree, step: jax.Array, widths: Sequence[float]) -> PyTree:
    """The averages {"0": parts, "1": parts, ...} of these widths after update `step` (1 for the first), float32 weights."""
    if len(averages) != len(widths):
        raise ValueError(f"post_hoc={tuple(widths)}: the state holds {len(averages)} averages")
    found = {}
    for i, width in enumerate(widths):
        beta = (1 - 1 / step.astype(jnp.float32)) ** (gamma_of(width) + 1)
        mine = averages[str(i)]
        found[str(i)] = jax.tree.map(
            lambda a, p, beta=beta: (beta * a + (1 - beta) * p).astype(a.dtype), mine, {name: params[name] for name in mine}
        )
    return found


def inner_product(step_a: Any, gamma_a: Any, step_b: Any, gamma_b: Any) -> np.ndarray:
    """The integral of the product of two profiles p(tau) = (gamma + 1) tau^gamma / step^(gamma + 1), 0 <= tau <= step; arrays
    are broadcast. In closed form: (ga + 1)(gb + 1) / (ga + gb + 1) (a / b)^gb / b for a <= b."""
    a, ga, b, gb = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (step_a, gamma_a, step_b, gamma_b)))
    swap = a > b
    a, b, ga, gb = np.where(swap, b, a), np.where(swap, a, b), np.where(swap, gb, ga), np.where(swap, ga, gb)
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * (a / b) ** gb / b


def coefficients(steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> np.ndarray:
    """float64 [N]: what each snapshot (its step and relative width) counts for in the average of `width` at `step`, which is at
    most the last snapshot's. Their sum is 1."""
    if len(steps) != len(widths) or not len(steps):
        raise ValueError(f"{len(steps)} steps and {len(widths)} widths of snapshots: must be equally many, at least one")
    if not 0 < step <= max(steps):
        raise ValueError(f"step={step}: snapshots reach to step {max(steps)}")
    t, gamma = np.asarray(steps, np.float64), np.array([gamma_of(width) for width in widths])
    gram = inner_product(t[:, None], gamma[:, None], t, gamma)
    target = inner_product(t, gamma, float(step), gamma_of(width))
    # profiles are alike where steps are near, so the Gram matrix is scaled before its small singular values are cut off
    scale = np.sqrt(np.diag(gram))
    found = np.linalg.lstsq(gram / np.outer(scale, scale), target / scale, rcond=1e-10)[0] / scale
    return found / found.sum()


def reconstruct(snapshots: Iterable[PyTree], steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> PyTree:
    """The average of any `width` in (0, 0.28] at `step`, from snapshots of power-function averages taken at `steps` with
    `widths`. Summed in float32, returned in the snapshots' types."""
    total = None
    for weight, snapshot in zip(coefficients(steps, widths, step, width), snapshots, strict=True):
        part = jax.tree.map(lambda x, weight=weight: jnp.float32(weight) * x, snapshot)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return jax.tree.map(lambda a, x: a.astype(x.dtype), total, snapshot)
