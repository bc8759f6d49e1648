"""The layouts are the networks': same parameters, same shapes, and the published numbers of parameters."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import models
from ldm_jax.weights import layouts, naming
from ldm_jax.weights.compvis_files import conditioner_layout
from ldm_jax.weights.naming import Weight
from ldm_jax.weights.stored import Stored

UNET = {"in_channels": 4, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
UNETS = {
    "attention": {"attention_resolutions": (1, 2), "num_head_channels": 16},
    "updown": {"attention_resolutions": (2,), "num_heads": 4, "resblock_updown": True, "use_scale_shift_norm": True},
    "blocks per level": {"attention_resolutions": (1,), "num_heads": 1, "num_res_blocks": (2, 1), "num_classes": 7},
    "transformer": {"attention_resolutions": (2,), "num_heads": 2, "context_dim": 12, "transformer_depth": 2},
    "per level": {
        "attention_resolutions": (1, 2),
        "num_heads": (2, 4),
        "context_dim": 12,
        "transformer_depth": (1, 2),
        "transformer_depth_middle": 3,
        "disable_self_attentions": (True, False),
        "num_classes": "sequential",
        "adm_in_channels": 5,
    },
    "continuous": {"attention_resolutions": (), "num_heads": 1, "num_classes": "continuous", "conv_resample": False},
    "fractional": {"attention_resolutions": (2,), "num_heads": 2, "channel_mult": (1, 1.5), "norm_num_groups": 16},
}
STAGE = {"in_channels": 3, "out_ch": 3, "resolution": 32, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1}
STAGES = {
    "kl": {"attn_resolutions": (16,), "z_channels": 4, "embed_dim": 3, "double_z": True},
    "kl plain": {
        "attn_resolutions": (),
        "z_channels": 4,
        "embed_dim": 4,
        "double_z": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "vq": {"attn_resolutions": (32,), "z_channels": 4, "embed_dim": 3, "double_z": False, "n_embed": 9},
    "vq none": {
        "attn_resolutions": (16,),
        "z_channels": 3,
        "embed_dim": 3,
        "double_z": False,
        "n_embed": 9,
        "attn_type": "none",
    },
}


def shapes(tree) -> dict:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(part.key for part in path): leaf.shape for path, leaf in flat}


def expected(layout) -> dict:
    found = {"/".join(weight.path): weight.ours for weight in layout}
    assert len(found) == len(layout)
    spelled = [name for weight in layout for name in weight.diffusers]
    assert len(set(spelled)) == len(spelled)
    return found


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    fields = UNET | {"use_spatial_transformer": "context_dim" in UNETS[name]} | UNETS[name]
    cond = {}
    if "context_dim" in fields:
        cond["context"] = array(1, 2, fields["context_dim"])
    if isinstance(classes := fields.get("num_classes"), int):
        cond["label"] = array(1, dtype=jnp.int32)
    elif classes:
        cond["vector"] = array(1, fields.get("adm_in_channels", 1))
    params = models.shapes(models.UNet(**fields), array(1, 8, 8, 4), array(1), cond)
    assert shapes(params) == expected(layouts.unet(fields))


@pytest.mark.parametrize("name", STAGES)
def test_autoencoder(name):
    fields = STAGE | STAGES[name]
    params = models.shapes(models.Autoencoder(**fields), array(1, 32, 32, 3))
    assert shapes(params) == expected(layouts.autoencoder(fields | {"kind": name[:2]}))


@pytest.mark.parametrize("shared", [True, False])
def test_dit(shared):
    fields = {"depth": 2, "hidden_size": 32, "num_heads": 2, "num_classes": 5, "shared_embedder": shared, "learn_sigma": shared}
    params = models.shapes(models.DiT(**fields), array(1, 32, 32, 4), array(1), {"label": array(1, dtype=jnp.int32)})
    assert shapes(params) == expected(layouts.dit(fields | {"patch_size": 2, "in_channels": 4}))


@pytest.mark.parametrize("more", [{}, {"qk_norm": True, "dual_attention_layers": (0,)}, {"position_table": 6, "pooled_dim": 5}])
def test_mmdit(more):
    fields = {"depth": 2, "hidden_size": 32, "num_heads": 2, "context_dim": 6, "in_channels": 4, "patch_size": 2} | more
    cond = {"context": array(1, 3, 6)} | ({"vector": array(1, 5)} if "pooled_dim" in more else {})
    layout = layouts.mmdit(fields)
    assert shapes(models.shapes(models.MMDiT(**fields), array(1, 8, 8, 4), array(1), cond)) == expected(layout)
    names = {name for weight in layout for name in weight.diffusers}
    swapped = {"norm_out.linear.bias", "transformer_blocks.1.norm1_context.linear.bias"}
    kept = {"transformer_blocks.0.norm1_context.linear.bias", "transformer_blocks.1.norm1.linear.bias"}
    assert swapped | kept <= names
    four = {name: Stored((4,), np.dtype("f4"), lambda: np.arange(4.0), name) for name in swapped | kept}
    found = {name: tensor.view().tolist() for name, tensor in layouts.mmdit_swapped(four, fields).items()}
    assert found == {name: [2, 3, 0, 1] for name in swapped} | {name: [0, 1, 2, 3] for name in kept}


@pytest.mark.parametrize(
    "version, more, published",
    [
        ("3 medium", {}, 2_028_328_000),
        ("3.5 medium", {"qk_norm": True, "dual_attention_layers": tuple(range(13))}, 2_243_171_520),
        ("3.5 large", {"qk_norm": True, "depth": 38, "hidden_size": 2432, "num_heads": 38}, 8_056_627_520),
    ],
)
def test_transformers_of_stable_diffusion_3(version, more, published):
    found = config("stable_diffusion_3")
    assert count(layouts.mmdit(found["network"] | more | {"position_table": 0})) == published
    towers = {name: count(layouts.tower(fields)) for name, fields in found["conditioner"]["towers"].items()}
    assert towers == {"text_encoder": 123_650_304, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656}
    assert count(layouts.autoencoder(found["first_stage"])) == 83_819_683


def test_conditioners():
    ids = array(1, 5, dtype=jnp.int32)
    for how in ("gated-gelu", "relu"):
        fields = {"vocab_size": 9, "d_model": 16, "d_kv": 3, "d_ff": 20, "num_layers": 2, "num_heads": 4}
        params = models.shapes(models.T5Encoder(**(fields := fields | {"feed_forward_proj": how})), ids)
        assert shapes(params) == expected(layouts.t5(fields | {"relative_attention_num_buckets": 32}))
    fields = {"n_embed": 16, "n_layer": 2, "vocab_size": 30, "max_seq_len": 5}
    assert shapes(models.shapes(models.TransformerEmbedder(**fields), ids)) == expected(layouts.bert(fields))
    fields = {"n_classes": 9, "embed_dim": 4}
    params = models.shapes(models.ClassEmbedder(**fields), array(1, dtype=jnp.int32))
    assert shapes(params) == expected(layouts.class_embedder(fields))
    fields = {"in_channels": 7, "out_channels": 3, "bias": True}
    params = models.shapes(models.SpatialRescaler(**fields), array(1, 8, 8, 7))
    assert shapes(params) == expected(layouts.spatial_rescaler(fields))
    fields = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 6}
    text = fields | {"vocab_size": 30, "max_position_embeddings": 5}
    assert shapes(models.shapes(models.CLIPText(**text), ids)) == expected(layouts.clip_text(text))
    vision = fields | {"image_size": 16, "patch_size": 8}
    params = models.shapes(models.CLIPVision(**vision), array(1, 16, 16, 3))
    assert shapes(params) == expected(layouts.clip_vision(vision))


@pytest.mark.parametrize(
    "name, kind, path",
    [
        ("input_blocks.1.0.in_layers.0.weight", "scale", "input_blocks_1_0/in_layers_0/scale"),
        ("down.0.block.1.norm1.weight", "scale", "down_0/block_1/norm1/scale"),
        ("transformer_blocks.0.attn1.to_out.0.bias", "bias", "transformer_blocks_0/attn1/to_out_0/bias"),
        ("middle_block.1.qkv.weight", "kernel", "middle_block_1/qkv/kernel"),
        ("label_emb.0.0.weight", "kernel", "label_emb_0_0/kernel"),
        ("quantize.embedding.weight", "embedding", "quantize/embedding/embedding"),
        ("embeddings.class_embedding", "raw", "embeddings/class_embedding"),
    ],
)
def test_the_naming_rule(name, kind, path):
    assert "/".join(Weight(name, (), kind, ()).path) == path


def test_accounting_names_what_is_wrong():
    with pytest.raises(ValueError, match="1 missing:\n  conv_in.weight .nearest: conv_in.weigth.\n1 left over"):
        naming.account(["conv_in.weight", "b"], ["conv_in.weigth", "b"], "here")


FIRST_STAGES = {  # encoder, decoder, whole
    "kl_f4": (22_351_238, 32_960_771, 55_312_063),
    "kl_f8": (34_163_592, 49_490_179, 83_653_863),
    "kl_f16": (28_265_760, 41_343_875, 69_610_963),
    "kl_f32": (42_614_656, 61_244_803, 103_880_131),
    "vq_f4": (22_337_411, 32_960_771, 55_322_782),
    "vq_f4_noattn": (21_285_763, 31_909_123, 53_219_486),
    "vq_f8": (27_397_764, 40_253_955, 67_717_295),
    "vq_f8_n256": (27_397_764, 40_253_955, 67_652_783),
    "vq_f16": (28_155_144, 41_307_011, 69_593_371),
}
FIRST_STAGES |= {f"{name}_imagenet": FIRST_STAGES[name] for name in ("kl_f4", "kl_f8", "kl_f16", "kl_f32")}
NETWORKS = {  # network, conditioner, first stage
    "celebahq": (274_056_163, 0, "vq_f4"),
    "ffhq": (274_056_163, 0, "vq_f4"),
    "lsun_bedrooms": (274_056_163, 0, "vq_f4"),
    "lsun_churches": (294_966_916, 0, "kl_f8"),
    "imagenet_f8": (394_984_196, 512_000, "vq_f8"),
    "imagenet_f4": (400_920_579, 512_512, "vq_f4"),
    "conceptual_captions": (403_623_939, 186_154_682, "vq_f4"),
    "text_to_image": (872_300_484, 581_994_042, "kl_f8"),
    "super_resolution": (113_622_563, 0, "vq_f4"),
    "inpainting": (387_245_827, 0, "vq_f4_noattn"),
    "layout": (246_277_379, 58_858_496, "vq_f4"),
    "semantic_256": (215_229_315, 546, "vq_f4"),
    "semantic_512": (215_229_315, 546, "vq_f4"),
    "retrieval_768": (1_335_480_400, 0, "kl_f16"),
    "stable_diffusion_1": (859_520_964, 123_060_480, "kl_f8"),
    "dit_xl_2": (674_816_272, 0, "kl_f8"),
}


def config(name: str) -> dict:
    return importlib.import_module(f"configs.{name}").get_config().to_dict()


def count(layout) -> int:
    return sum(math.prod(weight.shape) for weight in layout)


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages_of_the_paper(name):
    found = config(name)
    layout = layouts.autoencoder(found["first_stage"])
    parts = [count([w for w in layout if w.name.startswith(part)]) for part in ("encoder.", "decoder.", "")]
    assert tuple(parts) == FIRST_STAGES[name] and found["stages"] == ("first_stage",) and found["name"] == name


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_paper(name):
    found, (network, conditioner, stage) = config(name), NETWORKS[name]
    assert count(layouts.network(found["network"])) == network and found["name"] == name
    assert count(conditioner_layout(found["conditioner"])) == conditioner
    assert count(layouts.autoencoder(found["first_stage"])) == FIRST_STAGES[stage][2]
    channels = found["first_stage"]["embed_dim"]
    assert found["network"].get("out_channels", found["network"]["in_channels"]) == channels
