"""The first stages against CompVis's: encoder, posterior, quantizer, decoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.first_stage import latents
from ldm_jax.models import Autoencoder, nearest_code

from .reference import Case, assert_close, cases, to_params

pytestmark = pytest.mark.parity


def build(args: dict) -> Autoencoder:
    return Autoencoder(**args["ddconfig"], **{key: value for key, value in args.items() if key != "ddconfig"})


class Runner:
    """The autoencoder's methods with some parameters, each compiled once."""

    def __init__(self, net: Autoencoder, params: dict):
        self.params = params
        self.call = jax.jit(partial(net.apply), static_argnames=("method", "quantize"))

    def __call__(self, method: str, *args, **kwargs):
        return self.call({"params": self.params}, *args, method=method, **kwargs)


def test_compvis_autoencoders(fixtures_dir):
    for folder in cases(fixtures_dir, "B*_*"):
        case = Case(folder)
        net = build(case.config["args"])
        run = Runner(net, to_params(case.weights(), net, case["x"]))
        limit, name = case.limit(), folder.name
        if net.n_embed:
            check_vq(case, run, limit, name)
        else:
            check_kl(case, run, limit, name)

        run.params = to_params(case.weights(variant=True), net, case["x"])
        limit = case.limit(variant=True)
        for key in case.io:
            if key in ("eps_variant.moments", "eps_variant.prequant"):
                assert_close(run("encode", case["x"]), case[key], limit, f"{name} {key}")
            if key in ("eps_variant.dec_z", "eps_variant.dec_z_not_quantized"):
                assert_close(run("decode", case["z"], quantize=False), case[key], limit, f"{name} {key}")


def check_kl(case: Case, run: Runner, limit: float, name: str) -> None:
    moments = run("encode", case["x"])
    assert_close(moments, case["moments"], limit, f"{name} moments")
    mean, logvar = latents.split_moments(moments)
    std = jnp.exp(0.5 * logvar)
    ours = {
        "mode": latents.mode(moments),
        "logvar": logvar,
        "std": std,
        "kl": latents.kl_divergence(moments),
        "sample": mean + std * case["noise"],
    }
    for key, value in ours.items():
        assert_close(value, case[key], limit, f"{name} {key}")
    logvar = latents.split_moments(case["extreme_moments"])[1]
    kl = latents.kl_divergence(case["extreme_moments"])
    for key, value in {"logvar": logvar, "std": jnp.exp(0.5 * logvar), "kl": kl}.items():
        assert_close(value, case[f"extreme_{key}"], 1e-5, f"{name} extreme_{key}")
    for source, result in (("mode", "dec_mode"), ("z", "dec_z")):
        assert_close(run("decode", case[source], quantize=False), case[result], limit, f"{name} {result}")


def check_vq(case: Case, run: Runner, limit: float, name: str) -> None:
    z = run("encode", case["x"])
    assert_close(z, case["prequant"], limit, f"{name} prequant")
    entries, indices = run("quantize", z)
    np.testing.assert_array_equal(indices.reshape(-1), case["indices"])
    codebook = run.params["quantize"]["embedding"]["embedding"]
    np.testing.assert_array_equal(nearest_code(case["prequant"], codebook).reshape(-1), case["indices"])
    assert_close(entries, case["entry"], limit, f"{name} entry")
    np.testing.assert_array_equal(run("lookup", indices), entries)
    for source, result in (("prequant", "dec"), ("z", "dec_z")):
        assert_close(run("decode", case[source]), case[result], limit, f"{name} {result}")
    for source, result in (("quant", "dec_quant"), ("prequant", "dec_not_quantized")):
        assert_close(run("decode", case[source], quantize=False), case[result], limit, f"{name} {result}")


def test_vq_gradients_stop_at_the_choice_of_code():
    codebook = jnp.asarray([[0.0, 0.0], [1.0, 1.0]])
    z = jnp.asarray([[[[0.9, 0.8]], [[0.1, -0.2]]]])
    gradient = jax.grad(lambda z: codebook[nearest_code(z, codebook)].sum())(z)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(z))
