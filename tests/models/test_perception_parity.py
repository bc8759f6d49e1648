"""The discriminator and LPIPS against taming-transformers, and InceptionV3 against pytorch-fid."""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import LPIPS, Discriminator, InceptionV3

from .reference import Case, assert_close, cases, to_params

pytestmark = pytest.mark.parity


def part(weights: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def test_discriminator(fixtures_dir):
    for folder in [*cases(fixtures_dir, "G1*_*"), *cases(fixtures_dir, "G2*_*")]:
        case = Case(folder)
        net = Discriminator(ndf=case.config["disc_ndf"], n_layers=case.config["args"].get("disc_num_layers", 3))
        weights = part(case.weights(), "discriminator.")
        state = ("running_mean", "running_var", "num_batches_tracked")
        running = {key: value for key, value in weights.items() if key.endswith(state)}
        x = case["x"]
        params = to_params({key: value for key, value in weights.items() if key not in running}, net, x)
        run = jax.jit(net.apply)
        assert_close(run({"params": params}, x), case["disc_train.logits_x"], 1e-5, f"{folder.name} batch statistics")
        names = {key.removesuffix(".running_mean") for key in running if key.endswith("mean")}
        statistics = {
            name.replace(".", "_"): {"mean": running[f"{name}.running_mean"], "var": running[f"{name}.running_var"]}
            for name in names
        }
        logits = run({"params": params}, x, statistics)
        assert_close(logits, case["disc_eval.logits_x"], 1e-5, f"{folder.name} running statistics")


def test_lpips(fixtures_dir):
    for folder in [*cases(fixtures_dir, "G1*_*"), *cases(fixtures_dir, "G2*_*")]:
        case = Case(folder)
        net = LPIPS(case.config["narrow_vgg_widths"])
        weights = part(case.weights(), "perceptual_loss.")
        weights = {key: value for key, value in weights.items() if not key.startswith("scaling_layer.")}
        x, y = case["x"], next(case[key] for key in case.io if key.endswith("opt0.reconstructions"))
        variables = {"params": to_params(weights, net, x, y)}
        layers = jax.jit(partial(net.apply, method="layers"))(variables, x, y)
        for i, layer in enumerate(layers):
            assert_close(layer, case[f"lpips.layer{i}"].reshape(-1), 1e-5, f"{folder.name} layer {i}")
        assert_close(net.apply(variables, x, y), case["lpips.total"].reshape(-1), 1e-5, f"{folder.name} total")
        for i, feature in enumerate(net.apply(variables, x, method="features")):
            assert_close(feature[:1], case[f"lpips.feature{i}"], 1e-5, f"{folder.name} feature {i}")


def test_inception(fixtures_dir):
    for folder in cases(fixtures_dir, "H2*_*"):
        case = Case(folder)
        draw = case.config["seed"]
        net = InceptionV3()

        def noise(key, shape, draw=draw):
            return np.random.default_rng([draw, zlib.crc32(key.encode())]).standard_normal(shape).astype(np.float32)

        weights = {}
        for key, shape in case.config["state_dict_keys"].items():
            z = noise(key, shape)
            if key.endswith("running_mean"):
                weights[key] = 0.1 * z
            elif key.endswith("running_var"):
                weights[key] = 1 + 0.2 * np.abs(z)
            elif len(shape) >= 2:
                weights[key] = z * np.float32(np.sqrt(2 / np.prod(shape[1:])))
            elif key.endswith(".weight"):
                weights[key] = 1 + 0.1 * z
            elif not key.endswith("num_batches_tracked"):
                weights[key] = 0.1 * z
        shape = (1, 3, 299, 299)
        image = np.random.default_rng([draw, zlib.crc32(b"image")]).random(shape, dtype=np.float32)
        image = jnp.asarray(np.moveaxis(image, 1, -1))
        params = to_params(weights, net, image)
        run = jax.jit(net.apply)
        for name, pixels in (("image", image), ("small", case["small"])):
            ours = run({"params": params}, 2 * pixels - 1)
            assert_close(ours.features, case[f"{name}.features"], 1e-4, f"{name} features")
            for i, block in enumerate(ours.blocks):
                assert_close(block.mean((1, 2)), case[f"{name}.block{i}.mean_hw"], 1e-4, f"{name} block {i}")
                if f"{name}.block{i}.corner" in case.io:
                    corner = case[f"{name}.block{i}.corner"]
                    ours_corner = block[:, : corner.shape[1], : corner.shape[2], : corner.shape[3]]
                    assert_close(ours_corner, corner, 1e-4, f"{name} block {i} corner")
            if f"{name}.logits_fc" in case.io:
                assert_close(ours.logits, case[f"{name}.logits_fc"], 1e-4, f"{name} logits")
                assert_close(ours.logits_unbiased, case[f"{name}.logits_fc_no_bias"], 1e-4, f"{name} unbiased")
