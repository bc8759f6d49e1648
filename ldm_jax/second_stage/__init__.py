"""What the diffusion model learns from, as functions of callables: `loss` joins first stage, condition and objective."""

from ldm_jax.second_stage.loss import PRIOR, TEACHER, adapted, drop_condition, make_loss, recording, scalars, with_prior

__all__ = ["PRIOR", "TEACHER", "adapted", "drop_condition", "make_loss", "recording", "scalars", "with_prior"]
