"""Stable Diffusion XL and its refiner: what diffusers draws from a folder with random weights, we draw.

Needs the extra `parity` (torch, diffusers, transformers).
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax import weights
from ldm_jax.drawing.modes import draw
from ldm_jax.primitives.arrays import key_of
from ldm_jax.weights import layouts, naming, safetensors_files
from ldm_jax.weights.layouts import text

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")

from tests.api import xl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
KEY = jax.random.key(0)
PROMPTS = ["a red dot", "blue hill"]
LIMIT = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("xl")
    return xl.pipeline(folder), ldm_jax.load(folder)


def nchw(array):
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def theirs(pipe, noise, **options):
    """Pictures in [-1, 1], NHWC."""
    with torch.no_grad():
        images = pipe(PROMPTS, latents=nchw(noise), output_type="np", **options).images
    return 2 * images - 1


def assert_close(ours, other):
    print(float(np.abs(np.asarray(ours) - other).max()))
    np.testing.assert_allclose(ours, other, atol=LIMIT)


def test_a_tokenizer_for_both(base, tmp_path):
    """The second text encoder's rows are filled up with "!", also by the first one's tokenizer."""
    folder = tmp_path / "model"
    base[0].save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer_2")
    shared = ldm_jax.load(folder)
    for one, other in zip(*(jax.tree.leaves(ldm.embed(ldm.params, PROMPTS)) for ldm in (shared, base[1]))):
        np.testing.assert_array_equal(one, other)
    ldm_jax.save(shared, tmp_path / "saved")
    again = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved")
    assert (again.tokenizer.pad_token, again.tokenizer_2.pad_token) == ("<|endoftext|>", "!")


SCHEDULERS = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "DPM++ 2M Karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
}


@pytest.fixture
def drawn_by(base, tmp_path):
    """The base model with another scheduler, as both have it."""

    def make(kind, **settings):
        pipe = diffusers.StableDiffusionXLPipeline(**base[0].components | {"scheduler": kind(**xl.SCHEDULER | settings)})
        pipe.save_pretrained(tmp_path / "other")
        pipe.set_progress_bar_config(disable=True)
        return pipe, ldm_jax.load(tmp_path / "other")

    return make


@pytest.mark.parametrize("name", SCHEDULERS)
def test_other_schedulers(drawn_by, name):
    kind, settings = SCHEDULERS[name]
    pipe, ldm = drawn_by(kind, **settings)
    noise = ldm.noise(KEY, 2)
    ours = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), noise=noise, steps=5)
    assert_close(ours, theirs(pipe, noise, num_inference_steps=5, guidance_scale=5.0))


def test_sizes_crops_and_negative_prompts(base):
    pipe, ldm = base
    noise = ldm.noise(KEY, 2)
    told = {"original_size": (48, 40), "crop": (3, 5), "target_size": (16, 24)}
    given = [{"prompt": prompt, "prompt_2": "a " + prompt, **told} for prompt in PROMPTS]
    cond, negative = ldm.embed(ldm.params, given), ldm.embed(ldm.params, [{"prompt": "cold", **told}] * 2)
    sizes = {"original_size": (48, 40), "crops_coords_top_left": (3, 5), "target_size": (16, 24)}
    sizes |= {"negative_original_size": (48, 40), "negative_target_size": (16, 24), "negative_crops_coords_top_left": (3, 5)}
    how = {"num_inference_steps": 3, "guidance_scale": 7.0, "prompt_2": ["a " + prompt for prompt in PROMPTS]}
    for steer, words in ((negative, "cold"), (None, None)):
        ours = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=3, guidance_scale=7.0, negative=steer)
        assert_close(ours, theirs(pipe, noise, negative_prompt=[words] * 2 if words else None, **how, **sizes))
    for words in ("", "cold"):  # a text that is empty is none, unless it is said
        negative = ldm.embed(ldm.params, [words] * 2)
        ours = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), noise=noise, steps=3, negative=negative)
        assert_close(ours, theirs(pipe, noise, negative_prompt=[words] * 2, num_inference_steps=3, guidance_scale=5.0))


def test_an_empty_prompt_that_is_read(base, tmp_path):
    pipe = diffusers.StableDiffusionXLPipeline(**base[0].components, force_zeros_for_empty_prompt=False)
    pipe.save_pretrained(tmp_path)
    ldm = ldm_jax.load(tmp_path)
    noise = ldm.noise(KEY, 2)
    ours = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), noise=noise, steps=3)
    assert_close(ours, theirs(pipe, noise, num_inference_steps=3, guidance_scale=5.0))
    assert np.abs(ours - base[1].sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), noise=noise, steps=3)).max() > 1e-2


@pytest.fixture
def drawing(base):
    """(pictures, their latents as diffusers takes them, unit noise)."""
    ldm = base[1]
    rng = np.random.default_rng(1)
    images = np.float32(np.tanh(rng.standard_normal((2, xl.SIDE, xl.SIDE, 3))))
    return images, ldm.noise(KEY, 2)


def with_noise(monkeypatch, kind, noise):
    """The pipeline's one draw, of the start noise."""
    monkeypatch.setattr(f"{kind.__module__}.randn_tensor", lambda *_, **__: nchw(noise))


def test_image_to_image(base, drawing, monkeypatch):
    pipe, ldm = base
    images, noise = drawing
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    with_noise(monkeypatch, kind, noise)
    z, cond = nchw(ldm.encode(ldm.params, images)), ldm.embed(ldm.params, PROMPTS)
    for steps in (5, 8):  # 3 steps are run, and 4 of 4.8
        ours = ldm.image_to_image(ldm.params, KEY, images, cond, strength=0.6, steps=steps, noise=noise)
        with torch.no_grad():
            made = kind(**pipe.components)(
                PROMPTS, image=z, strength=0.6, num_inference_steps=steps, guidance_scale=5.0, output_type="np"
            )
        assert_close(ours, 2 * made.images - 1)


def saved_photo(folder, size):
    """A picture's path, and the picture as it is read."""
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return str(folder / "photo.png"), np.float32(pixels)[None] / 127.5 - 1


@pytest.mark.parametrize("refiner", [False, True], ids=["base", "refiner"])
def test_what_flags_say_of_a_picture_s_size(tmp_path, monkeypatch, refiner):
    """sample.py tells both halves the size of the picture, and of what is led away from that it is bad."""
    torch.manual_seed(3)
    pipe, ldm = xl.pipeline(tmp_path, refiner=refiner), ldm_jax.load(tmp_path)
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    size, how = (48, 32), {"num_inference_steps": 5, "guidance_scale": 5.0, "output_type": "np", "strength": 0.6}
    path, image = saved_photo(tmp_path, size)
    with_noise(monkeypatch, kind, ldm.noise(key_of(0), 1, size))
    pipe = pipe if refiner else kind(**pipe.components)
    for negative in (None, "cold"):
        ours = draw(ldm, {"prompt": PROMPTS[:1], "image": [path], "strength": 0.6, "steps": 5, "num": 1, "negative": negative})
        against = None if negative is None else [negative]
        with torch.no_grad():
            made = pipe(PROMPTS[:1], image=nchw(ldm.encode(ldm.params, image)), negative_prompt=against, **how)
        assert_close(ours.images, 2 * made.images - 1)


def test_what_flags_say_of_a_size(base):
    """Of a plain sample of another size than the training's, led away from a prompt; and of a film's ends."""
    pipe, ldm = base
    size, how = (48, 32), {"height": 48, "width": 32, "num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np"}
    noise = nchw(ldm.noise(key_of(0), 1, size))
    flags = {"prompt": PROMPTS, "size": "48x32", "steps": 3, "num": 1}
    for negative in (None, "cold"):
        theirs = []
        for prompt in PROMPTS:
            with torch.no_grad():
                against = None if negative is None else [negative]
                theirs.append(2 * pipe([prompt], negative_prompt=against, latents=noise, **how).images[0] - 1)
        assert_close(draw(ldm, flags | {"prompt": PROMPTS[:1], "negative": negative}).images, theirs[:1])
        assert_close(draw(ldm, flags | {"interpolate": 3, "negative": negative}).images[::2], theirs)


def test_inpainting(base, drawing, monkeypatch):
    """A network of four channels: what is known is put back after every step."""
    pipe, ldm = base
    images, noise = drawing
    kind = diffusers.StableDiffusionXLInpaintPipeline
    with_noise(monkeypatch, kind, noise)
    mask = np.zeros((2, xl.SIDE, xl.SIDE), np.float32)
    mask[:, 8:24, 4:20] = 1
    z = nchw(ldm.encode(ldm.params, images))
    how = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "np"}
    for strength in (1.0, 0.5):
        ours = ldm.inpaint(
            ldm.params, KEY, images, mask, ldm.embed(ldm.params, PROMPTS), steps=4, strength=strength, noise=noise
        )
        with torch.no_grad():
            made = kind(**pipe.components)(
                PROMPTS, image=z, mask_image=torch.from_numpy(mask[:, None]), strength=strength, height=xl.SIDE,
                width=xl.SIDE, **how,
            )  # fmt: skip
        inside = mask > 0
        assert_close(np.asarray(ours)[inside], (2 * made.images - 1)[inside])
        np.testing.assert_array_equal(np.asarray(ours)[~inside], images[~inside])


def test_what_is_known_is_decoded_clean(tmp_path, drawing, monkeypatch):
    """Of a scheduler that ends above clean, too: the decoder shows what lies beside a hole inside of it."""
    torch.manual_seed(2)
    scheduler = diffusers.DDIMScheduler(**xl.SCHEDULER, clip_sample=False, set_alpha_to_one=False)
    pipe, ldm = xl.pipeline(tmp_path, scheduler=scheduler), ldm_jax.load(tmp_path)
    images, noise = drawing
    kind = diffusers.StableDiffusionXLInpaintPipeline
    with_noise(monkeypatch, kind, noise)
    mask = np.zeros((2, xl.SIDE, xl.SIDE), np.float32)
    mask[:, 8:24, 4:20] = 1
    ours = ldm.inpaint(ldm.params, KEY, images, mask, ldm.embed(ldm.params, PROMPTS), steps=4, strength=0.5, noise=noise)
    with torch.no_grad():
        made = kind(**pipe.components)(
            PROMPTS, image=nchw(ldm.encode(ldm.params, images)), mask_image=torch.from_numpy(mask[:, None]), strength=0.5,
            height=xl.SIDE, width=xl.SIDE, num_inference_steps=4, guidance_scale=5.0, output_type="np",
        )  # fmt: skip
    assert_close(np.asarray(ours)[mask > 0], (2 * made.images - 1)[mask > 0])


def test_the_refiner(tmp_path, drawing, monkeypatch):
    """One tower, and a score of how good the picture is to look: 6 for it, 2.5 for what guidance steers away from."""
    torch.manual_seed(1)
    pipe = xl.pipeline(tmp_path, refiner=True)
    ldm = ldm_jax.load(tmp_path)
    images, noise = drawing
    with_noise(monkeypatch, type(pipe), noise)
    z = nchw(ldm.encode(ldm.params, images))
    how = {"strength": 0.5, "num_inference_steps": 6, "guidance_scale": 5.0, "output_type": "np", "image": z}
    for score in (6.0, 4.5):
        cond = ldm.embed(ldm.params, [{"prompt": prompt, "aesthetic_score": score} for prompt in PROMPTS])
        ours = ldm.image_to_image(ldm.params, KEY, images, cond, strength=0.5, steps=6, noise=noise)
        with torch.no_grad():
            assert_close(ours, 2 * pipe(PROMPTS, aesthetic_score=score, **how).images - 1)


@pytest.mark.parametrize("refiner", [False, True], ids=["base", "refiner"])
def test_what_is_saved_diffusers_draws_with(tmp_path, refiner):
    torch.manual_seed(4)
    xl.pipeline(tmp_path / "theirs", refiner=refiner)
    ldm = ldm_jax.load(tmp_path / "theirs")
    ldm_jax.save(ldm, tmp_path / "ours")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    pipe.set_progress_bar_config(disable=True)
    kind = diffusers.StableDiffusionXLImg2ImgPipeline if refiner else diffusers.StableDiffusionXLPipeline
    assert type(pipe) is kind
    again = ldm_jax.load(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, again.params, ldm.params)
    noise, cond = ldm.noise(KEY, 2), ldm.embed(ldm.params, PROMPTS)
    np.testing.assert_array_equal(again.embed(again.params, PROMPTS)["vector"], cond["vector"])
    if not refiner:
        ours = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=3)
        assert_close(ours, theirs(pipe, noise, num_inference_steps=3, guidance_scale=5.0))


def single_file(folder, path):
    """The pipeline in `folder` as one file under the names of its authors' code (CompVis's U-Net and autoencoder, transformers'
    and OpenCLIP's text encoders), in half precision."""
    checkpoint = weights.read(folder)
    of, params = checkpoint.description, checkpoint.params
    parts = {
        "model.diffusion_model.": naming.flattened(layouts.unet(of["network"]), params["network"], "unet"),
        "first_stage_model.": naming.flattened(layouts.autoencoder(of["first_stage"]), params["first_stage"], "vae"),
    }
    network = parts["model.diffusion_model."]  # whose projections around attention are linear layers in the published files
    for name, array in network.items():
        if name.endswith((".proj_in.weight", ".proj_out.weight")) and array.ndim == 4:
            network[name] = np.asarray(array)[..., 0, 0]
    for number, (name, fields) in enumerate(of["conditioner"]["towers"].items()):
        own = naming.flattened(layouts.clip_text(fields), params["conditioner"][name], name)
        if name == "text_encoder":
            own = naming.prefixed(own, "transformer.text_model.")
        else:
            own = naming.prefixed(text.to_openclip(own), "model.") | {"model.logit_scale": np.float16(1.0)}
        parts[f"conditioner.embedders.{number}."] = own
    tensors = {}
    for prefix, own in parts.items():
        tensors |= {prefix + name: np.asarray(array).astype(np.float16) for name, array in own.items()}
    safetensors_files.write(path, tensors)


def test_a_single_file_of_half_precision(tmp_path):
    """What diffusers draws from it, given the folder's configurations, we draw without any."""
    torch.manual_seed(2)
    folder = tmp_path / "folder"
    xl.pipeline(folder, **xl.with_heads_of_64())
    (tmp_path / "alone").mkdir()
    path = tmp_path / "alone" / "model.safetensors"
    single_file(folder, path)
    kind = diffusers.StableDiffusionXLPipeline
    pipe = kind.from_single_file(str(path), config=str(folder), local_files_only=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    ldm = ldm_jax.load(path, tokenizer=folder / "tokenizer")  # one, which both towers share
    with pytest.raises(ValueError, match="because no tokenizer was found"):
        ldm_jax.load(path).embed(ldm.params, PROMPTS)
    assert ldm.config["latents"]["scale"] == 0.13025 and ldm.specification.image_size == (1024, 1024)
    noise = jax.random.normal(KEY, (2, xl.SIDE // 2, xl.SIDE // 2, 4))
    cond = ldm.embed(ldm.params, [{"prompt": prompt, "target_size": (xl.SIDE, xl.SIDE)} for prompt in PROMPTS])
    ours = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=4)
    assert_close(ours, theirs(pipe, noise, num_inference_steps=4, guidance_scale=5.0))
    half = ldm_jax.load(path, dtype=jnp.bfloat16)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(half.params["network"])} == {"bfloat16"}


def test_half_precision_keeps_the_autoencoder_in_float32(base, tmp_path):
    pipe, ldm = base
    pipe.save_pretrained(tmp_path)
    half = ldm_jax.load(tmp_path, dtype=jnp.bfloat16)
    kinds = {name: {str(leaf.dtype) for leaf in jax.tree.leaves(part)} for name, part in half.params.items()}
    assert kinds == {"first_stage": {"float32"}, "network": {"bfloat16"}, "conditioner": {"bfloat16"}}
    z = ldm.noise(KEY, 1)
    np.testing.assert_array_equal(half.decode(half.params, z), ldm.decode(ldm.params, z))
    images = half.sample(half.params, KEY, half.embed(half.params, PROMPTS), steps=3)
    whole = ldm.sample(ldm.params, KEY, ldm.embed(ldm.params, PROMPTS), steps=3)
    assert 0 < np.abs(images - whole).mean() < 0.1


def test_the_same_noise_gives_the_same_pictures(base):
    pipe, ldm = base
    noise = ldm.noise(KEY, 2)
    cond = ldm.embed(ldm.params, PROMPTS)
    ours = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=4, guidance_scale=5.0)
    assert np.asarray(ours).std() > 0.05
    assert_close(ours, theirs(pipe, noise, num_inference_steps=4, guidance_scale=5.0))
    assert ldm.config["sampling"]["guidance_scale"] == 5.0 and ldm.specification.image_size == (xl.SIDE, xl.SIDE)
