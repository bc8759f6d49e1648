"""Stable Diffusion 3 and 3.5: what diffusers draws from a folder with random weights, we draw, and the reverse.

Needs the extra `parity` (torch, diffusers, transformers).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import models
from ldm_jax.weights import layouts, naming, sd3_files

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")
transformers = pytest.importorskip("transformers", reason="the extra `parity` has transformers")

from tests.api import xl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
KEY = jax.random.key(0)
PROMPTS = ["a red dot", "blue hill"]
LIMIT = 1e-4
VERSIONS = {
    "3": {"qk_norm": None},
    "3.5 large": {"qk_norm": "rms_norm"},
    "3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}


def t5(feed_forward: str = "gated-gelu"):
    """An encoder over `words`' pieces, as wide as the transformer's context."""
    sizes = {"vocab_size": 40, "d_model": 40, "d_kv": 6, "d_ff": 24, "num_layers": 3, "num_heads": 3}
    return xl.randomized(transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj=feed_forward)))


def words():
    """T5's tokenizer, of a few letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in ("▁", *xl.PIECES, "▁a", "re"))]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0)


def pipeline(folder, third=True, feed_forward="gated-gelu", channels=6, **transformer):
    """A pipeline with random weights, saved in `folder`."""
    fields = {"sample_size": 16, "patch_size": 2, "in_channels": channels, "num_layers": 3, "attention_head_dim": 8}
    fields |= {"num_attention_heads": 4, "joint_attention_dim": 40, "caption_projection_dim": 32, "out_channels": channels}
    network = diffusers.SD3Transformer2DModel(**fields | {"pooled_projection_dim": 24, "pos_embed_max_size": 12} | transformer)
    stage = xl.autoencoder(
        latent_channels=channels, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
        force_upcast=False,
    )  # fmt: skip
    made = diffusers.StableDiffusion3Pipeline(
        transformer=xl.randomized(network),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=stage,
        text_encoder=xl.tower(16, 12, "quick_gelu"),
        tokenizer=xl.tokenizer(folder / "words", "<|endoftext|>"),
        text_encoder_2=xl.tower(20, 12, "gelu"),
        tokenizer_2=xl.tokenizer(folder / "words_2", "!"),
        text_encoder_3=t5(feed_forward) if third else None,
        tokenizer_3=words() if third else None,
    )
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def nchw(array):
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def with_noise(monkeypatch, kind, noise):
    """The pipeline's one draw, of the start noise."""
    monkeypatch.setattr(f"{kind.__module__}.randn_tensor", lambda *_, **__: nchw(noise))


def theirs(pipe, noise, **options):
    """Pictures in [-1, 1], NHWC."""
    with torch.no_grad():
        return 2 * pipe(PROMPTS, latents=nchw(noise), output_type="np", **options).images - 1


def assert_close(ours, other):
    print(float(np.abs(np.asarray(ours) - other).max()))
    np.testing.assert_allclose(ours, other, atol=LIMIT)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_diffusers_draws_we_draw(tmp_path, version):
    torch.manual_seed(0)
    pipe = pipeline(tmp_path, **VERSIONS[version])
    ldm = ldm_jax.load(tmp_path)
    noise = ldm.noise(KEY, 2)
    cond = ldm.embed(ldm.params, PROMPTS)
    ours = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=5)
    assert_close(ours, theirs(pipe, noise, num_inference_steps=5, guidance_scale=7.0))


def test_prompts_for_each_tower_and_negative_ones(tmp_path):
    torch.manual_seed(1)
    pipe = pipeline(tmp_path, feed_forward="relu")
    ldm = ldm_jax.load(tmp_path)
    noise = ldm.noise(KEY, 2)
    given = [{"prompt": prompt, "prompt_2": "a " + prompt, "prompt_3": "old " + prompt} for prompt in PROMPTS]
    ours = ldm.sample(
        ldm.params, KEY, ldm.embed(ldm.params, given), noise=noise, steps=3, guidance_scale=4.0,
        negative=ldm.embed(ldm.params, ["cold"] * 2),
    )  # fmt: skip
    others = {"prompt_2": ["a " + prompt for prompt in PROMPTS], "prompt_3": ["old " + prompt for prompt in PROMPTS]}
    assert_close(ours, theirs(pipe, noise, num_inference_steps=3, guidance_scale=4.0, negative_prompt=["cold"] * 2, **others))


def test_without_t5_and_of_another_size(tmp_path):
    torch.manual_seed(2)
    pipe = pipeline(tmp_path, third=False)
    ldm = ldm_jax.load(tmp_path)
    noise = ldm.noise(KEY, 2, (40, 24))
    ours = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), noise=noise, steps=3)
    assert_close(ours, theirs(pipe, noise, num_inference_steps=3, guidance_scale=7.0, height=40, width=24))


@pytest.mark.parametrize("third", [True, False], ids=["with T5", "without"])
def test_what_is_saved_diffusers_draws_with(tmp_path, third):
    torch.manual_seed(3)
    pipeline(tmp_path / "theirs", third=third, **VERSIONS["3.5 medium"])
    ldm = ldm_jax.load(tmp_path / "theirs")
    ldm_jax.save(ldm, tmp_path / "ours")
    absent = {} if third else {"text_encoder_3": None, "tokenizer_3": None}
    if absent:  # diffusers wants to be told, of folders that it saved itself, too
        with pytest.raises(ValueError, match="text_encoder_3"):
            diffusers.DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours", **absent)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is diffusers.StableDiffusion3Pipeline
    again = ldm_jax.load(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, again.params, ldm.params)
    noise, cond = ldm.noise(KEY, 2), ldm.embed(ldm.params, PROMPTS)
    jax.tree.map(np.testing.assert_array_equal, again.embed(again.params, PROMPTS), cond)
    ours = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=3)
    assert_close(ours, theirs(pipe, noise, num_inference_steps=3, guidance_scale=7.0))


def test_half_precision(tmp_path):
    torch.manual_seed(4)
    pipeline(tmp_path)
    whole, half = ldm_jax.load(tmp_path), ldm_jax.load(tmp_path, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    noise = whole.noise(KEY, 2)
    drawn = [ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), noise=noise, steps=3) for ldm in (whole, half)]
    assert np.abs(np.subtract(*map(np.float32, drawn))).mean() < 0.02


def test_image_to_image(tmp_path, monkeypatch):
    torch.manual_seed(5)
    pipe = pipeline(tmp_path)
    ldm = ldm_jax.load(tmp_path)
    images = np.float32(np.tanh(np.random.default_rng(0).standard_normal((2, xl.SIDE, xl.SIDE, 3))))
    noise, kind = ldm.noise(KEY, 2), diffusers.StableDiffusion3Img2ImgPipeline
    with_noise(monkeypatch, kind, noise)
    z = nchw(ldm.encode(ldm.params, images))
    ours = ldm.image_to_image(ldm.params, KEY, images, ldm.embed(ldm.params, PROMPTS), strength=0.6, steps=5, noise=noise)
    with torch.no_grad():
        made = kind(**pipe.components)(
            PROMPTS, image=z, strength=0.6, num_inference_steps=5, guidance_scale=7.0, output_type="np",
            height=xl.SIDE, width=xl.SIDE,
        )  # fmt: skip
    assert_close(ours, 2 * made.images - 1)


def test_inpainting(tmp_path, monkeypatch):
    """What is known is put back after every step, at the next step's noise. diffusers' pipeline wants latents of 16 channels,
    and decodes without the latents' shift: they are decoded here."""
    torch.manual_seed(8)
    pipe = pipeline(tmp_path, channels=16)
    ldm = ldm_jax.load(tmp_path)
    images = np.float32(np.tanh(np.random.default_rng(0).standard_normal((2, xl.SIDE, xl.SIDE, 3))))
    noise, kind = ldm.noise(KEY, 2), diffusers.StableDiffusion3InpaintPipeline
    with_noise(monkeypatch, kind, noise)
    mask = np.zeros((2, xl.SIDE, xl.SIDE), np.float32)
    mask[:, 8:24, 4:20] = 1
    z, cond = nchw(ldm.encode(ldm.params, images)), ldm.embed(ldm.params, PROMPTS)
    how = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent", "height": xl.SIDE, "width": xl.SIDE}
    how |= {"image": z, "masked_image_latents": z, "mask_image": torch.from_numpy(mask[:, None])}
    for strength in (1.0, 0.5):
        ours = ldm.inpaint(
            ldm.params, KEY, images, mask, cond, steps=4, strength=strength, noise=noise, guidance_scale=5.0
        )
        with torch.no_grad():
            made = kind(**pipe.components)(PROMPTS, strength=strength, **how)
            theirs = pipe.vae.decode(made.images / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
        inside = mask > 0
        assert_close(np.asarray(ours)[inside], np.clip(np.moveaxis(theirs.numpy(), 1, -1), -1, 1)[inside])
        np.testing.assert_array_equal(np.asarray(ours)[~inside], images[~inside])


def test_a_lora_of_ours_draws_the_same_there(tmp_path):
    pytest.importorskip("peft", reason="no peft")
    torch.manual_seed(6)
    pipe = pipeline(tmp_path / "model", **VERSIONS["3.5 medium"])
    ldm = ldm_jax.load(tmp_path / "model")
    layers = ("qkv", "proj", "fc1", "adaLN_modulation_1")
    factors = {"network": models.init_lora(jax.random.key(1), ldm.params["network"], 4, layers)}
    factors = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), factors)
    ldm.save_lora(factors, tmp_path / "lora")
    changed = ldm.with_lora(tmp_path / "lora")
    noise, cond = ldm.noise(KEY, 2), ldm.embed(ldm.params, PROMPTS)
    before, ours = (each.sample(each.params, KEY, cond, noise=noise, steps=3) for each in (ldm, changed))
    pipe.load_lora_weights(tmp_path / "lora")
    assert_close(ours, theirs(pipe, noise, num_inference_steps=3, guidance_scale=7.0))
    assert np.abs(before - ours).max() > 0.1


@pytest.mark.parametrize("version", VERSIONS)
def test_names_in_single_files_are_those_that_diffusers_converts(tmp_path, version):
    """Stability AI's names, as `weights.sd3_files` reads them: diffusers makes its own transformer of them, bit for bit."""
    from diffusers.loaders import single_file_utils

    torch.manual_seed(7)
    pipe = pipeline(tmp_path, third=False, **VERSIONS[version])
    ldm = ldm_jax.load(tmp_path)
    tensors = naming.flattened(layouts.mmdit(ldm.config["network"]), ldm.params["network"], "network")
    single = {f"{sd3_files.NETWORK}{name}": torch.from_numpy(np.asarray(tensor).copy()) for name, tensor in tensors.items()}
    converted = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(single)
    expected = pipe.transformer.state_dict()
    assert converted.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(converted[name], tensor), name


def test_names_of_text_encoders_in_single_files():
    """Those by which diffusers finds them."""
    from diffusers.loaders import single_file_utils

    names = single_file_utils.CHECKPOINT_KEY_NAMES
    positions = "transformer.text_model.embeddings.position_embedding.weight"
    assert names["clip_sd3"] == f"{sd3_files.PREFIX}{sd3_files.ENCODERS['text_encoder']}.{positions}"
    assert names["open_clip_sd3"] == f"{sd3_files.PREFIX}{sd3_files.ENCODERS['text_encoder_2']}.{positions}"
    t5 = f"{sd3_files.PREFIX}{sd3_files.ENCODERS['text_encoder_3']}.transformer.shared.weight"
    assert single_file_utils.is_t5_in_single_file({t5: None})
