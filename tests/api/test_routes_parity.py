"""From a single file or a folder through `experiment.run` to what diffusers draws: a whole model, a LoRA, a word, a ControlNet.

Needs the extra `parity` (torch, diffusers, transformers, peft).
"""

import json

import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import experiment, weights
from ldm_jax.weights import layouts, naming, safetensors_files
from tests.test_habits import config_of

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")
pytest.importorskip("peft", reason="the extra `parity` has peft")

from tests.api import xl  # noqa: E402
from tests.api.test_xl_parity import KEY, LIMIT, PROMPTS, nchw  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
WORD = {"word": "<ink>", "initial": "red", "vectors": 3}
LORA = {"rank": 3, "alpha": 6.0, "targets": ["to_q", "to_v", "to_out_0", "proj", "net_2"]}


def stable_diffusion_1(folder):
    """With what no single file says and all published ones have: eight heads, norms of 32 groups, a text encoder with heads
    of 64 (here it has one)."""
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=32, in_channels=4, out_channels=4, sample_size=16,
        cross_attention_dim=16, attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=xl.autoencoder(norm_num_groups=32, scaling_factor=0.18215, force_upcast=False), unet=xl.randomized(unet),
        text_encoder=xl.tower(16, None, "quick_gelu", 1), tokenizer=xl.tokenizer(folder / "words", "<|endoftext|>"),
        scheduler=diffusers.DDIMScheduler(**xl.SCHEDULER, clip_sample=False), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe


def single_file(folder, path):
    """The same under CompVis's names."""
    of, params = (found := weights.read(folder)).description, found.params
    parts = {
        "model.diffusion_model.": naming.flattened(layouts.unet(of["network"]), params["network"], "unet"),
        "first_stage_model.": naming.flattened(layouts.autoencoder(of["first_stage"]), params["first_stage"], "vae"),
        "cond_stage_model.transformer.text_model.": naming.flattened(
            layouts.clip_text(of["conditioner"]), params["conditioner"], "text encoder"
        ),
    }
    tensors = {prefix + name: np.asarray(array) for prefix, own in parts.items() for name, array in own.items()}
    path.parent.mkdir()
    safetensors_files.write(path, tensors)
    return path


def run(folder, name, start, paths, model, **train):
    """A training of two steps; the model that comes of it."""
    data = folder / "data"
    if not data.is_dir():
        data.mkdir()
        rows, rng = [], np.random.default_rng(0)
        for i in range(8):
            Image.fromarray(np.uint8(rng.integers(0, 255, (4, 4, 3)).repeat(8, 0).repeat(8, 1))).save(data / f"{i}.png")
            rows.append(json.dumps({"file_name": f"{i}.png", "caption": [*PROMPTS, "a <ink> dot"][i % 3]}))
        (data / "metadata.jsonl").write_text("\n".join(rows))
    config = config_of("stable_diffusion_1")
    config["network"] = dict(model.config["network"])
    config["first_stage"] = dict(model.config["first_stage"]) | {"path": str(paths[0])}
    config["conditioner"] = dict(model.config["conditioner"]) | {"path": str(paths[1]), "null_probability": 0.0}
    config["data"] |= {"source": "folder", "path": str(data), "image_size": xl.SIDE, "validation_split": "train", "workers": 0}
    config["latents"] |= {"scale": 0.0, "scale_batches": 1, "cache": False}
    config["log"] |= {"images_every": 0, "validation_every": 0}
    config |= {"stages": ("latents", "diffusion"), "dtype": "float32"}
    config["diffusion_train"] |= {"steps": 2, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 0, "ema_decay": 0.0}
    config["diffusion_train"] |= {"optimizer": "adamw", "start_from": str(start)} | train
    experiment.run(config, folder / name)
    return ldm_jax.load(folder / name)


def ours(ldm, params, cond):
    return np.asarray(ldm.sample(params, KEY, cond, noise=ldm.noise(KEY, 2), steps=3, guidance_scale=4.0))


def theirs(pipe, ldm, prompts=PROMPTS, **options):
    """From the same noise, by the scheduler that our trainings draw with."""
    pipe.scheduler = diffusers.DDIMScheduler(**xl.SCHEDULER, clip_sample=False, timestep_spacing="leading")
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        how = {"latents": nchw(ldm.noise(KEY, 2)), "num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"}
        return 2 * pipe(prompts, **how, **options).images - 1


def close(mine, other, least=1e-3, plain=None):
    np.testing.assert_allclose(mine, other, atol=LIMIT)
    assert plain is None or np.abs(mine - plain).max() > least  # or nothing was learnt


def test_from_a_single_file(tmp_path):
    torch.manual_seed(0)
    stable_diffusion_1(tmp_path / "model")
    path, words = single_file(tmp_path / "model", tmp_path / "alone" / "model.safetensors"), tmp_path / "model" / "tokenizer"
    base = ldm_jax.load(path, tokenizer=words)
    reader = diffusers.StableDiffusionPipeline
    there = {"config": str(tmp_path / "model"), "local_files_only": True, "safety_checker": None}

    whole = run(tmp_path, "whole", path, (path, path), base)
    cond = whole.embed(whole.params, PROMPTS)
    plain = ours(whole, base.params, cond)
    close(plain, theirs(reader.from_single_file(str(path), **there), whole))
    drawn = ours(whole, whole.params, cond)
    ldm_jax.save(whole, tmp_path / "saved")
    close(drawn, theirs(reader.from_pretrained(tmp_path / "saved"), whole), plain=plain)
    ldm_jax.save(whole, tmp_path / "ckpt" / "model.ckpt", format="compvis")
    close(drawn, theirs(reader.from_single_file(str(tmp_path / "ckpt" / "model.ckpt"), **there), whole))

    adapted = run(tmp_path, "lora", path, (path, path), base, lora=LORA)
    base.save_lora(ldm_jax.load_lora(tmp_path / "lora"), tmp_path / "style")
    pipe = reader.from_pretrained(tmp_path / "model")
    pipe.load_lora_weights(tmp_path / "style")
    close(ours(whole, adapted.params, cond), theirs(pipe, whole), plain=plain)
    pipe.set_adapters(pipe.get_active_adapters(), [0.4])
    close(ours(whole, base.with_lora(tmp_path / "style", 0.4).params, cond), theirs(pipe, whole), plain=plain)

    told = run(tmp_path, "word", path, (path, path), base, textual_inversion=WORD)
    ldm_jax.save_embedding(tmp_path / "word", tmp_path / "ink.safetensors")
    pipe = reader.from_pretrained(tmp_path / "model")
    pipe.load_textual_inversion(tmp_path / "ink.safetensors")
    prompts = ["a <ink> dot", "<ink> hill"]
    drawn = ours(told, told.params, told.embed(told.params, prompts))
    begun = ours(told, told.params, told.embed(told.params, ["a red dot", "red hill"]))
    close(drawn, theirs(pipe, told, prompts), plain=begun)


def test_from_a_folder_of_xl(tmp_path):
    """Words of two text encoders, and a ControlNet."""
    torch.manual_seed(0)
    pipe = xl.pipeline(tmp_path / "model")
    base, paths = ldm_jax.load(tmp_path / "model"), (tmp_path / "model" / "vae", tmp_path / "model")
    told = run(tmp_path, "word", tmp_path / "model", paths, base, textual_inversion=WORD)
    plain = ours(told, told.params, told.embed(told.params, PROMPTS))
    close(plain, theirs(pipe, told))
    steered = run(
        tmp_path, "control", tmp_path / "model", paths, base, control={"picture": "edges", "hint_channels": [8, 16]}
    )
    ldm_jax.save_control(tmp_path / "control", tmp_path / "net")
    net = diffusers.ControlNetModel.from_pretrained(tmp_path / "net")
    both = diffusers.StableDiffusionXLControlNetPipeline(**pipe.components, controlnet=net, add_watermarker=False)
    pictures = np.float32(np.tanh(np.random.default_rng(0).standard_normal((2, xl.SIDE, xl.SIDE, 3))))
    cond = steered.embed(steered.params, PROMPTS) | steered.control(pictures, 0.5)
    shown = {"image": (nchw(pictures) + 1) / 2, "controlnet_conditioning_scale": 0.5}
    close(ours(steered, steered.params, cond), theirs(both, steered, **shown), plain=plain)

    ldm_jax.save_embedding(tmp_path / "word", tmp_path / "ink.safetensors")
    _, vectors = weights.read_embedding(tmp_path / "ink.safetensors")
    for name, other in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        rows = torch.from_numpy(np.array(vectors[name]))
        pipe.load_textual_inversion(rows, token="<ink>", text_encoder=getattr(pipe, name), tokenizer=getattr(pipe, other))
    prompts = ["a <ink> dot", "<ink> hill"]
    begun = ours(told, told.params, told.embed(told.params, ["a red dot", "red hill"]))
    close(ours(told, told.params, told.embed(told.params, prompts)), theirs(pipe, told, prompts), plain=begun)
