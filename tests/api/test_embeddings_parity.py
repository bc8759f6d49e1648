"""Words beside diffusers: a file that we write says the same to its text encoder.

Needs the extra `parity` (torch, diffusers, transformers).
"""

import numpy as np
import pytest

import ldm_jax
from ldm_jax import weights

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")

from tests.api import xl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]


def test_a_word_that_diffusers_reads(tmp_path):
    torch.manual_seed(7)
    unet = diffusers.UNet2DConditionModel(
        **xl.BLOCKS, in_channels=4, out_channels=4, sample_size=16, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=xl.autoencoder(), text_encoder=xl.tower(16, None, "quick_gelu"), unet=unet, safety_checker=None,
        tokenizer=xl.tokenizer(tmp_path / "words", "<|endoftext|>"), scheduler=diffusers.DDIMScheduler(**xl.SCHEDULER),
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "base")
    ldm = ldm_jax.load(tmp_path / "base")
    rng = np.random.default_rng(0)
    for word, count in (("<ink>", 1), ("<two>", 2)):
        path = tmp_path / word / "learned_embeds.safetensors"
        weights.write_embedding(path, word, {"text_encoder": np.float32(rng.standard_normal((count, 16)))})
        ldm = ldm.with_embedding(path)
        pipe.load_textual_inversion(path)
    prompts = ["a <ink> bed", "<two> beside a <ink>", "a bed"]
    with torch.no_grad():
        theirs, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    np.testing.assert_allclose(ldm.embed(ldm.params, prompts)["context"], theirs, atol=2e-5)
