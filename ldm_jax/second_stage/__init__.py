"""What the diffusion model learns from, as functions of callables: `loss` joins first stage, condition and objective."""

from ldm_jax.second_stage.loss import TEACHER, adapted, drop_condition, make_loss, recording, scalars

__all__ = ["TEACHER", "adapted", "drop_condition", "make_loss", "recording", "scalars"]
