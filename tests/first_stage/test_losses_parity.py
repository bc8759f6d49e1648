"""The losses, the adaptive weight and all gradients against CompVis's and taming-transformers' loss modules."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ldm_jax import models
from ldm_jax.build.check import check_perceptual
from ldm_jax.experiment.first_stage import load_perceptual
from ldm_jax.first_stage import LossWeights, Networks, latents, make_gradients, negative_log_likelihood
from ldm_jax.training.state import Step
from ldm_jax.weights.features import read_discriminator, read_lpips

pytestmark = pytest.mark.parity
CASES = {"kl": "G1_kl_lpips_disc", "vq": "G2_vq_lpips_disc"}


class Case:
    def __init__(self, folder, kind):
        self.kind, self.folder = kind, folder / CASES[kind]
        if not self.folder.is_dir():
            pytest.skip(f"no case {CASES[kind]} in {folder}")
        self.config = json.loads((self.folder / "config.json").read_text())
        self.io = dict(np.load(self.folder / "io.npz"))
        stored = load_file(self.folder / "weights.safetensors")
        self.args = self.config["args"]
        self.weights = LossWeights(
            pixel=self.args.get("pixel_loss", "l1"),
            reduction="sum" if kind == "kl" else "mean",
            perceptual=self.args.get("perceptual_weight", 1.0),
            discriminator=self.args.get("disc_weight", 1.0),
            start=self.args["disc_start"],
            adversarial=self.args.get("disc_loss", "hinge"),
            factor=self.args.get("disc_factor", 1.0),
            log_variance=float(stored.get("logvar", 0.0)),
        )
        self.running = {
            name.removeprefix("discriminator.").removesuffix(".running_mean").replace(".", "_"): {
                "mean": array, "var": stored[name.replace("running_mean", "running_var")]
            }
            for name, array in stored.items() if name.endswith("running_mean")
        }  # fmt: skip

    def __getitem__(self, name):
        array = self.io[name]
        return jnp.asarray(np.moveaxis(array, 1, -1) if array.ndim == 4 else array)

    def networks(self, statistics):
        args, widths = self.args, tuple(self.config["narrow_vgg_widths"])
        disc = models.Discriminator(self.config["disc_ndf"], args.get("disc_num_layers", 3), args.get("use_actnorm", False))

        def features(params, x, key, step):
            own = params["autoencoder"]
            if self.kind == "vq":
                return own["h"], args.get("codebook_weight", 1.0) * own["codebook_loss"], ({}, {})
            kl = latents.kl_divergence(own["moments"]).mean()
            return own["h"], args.get("kl_weight", 1.0) * kl, ({"kl": kl}, {})

        def last(params, h):
            return jax.lax.conv_general_dilated(
                h, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ) + params["bias"]  # fmt: skip

        return Networks(
            features,
            last,
            lambda params, x, y: models.LPIPS(widths).apply({"params": params["perceptual"]}, x, y),
            lambda params, x: disc.apply({"params": params}, x, statistics),
        )

    def params(self):
        given = {"moments": self["moments"]} if self.kind == "kl" else {"codebook_loss": self["codebook_loss"][0]}
        last = {"kernel": jnp.asarray(self.io["last_layer"].transpose(2, 3, 1, 0)), "bias": self["bias"]}
        arrays = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)),
            {
                "perceptual": read_lpips(self.folder / "weights.safetensors"),
                "discriminator": read_discriminator(self.folder / "weights.safetensors"),
            },
        )
        return {"autoencoder": {"h": self["h"], **given, "decoder": {"conv_out": last}}, **arrays}


def where(number, rows):
    """Where the training stands."""
    return Step(jnp.int32(number), {}, jnp.arange(rows), rows)


def close(ours, theirs, limit, what):
    theirs = jnp.asarray(theirs)
    difference = float(jnp.abs(ours - theirs).max() / jnp.maximum(jnp.abs(theirs).max(), 1e-12))
    print(f"{what}: {difference:.1e}")
    assert difference <= limit, f"{what}: {difference:.1e} > {limit:.0e}"


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", CASES)
def test_every_logged_number_and_every_gradient(fixtures_dir, kind, mode):
    """At steps before and after the discriminator counts."""
    case = Case(fixtures_dir, kind)
    networks, params = case.networks(None if mode == "train" else case.running), case.params()
    (gradient,) = make_gradients(networks, case.weights)
    gradient = jax.jit(gradient)
    steps = case.config["global_steps"]
    assert {step >= case.weights.start for step in steps} == {False, True}
    for step in steps:
        found = gradient(params, {"image": case["x"]}, jax.random.key(0), where(step, len(case["x"])))
        check_step(case, networks, params, found, mode, step)


def check_step(case, networks, params, found, mode, step):
    loss, metrics, grads, _ = found
    at = f"{mode}.step{step}"
    log = {name: case.io[f"{at}.opt0.log.{name}"][0] for name in ("nll_loss", "rec_loss", "d_weight", "disc_factor", "g_loss")}
    close(loss, case.io[f"{at}.opt0.loss"][0], 1e-5, "loss")
    for ours, theirs in {"nll": "nll_loss", "rec": "rec_loss", "disc_factor": "disc_factor", "g_loss": "g_loss"}.items():
        close(metrics[ours], log[theirs], 1e-5, ours)
    close(metrics["d_weight"], log["d_weight"], 1e-4, "adaptive weight")
    if case.kind == "kl":
        close(metrics["kl"], case.io[f"{at}.opt0.log.kl_loss"][0], 1e-5, "kl")
        close(grads["autoencoder"]["moments"], case[f"{at}.opt0.grad.moments"], 1e-5, "gradient of the moments")
    else:
        close(metrics.get("perceptual", jnp.zeros(())), case.io[f"{at}.opt0.log.p_loss"][0], 1e-5, "LPIPS")
    for name in ("disc_loss", "logits_real", "logits_fake"):
        close(metrics[name], case.io[f"{at}.opt1.log.{name}"][0], 1e-5, name)

    own = grads["autoencoder"]
    kernel = case.io[f"{at}.opt0.grad.last_layer"].transpose(2, 3, 1, 0)
    close(own["decoder"]["conv_out"]["kernel"], kernel, 1e-4, "last kernel")
    # theirs was kept by retain_grad, which also heard the two gradients that the adaptive weight is made of
    xr, back = jax.vjp(lambda h: networks.last(params["autoencoder"]["decoder"]["conv_out"], h), case["h"])
    heard = jax.grad(
        lambda xr: negative_log_likelihood(case.weights, lambda x, y: networks.perceptual(params, x, y), case["x"], xr)[0]
        - networks.discriminate(params["discriminator"], xr).mean()
    )(xr)
    theirs = back(case[f"{at}.opt0.grad.reconstructions"] - heard)[0]
    close(own["h"], theirs, 1e-4, "gradient of what the last layer is given")
    for name in [n for n in case.io if n.startswith(f"{at}.opt1.grad.disc.main")]:
        theirs = case.io[name]
        layer, leaf = name.split("disc.")[1].replace("main.", "main_").split(".")
        ours = grads["discriminator"][layer]
        leaf = {"weight": "kernel" if theirs.ndim == 4 else "scale"}.get(leaf, leaf)
        theirs = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs
        if jnp.abs(theirs).max() > 1e-6:  # a bias before batch statistics has rounding noise for a gradient
            close(ours[leaf], theirs, 1e-4, name)


@pytest.mark.parametrize("kind", CASES)
def test_perceptual_weights_are_read_from_the_file_that_the_config_names(fixtures_dir, kind):
    case = Case(fixtures_dir, kind)
    files = {"perceptual_path": str(case.folder / "weights.safetensors"), "perceptual_linear_path": ""}
    section = files | {"perceptual_widths": case.config["narrow_vgg_widths"]}
    check_perceptual(section)
    params = load_perceptual(section)
    theirs = case.io["lpips.total"].reshape(-1)
    y = case[f"train.step{case.config['global_steps'][0]}.opt0.reconstructions"]
    net = models.LPIPS(tuple(case.config["narrow_vgg_widths"]))
    close(jax.jit(net.apply)({"params": params}, case["x"], y), theirs, 1e-5, "LPIPS")


def test_taking_turns_shows_the_discriminator_the_newer_reconstruction(fixtures_dir):
    """The two turns give the joint step's numbers as long as the parameters don't change between them."""
    case = Case(fixtures_dir, "vq")
    weights, step = case.weights, case.weights.start + 1
    arguments = (case.params(), {"image": case["x"]}, jax.random.key(0), where(step, len(case["x"])))
    (joint,) = make_gradients(case.networks(None), weights)
    turns = make_gradients(case.networks(None), weights, alternate=True)
    assert len(turns) == 2
    loss, _, grads, _ = jax.jit(joint)(*arguments)
    first, second = (jax.jit(turn)(*arguments) for turn in turns)
    np.testing.assert_allclose(loss, first[0], rtol=1e-6)
    assert set(first[2]) == {"autoencoder"} and set(second[2]) == {"discriminator"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, {**first[2], **second[2]})
