"""Models that are told a picture beside a prompt, Stable Diffusion's inpainting and InstructPix2Pix: saved by diffusers with
small random weights, loaded, drawn from by both with the same noise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import experiment
from ldm_jax.drawing.modes import draw
from ldm_jax.primitives.arrays import key_of
from tests.test_habits import config_of
from tests.weights import cases

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="needs the extra parity: pip install -e .[parity]")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity: pip install -e .[parity]")

KEY = jax.random.key(0)
PROMPTS, NEGATIVE = ["a red chair", "two cats"], ["blurry", "dark"]
STEPS, LIMIT = 5, 1e-4
SCHEDULERS = ["own", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]


def saved(fixtures_dir, folder, name: str, channels: int):
    """A pipeline of this class around the parts of a stored one and a U-Net with more channels. Its posteriors are narrow: the
    reference draws from them where we take their mean."""
    found = cases.folders(fixtures_dir, "E", "model_index.json")
    found = [path for path in found if (path / "text_encoder").is_dir() and (path / "tokenizer").is_dir()]
    if not found:
        pytest.skip(f"no pipeline with a text encoder in {fixtures_dir}")
    plain = diffusers.DiffusionPipeline.from_pretrained(found[0])
    config = dict(plain.unet.config) | {"in_channels": channels}
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel.from_config(config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        z = plain.vae.config.latent_channels
        plain.vae.quant_conv.weight[z:] = 0
        plain.vae.quant_conv.bias[z:] = -30
    parts = dict(plain.components) | {"unet": unet, "safety_checker": None, "feature_extractor": None, "image_encoder": None}
    pipe = getattr(diffusers, name)(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def with_scheduler(pipe, name):
    if name == "own":
        return None
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    return name


def picture_and_mask(ldm):
    height, width = ldm.specification.image_size
    image = np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
    mask = np.zeros((2, height, width), np.float32)
    mask[:, height // 4 :, : width // 2] = 1
    return image, mask


def nchw(array):
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def test_inpainting(fixtures_dir, tmp_path):
    pipe = saved(fixtures_dir, tmp_path / "model", "StableDiffusionInpaintPipeline", 9)
    ldm = ldm_jax.load(tmp_path / "model")
    assert ldm.abilities == ("inpaint", "outpaint")
    image, mask = picture_and_mask(ldm)
    noise = ldm.noise(KEY, 2)
    values = [{"prompt": p, "picture": pair} for p, pair in zip(PROMPTS, zip(image, mask))]
    against = [{"prompt": p, "picture": pair} for p, pair in zip(NEGATIVE, zip(image, mask))]
    cond, negative = ldm.embed(ldm.params, values), ldm.embed(ldm.params, against)
    for name in SCHEDULERS:
        sampler = with_scheduler(pipe, name)
        given = {"image": nchw(image), "mask_image": torch.from_numpy(mask)[:, None], "latents": nchw(noise), "strength": 1.0}
        given |= {"height": image.shape[1], "width": image.shape[2], "num_inference_steps": STEPS, "guidance_scale": 4.0}
        theirs = pipe(prompt=PROMPTS, negative_prompt=NEGATIVE, output_type="np", **given).images
        how = {"sampler": sampler, "steps": STEPS, "guidance_scale": 4.0}
        ours = ldm.sample(ldm.params, KEY, cond, negative=negative, noise=noise, **how)
        assert theirs.std() > 0.02
        np.testing.assert_allclose(np.asarray(ours) / 2 + 0.5, theirs, atol=LIMIT, err_msg=name)
    # the mode: the rest of the picture stays, and the empty prompt is steered away from with the same picture
    painted = np.asarray(ldm.inpaint(ldm.params, KEY, image, mask, PROMPTS, **how))
    theirs = pipe(prompt=PROMPTS, output_type="np", **given).images
    assert np.array_equal(painted[mask == 0], image[mask == 0])
    np.testing.assert_allclose(painted[mask == 1] / 2 + 0.5, theirs[mask == 1], atol=LIMIT)
    saved_again(ldm, tmp_path / "again", values, ours, dict(how, negative=negative, noise=noise))


def files(folder, image, mask):
    """The paths of one picture and its mask, and the picture as it is read."""
    pixels = np.rint((image + 1) * 127.5).astype(np.uint8)
    for name, array in (("photo", pixels), ("mask", np.uint8(255 * mask))):
        Image.fromarray(array).save(folder / f"{name}.png")
    return *(str(folder / f"{name}.png") for name in ("photo", "mask")), np.float32(pixels)[None] / 127.5 - 1


def test_negative_prompts_of_flags(fixtures_dir, tmp_path):
    """sample.py --negative beside a picture and a mask, and beside a picture to change."""
    how = {"steps": STEPS, "guidance_scale": 4.0, "num": 1}
    given = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "np"}
    for name, channels in (("StableDiffusionInpaintPipeline", 9), ("StableDiffusionInstructPix2PixPipeline", 8)):
        pipe = saved(fixtures_dir, tmp_path / name, name, channels)
        with_scheduler(pipe, "DDIMScheduler")
        ldm = ldm_jax.load(tmp_path / name)
        (image, *_), (mask, *_) = picture_and_mask(ldm)
        photo, holes, image = files(tmp_path, image, mask)
        noise, flags = nchw(ldm.noise(key_of(0), 1)), how | {"prompt": PROMPTS[:1], "negative": NEGATIVE[0], "sampler": "ddim"}
        words = {"prompt": PROMPTS[:1], "negative_prompt": NEGATIVE[:1], "latents": noise}
        if channels == 9:
            ours = draw(ldm, flags | {"image": [photo], "mask": holes}).images[0][mask == 1]
            sizes = {"height": image.shape[1], "width": image.shape[2], "strength": 1.0}
            shown = {"image": nchw(image), "mask_image": torch.from_numpy(mask)[None, None]} | sizes
            theirs = pipe(**words, **shown, **given).images[0][mask == 1]
        else:
            ours = draw(ldm, flags | {"picture": photo, "image_guidance_scale": 1.7}).images[0]
            theirs = pipe(**words, image=(nchw(image) + 1) / 2, image_guidance_scale=1.7, **given).images[0]
        np.testing.assert_allclose(ours / 2 + 0.5, theirs, atol=LIMIT, err_msg=name)


def test_instructions(fixtures_dir, tmp_path):
    pipe = saved(fixtures_dir, tmp_path / "model", "StableDiffusionInstructPix2PixPipeline", 8)
    ldm = ldm_jax.load(tmp_path / "model")
    image, _ = picture_and_mask(ldm)
    noise = ldm.noise(KEY, 2)
    values = [{"prompt": p, "picture": picture} for p, picture in zip(PROMPTS, image)]
    cond = ldm.embed(ldm.params, values)
    for name in SCHEDULERS:
        sampler = with_scheduler(pipe, name)
        given = {"image": (nchw(image) + 1) / 2, "latents": nchw(noise), "num_inference_steps": STEPS}
        theirs = pipe(prompt=PROMPTS, output_type="np", guidance_scale=4.0, image_guidance_scale=1.7, **given).images
        how = {"sampler": sampler, "steps": STEPS, "guidance_scale": 4.0, "image_guidance_scale": 1.7}
        ours = ldm.sample(ldm.params, KEY, cond, noise=noise, **how)
        assert theirs.std() > 0.02
        np.testing.assert_allclose(np.asarray(ours) / 2 + 0.5, theirs, atol=LIMIT, err_msg=name)
    default = pipe(prompt=PROMPTS, output_type="np", **given).images
    ours = ldm.sample(ldm.params, KEY, cond, noise=noise, sampler=sampler, steps=STEPS)
    np.testing.assert_allclose(np.asarray(ours) / 2 + 0.5, default, atol=LIMIT)
    saved_again(ldm, tmp_path / "again", values, ours, {"noise": noise, "sampler": sampler, "steps": STEPS})


def saved_again(ldm, folder, values, ours, how):
    """Exported and loaded back, it draws the same."""
    ldm_jax.save(ldm, folder)
    again = ldm_jax.load(folder)
    assert type(diffusers.DiffusionPipeline.from_pretrained(folder)).__name__.startswith("StableDiffusionIn")
    np.testing.assert_allclose(again.sample(again.params, KEY, again.embed(again.params, values), **how), ours, atol=LIMIT)


def test_instructions_are_trained_from_a_folder_and_drawn_there(fixtures_dir, tmp_path):
    """From a pipeline with a prompt alone and from one with a picture too; what comes of it is drawn by diffusers."""
    folder, beside = tmp_path / "model", tmp_path / "plain"
    pipe = saved(fixtures_dir, folder, "StableDiffusionInstructPix2PixPipeline", 8)
    saved(fixtures_dir, beside, "StableDiffusionPipeline", 4)
    ldm = ldm_jax.load(folder)
    image, _ = picture_and_mask(ldm)
    rows = []
    for i, (prompt, before) in enumerate(zip(PROMPTS * 4, np.concatenate([image] * 4))):
        for name, pixels in ((f"before{i}", before), (f"after{i}", -before)):
            Image.fromarray(np.rint((pixels + 1) * 127.5).astype(np.uint8)).save(placed(tmp_path / "data") / f"{name}.png")
        row = {"file_name": f"after{i}.png", "conditioning_file_name": f"before{i}.png", "caption": prompt}
        rows.append(json.dumps(row))
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(rows))
    config = config_of()
    config |= {name: dict(ldm.config[name]) for name in ("network", "diffusion", "conditioner")}
    config["first_stage"] = dict(ldm.config["first_stage"]) | {"path": str(folder / "vae")}
    config["diffusion"] = config_of()["diffusion"] | {"scale": 1.0} | config["diffusion"]
    parts = config["conditioner"]["parts"]
    encoder = {"path": str(folder / "text_encoder"), "tokenizer": str(folder / "tokenizer")}
    parts = parts | {"prompt": parts["prompt"] | encoder}
    config["conditioner"] = config["conditioner"] | {"null_probability": 0.1, "parts": parts}
    config["data"] = config["data"] | {"source": "folder", "path": str(tmp_path / "data"), "validation_split": "train",
                                       "image_size": ldm.specification.image_size[0]}  # fmt: skip
    config |= {"stages": ("latents", "diffusion"), "latents": config["latents"] | {"scale": float(ldm.specification.scale)}}
    config["latents"] |= {"standardise": False, "scale_batches": 1}
    train = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "optimizer": "adamw", "warmup_steps": 0, "ema_decay": 0.0}
    for start in (folder, beside):
        config["diffusion_train"] = config_of()["diffusion_train"] | train | {"start_from": str(start)}
        experiment.run(config, tmp_path / f"run_{start.name}")
    theirs, ours = (ldm_jax.load(tmp_path / f"run_{start.name}") for start in (beside, folder))
    first = "input_blocks_0_0"
    before, after = (np.asarray(of.params["network"][first]["kernel"]) for of in (ldm, ours))
    assert 0 < np.abs(after - before).max() < 0.01  # it went on from there
    assert np.abs(np.asarray(theirs.params["network"][first]["kernel"])[:, :, 4:]).max() < 0.01  # and this one from zeros
    ldm_jax.save(ours, tmp_path / "again", format="diffusers")
    there = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again")
    assert type(there) is type(pipe)
    there.set_progress_bar_config(disable=True)
    there.scheduler = diffusers.DDIMScheduler.from_config(there.scheduler.config)
    noise = ours.noise(KEY, 2)
    cond = ours.embed(ours.params, [{"prompt": p, "picture": picture} for p, picture in zip(PROMPTS, image)])
    given = {"image": (nchw(image) + 1) / 2, "latents": nchw(noise), "num_inference_steps": STEPS, "output_type": "np"}
    drawn = there(prompt=PROMPTS, guidance_scale=4.0, image_guidance_scale=1.7, **given).images
    again = ldm_jax.load(tmp_path / "again")
    how = {"sampler": "DDIMScheduler", "steps": STEPS, "guidance_scale": 4.0, "image_guidance_scale": 1.7}
    mine = again.sample(again.params, KEY, cond, noise=noise, **how)
    np.testing.assert_allclose(np.asarray(mine) / 2 + 0.5, drawn, atol=LIMIT)


def placed(folder):
    folder.mkdir(exist_ok=True)
    return folder


def test_channels_of_unknown_meaning_are_refused(fixtures_dir, tmp_path):
    pipe = saved(fixtures_dir, tmp_path / "model", "StableDiffusionInpaintPipeline", 9)
    unet = diffusers.UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 5})
    unet.save_pretrained(tmp_path / "model" / "unet")
    with pytest.raises(ValueError, match="takes 1 channels beside 4 latents"):
        ldm_jax.load(tmp_path / "model")


def test_jnp_arrays_are_pictures_too(fixtures_dir, tmp_path):
    saved(fixtures_dir, tmp_path / "model", "StableDiffusionInstructPix2PixPipeline", 8)
    ldm = ldm_jax.load(tmp_path / "model")
    image, _ = picture_and_mask(ldm)
    cond = ldm.embed(ldm.params, [{"prompt": PROMPTS[0], "picture": jnp.asarray(image[0])}])
    assert cond["concat"].shape[-1] == 4
