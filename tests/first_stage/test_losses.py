"""The joint step against plain gradients of the losses it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.first_stage import LossWeights, Networks, discriminator_loss, make_gradients, negative_log_likelihood, psnr
from ldm_jax.training.state import Step

X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 4, 4, 3)), jnp.float32)
PARAMS = {
    "autoencoder": {
        "h": jax.random.normal(jax.random.key(1), (3, 4, 4, 5)),
        "decoder": {"conv_out": {"kernel": jax.random.normal(jax.random.key(2), (5, 3)), "bias": jnp.ones(3)}},
    },
    "discriminator": jax.random.normal(jax.random.key(3), (3,)),
    "lecam": {"real": jnp.float32(0.2), "fake": jnp.float32(-0.1)},
}



def at(number):
    """Where the training stands: the whole batch, after so many updates."""
    return Step(jnp.int32(number), {}, jnp.arange(len(X)), len(X))


def penalty(params):
    return 0.1 * jnp.square(params["autoencoder"]["h"]).sum()


def distance(params, x, y):
    return jnp.square(x - y).mean((1, 2, 3))


def judge(params, x):
    return jnp.tanh(x @ params[:, None])


NETWORKS = Networks(
    lambda params, x, key, step: (params["autoencoder"]["h"], penalty(params), ({}, {})),
    lambda params, h: h @ params["kernel"] + params["bias"],
    distance,
    judge,
)


def reconstruction(autoencoder):
    return NETWORKS.last(autoencoder["decoder"]["conv_out"], autoencoder["h"])


WEIGHTED = {"start": 5, "factor": 0.3, "log_variance": -0.7}


@pytest.mark.parametrize("options", [{}, WEIGHTED | {"reduction": "mean", "pixel": "l2", "adversarial": "vanilla"}])
def test_one_pass_gives_the_gradient_of_the_whole_loss(options):
    weights = LossWeights(perceptual=0.7, discriminator=0.5, **options)
    (joint,) = make_gradients(NETWORKS, weights)

    def nll(autoencoder):
        return negative_log_likelihood(weights, lambda x, y: distance(PARAMS, x, y), X, reconstruction(autoencoder))[0]

    def fooling(autoencoder):
        return -judge(PARAMS["discriminator"], reconstruction(autoencoder)).mean()

    slopes = [jax.grad(f)(PARAMS["autoencoder"])["decoder"]["conv_out"]["kernel"] for f in (nll, fooling)]
    d_weight = 0.5 * jnp.linalg.norm(slopes[0]) / (jnp.linalg.norm(slopes[1]) + 1e-4)
    for step in (0, 5):
        factor = weights.factor * (step >= weights.start)

        def whole(autoencoder, factor=factor):
            return nll(autoencoder) + penalty({"autoencoder": autoencoder}) + d_weight * factor * fooling(autoencoder)

        expected, gradient = jax.value_and_grad(whole)(PARAMS["autoencoder"])
        loss, metrics, grads, _ = joint(PARAMS, {"image": X}, jax.random.key(0), at(step))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["d_weight"], d_weight, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), grads["autoencoder"], gradient)

        def judged(discriminator, factor=factor):
            real, fake = judge(discriminator, X), judge(discriminator, reconstruction(PARAMS["autoencoder"]))
            return factor * discriminator_loss(weights.adversarial, real, fake)

        expected = jax.grad(judged)(PARAMS["discriminator"])
        np.testing.assert_allclose(grads["discriminator"], expected, rtol=1e-5, atol=1e-7)


def test_a_fixed_weight_and_no_discriminator():
    (fixed,) = make_gradients(NETWORKS, LossWeights(discriminator=0.3, adaptive=False))
    assert fixed(PARAMS, {"image": X}, jax.random.key(0), at(0))[1]["d_weight"] == jnp.float32(0.3)
    (without,) = make_gradients(NETWORKS, LossWeights(), alternate=True)  # nobody to take turns with
    _, metrics, grads, _ = without(PARAMS, {"image": X}, jax.random.key(0), at(0))
    assert set(grads) == {"autoencoder"} and "g_loss" not in metrics


def test_reductions_differ_by_the_numbers_of_an_image():
    y = reconstruction(PARAMS["autoencoder"])
    total, mean = (
        negative_log_likelihood(LossWeights(reduction=r, perceptual=1.0), lambda x, y: distance(PARAMS, x, y), X, y)[0]
        for r in ("sum", "mean")
    )
    np.testing.assert_allclose(total, mean * X[0].size, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_likelihood_of_a_laplace_distribution(reduction):
    """With the l1 distance and exp(log_variance) as its width b, -log p = |x - xr| / b + log b, but for log 2 a number."""
    weights = LossWeights(reduction=reduction, log_variance=0.4)
    nll, metrics = negative_log_likelihood(weights, None, X, y := reconstruction(PARAMS["autoencoder"]))
    one = -jax.scipy.stats.laplace.logpdf(X, y, np.exp(0.4)) - np.log(2)
    np.testing.assert_allclose(nll, one.sum() / len(X) if reduction == "sum" else one.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["rec"], jnp.abs(X - y).mean(), rtol=1e-6)


def test_the_discriminator_s_losses_at_perfect_and_at_no_judgement():
    sure, zero = jnp.full(4, 50.0), jnp.zeros(4)
    for kind, undecided in (("hinge", 1.0), ("vanilla", np.log(2))):
        np.testing.assert_allclose(discriminator_loss(kind, sure, -sure), 0, atol=1e-6)
        np.testing.assert_allclose(discriminator_loss(kind, zero, zero), undecided, rtol=1e-6)
    np.testing.assert_allclose(discriminator_loss("hinge", jnp.full(4, 9.0), jnp.full(4, -9.0)), 0)


def test_r1_is_the_slope_at_real_images_and_lecam_keeps_running_means():
    (penalised,) = make_gradients(NETWORKS, LossWeights(discriminator=1.0, r1=2.0, lecam=0.5))
    _, metrics, _, assigned = penalised(PARAMS, {"image": X}, jax.random.key(0), at(0))
    w = PARAMS["discriminator"]
    slope = (1 - judge(w, X) ** 2) * w / 16  # of the mean over an image's 16 logits
    np.testing.assert_allclose(metrics["r1"], jnp.square(slope).sum((1, 2, 3)).mean(), rtol=1e-5)
    np.testing.assert_allclose(assigned["lecam"]["real"], 0.99 * 0.2 + 0.01 * judge(w, X).mean(), rtol=1e-5)


def test_psnr_of_a_known_error_and_of_equal_images():
    np.testing.assert_allclose(psnr(jnp.zeros((1, 4, 4, 3)), jnp.full((1, 4, 4, 3), 0.2)), 20, rtol=1e-5)
    np.testing.assert_allclose(psnr(X, X), 10 * np.log10(4e10), rtol=1e-6)  # the bound, instead of infinity
