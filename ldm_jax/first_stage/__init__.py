"""The autoencoder: as functions, and what it learns from.

autoencoding   pictures to raw latents and back
latents        posterior, scale, statistics
losses         reconstruction, perceptual and adversarial terms, and their gradient in one pass
sequences      what it learns of text
codebook       how the codes of a VQ model learn
shaping        terms that make latents easier to diffuse
learning       all of it joined
"""

from ldm_jax.first_stage import codebook, latents, sequences, shaping
from ldm_jax.first_stage.autoencoding import FirstStage, draw, learnt
from ldm_jax.first_stage.learning import NOT_AVERAGED, PARTS, FirstStageProgram, LatentTerms, Parts
from ldm_jax.first_stage.losses import LossWeights, Networks, discriminator_loss, make_gradients, negative_log_likelihood, psnr

__all__ = [
    "NOT_AVERAGED", "PARTS", "FirstStage", "FirstStageProgram", "LatentTerms", "LossWeights", "Networks", "Parts", "codebook",
    "discriminator_loss", "draw", "latents", "learnt", "make_gradients", "negative_log_likelihood", "psnr", "sequences",
    "shaping",
]  # fmt: skip
