"""From a ConfigDict to the parts of an experiment. The one reader of configs, and the one place where the rooms meet.

Every `make_*` takes the config (or a plain dict of the same fields, such as a checkpoint's description) and returns one part:
a Linen module, a schedule, a training step. Nothing here computes, allocates parameters or touches data.
"""

from ldm_jax.build.adaptation import (
    adapts,
    control_fields,
    field_of,
    make_adaptation,
    make_lora,
    make_word,
    without_word,
)
from ldm_jax.build.autoencoder import first_stage_dtype, make_first_stage, make_first_stage_program, make_perceptual
from ldm_jax.build.check import check, further_fields, make_program, parameter_counts
from ldm_jax.build.condition import is_told, make_condition
from ldm_jax.build.data import (
    make_latent_transform,
    make_medium,
    make_mix,
    make_probe_transform,
    make_source,
    make_transform,
)
from ldm_jax.build.diffusion import (
    PRIOR,
    RESCALED,
    SCHEDULE_OPTIONS,
    TEACHER,
    example_inputs,
    few_steps_kind,
    make_control,
    make_diffusion_init,
    make_diffusion_program,
    make_network,
    make_objective,
    make_recipe,
    make_schedule,
    teacher_shapes,
)
from ldm_jax.build.options import compute_dtype, image_size, with_lists

__all__ = [
    "PRIOR", "RESCALED", "SCHEDULE_OPTIONS", "TEACHER", "adapts", "check", "compute_dtype", "control_fields", "example_inputs",
    "few_steps_kind", "field_of", "first_stage_dtype", "further_fields", "image_size", "is_told", "make_adaptation",
    "make_condition", "make_control", "make_diffusion_init", "make_diffusion_program", "make_first_stage",
    "make_first_stage_program", "make_latent_transform", "make_lora", "make_medium", "make_mix", "make_network",
    "make_objective", "make_perceptual", "make_probe_transform", "make_program", "make_recipe", "make_schedule",
    "make_source", "make_transform", "make_word", "parameter_counts", "teacher_shapes", "with_lists", "without_word",
]  # fmt: skip
