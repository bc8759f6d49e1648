"""Latents and the two losses, by closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import first_stage, second_stage
from ldm_jax.conditioning import Condition
from ldm_jax.first_stage import latents
from ldm_jax.training.state import Step


def moments_of(mean, logvar, shape=(2, 3, 3, 4)):
    return jnp.concatenate([jnp.full(shape, mean), jnp.full(shape, logvar)], -1)


def test_kl_is_that_of_gaussians():
    mean, std = 0.7, 0.3
    per_entry = np.log(1 / std) + (std**2 + mean**2) / 2 - 0.5
    found = latents.kl_divergence(moments_of(mean, 2 * np.log(std)))
    np.testing.assert_allclose(found, [36 * per_entry] * 2, rtol=1e-5)


def test_draws_have_the_moments_and_extremes_are_clamped():
    z = latents.sample_posterior(moments_of(2.0, 2 * np.log(0.5), (4, 64, 64, 4)), jax.random.key(0))
    assert float(z.mean()) == pytest.approx(2.0, abs=0.01) and float(z.std()) == pytest.approx(0.5, abs=0.01)
    _, logvar = latents.split_moments(jnp.asarray([[0.0, 1e4], [0.0, -1e4]]))
    np.testing.assert_array_equal(logvar[:, 0], [20.0, -30.0])


def test_scaling_round_trip():
    z = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    back = latents.unscale_latents(latents.scale_latents(z, 0.18215, 0.1), 0.18215, 0.1)
    np.testing.assert_allclose(back, z, atol=1e-6)


def test_scale_is_over_all_batches_not_the_first():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3 * i, 1 + i, (8, 4, 4, 2)).astype(np.float32) for i in range(4)]
    everything = np.concatenate(batches)
    found = latents.measure(batches)
    assert found.count == 32
    assert found.scale == pytest.approx(1 / everything.std(), rel=1e-6)
    np.testing.assert_allclose(found.std, everything.std((0, 1, 2)), rtol=1e-6)
    assert found.scale != pytest.approx(1 / batches[0].std(), rel=0.1)


@pytest.mark.parametrize("batches, message", [([], "no latents"), ([np.ones((2, 4, 4, 1))], "variance 0"), ([np.full((2, 4, 4, 1), np.nan)], "variance nan")])  # fmt: skip # noqa: E501
def test_latents_that_cannot_be_scaled_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        latents.measure(batches)


def test_psnr_of_a_constant_error():
    x = jnp.zeros((2, 8, 8, 3))
    np.testing.assert_allclose(first_stage.psnr(x, x + 0.2), [20.0] * 2, rtol=1e-5)  # 10 log10(4 / 0.04)


def test_condition_is_dropped_as_often_as_asked():
    tokens = jnp.ones((4000, 5), jnp.int32)
    dropped = second_stage.drop_condition(tokens, np.zeros((1, 5), np.int32), 0.1, jax.random.key(0))
    whole = (dropped == dropped[:, :1]).all()  # a caption is dropped as a whole
    assert whole and float((dropped[:, 0] == 0).mean()) == pytest.approx(0.1, abs=0.015)
    assert second_stage.drop_condition(None, None, 0.1, jax.random.key(0)) is None


class Table(Condition):
    """A number for each class."""

    kind = "table"
    null = np.zeros(1, np.int32)

    def __init__(self):
        pass

    def apply(self, params, inputs):
        return {"context": params[inputs]}


class Gain:
    """A network that knows everything."""

    def apply(self, variables, x, t, cond, train, rngs):
        return variables["params"] * cond["context"]


def test_second_stage_loss_reads_posteriors_scales_and_conditions():
    """The objective sees scaled latents, the condition of the batch, the parameters' average and the step."""
    seen = {}

    def objective(problem, x0, key, rows, batch_size):
        seen.update(x0=x0, rows=rows, batch_size=batch_size, step=problem.step)
        output = problem.network(problem.params, x0, jnp.zeros(2))
        averaged = problem.network(problem.ema, x0, jnp.zeros(2))
        return output.mean(), {"loss": output.mean(), "averaged": averaged.mean(), "each": output}

    loss_fn = second_stage.make_loss(Gain(), first_stage.FirstStage(), Table(), objective, null_probability=0.0)
    loss_fn = second_stage.scalars(loss_fn)
    params = {"network": 2.0, "conditioner": jnp.asarray([0.0, 3.0, 5.0]), "first_stage": {}}
    params["latents"] = {"scale": 0.5, "shift": 1.0}
    step = Step(jnp.int32(7), {"network": 3.0}, jnp.asarray([4, 5]), 6)
    batch = {"moments": moments_of(4.0, -30.0), "inputs": jnp.asarray([1, 2])}
    loss, metrics = loss_fn(params, batch, jax.random.key(0), step)
    np.testing.assert_allclose(seen["x0"], 1.5, atol=1e-5)
    assert float(loss) == pytest.approx(2.0 * 4.0) and float(metrics["averaged"]) == pytest.approx(3.0 * 4.0)
    assert set(metrics) == {"loss", "averaged"}  # scalars only are logged
    assert (int(seen["step"]), seen["rows"].tolist(), seen["batch_size"]) == (7, [4, 5], 6)
    for name in ("latents", "image"):  # of a first stage that is none, pictures are latents
        loss_fn(params, {name: jnp.full((2, 3, 3, 4), 4.0), "inputs": batch["inputs"]}, jax.random.key(0), step)
        np.testing.assert_allclose(seen["x0"], 1.5, atol=1e-6)
    wide = {"moments": moments_of(4.0, 0.0), "inputs": batch["inputs"]}
    loss_fn(params, wide, jax.random.key(0), step)
    assert float(jnp.std(seen["x0"])) == pytest.approx(0.5, rel=0.2)
    means = first_stage.FirstStage(samples=False)  # config.latents.posterior="mode"
    second_stage.make_loss(Gain(), means, Table(), objective, null_probability=0.0)(params, wide, jax.random.key(0), step)
    np.testing.assert_allclose(seen["x0"], 1.5, atol=1e-6)
