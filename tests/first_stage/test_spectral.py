"""The distance of spectra, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.first_stage.losses import LossWeights, negative_log_likelihood
from ldm_jax.first_stage.spectral import magnitudes, spectral_distance

T = 1024
AT = np.arange(T)


def sine(cycles, amplitude=0.5, phase=0.3):
    """[1, T, 1] with so many cycles in 64 samples."""
    return jnp.float32(amplitude * np.sin(2 * np.pi * cycles * AT / 64 + phase))[None, :, None]


def test_a_sine_has_its_amplitude_at_its_bin():
    found = magnitudes(sine(8), 256)
    assert found.shape == (1, 1, 17, 129)
    np.testing.assert_allclose(found[0, 0, 8, 31:34], [0.25, 0.5, 0.25], rtol=1e-3)  # Hann's main lobe


def test_phases_do_not_count_and_levels_count_alike():
    x = sine(8)
    assert float(spectral_distance(x, x, (64, 256))[0]) < 1e-5
    turned = float(spectral_distance(x, sine(8, phase=2.0), (256,))[0])
    other = float(spectral_distance(x, sine(12), (256,))[0])
    assert turned < 0.35 < 2 < other  # the ends, where a sine begins, are not alike
    noise = jnp.float32(np.random.default_rng(0).uniform(-0.5, 0.5, (1, T, 1)))
    halved = float(spectral_distance(noise, noise / 2, (64, 256))[0])
    assert halved == pytest.approx(0.5 + np.log(2), abs=2e-3)  # convergence, and the mean logarithm


def test_each_of_a_batch_and_channels_are_heard_apart():
    x, y = jnp.concatenate([sine(4), sine(9)], 2), jnp.concatenate([sine(9), sine(4)], 2)
    both = spectral_distance(jnp.concatenate([x, x]), jnp.concatenate([x, y]), (128,))
    assert both.shape == (2,) and float(both[0]) < 1e-5 and float(both[1]) > 0.5


def test_silence_has_a_gradient_and_the_loss_takes_the_distance():
    x, silent = sine(8), jnp.zeros((1, T, 1))
    assert np.isfinite(jax.grad(lambda y: spectral_distance(x, y, (64,)).sum())(silent)).all()
    weights = LossWeights(reduction="mean", stft=0.1, windows=(64, 256))
    loss, metrics = negative_log_likelihood(weights, None, x, sine(12))
    plain, _ = negative_log_likelihood(LossWeights(reduction="mean"), None, x, sine(12))
    distance = float(spectral_distance(x, sine(12), (64, 256))[0])
    assert float(metrics["stft"]) == pytest.approx(distance)
    assert float(loss - plain) == pytest.approx(0.1 * distance, rel=1e-4)
