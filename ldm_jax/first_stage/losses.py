"""The autoencoder's losses, as functions of callables: the paper's equation 25, with the reference's weights and reductions.

    x -> h = decoder without its last convolution -> xr = last(h)                                     one forward pass

    L = nll(x, xr) + penalty + disc_factor d_weight max-player(xr)
    nll = rec / exp(log_variance) + log_variance,     rec = |x - xr| + perceptual_weight LPIPS(x, xr)
    of waveforms                                      rec = |x - xr| + stft_weight d(x, xr), see `spectral`
    d_weight = disc_weight |d nll / d W| / |d max-player / d W|,     W the kernel of the decoder's last convolution

The cotangents of all terms meet at xr: their gradients at W give the adaptive weight (Esser et al. 2021, equation 7), their
sum goes back through the decoder once. The discriminator learns from the same xr. `penalty` is KL(q(z|x) || N(0, I)) or the
codebook's loss, with whatever else shapes the latents (`first_stage.shaping`).

Reductions differ between the families and matter: "sum" adds over the pixels of an image (the KL models: LPIPS counts once
for every number of the image), "mean" averages (the VQ models).

Sources: CompVis/latent-diffusion `ldm/modules/losses/contperceptual.py`; CompVis/taming-transformers
`taming/modules/losses/vqperceptual.py`, `taming/modules/vqvae/quantize.py`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.first_stage.spectral import spectral_distance
from ldm_jax.training.state import Gradient, Step

PyTree = Any
Metrics = dict[str, jax.Array]


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], [B, ..., C] -> [B]; at most 106.02, which equal ones have.
    ValueError for shapes that differ, or whole numbers, such as pixels of 8 bits."""
    if x.shape != y.shape or not all(jnp.issubdtype(image.dtype, jnp.floating) for image in (x, y)):
        both = " and ".join(f"{image.dtype}{list(image.shape)}" for image in (x, y))
        raise ValueError(f"psnr of {both}: expected two of one shape, floating-point numbers in [-1, 1]")
    x, y = (jnp.clip(image.astype(jnp.float32), -1, 1) for image in (x, y))
    return 10 * jnp.log10(4.0 / jnp.maximum(jnp.mean((x - y) ** 2, axis=tuple(range(1, x.ndim))), 1e-10))


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """What counts for how much.

    pixel             "l1" | "l2"
    reduction         "sum" over an image's numbers, or "mean"
    perceptual        of LPIPS, added to the distance of every pixel
    discriminator     0: no adversarial term; `adaptive` makes it relative to the nll's gradient
    start             first step at which generator and discriminator hear of each other
    factor            of both their losses from then on (the reference's disc_factor)
    adversarial       "hinge" | "vanilla", the discriminator's loss
    r1                gradient penalty on real images (Mescheder et al. 2018), r1 / 2 |grad D(x)|^2
    lecam             pull of the logits towards the other side's running mean (Tseng et al. 2021)
    log_variance      of the decoder's output: the likelihood is of noise with this variance around xr. A number: the reference
                      has it as a parameter that none of its optimizers is given
    stft              of `spectral_distance` at `windows`, samples a window, added to the distance of every sample; waveforms
    """

    pixel: str = "l1"
    reduction: str = "sum"
    perceptual: float = 0.0
    discriminator: float = 0.0
    adaptive: bool = True
    start: int = 0
    adversarial: str = "hinge"
    r1: float = 0.0
    lecam: float = 0.0
    factor: float = 1.0
    log_variance: float = 0.0
    stft: float = 0.0
    windows: tuple[int, ...] = (256, 512, 1024)

    def __post_init__(self):
        for name, options in {
            "pixel": ("l1", "l2"),
            "reduction": ("sum", "mean"),
            "adversarial": ("hinge", "vanilla"),
        }.items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be {' or '.join(map(repr, options))}")
        for name in ("perceptual", "discriminator", "start", "r1", "lecam", "factor", "stft"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks as functions of `params`, a dict with the parts that each needs.

    features        (params, x [B, *space, 3], key, Step) -> h, penalty, (metrics, assigned): all of the autoencoder but `last`
    last            (parameters of the last convolution, h) -> xr [B, *space, 3]
    perceptual      (params, x, y) -> distance [B]
    discriminate    (parameters of the discriminator, x) -> logits [B, *patches, 1]
    """

    features: Callable[[PyTree, jax.Array, jax.Array, Step], tuple[jax.Array, jax.Array, tuple[Metrics, PyTree]]]
    last: Callable[[PyTree, jax.Array], jax.Array]
    perceptual: Callable[[PyTree, jax.Array, jax.Array], jax.Array] | None = None
    discriminate: Callable[[PyTree, jax.Array], jax.Array] | None = None


def negative_log_likelihood(
    weights: LossWeights, distance: Callable | None, x: jax.Array, xr: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Pixels and LPIPS: -> the loss, and {"rec", "perceptual"}: mean over all numbers of their sum, mean of LPIPS."""
    rec = jnp.abs(x - xr) if weights.pixel == "l1" else jnp.square(x - xr)
    metrics = {}
    if weights.perceptual:
        p = distance(x, xr)
        rec = rec + weights.perceptual * p.reshape(-1, *[1] * (x.ndim - 1))
        metrics["perceptual"] = p.mean()
    if weights.stft:
        d = spectral_distance(x, xr, weights.windows)
        rec = rec + weights.stft * d.reshape(-1, *[1] * (x.ndim - 1))
        metrics["stft"] = d.mean()
    per_number = rec / math.exp(weights.log_variance) + weights.log_variance
    nll = per_number.sum() / len(x) if weights.reduction == "sum" else per_number.mean()
    return nll, {"nll": nll, "rec": rec.mean(), **metrics}


def discriminator_loss(kind: str, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Hinge (Lim & Ye 2017) or vanilla (Goodfellow et al. 2014) loss of logits of real and of made images."""
    f = jax.nn.relu if kind == "hinge" else jax.nn.softplus
    margin = 1.0 if kind == "hinge" else 0.0
    return 0.5 * (f(margin - real).mean() + f(margin + fake).mean())


def make_gradients(networks: Networks, weights: LossWeights, alternate: bool = False) -> list[Callable]:
    """For `training.state.make_train_step`: functions (params, batch, key, Step) -> Gradient.

    One function, which looks at a batch once. With `alternate` two, which take turns as in the reference: the discriminator
    then sees reconstructions of the autoencoder as it has become. `params` has the parts "autoencoder", "discriminator" if
    there is one, and what else `networks` needs; gradients are of the first two and of "alignment".
    `batch` holds "image" [B, *space, 3] in [-1, 1].
    """
    adversarial = weights.discriminator > 0

    def active(step: Step) -> jax.Array:
        return jnp.where(step.number >= weights.start, weights.factor, 0.0)

    def generator(params: PyTree, batch: PyTree, key: jax.Array, step: Step) -> tuple:
        x = batch["image"]
        trained = {name: params[name] for name in ("autoencoder", "alignment") if name in params}
        (h, penalty), pull_back, (metrics, assigned) = jax.vjp(
            lambda p: _with_aux(networks.features({**params, **p}, x, key, step)), trained, has_aux=True
        )
        xr, pull_last = jax.vjp(networks.last, params["autoencoder"]["decoder"]["conv_out"], h)

        def likelihood(xr):
            return negative_log_likelihood(weights, lambda x, y: networks.perceptual(params, x, y), x, xr)

        (nll, parts), cotangent = jax.value_and_grad(likelihood, has_aux=True)(xr)
        loss, metrics = nll + penalty, {**parts, **metrics, "psnr": psnr(x, xr).mean()}
        if adversarial:
            fooled = jax.value_and_grad(lambda xr: -networks.discriminate(params["discriminator"], xr).mean())
            g_loss, d_cotangent = fooled(xr)
            d_weight = jnp.float32(weights.discriminator)
            if weights.adaptive:
                of_nll, of_g = (jnp.linalg.norm(pull_last(c)[0]["kernel"]) for c in (cotangent, d_cotangent))
                d_weight = d_weight * jnp.clip(of_nll / (of_g + 1e-4), 0.0, 1e4)
            factor = active(step)
            loss = loss + d_weight * factor * g_loss
            cotangent = cotangent + d_weight * factor * d_cotangent
            metrics |= {"g_loss": g_loss, "d_weight": d_weight, "disc_factor": factor}
        of_last, of_h = pull_last(cotangent)
        (grads,) = pull_back((of_h, jnp.ones_like(penalty)))
        grads["autoencoder"] = {**grads["autoencoder"], "decoder": {**grads["autoencoder"]["decoder"], "conv_out": of_last}}
        return Gradient(loss, metrics, grads, assigned), xr

    def discriminator(params: PyTree, x: jax.Array, xr: jax.Array, step: Step) -> tuple:
        x, xr = jax.lax.stop_gradient((x, xr))
        factor = active(step)

        def loss_of(disc):
            real, fake = networks.discriminate(disc, x), networks.discriminate(disc, xr)
            loss = factor * discriminator_loss(weights.adversarial, real, fake)
            metrics = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
            if weights.r1:
                own = tuple(range(1, x.ndim))  # a picture's axes
                slope = jax.grad(lambda x: networks.discriminate(disc, x).mean(own).sum())(x)
                metrics["r1"] = jnp.square(slope).sum(own).mean()
                loss = loss + factor * weights.r1 / 2 * metrics["r1"]
            if weights.lecam:
                anchor = params["lecam"]
                apart = jnp.square(jax.nn.relu(real - anchor["fake"])), jnp.square(jax.nn.relu(anchor["real"] - fake))
                metrics["lecam"] = apart[0].mean() + apart[1].mean()
                loss = loss + factor * weights.lecam * metrics["lecam"]
            return loss, metrics

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params["discriminator"])
        assigned = {}
        if weights.lecam:
            sides = {"real": metrics["logits_real"], "fake": metrics["logits_fake"]}
            assigned = {"lecam": {name: 0.99 * params["lecam"][name] + 0.01 * mean for name, mean in sides.items()}}
        return Gradient(loss, metrics, {"discriminator": grads}, assigned)

    def joint(params, batch, key, step):
        (loss, metrics, grads, assigned), xr = generator(params, batch, key, step)
        if adversarial:
            _, d_metrics, d_grads, d_assigned = discriminator(params, batch["image"], xr, step)
            metrics, grads, assigned = metrics | d_metrics, grads | d_grads, assigned | d_assigned
        return Gradient(loss, metrics, grads, assigned)

    def reconstructed(params, batch, key, step):
        h, _, _ = networks.features(params, batch["image"], key, step)
        xr = networks.last(params["autoencoder"]["decoder"]["conv_out"], h)
        return discriminator(params, batch["image"], xr, step)

    if not (alternate and adversarial):
        return [joint]
    return [lambda *arguments: generator(*arguments)[0], reconstructed]


def _with_aux(found: tuple) -> tuple:
    h, penalty, aux = found
    return (h, penalty), aux
