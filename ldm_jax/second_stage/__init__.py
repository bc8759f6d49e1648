"""What the diffusion model learns from, as functions of callables: `loss` joins first stage, condition and objective."""

from ldm_jax.second_stage.loss import Objective, drop_condition, make_loss

__all__ = ["Objective", "drop_condition", "make_loss"]
