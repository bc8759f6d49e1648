"""Samplers by family; every one is a `Sampler(init, step)` that `sample` runs.

    family (module)      samplers                                                          evaluations per step
    first_order          ddim ddpm euler euler_ancestral consistency tcd                   1
    multistep            lms plms pndm ipndm deis dpm_multistep dpmpp_2m dpmpp_3m          1 (plms 1 more, pndm 9 more)
                         dpmpp_2m_sde dpmpp_3m_sde
    exponential          dpm_solver unipc                                                  1
    few_steps            flow_map, of networks that are told how far they step                 1
    singlestep           heun dpm2 dpm2_ancestral dpmpp_2s dpmpp_2s_ancestral edm          2 (1 for a step to clean)
    wrappers             churned restart                                                   those of what they wrap
    adaptive             sample_adaptive, a driver of its own                              2 per attempt
"""

import inspect
from collections.abc import Callable
from typing import Any

from ldm_jax.diffusion.samplers.exponential import dpm_solver, unipc
from ldm_jax.diffusion.samplers.few_steps import flow_map
from ldm_jax.diffusion.samplers.first_order import consistency, ddim, ddpm, euler, euler_ancestral, tcd
from ldm_jax.diffusion.samplers.multistep import (
    deis,
    dpm_multistep,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    ipndm,
    lms,
    plms,
    pndm,
)
from ldm_jax.diffusion.samplers.protocol import Sampler, State
from ldm_jax.diffusion.samplers.singlestep import (
    churned,
    dpm2,
    dpm2_ancestral,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    edm,
    heun,
    heun_prediction,
    restart,
    sample_adaptive,
)
from ldm_jax.diffusion.schedules import Schedule, make_schedule
from ldm_jax.primitives.choices import check_choice, choose

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    factory.__name__: factory
    for factory in (
        consistency, ddim, ddpm, deis, dpm2, dpm2_ancestral, dpm_multistep, dpm_solver, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s,
        dpmpp_2s_ancestral, dpmpp_3m, dpmpp_3m_sde, edm, euler, euler_ancestral, flow_map, heun, ipndm, lms, plms, pndm, tcd,
        unipc,
    )
}


def make_sampler(name: str | Sampler, schedule: str | Schedule | None = None, **options: Any) -> Sampler:
    """The sampler called `name` in `SAMPLERS`, with what it needs of the schedule: seven samplers evaluate between the levels
    of the grid, and `heun` integrates flow instead of eps where the schedule starts at pure noise, which eps can't leave.
    A sampler that is made already stays as it is.

    Raises:
      ValueError: an unknown name or option, or no schedule for a sampler that can't do without.
    """
    if isinstance(name, Sampler) and not options:
        return name
    if not isinstance(name, str):
        raise ValueError(f"sampler={name!r}: give a name, with options, or a Sampler, which has its own")
    schedule = None if schedule is None else make_schedule(schedule)
    factory = choose(SAMPLERS, name, "sampler")
    known = inspect.signature(factory).parameters
    for option in options:
        check_choice(option, [parameter for parameter in known if parameter != "schedule"], f"option of sampler {name!r}")
    if name == "heun" and schedule is not None:
        options = {"prediction": heun_prediction(schedule)} | options
    if "schedule" not in known:
        return factory(**options)
    if schedule is None:
        raise ValueError(f"sampler {name!r} evaluates between the levels of the grid and needs the schedule: pass schedule=...")
    return factory(schedule, **options)


__all__ = [
    "SAMPLERS", "Sampler", "State", "churned", "consistency", "ddim", "ddpm", "deis", "dpm2", "dpm2_ancestral",
    "dpm_multistep", "dpm_solver", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_ancestral", "dpmpp_3m", "dpmpp_3m_sde",
    "edm", "euler", "euler_ancestral", "flow_map", "heun", "ipndm", "lms", "make_sampler", "plms", "pndm", "restart",
    "sample_adaptive", "tcd", "unipc",
]
