"""The conditioners against CompVis's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import ClassEmbedder, SpatialRescaler, TransformerEmbedder, nearest

from .reference import Case, assert_close, cases, to_params

pytestmark = pytest.mark.parity


def test_class_embedder(fixtures_dir):
    for folder in cases(fixtures_dir, "C1*_*"):
        case = Case(folder)
        net = ClassEmbedder(case.config["args"]["embed_dim"], case.config["args"]["n_classes"])
        labels = case[case.config["args"].get("key", "class")]
        params = to_params(case.weights(), net, labels)
        np.testing.assert_array_equal(net.apply({"params": params}, labels), case["out"])


def test_transformer_embedder(fixtures_dir):
    for folder in cases(fixtures_dir, "C2*_*"):
        case = Case(folder)
        args = {key: value for key, value in case.config["args"].items() if key in TransformerEmbedder.__dataclass_fields__}
        net = TransformerEmbedder(**args, heads=case.config["heads"], dim_head=case.config["dim_head"])
        tokens, short = case["tokens"], case["tokens_short"]
        params = to_params(case.weights(), net, tokens)
        run = jax.jit(partial(net.apply, capture_intermediates=True, mutable="intermediates"))
        out, stages = run({"params": params}, tokens)
        name = folder.name
        assert_close(out, case["out"], case.limit(), name)
        norm = stages["intermediates"]["transformer"]["norm"]["__call__"][0]
        theirs = case["stage.norm"]
        assert_close(norm[: len(theirs)], theirs, case.limit(), f"{name} norm")
        assert_close(net.apply({"params": params}, short), case["out_short"], case.limit(), f"{name} short")
        logits = net.apply({"params": params}, tokens, logits=True)
        assert_close(logits, case["logits"], case.limit(), f"{name} logits")
        out, _ = run({"params": to_params(case.weights(variant=True), net, tokens)}, tokens)
        assert_close(out, case["eps_variant.out"], case.limit(variant=True), f"{name} eps_variant")


def test_spatial_rescaler(fixtures_dir):
    for folder in [*cases(fixtures_dir, "C3a*_*"), *cases(fixtures_dir, "C3b*_*")]:
        case = Case(folder)
        net = SpatialRescaler(**{"in_channels": case["x"].shape[-1], **case.config["args"]})
        has_weights = (folder / "weights.safetensors").exists()
        params = to_params(case.weights(), net, case["x"]) if has_weights else {}
        assert_close(net.apply({"params": params}, case["x"]), case["out"], 1e-6, folder.name)


def test_nearest_mask(fixtures_dir):
    for folder in cases(fixtures_dir, "C3c*_*"):
        case = Case(folder)
        for key in [key for key in case.io if key.startswith("out")]:
            np.testing.assert_array_equal(nearest(case["mask"], *case[key].shape[1:3]), case[key])


def test_nearest_takes_the_floor():
    x = jnp.arange(8.0).reshape(1, 8, 1, 1)
    for size in (1, 3, 5, 7, 8, 15, 16):
        np.testing.assert_array_equal(nearest(x, size, 1).ravel(), [i * 8 // size for i in range(size)])
