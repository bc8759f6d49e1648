"""What the autoencoder learns, joined: the terms on its latents, discriminator and LPIPS beside it, codes of a VQ model.

    loss = reconstruction + perceptual + adversarial (`losses`) + kl_weight KL + codebook + equivariance + alignment

`params` has the part "autoencoder" and, as wanted, "discriminator", "codebook" (moving averages), "lecam" and "alignment";
constants have the part "perceptual".
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import models
from ldm_jax.first_stage import codebook, latents, shaping
from ldm_jax.first_stage.autoencoding import FirstStage
from ldm_jax.first_stage.losses import LossWeights, Networks
from ldm_jax.primitives.arrays import block_mean
from ldm_jax.training.program import Program
from ldm_jax.training.state import Step

PyTree = Any
NOT_AVERAGED = ("discriminator", "codebook", "lecam", "alignment")
PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv", "quantize")


@dataclasses.dataclass(frozen=True)
class LatentTerms:
    """What counts for how much of the terms on latents.

    kl                 of KL(q(z|x) || N(0, I)), KL models
    codebook           "gradient", or "ema": codes follow moving averages with decay `decay`; VQ models
    codebook_weight    of the codebook's loss; beta, legacy_beta: see `codebook.codebook_loss`
    kmeans             batches whose latents' clusters are the first codes; 0: random codes
    restart            "ema" only: codes met less often a step start again; 0: never
    equivariance       shrunk latents should decode to the shrunk image (`shaping`)
    alignment          of latents with features of the perceptual network (`shaping`)
    noise              the most that the decoder's latents get, in deviations of their channels (`shaping`); KL models
    """

    kl: float = 0.0
    codebook: str = "gradient"
    codebook_weight: float = 1.0
    decay: float = 0.99
    kmeans: int = 0
    restart: float = 0.0
    beta: float = 0.25
    legacy_beta: bool = False
    equivariance: float = 0.0
    alignment: float = 0.0
    noise: float = 0.0

    @property
    def moving(self) -> bool:
        """Whether codes follow moving averages."""
        return self.codebook == "ema"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStageProgram(Program):
    """A `Program` with two functions more.

    prepare(params, batches of images, key, trained=False) -> params, with what is set from data before the first step; of an
    autoencoder that is `trained` already the codes stay as they are;
    distance(params, x, y) -> LPIPS [B], None without.
    """

    prepare: Callable[..., PyTree]
    distance: Callable[[PyTree, jax.Array, jax.Array], jax.Array] | None


@dataclasses.dataclass(frozen=True)
class Parts:
    """The networks that take part: modules, and how many features of the perceptual network latents are aligned with."""

    stage: FirstStage
    perceptual: models.LPIPS
    discriminator: models.Discriminator
    align_width: int

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        """One picture."""
        return jax.ShapeDtypeStruct((1, *self.stage.size, self.stage.module.in_channels), jnp.float32)

    def init(self, weights: LossWeights, terms: LatentTerms) -> Callable[[jax.Array], PyTree]:
        """key -> params, random."""
        module = self.stage.module

        def init(key: jax.Array) -> PyTree:
            keys = jax.random.split(key, 3)
            params = {"autoencoder": self.stage.init(keys[0])}
            if weights.discriminator:
                params["discriminator"] = models.initialize(self.discriminator, keys[1], self.image)
            if weights.lecam:
                params["lecam"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
            if terms.moving:
                params["codebook"] = codebook.averages(params["autoencoder"]["quantize"]["embedding"]["embedding"])
            if terms.alignment:
                scale = module.embed_dim**-0.5
                params["alignment"] = {"projection": scale * jax.random.normal(keys[2], (module.embed_dim, self.align_width))}
            return params

        return init

    def constants(self, weights: LossWeights, terms: LatentTerms) -> PyTree:
        """Shapes of what is not trained."""
        if not weights.perceptual and not terms.alignment:
            return {}
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        return {"perceptual": models.shapes(self.perceptual, image, image)}

    def distance(self, params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        """LPIPS [B] of pictures [B, H, W, 3]; of films [B, T, H, W, 3] the mean over their frames."""
        if x.ndim > 4:
            frames = (each.reshape(-1, *each.shape[-3:]) for each in (x, y))
            return self.distance(params, *frames).reshape(len(x), -1).mean(1)
        return self.perceptual.apply({"params": params["perceptual"]}, x, y)

    def networks(self, weights: LossWeights, terms: LatentTerms) -> Networks:
        """The networks as `losses.make_gradients` takes them."""
        module = self.stage.module
        return Networks(
            make_features(module, terms, self.perceptual, weights.reduction == "sum"),
            lambda params, h: models.last_layer(params, h, module.dtype),
            self.distance,
            lambda params, x: self.discriminator.apply({"params": params}, x),
        )

    def prepare(self, weights: LossWeights, terms: LatentTerms) -> Callable:
        """`FirstStageProgram.prepare`: codes from clusters of latents, or averages that start at trained codes, and the
        discriminator's norms."""
        module = self.stage.module

        def prepare(params: PyTree, batches: Iterable[jax.Array], key: jax.Array, trained: bool = False) -> PyTree:
            batches = iter(batches)
            if trained and terms.moving:
                own = {"params": params["autoencoder"]}
                codes = module.apply(own, jnp.arange(module.n_embed), method="lookup")
                params = {**params, "codebook": codebook.averages(codes)}
            elif terms.kmeans and not trained:
                encode = jax.jit(lambda params, x: module.apply(
                    {"params": params}, module.apply({"params": params}, x, method="encode"), method="project"
                ))  # fmt: skip
                found = (encode(params["autoencoder"], next(batches)) for _ in range(terms.kmeans))
                z = [multihost_utils.process_allgather(z, tiled=True).reshape(-1, module.embed_dim) for z in found]
                codes = codebook.k_means(np.concatenate(z), module.n_embed, key)
                quantize = {"embedding": {"embedding": codes}}
                params = {**params, "autoencoder": {**params["autoencoder"], "quantize": quantize}}
                if terms.moving:
                    params["codebook"] = codebook.averages(codes)
            if weights.discriminator and self.discriminator.use_actnorm:
                calibrated = models.calibrate(self.discriminator, params["discriminator"], next(batches))
                params = {**params, "discriminator": calibrated}
            return params

        return prepare


def make_features(module: models.Autoencoder, terms: LatentTerms, perceptual: models.LPIPS, summed: bool) -> Callable:
    """`features` of `losses.Networks`. `summed`: losses add over an image's numbers; then the shaping terms, which are means,
    count as every number does."""

    def features(params: PyTree, x: jax.Array, key: jax.Array, step: Step) -> tuple[jax.Array, jax.Array, tuple[dict, PyTree]]:
        z_key, other_key, *dropout_keys = jax.random.split(key, 4)
        own = params["autoencoder"]

        def apply(method: str, *arguments, i: int = 0, **options):
            rngs = {"dropout": jax.random.fold_in(dropout_keys[i], step.rows[0])}
            return module.apply({"params": own}, *arguments, **options, method=method, rngs=rngs)

        encoded, assigned = apply("encode", x, train=True), {}
        if module.quantizes:
            z = apply("project", encoded)
            codes, indices = apply("quantize", encoded)
            metrics = codebook.usage(codebook.counts(indices, module.codes))
            if terms.moving:
                penalty = terms.beta * jnp.square(z - jax.lax.stop_gradient(codes)).mean()
                seen = jax.lax.stop_gradient(z)
                parts = step.batch_size / len(x)  # the mean over them is to be what the whole batch gives
                average = codebook.move(params["codebook"], seen, indices, terms.decay, parts)
                book = codebook.centres(average)
                if terms.restart:
                    book, average, dead = codebook.revive(book, average, seen, terms.restart, other_key)
                    metrics["codes_revived"] = dead
                assigned = {"codebook": average, "autoencoder": {"quantize": {"embedding": {"embedding": book}}}}
            else:
                penalty = codebook.codebook_loss(z, codes, terms.beta, terms.legacy_beta) if module.n_embed else 0.0
            metrics["codebook_loss"] = jnp.asarray(penalty, jnp.float32)
            penalty = terms.codebook_weight * metrics["codebook_loss"]
            z = codebook.straight_through(z, codes)
        else:
            kl = latents.kl_divergence(encoded).mean()
            metrics, penalty = {"kl": kl}, terms.kl * kl
            z = latents.sample_posterior(encoded, z_key, step.rows)
        numbers = x[0].size if summed else 1
        if terms.equivariance:
            shrunk = [min(factor, 2) for factor in module.factors]
            h = apply("decode", block_mean(z, shrunk), train=True, quantize=False, features=True, i=1)
            small = models.last_layer(own["decoder"]["conv_out"], h, module.dtype)
            metrics["equivariance"] = jnp.abs(small - block_mean(x, shrunk)).mean()
            penalty = penalty + terms.equivariance * numbers * metrics["equivariance"]
        if terms.alignment:
            known = perceptual.apply({"params": params["perceptual"]}, x, method="features")[3]
            metrics["alignment"] = shaping.alignment(z, known, params["alignment"]["projection"])
            penalty = penalty + terms.alignment * numbers * metrics["alignment"]
        if terms.noise:
            z = shaping.noised(z, other_key, step.rows, terms.noise)
        return apply("decode", z, train=True, quantize=False, features=True, i=1), penalty, (metrics, assigned)

    return features
