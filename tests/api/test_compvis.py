"""The modes on checkpoints of CompVis, with the reference's numbers where it has any."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import ldm_jax
from ldm_jax import build
from tests.weights import cases

pytestmark = pytest.mark.parity
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def class_model(fixtures_dir):
    folder = fixtures_dir / "D1_ckpt"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return (
        ldm_jax.load(folder / "model.ckpt"),
        cases.arrays(folder / "io.npz"),
        json.loads((folder / "config.json").read_text()),
    )


def test_the_references_noise_makes_its_pictures(class_model):
    ldm, io, config = class_model
    cond, negative = (ldm.embed(ldm.params, jnp.asarray(io[f"{p}class_label"], jnp.int32)) for p in ("", "uncond_"))
    how = {"steps": config["steps"], "guidance_scale": config["guidance_scale"], "negative": negative}
    noise = io["x_T"] / build.make_recipe(ldm.config).grid(config["steps"]).sigma[0]
    images = ldm.sample(ldm.params, KEY, cond, noise=jnp.asarray(noise, jnp.float32), **how)
    cases.compare("sample", images, np.clip(io["ddim_ema.image"], -1, 1), 1e-3)


def test_an_edit_to_the_same_comes_back_exactly(class_model):
    """As DDIM ends at a level with a little noise here, every step's noise is known, and nothing is lost but that level's
    alpha."""
    ldm, io, _ = class_model
    p, image = ldm.params, io["image"]
    cond = ldm.embed(p, jnp.asarray(io["class_label"], jnp.int32))
    back = ldm.edit(p, KEY, image, cond, cond, guidance_scale=1.0, steps=10, strength=0.5)
    alpha = float(build.make_recipe(ldm.config).grid(10).alpha[-1])
    np.testing.assert_allclose(back, jnp.clip(ldm.decode(p, alpha * ldm.encode(p, image)), -1, 1), atol=2e-3)


def test_inpainting_model(fixtures_dir, tmp_path):
    """A U-Net with concatenated condition and a VQ first stage of the reference, put together as its inpainting model."""
    network, stage = fixtures_dir / "A5_concat", fixtures_dir / "B3_vq"
    if not (network.is_dir() and stage.is_dir()):
        pytest.skip(f"no {network} or no {stage}")
    parts = {"model.diffusion_model.": network, "first_stage_model.": stage}
    tensors = {
        prefix + name: value.astype(np.float32)
        for prefix, folder in parts.items()
        for name, value in load_file(folder / "weights.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    args = [json.loads((folder / "config.json").read_text()) for folder in parts.values()]
    config = {
        "target": "ldm.models.diffusion.ddpm.LatentInpaintDiffusion",
        "params": {
            "linear_start": 0.0015, "linear_end": 0.0205, "timesteps": 1000, "image_size": 16, "channels": 3,
            "concat_mode": True, "first_stage_key": "image", "cond_stage_key": "masked_image",
            "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": args[0]["args"]},
            "first_stage_config": {"target": "ldm.models.autoencoder.VQModelInterface", "params": args[1]["args"]},
            "cond_stage_config": "__is_first_stage__",
        },
    }  # fmt: skip
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": config}))
    ldm = ldm_jax.load(tmp_path / "model.safetensors")
    p, io = ldm.params, cases.arrays(network / "io.npz")
    assert ldm.abilities == ("inpaint", "outpaint")
    told = {"concat": jnp.asarray(io["c_concat"])}
    cases.compare("eps", jax.jit(ldm.apply)(p, jnp.asarray(io["x"]), jnp.asarray(io["t"]), told), io["out"], 2e-5)

    image = np.clip(cases.arrays(stage / "io.npz")["x"], -1, 1)
    mask = np.zeros(image.shape[:3], np.float32)
    mask[:, 8:20, 4:30] = 1
    out = np.asarray(ldm.inpaint(p, KEY, image, mask, steps=5))
    assert np.array_equal(out[mask == 0], image[mask == 0])
    # by the reference's script: holes are cut in [0, 1], the mask is shrunk by its nearest pixels, both go to [-1, 1]
    holes = ((image + 1) / 2 * (1 - mask[..., None])) * 2 - 1
    told = jnp.concatenate([ldm.encode(p, holes), mask[:, ::2, ::2, None] * 2 - 1], -1)
    by_hand = ldm.sample(p, KEY, {"concat": told}, steps=5, guidance_scale=1.0)
    np.testing.assert_allclose(out[mask == 1], np.asarray(by_hand)[mask == 1], atol=1e-3)
