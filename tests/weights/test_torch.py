"""The other way round: what PyTorch and diffusers write we read, and what we write they read, with the same numbers.

Needs the extra `parity` (torch, diffusers, transformers); models are small and random.
"""

import subprocess
import sys

import jax
import numpy as np
import pytest

from ldm_jax import weights
from ldm_jax.diffusion import grids, schedules
from ldm_jax.first_stage.latents import split_moments
from ldm_jax.models import sinusoidal_embedding
from ldm_jax.weights import pickles, torch_files

from . import cases

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
LIMIT = 2e-5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(2)
    with torch.no_grad():
        yield


def randomized(model):
    """Every parameter drawn anew: the zeros and ones of an initialisation would hide mistakes."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn_like(parameter) / max(1.0, parameter[0].numel() ** 0.5))
        else:
            parameter.copy_(torch.randn_like(parameter) * 0.15 + ("norm" in name and name.endswith("weight")))
    return model.eval()


def nhwc(tensor) -> np.ndarray:
    return cases.nhwc(tensor.numpy())


BASE = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16}
PLAIN = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
}
UNCONDITIONAL = {
    "heads of a width": {"attention_head_dim": 16, "in_channels": 6, "out_channels": 3},
    "one head, classes": {"attention_head_dim": None, "num_class_embeds": 7},
    "three levels": {
        "block_out_channels": (16, 32, 48),
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        "layers_per_block": 2,
    },
    "resnets resample": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32, 48),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
        "attention_head_dim": 16,
    },
    "no norm in the middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": None},
    "another norm in the middle": {"attn_norm_num_groups": 2},
}
CONDITIONAL = {
    "heads per level": {"attention_head_dim": (2, 8)},
    "one number of heads": {"attention_head_dim": 4, "resnet_time_scale_shift": "scale_shift"},
    "linear, deep": {"attention_head_dim": (2, 4), "use_linear_projection": True, "transformer_layers_per_block": (2, 1)},
    "upscaler": {"only_cross_attention": (True, False), "num_class_embeds": 9, "attention_head_dim": 8},
    "told the guidance scale": {"time_cond_proj_dim": 12, "attention_head_dim": 8},
    "vector": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 10, "attention_head_dim": 8},
    "different widths": {
        "block_out_channels": (16, 24, 48),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": (1, 2, 1),
        "attention_head_dim": (2, 3, 4),
    },
}
STAGES = {
    "plain": {},
    "attention": {
        "down_block_types": ("AttnDownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
        "block_out_channels": (16, 24, 32),
        "use_quant_conv": False,
        "shift_factor": 0.3,
    },
    "no attention": {"mid_block_add_attention": False, "layers_per_block": 2, "use_post_quant_conv": False},
}


@pytest.mark.parametrize("size", [(16, 16), (12, 20)], ids=["square", "oblong"])
@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_unconditional_unets(tmp_path, name, size):
    fields = BASE | PLAIN | {"in_channels": 3, "out_channels": 3} | UNCONDITIONAL[name]
    model = randomized(diffusers.UNet2DModel(**fields))
    model.save_pretrained(tmp_path)
    x, t = torch.randn(2, fields["in_channels"], *size), torch.tensor([3, 801])
    labels = torch.tensor([2, 5]) if fields.get("num_class_embeds") else None
    cond = None if labels is None else {"label": labels.numpy()}
    ours = cases.Network(weights.read(tmp_path))(nhwc(x), t.numpy(), cond)
    cases.compare(name, ours, nhwc(model(x, t, class_labels=labels).sample), LIMIT)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_unets_and_their_return(tmp_path, name):
    fields = BASE | CROSS | {"in_channels": 4, "out_channels": 4} | CONDITIONAL[name]
    model = randomized(diffusers.UNet2DConditionModel(**fields))
    model.save_pretrained(tmp_path / "theirs", safe_serialization=name != "linear, deep")
    x, t, context = torch.randn(2, 4, 16, 24), torch.tensor([3, 801]), torch.randn(2, 5, 12)
    labels, cond, told = None, {"context": context.numpy()}, {}
    if fields.get("time_cond_proj_dim"):  # of latent consistency models, which are told it less 1
        w = torch.tensor([0.0, 6.5])
        embedding = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=12)
        cond["guidance"], told["timestep_cond"] = w.numpy(), embedding
    if fields.get("num_class_embeds"):
        labels = torch.tensor([2, 5])
        cond["label"] = labels.numpy()
    elif fields.get("class_embed_type"):
        labels = torch.randn(2, 10)
        cond["vector"] = labels.numpy()
    theirs = nhwc(model(x, t, context, class_labels=labels, **told).sample)
    checkpoint = weights.read(tmp_path / "theirs")
    cases.compare(name, cases.Network(checkpoint)(nhwc(x), t.numpy(), cond), theirs, LIMIT)
    weights.write_diffusers(tmp_path / "ours", checkpoint.description, checkpoint.params)
    model = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours")
    cases.compare(f"{name} back", nhwc(model(x, t, context, class_labels=labels, **told).sample), theirs, LIMIT)


def test_added_embeddings_of_xl(tmp_path):
    fields = BASE | CROSS | {"in_channels": 4, "out_channels": 4, "attention_head_dim": (2, 4)}
    fields |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30}
    model = randomized(diffusers.UNet2DConditionModel(**fields, transformer_layers_per_block=(1, 2)))
    model.save_pretrained(tmp_path)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 801]), torch.randn(2, 5, 12)
    added = {"text_embeds": torch.randn(2, 6), "time_ids": torch.randint(0, 512, (2, 6)).float()}
    theirs = nhwc(model(x, t, context, added_cond_kwargs=added).sample)
    times = sinusoidal_embedding(added["time_ids"].flatten().numpy(), 4).reshape(2, -1)
    cond = {"context": context.numpy(), "vector": np.concatenate([added["text_embeds"].numpy(), times], axis=1)}
    cases.compare("text and time", cases.Network(weights.read(tmp_path))(nhwc(x), t.numpy(), cond), theirs, LIMIT)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_autoencoders_and_their_return(tmp_path, name, kind):
    fields = {"block_out_channels": (16, 32), "norm_num_groups": 8, "sample_size": 32, "latent_channels": 4} | STAGES[name]
    levels = len(fields["block_out_channels"])
    fields.setdefault("down_block_types", ("DownEncoderBlock2D",) * levels)
    fields.setdefault("up_block_types", ("UpDecoderBlock2D",) * levels)
    if kind == "vq":
        fields = {key: value for key, value in fields.items() if not key.startswith("use_") and key != "shift_factor"}
        model = diffusers.VQModel(**fields, num_vq_embeddings=30, vq_embed_dim=3, scaling_factor=0.7)
    else:
        model = diffusers.AutoencoderKL(**fields, scaling_factor=0.7)
    model = randomized(model)
    model.save_pretrained(tmp_path / "theirs")
    checkpoint = weights.read(tmp_path / "theirs")
    assert checkpoint.description["latents"] == {"scale": 0.7, "shift": fields.get("shift_factor", 0.0)}
    encode, decode, plain = cases.autoencoder(checkpoint)
    x = torch.randn(1, 3, 32, 48)
    weights.write_diffusers(tmp_path / "ours", checkpoint.description, checkpoint.params)
    back = type(model).from_pretrained(tmp_path / "ours")
    for other in (model, back):
        if kind == "kl":
            theirs = other.encode(x).latent_dist
            mean, logvar = split_moments(encode(nhwc(x)))
            cases.compare(f"{name} mean", mean, nhwc(theirs.mean), LIMIT)
            cases.compare(f"{name} std", np.exp(0.5 * logvar), nhwc(theirs.std), LIMIT)
            z = theirs.mean
            cases.compare(f"{name} decode", decode(nhwc(z)), nhwc(other.decode(z).sample), LIMIT)
        else:
            z = other.encode(x).latents
            cases.compare(f"{name} encode", encode(nhwc(x)), nhwc(z), LIMIT)
            cases.compare(f"{name} decode", decode(nhwc(z)), nhwc(other.decode(z).sample), LIMIT)
            theirs = other.decode(z, force_not_quantize=True).sample
            cases.compare(f"{name} decode as is", plain(nhwc(z)), nhwc(theirs), LIMIT)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_dit_and_its_return(tmp_path, eps):
    fields = {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    fields |= {"sample_size": 12, "num_embeds_ada_norm": 6, "norm_eps": eps}
    model = randomized(diffusers.DiTTransformer2DModel(**fields))
    for name, parameter in model.named_parameters():  # small activations, for eps to matter
        if "pos_embed" in name or "attn1.to_out" in name:
            parameter.mul_(0.01)
    model.save_pretrained(tmp_path / "theirs")
    x, t, labels = torch.randn(2, 4, 12, 12), torch.tensor([3, 801]), torch.tensor([0, 6])
    checkpoint = weights.read(tmp_path / "theirs")
    weights.write_diffusers(tmp_path / "ours", checkpoint.description, checkpoint.params)
    again = weights.read(tmp_path / "ours")
    assert again.description == checkpoint.description
    back = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "ours")
    ours = cases.Network(checkpoint)(nhwc(x), t.numpy(), {"label": labels.numpy()})
    cases.compare("dit", ours, nhwc(back(x, t, labels).sample), LIMIT)


TYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files(tmp_path, zipped):
    base = torch.randn(6, 8)
    content = {name: (torch.randn(3, 4) * 9).to(getattr(torch, name)) for name in TYPES}
    content |= {"view": base[1:5, ::2], "transposed": base.T, "shared": base, "expanded": base[0].expand(3, 8), "none": None}
    content |= {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "size": torch.Size([2, 3]),
        "float8": base.to(torch.float8_e4m3fn),
    }
    if not zipped:
        del content["float8"]
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found, _ = pickles.read(tmp_path / "a.pt")
    assert found["size"] == (2, 3) and found["none"] is None
    for name, tensor in content.items():
        if isinstance(tensor, torch.Tensor):
            theirs = tensor.detach().float().numpy()
            assert str(found[name].dtype).startswith(str(tensor.dtype).removeprefix("torch.").rstrip("_"))
            assert np.array_equal(np.asarray(found[name]).astype(np.float32), theirs), name


def test_torch_reads_what_we_write(tmp_path):
    arrays = {
        name: np.asarray((torch.randn(3, 4) * 9).to(getattr(torch, name)).numpy()) for name in TYPES if name != "bfloat16"
    }
    torch_files.write(
        tmp_path / "a.ckpt", {"state_dict": arrays, "epoch": 3, "lr": 0.1, "list": [1, "a", None, (True, 1 << 40)]}
    )
    for mapped in (False, True):
        found = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=mapped)
        assert found["list"] == [1, "a", None, (True, 1 << 40)] and found["epoch"] == 3
        for name, array in arrays.items():
            assert (
                np.array_equal(found["state_dict"][name].numpy(), array)
                and found["state_dict"][name].numpy().dtype == array.dtype
            )


def test_a_trained_model_samples_alike_in_diffusers(tmp_path):
    """A model of our own configuration: exported, loaded by diffusers, sampled by both from the same noise."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    from . import test_read

    of = test_read.description("text")
    of["network"] = of["network"] | {"channel_mult": (1, 2), "attention_resolutions": (1, 2)}
    for schedule, prediction in (("scaled_linear", "eps"), ("cosine", "v")):
        of["diffusion"] = of["diffusion"] | {"schedule": schedule, "prediction": prediction}
        params = test_read.mapped(lambda a: a * 0.25, test_read.random_params(of))
        folder = tmp_path / schedule
        weights.write_diffusers(folder, of, params)
        net, bert = UNet2DConditionModel.from_pretrained(folder / "unet"), LDMBertModel.from_pretrained(folder / "text_encoder")
        scheduler, vae = DDIMScheduler.from_pretrained(folder / "scheduler"), AutoencoderKL.from_pretrained(folder / "vae")
        scheduler.set_timesteps(10)
        ids, x = torch.randint(0, 40, (2, 9)), torch.randn(2, 4, 8, 8)
        context = bert(ids)[0]
        start = x.clone()
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t, context).sample, t, x).prev_sample

        checkpoint = weights.read(folder)
        assert checkpoint.description["diffusion"] | {"loss": "l1"} == of["diffusion"] | {"loss": "l1"}
        conditions = {"context": context.numpy()}, None
        made = schedules.Discrete(scheduler.alphas_cumprod.double().numpy())
        grid = grids.from_times(made, scheduler.timesteps.numpy(), end=made(0.0))
        final, _ = cases.run(cases.Network(checkpoint), checkpoint, "ddim", nhwc(start), grid, conditions)
        cases.compare(f"{schedule} latents", final, nhwc(x), 1e-4)
        decode = cases.autoencoder(checkpoint)[1]
        image = vae.decode(x / vae.config.scaling_factor).sample
        cases.compare(f"{schedule} image", decode(final / of["latents"]["scale"]), nhwc(image), 1e-3)
    jax.clear_caches()


def test_pipelines_of_diffusers_load_what_we_write(tmp_path, fixtures_dir):
    """The folder of a Stable Diffusion pipeline, read and written by us, gives diffusers the same image."""
    for folder in cases.folders(fixtures_dir, "E", "model_index.json"):
        checkpoint = weights.read(folder)
        weights.write_diffusers(tmp_path / folder.name, checkpoint.description, checkpoint.params)
        images = []
        for path in (folder, tmp_path / folder.name):
            pipe = diffusers.DiffusionPipeline.from_pretrained(path)
            pipe.set_progress_bar_config(disable=True)
            words = {"prompt": ["a red chair"]} if "text_encoder" in pipe.components else {}
            call = dict(num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0))
            images.append(pipe(**words, **call).images)
        assert np.array_equal(*images), folder.name


def test_the_command_line_without_jax(tmp_path, fixtures_dir):
    for folder in sorted(fixtures_dir.glob("D*")):
        command = [sys.executable, "-m", "ldm_jax.weights", "convert", folder / "model.ckpt", tmp_path / folder.name]
        subprocess.run([str(part) for part in command], check=True)
        diffusers.UNet2DConditionModel.from_pretrained(tmp_path / folder.name / "unet")
