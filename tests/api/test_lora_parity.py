"""LoRA beside diffusers: files that one writes the other draws with.

Needs the extra `parity` (torch, diffusers, transformers, peft).
"""

import jax
import numpy as np
import pytest

import ldm_jax

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")
peft = pytest.importorskip("peft", reason="the extra `parity` has peft")

from tests.api import xl  # noqa: E402
from tests.api.test_xl_parity import KEY, LIMIT, PROMPTS, theirs  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("xl")
    return xl.pipeline(folder), ldm_jax.load(folder)


def with_adapters(pipe, folder):
    """The same pipeline with random LoRAs of its network and both text encoders, saved as diffusers does."""
    torch.manual_seed(3)
    own = type(pipe).from_pretrained(pipe_folder(pipe, folder))
    own.set_progress_bar_config(disable=True)
    layers = {
        "unet": peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_v", "ff.net.0.proj"]),
        "text_encoder": peft.LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["q_proj", "fc1"]),
        "text_encoder_2": peft.LoraConfig(r=2, lora_alpha=1, init_lora_weights=False, target_modules=["v_proj"]),
    }
    tensors = {}
    for name, config in layers.items():
        model = getattr(own, name)
        peft.inject_adapter_in_model(config, model)
        tensors[name] = peft.get_peft_model_state_dict(model)
    own.save_lora_weights(
        folder / "lora", unet_lora_layers=tensors["unet"], text_encoder_lora_layers=tensors["text_encoder"],
        text_encoder_2_lora_layers=tensors["text_encoder_2"],
        unet_lora_adapter_metadata=layers["unet"].to_dict(),
        text_encoder_lora_adapter_metadata=layers["text_encoder"].to_dict(),
        text_encoder_2_lora_adapter_metadata=layers["text_encoder_2"].to_dict(),
    )  # fmt: skip
    return own


def pipe_folder(pipe, folder):
    pipe.save_pretrained(folder / "base")
    return folder / "base"


def test_a_lora_of_diffusers(base, tmp_path):
    pipe, ldm = base
    own = with_adapters(pipe, tmp_path)
    noise = ldm.noise(KEY, 2)
    styled = ldm.with_lora(tmp_path / "lora")
    ours = styled.sample(styled.params, KEY, styled.embed(styled.params, PROMPTS), noise=noise, steps=3)
    made = theirs(own, noise, num_inference_steps=3, guidance_scale=5.0)
    np.testing.assert_allclose(ours, made, atol=LIMIT)
    plain = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), noise=noise, steps=3)
    assert np.abs(ours - plain).max() > 0.05

    lora = ldm.read_lora(tmp_path / "lora")
    half = jax.jit(lambda scale: ldm.with_lora(lora, scale).params)(0.5)  # the scale is traced
    again = ldm.with_lora([lora, lora], [0.25, 0.25]).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), half, again)


@pytest.mark.parametrize("parts", [("network",), ("network", "conditioner")], ids=["network", "with text encoders"])
def test_ours_is_loaded_by_diffusers(base, tmp_path, parts):
    pipe, ldm = base
    with_adapters(pipe, tmp_path)
    lora = {name: part for name, part in ldm.read_lora(tmp_path / "lora").items() if name in parts}
    ldm.save_lora(lora, tmp_path / "ours")
    other = type(pipe).from_pretrained(pipe_folder(pipe, tmp_path))
    other.set_progress_bar_config(disable=True)
    try:
        other.load_lora_weights(tmp_path / "ours")
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"this transformers loads no adapter of a text encoder: {error}")
    noise = ldm.noise(KEY, 2)
    styled = ldm.with_lora(lora)
    ours = styled.sample(styled.params, KEY, styled.embed(styled.params, PROMPTS), noise=noise, steps=3)
    np.testing.assert_allclose(ours, theirs(other, noise, num_inference_steps=3, guidance_scale=5.0), atol=LIMIT)
