"""The measures on inputs whose value is known without any reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import evaluation
from ldm_jax.evaluation import manifold

RNG = np.random.default_rng(0)


def samples_with(mean, covariance, count):
    """`count` vectors whose sample moments are exactly these."""
    x = RNG.normal(size=(count, len(mean)))
    x = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(count - 1)
    return mean + (x - x.mean(0)) @ np.linalg.cholesky(covariance).T


def test_frechet_distance_of_commuting_gaussians():
    """For diagonal covariances the distance is |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    mean_a, mean_b = np.zeros(5), np.arange(5.0)
    s_a, s_b = np.float64([1, 2, 3, 0.5, 0.1]), np.float64([2, 2, 1, 0.5, 3])
    turn = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    a, b = (samples_with(m, turn * s**2 @ turn.T, 40) for m, s in ((mean_a, s_a), (mean_b, s_b)))
    expected = 30 + np.square(s_a - s_b).sum()
    np.testing.assert_allclose(evaluation.frechet_distance(a, b), expected, rtol=1e-10)
    found = evaluation.frechet_from_moments(evaluation.moments(a), evaluation.moments(b))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_frechet_distance_is_exact_with_fewer_samples_than_features():
    """Two pairs of points: covariances of rank one, d^2 = |m|^2 + |u|^2 + |v|^2 - 2 |u.v| with u, v their roots."""
    u, v = RNG.normal(size=(2, 50))
    a, b = np.stack([u, -u]) / np.sqrt(2), np.stack([v, -v]) / np.sqrt(2) + 1
    expected = 50 + u @ u + v @ v - 2 * abs(u @ v)
    np.testing.assert_allclose(evaluation.frechet_distance(a, b), expected, rtol=1e-12)
    found = evaluation.frechet_from_moments(evaluation.moments(a), evaluation.moments(b))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_moments_do_not_depend_on_batches():
    x = 1e3 + RNG.normal(size=(100, 6))
    batches = np.split(x, [10, 13, 70])
    streamed, whole = evaluation.moments_of(lambda batch: 2 * batch, batches), evaluation.moments(2 * x)
    assert streamed.count == 100
    np.testing.assert_allclose(streamed.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(streamed.covariance, np.cov(2 * x.T), atol=1e-9)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(3), np.full((4, 3), np.nan)])
def test_features_that_have_no_moments(features):
    with pytest.raises(ValueError, match="features|feature vectors"):
        evaluation.frechet_distance(features, np.zeros((4, 3)))


def test_features_of_different_length_are_refused():
    with pytest.raises(ValueError, match="3 and of 4"):
        evaluation.frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))


def test_inception_score_between_its_bounds():
    """Certain and evenly spread: the number of classes. All alike: 1."""
    certain = 1e3 * np.eye(7)[np.arange(70) % 7]
    np.testing.assert_allclose(evaluation.inception_score(certain, 5), (7, 0), atol=1e-9)
    np.testing.assert_allclose(evaluation.inception_score(np.ones((70, 7)), 5), (1, 0), atol=1e-9)
    with pytest.raises(ValueError, match="splits"):
        evaluation.inception_score(certain, 71)


def test_kernel_distance_has_no_bias():
    """Over halves of one set it averages to zero, while the Frechet distance stays above; of shifted sets it is k's mean."""
    x = RNG.normal(size=(400, 2, 20, 3))
    found = [evaluation.kernel_distance(a, b) for a, b in x]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert np.mean([evaluation.frechet_distance(a, b) for a, b in x[:50]]) > 0.3
    # constant sets: k(a, a) + k(b, b) - 2 k(a, b) with a.a = 0, b.b / D = 4
    np.testing.assert_allclose(evaluation.kernel_distance(np.zeros((3, 5)), np.full((4, 5), 2.0)), 1 + 5**3 - 2)


def test_kernel_distance_of_subsets():
    a, b = RNG.normal(size=(2, 60, 4))
    whole, deviation = evaluation.kernel_distance_of_subsets(a, b, subsets=3, size=60)
    np.testing.assert_allclose((whole, deviation), (evaluation.kernel_distance(a, b), 0), atol=1e-12)
    first, again = (evaluation.kernel_distance_of_subsets(a, b, 5, 30, seed=1) for _ in range(2))
    assert first == again and first[1] > 0
    with pytest.raises(ValueError, match="subsets of 61"):
        evaluation.kernel_distance_of_subsets(a, b, size=61)


@pytest.mark.parametrize("sizes, most", [((200, 200), 1000), ((200, 400), 1000), ((400, 400), 20)])
def test_the_error_of_a_kernel_distance_is_what_other_pictures_would_change(sizes, most):
    found, told = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drawn, real = rng.normal(size=(sizes[0], 4)) + 0.4, rng.normal(size=(sizes[1], 4))
        found.append(evaluation.kernel_distance(drawn, real))
        told.append(evaluation.kernel_distance_error(drawn, real, most=most))
    assert 0.7 < np.sqrt(np.mean(np.square(told))) / np.std(found) < 1.6
    with pytest.raises(ValueError, match="10 blocks out of 19 and 200"):
        evaluation.kernel_distance_error(drawn[:19], real[:200])


def test_overlap_on_a_line(monkeypatch):
    """Real points 0, 1, 2, 3 and k = 1: balls of radius 1. Drawn points 0.5 and 1.5 lie in two each, 10 in none."""
    monkeypatch.setattr(manifold, "CHUNK", 2)
    real, drawn = np.float64([[0], [1], [2], [3]]), np.float64([[0.5], [1.5], [10]])
    found = evaluation.precision_recall(real, drawn, k=1)
    # drawn balls: [-0.5, 1.5], [0.5, 2.5], [1.5, 18.5]
    assert found == evaluation.Overlap(precision=2 / 3, recall=1.0, density=4 / 3, coverage=3 / 4)
    with pytest.raises(ValueError, match="k=3"):
        evaluation.precision_recall(real, drawn, k=3)


def test_confusion_and_iou():
    truth, found = np.array([[0, 0, 1], [1, 2, 255]]), np.array([[0, 1, 1], [1, 0, 0]])
    confusion = evaluation.confusion_matrix(truth, found, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert evaluation.mean_iou(confusion) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)  # class 3 is nowhere
    assert evaluation.pixel_accuracy(confusion) == pytest.approx(3 / 5)
    with pytest.raises(ValueError, match="there are 1"):
        evaluation.confusion_matrix([0, 0], [0, 1], 1)
    with pytest.raises(ValueError, match="no pixel"):
        evaluation.mean_iou(np.zeros((3, 3), int))


def test_spectrum_of_noise_and_of_a_wave():
    noise = jax.random.normal(jax.random.key(0), (16, 64, 32, 3)) * 3
    frequencies, power = evaluation.power_spectrum(noise)
    np.testing.assert_allclose(frequencies, np.arange(17) / 32)
    np.testing.assert_allclose(power[1:], 9, rtol=0.1)
    wave = jnp.sqrt(2.0) * jnp.cos(2 * jnp.pi * 0.25 * jnp.arange(32))[None, None, :, None]
    _, power = evaluation.power_spectrum(jnp.broadcast_to(wave, (1, 32, 32, 1)))
    assert int(power.argmax()) == 8
    np.testing.assert_allclose(power.sum() - power[8], 0, atol=1e-3)


@pytest.mark.parametrize("sides", [(64,), (16, 24, 16)])
def test_spectrum_of_signals_and_volumes(sides):
    noise = jax.random.normal(jax.random.key(0), (16384 // max(sides), *sides, 2)) * 3
    frequencies, power = evaluation.power_spectrum(noise)
    np.testing.assert_allclose(frequencies, np.arange(min(sides) // 2 + 1) / min(sides))
    np.testing.assert_allclose(power[1:], 9, rtol=0.2)
    wave = jnp.cos(2 * jnp.pi * 0.25 * jnp.arange(sides[-1]))[:, None]
    _, power = evaluation.power_spectrum(jnp.broadcast_to(wave, (1, *sides, 1)))
    assert int(power.argmax()) == min(sides) // 4
    with pytest.raises(ValueError, match="spatial"):
        evaluation.power_spectrum(jnp.zeros((2, 3)))


@jax.jit
def similarity(x, y):
    return evaluation.ssim(x, y)


def test_ssim_of_constant_pictures_is_the_luminance_term():
    a, b = 0.2, 0.7
    x, y = (jnp.full((1, 16, 12, 3), 2 * value - 1) for value in (a, b))
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    np.testing.assert_allclose(similarity(x, y), expected, rtol=2e-4)  # variances round at 1e-8
    np.testing.assert_allclose(similarity(x, x), 1, rtol=1e-6)


def test_ssim_against_the_definition():
    """Every window written out in float64."""
    x, y = RNG.uniform(-1, 1, (2, 2, 13, 14, 3))
    y = 0.5 * x + 0.5 * y
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    w = (np.outer(g, g) / np.outer(g, g).sum())[:, :, None]
    expected = np.zeros(2)
    for b in range(2):
        values = []
        for i in range(3):
            for j in range(4):
                p, q = ((z[b, i : i + 11, j : j + 11] + 1) / 2 for z in (x, y))
                mp, mq = (w * p).sum((0, 1)), (w * q).sum((0, 1))
                dp, dq = p - mp, q - mq
                vp, vq, c = ((w * d).sum((0, 1)) for d in (dp * dp, dq * dq, dp * dq))
                values.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        expected[b] = np.mean(values)
    np.testing.assert_allclose(similarity(x.astype(np.float32), y.astype(np.float32)), expected, rtol=1e-4)
    assert np.all(np.abs(expected) < 0.95)


def test_ssim_of_signals_and_volumes():
    """Arrays that are constant along an axis are as similar as those without it."""
    x, y = jnp.asarray(RNG.uniform(-1, 1, (2, 3, 20, 2)), jnp.float32)
    of_signals = similarity(x, y)
    for sides in ((12, 20), (11, 12, 20)):
        lifted = [jnp.broadcast_to(a.reshape(3, *(1,) * (len(sides) - 1), 20, 2), (3, *sides, 2)) for a in (x, y)]
        np.testing.assert_allclose(similarity(*lifted), of_signals, rtol=2e-4, atol=1e-5)


def test_ssim_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="at least 11"):
        evaluation.ssim(jnp.zeros((1, 10, 20, 3)), jnp.zeros((1, 10, 20, 3)))
    with pytest.raises(ValueError, match="16"):
        evaluation.ssim(jnp.zeros((1, 16, 16, 3)), jnp.zeros((2, 16, 16, 3)))
