"""DiT and CLIP's towers against diffusers and transformers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models import CLIPText, CLIPVision, DiT

from .reference import Case, assert_close, cases, to_params

pytestmark = pytest.mark.parity


def clip_args(net: type, args: dict) -> dict:
    return {key: value for key, value in args.items() if key in net.__dataclass_fields__}


def test_clip_text(fixtures_dir):
    for folder in [*cases(fixtures_dir, "C4*_*"), *cases(fixtures_dir, "C5*_*")]:
        case, name = Case(folder), folder.name
        net = CLIPText(**clip_args(CLIPText, case.config["args"]))
        run = jax.jit(net.apply)
        for variant in (False, True):
            weights = {key.removeprefix("text_model."): value for key, value in case.weights(variant).items()}
            features = run({"params": to_params(weights, net, case["ids"])}, case["ids"])
            prefix, limit = "eps_variant." if variant else "", case.limit(variant)
            assert_close(features.last, case[f"{prefix}last_hidden_state"], limit, f"{name} {prefix}last")
            assert_close(features.embeds, case[f"{prefix}text_embeds"], limit, f"{name} {prefix}text_embeds")
            if variant:
                continue
            assert_close(features.penultimate, case["penultimate_final_layer_norm"], limit, f"{name} penultimate")
            for i, state in enumerate(features.hidden_states):
                theirs = case[f"hidden_states.{i}"]
                if np.array_equal(theirs, case["last_hidden_state"]):
                    state = features.last  # transformers 5 records the last state after the norm
                assert_close(state, theirs, limit, f"{name} hidden_states.{i}")


def test_clip_vision(fixtures_dir):
    for folder in cases(fixtures_dir, "C6*_*"):
        case, name = Case(folder), folder.name
        net = CLIPVision(**clip_args(CLIPVision, case.config["args"]))
        run = jax.jit(net.apply)
        for variant in (False, True):
            weights = {key.removeprefix("vision_model."): value for key, value in case.weights(variant).items()}
            features = run({"params": to_params(weights, net, case["pixel_values"])}, case["pixel_values"])
            prefix, limit = "eps_variant." if variant else "", case.limit(variant)
            assert_close(features.embeds, case[f"{prefix}image_embeds"], limit, f"{name} {prefix}image_embeds")
            if variant:
                continue
            assert_close(features.pooled, case["pooled"], limit, f"{name} pooled")
            for i, state in enumerate(features.hidden_states):
                assert_close(state, case[f"hidden_states.{i}"], limit, f"{name} hidden_states.{i}")


DIT_NAMES = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
    "transformer_blocks": "blocks",
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder": "y_embedder",
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def test_dit(fixtures_dir):
    for folder in cases(fixtures_dir, "E3*_*"):
        case = Case(folder, config="case.json")
        args = case.config["args"]
        net = DiT(
            depth=args["num_layers"],
            hidden_size=args["num_attention_heads"] * args["attention_head_dim"],
            num_heads=args["num_attention_heads"],
            patch_size=args["patch_size"],
            input_size=args["sample_size"],
            in_channels=args["in_channels"],
            num_classes=args["num_embeds_ada_norm"],
            learn_sigma=args["out_channels"] == 2 * args["in_channels"],
            shared_embedder=False,
            freq_shift=1,
        )
        weights = {}
        for key, value in case.weights(file="diffusion_pytorch_model.safetensors").items():
            for theirs, ours in DIT_NAMES.items():
                key = key.replace(theirs, ours)
            weights[key] = value
        for key in [key for key in weights if ".attn1.to_q." in key]:
            parts = [weights.pop(key.replace("to_q", name)) for name in ("to_q", "to_k", "to_v")]
            weights[key.replace("attn1.to_q", "attn.qkv")] = np.concatenate(parts)
        inputs = case["x"], case["t"].astype(jnp.float32), {"label": case["class_labels"]}
        params = to_params(weights, net, *inputs)
        run = jax.jit(partial(net.apply, capture_intermediates=True, mutable="intermediates"))
        out, stages = run({"params": params}, *inputs)
        assert_close(out, case["out"], case.limit(), folder.name)
        for i in range(net.depth):
            state = stages["intermediates"][f"blocks_{i}"]["__call__"][0][0]
            theirs = case[f"stage.transformer_blocks.{i}"]
            assert_close(state[: len(theirs)], theirs, case.limit(), f"{folder.name} block {i}")
