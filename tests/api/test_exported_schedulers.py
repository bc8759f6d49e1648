"""A model trained here, saved: diffusers draws what config.sampling draws, where one of its schedulers does.

Needs the extra `parity` (torch, diffusers, transformers).
"""

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax.api import Specification
from ldm_jax.weights.descriptions import diffusers_export

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")

from tests.api import xl  # noqa: E402
from tests.api.test_xl_parity import KEY, LIMIT, PROMPTS, theirs  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(2)
    unet = diffusers.UNet2DConditionModel(
        **xl.BLOCKS, in_channels=4, out_channels=4, sample_size=16, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=xl.autoencoder(), text_encoder=xl.tower(16, None, "quick_gelu"), unet=xl.randomized(unet), safety_checker=None,
        tokenizer=xl.tokenizer(folder / "words", "<|endoftext|>"), scheduler=diffusers.DDIMScheduler(**xl.SCHEDULER),
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "base")
    return ldm_jax.load(folder / "base")


def trained(base, prediction, **sampling):
    """The model as a training of ours would have left it: without the scheduler that it came with."""
    config = {name: part for name, part in base.config.items() if name != "scheduler"}
    config["diffusion"] = config["diffusion"] | {"prediction": prediction}
    config["sampling"] = config["sampling"] | {"grid": "trailing", "end": "clean"} | sampling
    spec = base.specification
    return ldm_jax.LatentDiffusion(Specification(config, spec.condition, spec.scale, spec.shift), base.params)


WAYS = {
    "DDIM, leading": ({"sampler": "ddim", "grid": "leading"}, 8, "DDIMScheduler"),
    "DDIM, trailing": ({"sampler": "ddim"}, 8, "DDIMScheduler"),
    "DDIM, to the table's end": ({"sampler": "ddim", "grid": "leading", "end": "first"}, 8, "DDIMScheduler"),
    "DPM-Solver++": ({"sampler": "dpmpp_2m"}, 7, "DPMSolverMultistepScheduler"),  # also where steps don't divide 1000
    "DPM-Solver++, 16": ({"sampler": "dpmpp_2m"}, 16, "DPMSolverMultistepScheduler"),
    "UniPC": ({"sampler": "unipc"}, 7, "UniPCMultistepScheduler"),
}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_saved_draws_as_the_training_s_config(base, tmp_path, way, prediction):
    sampling, steps, name = WAYS[way]
    ldm = trained(base, prediction, **sampling)
    ldm_jax.save(ldm, tmp_path / "saved")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.scheduler).__name__ == name
    noise = ldm.noise(KEY, 2)
    how = {"steps": steps, "guidance_scale": 4.0, "noise": noise}
    ours = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), **how)
    np.testing.assert_allclose(ours, theirs(pipe, noise, num_inference_steps=steps, guidance_scale=4.0), atol=LIMIT)
    again = ldm_jax.load(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, again.params, ldm.params)
    np.testing.assert_allclose(again.sample(again.params, KEY, again.embed(again.params, PROMPTS), **how), ours, atol=LIMIT)


def test_other_ways_to_draw_become_ddim():
    table = {"schedule": "scaled_linear", "linear_start": 0.00085, "linear_end": 0.012, "prediction": "eps"}
    for sampler, grid, changed in (
        ("dpmpp_2m", "karras", {}), ("heun", "trailing", {}), ("dpmpp_2m", "trailing", {"zero_terminal_snr": True}),
        ("dpmpp_2m", "trailing", {"schedule": "squared_cosine"}),
    ):  # fmt: skip
        sampling = {"sampler": sampler, "grid": grid}
        assert diffusers_export.solver(table | changed, sampling) is None
        assert diffusers_export.scheduler(table | changed, sampling)["_class_name"] == "DDIMScheduler"
