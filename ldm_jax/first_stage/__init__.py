"""What the autoencoder learns from, as functions of callables.

    losses      reconstruction, perceptual and adversarial terms, and their gradient in one pass
    codebook    how the codes of a VQ model learn
    shaping     terms that make latents easier to diffuse
"""

from ldm_jax.first_stage import codebook, shaping
from ldm_jax.first_stage.losses import Networks, Weights, discriminator_loss, make_gradients, negative_log_likelihood, psnr

__all__ = [
    "Networks", "Weights", "codebook", "discriminator_loss", "make_gradients", "negative_log_likelihood", "psnr", "shaping",
]  # fmt: skip
