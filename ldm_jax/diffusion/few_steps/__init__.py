"""Objectives whose networks draw in one to four steps, on the protocol of `objectives`.

    name                        the network learns                               needs               sampler
    mean_flow                   the average velocity between two times           a second time, jvp  flow_map
    shortcut                    the same, from its own shorter steps             a second time       flow_map
    consistency                 where trajectories end, in discrete time                             consistency
    consistency_distillation    the same, of a frozen model                      a teacher           consistency
    scm                         where trajectories end, in continuous time       jvp                 consistency
    scm_distillation            the same, of a frozen model                      a teacher, jvp      consistency
    latent_consistency          where they end, at any guidance scale            a teacher           consistency
    progressive                 one step for two of a frozen model               a teacher           ddim
    reflow                      the straight way to a frozen model's pictures    a teacher           euler

    objective = OBJECTIVES["mean_flow"].make(schedule, "flow", share=0.25)
    loss, metrics = objective(Problem(network, params), x0, key, rows, batch_size)
"""

from collections.abc import Callable
from dataclasses import dataclass

from ldm_jax.diffusion.denoiser import consistency_boundary
from ldm_jax.diffusion.few_steps.continuous import scm, scm_distillation
from ldm_jax.diffusion.few_steps.discrete import consistency, consistency_distillation
from ldm_jax.diffusion.few_steps.distillation import progressive, reflow
from ldm_jax.diffusion.few_steps.latent_consistency import latent_consistency
from ldm_jax.diffusion.few_steps.mean_flow import mean_flow
from ldm_jax.diffusion.few_steps.shortcut import shortcut
from ldm_jax.diffusion.level import Denoiser
from ldm_jax.diffusion.objectives import Objective


@dataclass(frozen=True)
class Kind:
    """An objective, and what it needs.

    Attributes:
      make: (schedule, prediction, **options) -> Objective.
      sampler: the name of the one that its networks are drawn with.
      learns: in a few words, for users.
      second_time: whether the network is told how far it steps.
      forward_mode: whether it takes a derivative of the network by `jax.jvp`, which flash attention does not have.
      teacher: whether it learns from a frozen model, `Problem.teacher`.
      tells_guidance: whether a network that takes a guidance scale is told one.
      wrap: what its denoisers are wrapped in, in training and drawing.
    """

    make: Callable[..., Objective]
    sampler: str
    learns: str
    second_time: bool = False
    forward_mode: bool = False
    teacher: bool = False
    tells_guidance: bool = False
    wrap: Callable[[Denoiser], Denoiser] | None = None


OBJECTIVES: dict[str, Kind] = {
    "mean_flow": Kind(mean_flow, "flow_map", "average velocities", second_time=True, forward_mode=True),
    "shortcut": Kind(shortcut, "flow_map", "steps of any size", second_time=True),
    "consistency": Kind(consistency, "consistency", "where trajectories end"),
    "consistency_distillation": Kind(
        consistency_distillation, "consistency", "where a trained model's trajectories end", teacher=True
    ),
    "scm": Kind(scm, "consistency", "where trajectories end", forward_mode=True),
    "scm_distillation": Kind(
        scm_distillation, "consistency", "where a trained model's trajectories end", forward_mode=True, teacher=True
    ),
    "latent_consistency": Kind(
        latent_consistency,
        "consistency",
        "where a trained model's trajectories end, at any guidance scale",
        teacher=True,
        tells_guidance=True,
        wrap=consistency_boundary,
    ),
    "progressive": Kind(progressive, "ddim", "one step for two of a trained model", teacher=True),
    "reflow": Kind(reflow, "euler", "straight ways to a trained model's pictures", teacher=True),
}

__all__ = [
    "OBJECTIVES", "Kind", "consistency", "consistency_distillation", "latent_consistency", "mean_flow", "progressive", "reflow",
    "scm", "scm_distillation", "shortcut",
]  # fmt: skip
