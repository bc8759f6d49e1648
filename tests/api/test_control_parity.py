"""ControlNets beside diffusers: random ones of its making steer alike, from its folder and from a single file.

Needs the extra `parity` (torch, diffusers, transformers).
"""

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import build, models, weights
from ldm_jax.weights import layouts, naming, safetensors_files

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")

from tests.api import xl  # noqa: E402
from tests.api.test_xl_parity import KEY, LIMIT, PROMPTS, nchw  # noqa: E402

# one of ours: scale and shift by the time, as the default config has it
PLAIN = {
    "kind": "unet", "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 1,
    "attention_resolutions": (1, 2), "channel_mult": (1, 2), "num_head_channels": 16, "use_spatial_transformer": True,
    "context_dim": 12, "use_scale_shift_norm": True, "norm_num_groups": 8,
}  # fmt: skip

pytestmark = [pytest.mark.parity, pytest.mark.slow]


def test_a_controlnet_of_diffusers(tmp_path):
    torch.manual_seed(5)
    pipe = xl.pipeline(tmp_path / "base")
    fields = dict(pipe.unet.config)
    taken = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups",
             "cross_attention_dim", "attention_head_dim", "transformer_layers_per_block", "use_linear_projection",
             "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")  # fmt: skip
    own = {name: fields[name] for name in taken}
    net = xl.randomized(diffusers.ControlNetModel(**own, conditioning_embedding_out_channels=(8, 16)))
    net.save_pretrained(tmp_path / "control")
    ldm = ldm_jax.load(tmp_path / "base")
    steered = ldm.with_control(tmp_path / "control")
    rng = np.random.default_rng(0)
    pictures = np.float32(np.tanh(rng.standard_normal((2, xl.SIDE, xl.SIDE, 3))))
    kind = diffusers.StableDiffusionXLControlNetPipeline
    other = kind(**pipe.components, controlnet=net, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    noise, p = ldm.noise(KEY, 2), steered.params
    words = steered.embed(p, PROMPTS)
    found = {}
    for scale in (0.5, 1.0):
        found[scale] = steered.sample(p, KEY, words | steered.control(pictures, scale), noise=noise, steps=3)
        with torch.no_grad():
            images = other(
                PROMPTS, image=(nchw(pictures) + 1) / 2, latents=nchw(noise), num_inference_steps=3, guidance_scale=5.0,
                controlnet_conditioning_scale=scale, output_type="np",
            ).images  # fmt: skip
        np.testing.assert_allclose(found[scale], 2 * images - 1, atol=LIMIT)
    assert np.abs(found[0.5] - found[1.0]).max() > 0.05
    plain = ldm.sample(ldm.params, KEY, words, noise=noise, steps=3)
    nothing = steered.sample(p, KEY, words | steered.control(pictures, 0.0), noise=noise, steps=3)
    np.testing.assert_allclose(nothing, plain, atol=1e-5)

    fields, params = weights.read_control(tmp_path / "control", ldm.config["network"])
    tensors = naming.flattened(layouts.controlnet(fields), params, "control")
    tensors = {f"control_model.{name}": np.asarray(array) for name, array in tensors.items()}
    safetensors_files.write(tmp_path / "control.safetensors", tensors)
    again = ldm.with_control(tmp_path / "control.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.params["control"], p["control"])
    with pytest.raises(ValueError, match="must be as large as what is drawn"):
        steered.sample(p, KEY, words | steered.control(pictures[:, :16, :16]), noise=noise, steps=3)
    safetensors_files.write(tmp_path / "other.safetensors", {n: t for n, t in tensors.items() if "zero_convs.1" not in n})
    with pytest.raises(ValueError, match="2 missing"):
        ldm.with_control(tmp_path / "other.safetensors")


def test_a_controlnet_that_diffusers_reads(tmp_path):
    """Of our making: diffusers draws the same residuals from its folder, of both kinds of U-Nets."""
    torch.manual_seed(6)
    xl.pipeline(tmp_path / "xl")
    ldm = ldm_jax.load(tmp_path / "xl")
    rng = np.random.default_rng(1)
    for number, (network, conditioner) in enumerate(
        [(ldm.config["network"], ldm.config["conditioner"]), (PLAIN, {"kind": "text"})]
    ):
        fields = {**network, "hint_channels": (8, 16)}
        module = build.make_network({"network": fields})
        cond = {"context": rng.standard_normal((2, 5, fields["context_dim"])), "hint": rng.random((2, 32, 32, 3))}
        text, sizes, told = np.float32(rng.standard_normal((2, 12))), np.float32(rng.integers(0, 64, (2, 6))), {}
        if conditioner["kind"] == "sdxl":
            cond["vector"] = models.text_time_vector(text, sizes, conditioner["time_embed_dim"])
            told["added_cond_kwargs"] = {"text_embeds": torch.from_numpy(text), "time_ids": torch.from_numpy(sizes)}
        cond = {name: np.float32(value) for name, value in cond.items()}
        x, t = np.float32(rng.standard_normal((2, 16, 16, fields["in_channels"]))), np.float32([10.0, 700.0])
        shapes = jax.eval_shape(module.init, KEY, x, t, cond)["params"]
        params = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape) / max(leaf.shape[0], 4) ** 0.5), shapes)
        weights.write_control(tmp_path / str(number), fields, conditioner, params)
        net = diffusers.ControlNetModel.from_pretrained(tmp_path / str(number)).eval()
        ours = jax.jit(module.apply)({"params": params}, x, t, cond)
        with torch.no_grad():
            down, middle = net(
                nchw(x), torch.from_numpy(t), torch.from_numpy(cond["context"]), nchw(cond["hint"]), return_dict=False, **told
            )
        for one, other in zip(ours, [*down, middle], strict=True):
            scale = np.abs(one).max()
            np.testing.assert_allclose(nchw(one) / scale, other / scale, atol=2e-5)
