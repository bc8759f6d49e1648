"""Parameter counts of the paper's experiments, to the last digit, as the reference's code has them."""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.models import (
    DIT_SIZES,
    Autoencoder,
    ClassEmbedder,
    CLIPText,
    Discriminator,
    DiT,
    SpatialRescaler,
    TransformerEmbedder,
    UNet,
    count,
    shapes,
)

SUM = {"in_channels": 3, "out_ch": 3, "resolution": 256, "ch": 128, "num_res_blocks": 2}
KL = {"double_z": True}
VQ = {"double_z": False}


def image(size, channels=3):
    return jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)


def stage(z, ch_mult, attn_resolutions=(), **kwargs):
    return {"z_channels": z, "embed_dim": z, "ch_mult": ch_mult, "attn_resolutions": attn_resolutions, **kwargs}


FIRST_STAGES = {
    "kl-f4": (stage(3, (1, 2, 4), **KL), 22_351_238, 32_960_771, 55_312_063),
    "kl-f8": (stage(4, (1, 2, 4, 4), **KL), 34_163_592, 49_490_179, 83_653_863),
    "kl-f16": (stage(16, (1, 1, 2, 2, 4), (16,), **KL), 28_265_760, 41_343_875, 69_610_963),
    "kl-f32": (stage(64, (1, 1, 2, 2, 4, 4), (16, 8), **KL), 42_614_656, 61_244_803, 103_880_131),
    "vq-f4": (stage(3, (1, 2, 4), n_embed=8192, **VQ), 22_337_411, 32_960_771, 55_322_782),
    "vq-f4-noattn": (stage(3, (1, 2, 4), n_embed=8192, attn_type="none", **VQ), 21_285_763, 31_909_123, 53_219_486),
    "vq-f8": (stage(4, (1, 2, 2, 4), (32,), n_embed=16384, **VQ), 27_397_764, 40_253_955, 67_717_295),
    "vq-f8-n256": (stage(4, (1, 2, 2, 4), (32,), n_embed=256, **VQ), 27_397_764, 40_253_955, 67_652_783),
    "vq-f16": (stage(8, (1, 1, 2, 2, 4), (16,), n_embed=16384, **VQ), 28_155_144, 41_307_011, 69_593_371),
}


# Traced as part of a config, with the same numbers, in tests/weights/test_configs.py too.
IN_CONFIGS = {
    *FIRST_STAGES, "celebahq, ffhq, lsun_bedrooms", "lsun_churches", "cin256", "cin256-v2", "text2img256", "txt2img-1p4B",
    "bsr_sr", "inpainting_big", "layout2img", "semantic_synthesis", "stable diffusion 1", "rdm768",
}  # fmt: skip


def named(*networks):
    return [pytest.param(name, marks=pytest.mark.slow if name in IN_CONFIGS else ()) for name in networks]


@pytest.mark.parametrize("name", named(*FIRST_STAGES))
def test_first_stage(name):
    fields, encoder, decoder, total = FIRST_STAGES[name]
    tree = shapes(Autoencoder(**SUM, **fields), image(64))
    assert (count(tree["encoder"]), count(tree["decoder"]), count(tree)) == (encoder, decoder, total)


def unet(channels, out, width, mult, attention, **kwargs):
    return {
        "in_channels": channels,
        "out_channels": out,
        "model_channels": width,
        "channel_mult": mult,
        "attention_resolutions": attention,
        "num_res_blocks": 2,
        **kwargs,
    }


def crossed(dim, depth=1):
    return {"use_spatial_transformer": True, "transformer_depth": depth, "context_dim": dim}


SDXL = {"num_classes": "sequential", "adm_in_channels": 2816}
H32 = {"num_head_channels": 32}
H8 = {"num_heads": 8}
UNETS = {
    "celebahq, ffhq, lsun_bedrooms": (unet(3, 3, 224, (1, 2, 3, 4), (8, 4, 2), **H32), 274_056_163),
    "lsun_churches": (
        unet(4, 4, 192, (1, 2, 2, 4, 4), (1, 2, 4, 8), **H8, use_scale_shift_norm=True, resblock_updown=True),
        294_966_916,
    ),
    "cin256": (unet(4, 4, 256, (1, 2, 4), (4, 2, 1), **H32, **crossed(512)), 394_984_196),
    "cin256-v2": (unet(3, 3, 192, (1, 2, 3, 5), (8, 4, 2), num_heads=1, **crossed(512)), 400_920_579),
    "text2img256": (unet(3, 3, 192, (1, 2, 3, 5), (8, 4, 2), **H32, **crossed(640)), 403_623_939),
    "txt2img-1p4B": (unet(4, 4, 320, (1, 2, 4, 4), (4, 2, 1), **H8, **crossed(1280)), 872_300_484),
    "bsr_sr": (unet(6, 3, 160, (1, 2, 2, 4), (16, 8), **H32), 113_622_563),
    "inpainting_big": (unet(7, 3, 256, (1, 2, 3, 4), (8, 4, 2), **H8, resblock_updown=True), 387_245_827),
    "layout2img": (unet(3, 3, 128, (1, 2, 3, 4), (8, 4, 2), **H32, **crossed(512, 3)), 246_277_379),
    "semantic_synthesis": (unet(6, 3, 128, (1, 4, 8), (32, 16, 8), **H8), 215_229_315),
    "stable diffusion 1": (unet(4, 4, 320, (1, 2, 4, 4), (4, 2, 1), **H8, **crossed(768)), 859_520_964),
    "stable diffusion 2": (
        unet(4, 4, 320, (1, 2, 4, 4), (4, 2, 1), num_head_channels=64, **crossed(1024)),
        865_910_724,
    ),
    "stable diffusion xl": (
        unet(4, 4, 320, (1, 2, 4), (4, 2), num_head_channels=64, **crossed(2048, (1, 2, 10)), **SDXL),
        2_567_463_684,
    ),
    "rdm768": (unet(16, 16, 448, (1, 2, 3, 4), (4, 2, 1), **H32, **crossed(768)), 1_335_480_400),
}


@pytest.mark.parametrize("name", named(*UNETS))
def test_unet(name):
    fields, expected = UNETS[name]
    net = UNet(**fields)
    cond = {}
    if net.context_dim:
        cond["context"] = jax.ShapeDtypeStruct((1, 1, net.context_dim), jnp.float32)
    if net.adm_in_channels:
        cond["vector"] = jax.ShapeDtypeStruct((1, net.adm_in_channels), jnp.float32)
    assert count(shapes(net, image(16, net.in_channels), jnp.zeros(1), cond)) == expected


@pytest.mark.parametrize(
    ("net", "inputs", "expected"),
    [
        (ClassEmbedder(512, 1000), jnp.zeros(1, int), 512_000),
        (ClassEmbedder(512, 1001), jnp.zeros(1, int), 512_512),
        (TransformerEmbedder(640, 32), jnp.zeros((1, 77), int), 186_154_682),
        (TransformerEmbedder(1280, 32), jnp.zeros((1, 77), int), 581_994_042),
        (TransformerEmbedder(512, 16, vocab_size=8192, max_seq_len=92), jnp.zeros((1, 92), int), 58_858_496),
        (SpatialRescaler(2, in_channels=182, out_channels=3), image(16, 182), 546),
        (CLIPText(), jnp.zeros((1, 77), int), 123_060_480),
        (Discriminator(), image(64), 2_765_633),
        (Discriminator(n_layers=2), image(64), 663_361),
    ],
)
def test_other_networks(net, inputs, expected):
    assert count(shapes(net, inputs)) == expected


def test_dit_xl():
    """The reference counts its fixed positions, 256 of width 1152, among its 675,129,632 parameters."""
    tree = shapes(DiT(**DIT_SIZES["XL"]), image(32, 4), jnp.zeros(1), {"label": jnp.zeros(1, int)})
    assert count(tree) + 256 * 1152 == 675_129_632
