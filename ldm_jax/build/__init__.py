"""From a ConfigDict to the parts of an experiment. The one reader of configs, and the one place where the rooms meet.

Every `make_*` takes the config (or a plain dict of the same fields, such as a checkpoint's description) and returns one part:
a Linen module, a schedule, a loss. Nothing here allocates parameters or touches data.
"""

from ldm_jax.build.check import check, parameter_counts
from ldm_jax.build.conditioner import conditioner_inputs, make_conditioner, make_conditioning, superres_scale
from ldm_jax.build.data import make_mix, make_source, make_task, make_transform
from ldm_jax.build.diffusion import (
    example_inputs,
    make_diffusion_init,
    make_diffusion_loss,
    make_network,
    make_objective,
    make_recipe,
    make_schedule,
)
from ldm_jax.build.first_stage import FirstStage, FirstStageTraining, make_first_stage, make_first_stage_training
from ldm_jax.build.options import choose, make_stage_optimizer, with_lists

__all__ = [
    "check", "choose", "conditioner_inputs", "example_inputs", "FirstStage", "FirstStageTraining",
    "make_conditioner", "make_conditioning", "make_diffusion_init", "make_diffusion_loss", "make_first_stage",
    "make_first_stage_training", "make_mix", "make_network", "make_objective", "make_recipe", "make_schedule",
    "make_source", "make_stage_optimizer", "make_task", "make_transform", "parameter_counts", "superres_scale", "with_lists",
]  # fmt: skip
