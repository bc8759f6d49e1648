"""The modes on checkpoints of CompVis, with the reference's numbers where it has any."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

import ldm_jax
from ldm_jax import build
from ldm_jax.drawing import modes as sample
from ldm_jax.retrieval.database import Database
from tests.weights import cases

pytestmark = pytest.mark.parity
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def whole_model(fixtures_dir):
    """A whole checkpoint, its arrays and settings, its condition and the empty one."""
    found = cases.folders(fixtures_dir, "D", "config.yaml")
    if not found:
        pytest.skip(f"no checkpoint of CompVis in {fixtures_dir}")
    ldm, io = ldm_jax.load(found[0] / "model.ckpt"), cases.arrays(found[0] / "io.npz")
    name = next(name for name in io if name.startswith("uncond_"))
    conds = [ldm.embed(ldm.params, jnp.asarray(io[key], jnp.int32)) for key in (name.removeprefix("uncond_"), name)]
    return ldm, io, json.loads((found[0] / "config.json").read_text()), conds


def test_the_references_noise_makes_its_pictures(whole_model):
    ldm, io, config, (cond, negative) = whole_model
    how = {"steps": config["steps"], "guidance_scale": config["guidance_scale"], "negative": negative}
    images = ldm.sample(ldm.params, KEY, cond, noise=jnp.asarray(io["x_T"], jnp.float32), **how)
    cases.compare("sample", images, np.clip(io["ddim_ema.image"], -1, 1), 1e-3)


def test_an_edit_to_the_same_comes_back_exactly(whole_model):
    """As DDIM ends at a level with a little noise here, every step's noise is known, and nothing is lost but that level's
    alpha."""
    ldm, io, _, (cond, _) = whole_model
    p, image = ldm.params, io["image"]
    back = ldm.edit(p, KEY, image, cond, cond, guidance_scale=1.0, steps=10, strength=0.5)
    alpha = float(build.make_recipe(ldm.config).grid(10).alpha[-1])
    np.testing.assert_allclose(back, jnp.clip(ldm.decode(p, alpha * ldm.encode(p, image)), -1, 1), atol=2e-3)


@dataclasses.dataclass(frozen=True)
class Parts:
    """A model loaded from a checkpoint of CompVis, put together from stored parts, and the stored arrays of its U-Net."""

    ldm: ldm_jax.LatentDiffusion
    io: dict[str, np.ndarray]

    @property
    def factor(self) -> int:
        return self.ldm.first_stage.factor

    @property
    def side(self) -> int:
        """Of the pictures whose latents have the size of the stored arrays."""
        return self.io["x"].shape[1] * self.factor

    def noise_of(self, cond: dict[str, jax.Array], x: np.ndarray | None = None) -> jax.Array:
        x = jnp.asarray(self.io["x"] if x is None else x)
        return jax.jit(self.ldm.apply)(self.ldm.params, x, jnp.asarray(self.io["t"]), cond)


@pytest.fixture
def put_together(fixtures_dir, tmp_path):
    """(U-Net, first stage, cond_stage_config, conditioning_key) -> Parts; `change` edits the U-Net's tensors and arguments,
    `encoder` is the folder of the conditioner's weights. In place of a first stage with other channels than the U-Net comes one
    that has them."""

    def make(network, stage, cond_stage, key, change=None, encoder=None):
        if (fixtures_dir / network).is_dir():
            stage = fitting_stage(fixtures_dir, network, stage)
        folders = {"model.diffusion_model.": network, "first_stage_model.": stage, "cond_stage_model.": encoder}
        folders = {prefix: fixtures_dir / name for prefix, name in folders.items() if name}
        if missing := [folder for folder in folders.values() if not folder.is_dir()]:
            pytest.skip(f"no {missing[0]}")
        tensors, args = {}, {}
        for prefix, folder in folders.items():
            args[prefix] = json.loads((folder / "config.json").read_text())["args"]
            own = {name: value.astype(np.float32) for name, value in load_file(folder / "weights.safetensors").items()}
            if prefix == "model.diffusion_model." and change is not None:
                change(own, args[prefix])
            tensors |= {prefix + name: np.ascontiguousarray(value) for name, value in own.items()}
        save_file(tensors, tmp_path / "model.safetensors")
        kind = "VQModelInterface" if "n_embed" in args["first_stage_model."] else "AutoencoderKL"
        params = {
            "linear_start": 0.0015, "linear_end": 0.0205, "timesteps": 1000,
            "image_size": args["model.diffusion_model."]["image_size"],
            "channels": args["model.diffusion_model."]["out_channels"],
            "conditioning_key": key, "first_stage_key": "image",
            "unet_config": {"target": f"{MODULES}.diffusionmodules.openaimodel.UNetModel",
                            "params": args["model.diffusion_model."]},
            "first_stage_config": {"target": f"ldm.models.autoencoder.{kind}", "params": args["first_stage_model."]},
            "cond_stage_config": cond_stage(args.get("cond_stage_model.")) if callable(cond_stage) else cond_stage,
        }  # fmt: skip
        model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}
        (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": model}))
        return Parts(ldm_jax.load(tmp_path / "model.safetensors"), cases.arrays(fixtures_dir / network / "io.npz"))

    return make


def stored_args(folder) -> dict:
    return json.loads((folder / "config.json").read_text())["args"]


def fitting_stage(root, network: str, stage: str) -> str:
    channels = stored_args(root / network)["out_channels"]
    names = [stage, *(folder.name for folder in cases.folders(root, "B", "config.json"))]
    fitting = [name for name in names if (root / name).is_dir() and stored_args(root / name)["embed_dim"] == channels]
    return fitting[0] if fitting else pytest.skip(f"{network} has {channels} channels; no first stage in {root} has")


MODULES = "ldm.modules"
ENCODERS = f"{MODULES}.encoders.modules"
LIMIT = 2e-5


def seeing(channels: int):
    """Makes a U-Net without a condition see c with so many channels beside x: it answers to (x - `seen`(c), c) what it answered
    to x."""

    def change(tensors, args):
        name = "input_blocks.0.0.weight"
        mix = mixing(tensors[name].shape[1], channels)
        tensors[name] = np.concatenate([tensors[name], np.einsum("oxhw,xc->ochw", tensors[name], mix)], axis=1)
        args["in_channels"] += channels

    return change


def mixing(latents: int, channels: int) -> np.ndarray:
    return np.random.default_rng(channels).normal(0, 1, (latents, channels)).astype(np.float32)


def seen(c: np.ndarray, latents: int) -> np.ndarray:
    return np.asarray(c) @ mixing(latents, c.shape[-1]).T


def drawn(parts: Parts, **flags) -> np.ndarray:
    images = sample.draw(parts.ldm, {"num": 2, "steps": 2, **flags}).images
    assert np.isfinite(images).all() and np.abs(images).max() <= 1 and images.std() > 0.01
    return images


def write_picture(path, shape: tuple[int, ...], top: int = 256) -> str:
    values = np.random.default_rng(0).integers(0, top, shape).astype(np.uint8)
    Image.fromarray(values).save(path)
    return str(path)


@pytest.mark.slow
def test_unconditional_model(put_together):
    parts = put_together("A1_uncond_headch", "B3_vq", "__is_unconditional__", None)
    cases.compare("eps", parts.noise_of(None), parts.io["out"], LIMIT)
    side = parts.side
    assert drawn(parts).shape == (2, *parts.ldm.specification.image_size, 3)
    assert drawn(parts, size=f"{side}x{2 * side}").shape == (2, side, 2 * side, 3)


def test_super_resolution_model(put_together, tmp_path):
    """As much larger as the first stage's latents are smaller: the small picture lies beside latents of its size."""
    parts = put_together("A1_uncond_headch", "B3_vq", {"target": "torch.nn.Identity"}, "concat", seeing(3))
    ldm, rng = parts.ldm, np.random.default_rng(0)
    x, factor = parts.io["x"], parts.factor
    low = rng.uniform(-1, 1, (*x.shape[:-1], 3)).astype(np.float32)
    cond = ldm.embed(ldm.params, list(low))
    cases.compare("eps", parts.noise_of(cond, x - seen(low, x.shape[-1])), parts.io["out"], LIMIT)
    images = drawn(parts, upscale=write_picture(tmp_path / "low.png", (20, 16, 3)))
    assert images.shape == (2, 20 * factor, 16 * factor, 3)


def test_semantic_model(put_together, tmp_path, fixtures_dir):
    folder = fixtures_dir / "C3a_spatial_rescaler"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    given, network = stored_args(folder), "A1_uncond_headch"
    classes = given["in_channels"]
    stage = fitting_stage(fixtures_dir, network, "B3_vq")
    halvings = len(stored_args(fixtures_dir / stage)["ddconfig"]["ch_mult"]) - 1
    parts = put_together(
        network, stage,
        lambda args: {"target": f"{ENCODERS}.SpatialRescaler",
                      "params": args | {"n_stages": halvings, "method": "bilinear", "multiplier": 0.5}},
        "concat", seeing(given["out_channels"]), encoder=folder.name,
    )  # fmt: skip
    ldm, rng, factor = parts.ldm, np.random.default_rng(0), parts.factor
    x = parts.io["x"]
    label_maps = rng.integers(0, classes, (len(x), *(side * factor for side in x.shape[1:3])))
    cond = ldm.embed(ldm.params, list(label_maps))
    mapper = load_file(folder / "weights.safetensors")
    wide = np.eye(classes, dtype=np.float32)[label_maps]
    while wide.shape[1] > x.shape[1]:  # bilinear, by half
        wide = wide.reshape(len(x), wide.shape[1] // 2, 2, wide.shape[2] // 2, 2, classes).mean((2, 4))
    expected = wide @ mapper["channel_mapper.weight"][:, :, 0, 0].T + mapper.get("channel_mapper.bias", 0)
    cases.compare("map", cond["concat"], expected, LIMIT)
    cases.compare("eps", parts.noise_of(cond, x - seen(cond["concat"], x.shape[-1])), parts.io["out"], LIMIT)
    tall, wide = 16 * factor, 24 * factor
    picture = write_picture(tmp_path / "map.png", (tall, wide), classes)
    assert drawn(parts, map=[picture]).shape == (2, tall, wide, 3)


def reading(context: np.ndarray, encoded: np.ndarray):
    """Makes a U-Net that reads `context` [B, L, D] read `encoded` [B, L, E] instead, by E x D numbers that turn one into the
    other."""

    def change(tensors, args):
        turn = np.linalg.lstsq(encoded.reshape(-1, encoded.shape[-1]), context.reshape(-1, context.shape[-1]), rcond=None)[0]
        for name in tensors:
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                tensors[name] = (tensors[name].astype(np.float64) @ turn.T).astype(np.float32)
        args["context_dim"] = encoded.shape[-1]

    return change


@pytest.mark.parametrize("kind", [pytest.param("layout", marks=pytest.mark.slow), "text"])
def test_models_with_the_papers_transformer(kind, put_together, tmp_path, fixtures_dir):
    words, network = fixtures_dir / "C2_bert_embedder", fixtures_dir / "A4_st3_headch"
    if not (words.is_dir() and network.is_dir()):
        pytest.skip(f"no {words} or no {network}")
    known, context = np.load(words / "io.npz"), np.load(network / "io.npz")["context"]
    if context.shape[:2] != known["out"].shape[:2] or context[..., 0].size > known["out"].shape[-1]:
        pytest.skip(f"no numbers turn {words.name}'s {known['out'].shape} into {network.name}'s {context.shape}")
    if kind == "text":
        size = stored_args(words)["vocab_size"] - 4
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(size))]
        (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    parts = put_together(
        "A4_st3_headch", "B3_vq",
        lambda args: {"target": f"{ENCODERS}.BERTEmbedder", "params": args | {"use_tokenizer": kind == "text"}},
        "crossattn", reading(context, known["out"]), encoder="C2_bert_embedder",
    )  # fmt: skip
    ldm = parts.ldm
    assert ldm.condition.kind == kind
    cond = ldm.embed(ldm.params, known["tokens"].astype(np.int32))
    cases.compare("context", cond["context"], known["out"], LIMIT)
    cases.compare("eps", parts.noise_of(cond), parts.io["out"], 1e-4)  # the numbers that turn contexts are not small
    if kind == "text":
        assert drawn(parts, prompt=["wordaa wordbc", "wordab"]).shape == (4, *ldm.specification.image_size, 3)
    else:
        layout = tmp_path / "layout.json"
        layout.write_text(json.dumps([{"label": 3, "box": [0.1, 0.1, 0.5, 0.6]}]))
        assert drawn(parts, layout=[str(layout)]).shape == (2, *ldm.specification.image_size, 3)


@pytest.mark.slow
def test_retrieval_model(put_together, tmp_path):
    parts = put_together("A6_legacy_false", "B1_kl", {"target": "torch.nn.Identity"}, "crossattn")
    ldm, vectors = parts.ldm, parts.io["context"]
    assert ldm.condition.kind == "retrieval"
    cases.compare("eps", parts.noise_of(ldm.embed(ldm.params, list(vectors))), parts.io["out"], LIMIT)
    base = vectors.reshape(-1, vectors.shape[-1])
    base = (base / np.linalg.norm(base, axis=-1, keepdims=True)).astype(np.float32)
    names = tuple(f"{i}.png" for i in range(len(base)))
    database = Database(names, base, len(base), np.arange(len(base), dtype=np.int32) % 2, ("even", "odd"))
    database.save(tmp_path / "base", np.zeros((len(base), 1), np.int32))
    images = drawn(parts, database=str(tmp_path / "base"), label=["odd"], neighbours=3)
    assert images.shape == (2, *ldm.specification.image_size, 3)


def test_inpainting_model(put_together):
    """A U-Net with concatenated condition and a VQ first stage of the reference, put together as its inpainting model."""
    parts = put_together("A5_concat", "B3_vq", "__is_first_stage__", "concat")
    ldm, p = parts.ldm, parts.ldm.params
    assert ldm.abilities == ("inpaint", "outpaint")
    cases.compare("eps", parts.noise_of({"concat": jnp.asarray(parts.io["c_concat"])}), parts.io["out"], LIMIT)

    side, factor = parts.side, parts.factor
    image = np.random.default_rng(0).uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
    mask = np.zeros(image.shape[:3], np.float32)
    mask[:, side // 4 : side * 5 // 8, side // 8 : side * 15 // 16] = 1
    out = np.asarray(ldm.inpaint(p, KEY, image, mask, steps=5))
    assert np.array_equal(out[mask == 0], image[mask == 0])
    # by the reference's script: holes are cut in [0, 1], the mask is shrunk by its nearest pixels, both go to [-1, 1]
    holes = ((image + 1) / 2 * (1 - mask[..., None])) * 2 - 1
    told = jnp.concatenate([ldm.encode(p, holes), mask[:, ::factor, ::factor, None] * 2 - 1], -1)
    by_hand = ldm.sample(p, KEY, {"concat": told}, steps=5, guidance_scale=1.0)
    np.testing.assert_allclose(out[mask == 1], np.asarray(by_hand)[mask == 1], atol=1e-3)
