"""Samplers by family; every one is a `Sampler(init, step)` that `sample` runs."""

from collections.abc import Callable

from ..level import lookup
from .first_order import consistency, ddim, ddpm, euler, euler_ancestral
from .multistep import deis, dpm_multistep, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde, ipndm, lms
from .protocol import Sampler, State

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    f.__name__: f
    for f in (
        ddim,
        ddpm,
        euler,
        euler_ancestral,
        consistency,
        dpm_multistep,
        dpmpp_2m,
        dpmpp_3m,
        dpmpp_2m_sde,
        dpmpp_3m_sde,
        lms,
        ipndm,
        deis,
    )
}


def make_sampler(name: str, **options) -> Sampler:
    """The sampler called `name` in `SAMPLERS`."""
    return lookup(SAMPLERS, name, "sampler")(**options)

__all__ = [
    "Callable", "SAMPLERS", "Sampler", "State", "consistency", "ddim", "ddpm", "deis", "dpm_multistep", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "euler", "euler_ancestral", "ipndm", "lms", "make_sampler",
]
