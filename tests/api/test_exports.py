"""Every kind of model that is trained here, written for diffusers: diffusers itself loads the folder and draws from it, we load
it back, and both draw what the model drew before, from the same noise."""

import dataclasses
import functools
import inspect
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import LatentDiffusion, build
from ldm_jax.api import Specification
from ldm_jax.data.tokenizer import train_tokenizer
from tests import tiny

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="needs the extra parity: pip install -e .[parity]")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity: pip install -e .[parity]")

KEY = jax.random.key(0)
STEPS, SCALE, LIMIT = 4, 3.0, 1e-4
VQ = {"kind": "vq", "double_z": False, "n_embed": 16}
DIT = {
    "kind": "dit", "depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": 2, "input_size": 4, "in_channels": 4,
    "num_classes": 3, "learn_sigma": False, "shared_embedder": True, "freq_shift": 1.0,
}  # fmt: skip
PLAIN = {"use_spatial_transformer": False, "context_dim": None}
FLOW = {"schedule": "flow", "prediction": "flow", "shift": 2.0}
LINEAR = {"schedule": "scaled_linear", "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "prediction": "eps"}
TEXT = tiny.CONFIG["conditioner"]


def made(conditioner=None, network=None, stage=None, diffusion=None, scale=0.5, shift=0.0, classes=tiny.CLASSES):
    """A tiny model with random weights, like those of `tests.tiny`, with other settings."""
    sections = {"conditioner": conditioner or {"kind": "none"}}
    sections["network"] = network if network and "depth" in network else tiny.CONFIG["network"] | (network or {})
    sections["first_stage"] = tiny.CONFIG["first_stage"] | (stage or {})
    sections["diffusion"] = diffusion or LINEAR
    config = tiny.CONFIG | sections
    factor = 1 if config["first_stage"]["kind"] == "none" else 2 ** (len(config["first_stage"]["ch_mult"]) - 1)
    config["data"] = {"image_size": 4 * factor if factor > 1 else 8}
    tokenizer = None
    if config["conditioner"]["kind"] == "text":
        tokenizer = train_tokenizer(["a red circle", "a blue star"])
        path = Path(tempfile.mkdtemp()) / "tokenizer.json"
        tokenizer.save(path)
        config["conditioner"] = config["conditioner"] | {"tokenizer": str(path)}
    condition = build.make_condition(config, classes, tokenizer)

    def init(key):
        return {"first_stage": build.make_first_stage(config).init(key), **build.make_diffusion_init(config, condition)(key)}

    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        spread = leaf.size / leaf.shape[-1] if path[-1].key == "kernel" else 25.0
        spread = 1.0 if path[-1].key == "embedding" else spread
        return jnp.asarray(noise / np.sqrt(spread) + (path[-1].key == "scale"))

    params = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, KEY))
    return LatentDiffusion(Specification(config, condition, scale, shift), params)


@dataclasses.dataclass
class Kind:
    """`model`: makes it; `values`: what `embed` takes; `call`: what the pipeline takes for the same; `load`: how it is
    loaded."""

    pipeline: str
    model: functools.partial
    values: list | None = None
    call: dict = dataclasses.field(default_factory=dict)
    guided: bool = True
    load: dict = dataclasses.field(default_factory=dict)


CAPTIONS = ["a red circle", "a blue star"]
NAMES = ["square", "star"]
F8 = {"ch_mult": [1, 1, 1, 1], "resolution": 32}
KINDS = {
    "pixels": Kind(
        "DDIMPipeline",
        functools.partial(made, network=PLAIN | {"in_channels": 3, "out_channels": 3}, stage={"kind": "none"}, scale=1.0),
    ),
    "unconditional, KL": Kind("LDMPipeline", functools.partial(made, network=PLAIN, shift=0.25)),
    "unconditional, VQ": Kind("LDMPipeline", functools.partial(made, network=PLAIN, stage=VQ, shift=0.25)),
    "unconditional, rectified flow": Kind("LDMPipeline", functools.partial(made, network=PLAIN, diffusion=FLOW)),
    "class": Kind(
        "StableDiffusionPipeline",
        functools.partial(made, {"kind": "class", "n_classes": 4, "embed_dim": 8}, diffusion=tiny.CONFIG["diffusion"]),
        NAMES,
        {"prompt": NAMES},
    ),
    "text": Kind("StableDiffusionPipeline", functools.partial(made, TEXT | {"max_seq_len": 6}), CAPTIONS, {"prompt": CAPTIONS}),
    "text of the paper": Kind(
        "LDMTextToImagePipeline",
        functools.partial(made, TEXT | {"max_seq_len": 77}, stage=VQ | F8),
        CAPTIONS,
        {"prompt": CAPTIONS},
    ),
    "label, transformer": Kind(
        "DiTPipeline", functools.partial(made, {"kind": "label", "n_classes": 3}, DIT), NAMES, {"class_labels": [1, 2]}
    ),
    "label, transformer with VQ": Kind(
        "DiTPipeline",
        functools.partial(made, {"kind": "label", "n_classes": 3}, DIT | {"shared_embedder": False}, stage=VQ),
        NAMES,
        {"class_labels": [1, 2]},
    ),
    "super-resolution": Kind(
        "LDMSuperResolutionPipeline",
        functools.partial(
            made,
            {"kind": "superres", "scale": 2},
            PLAIN | {"in_channels": 6, "out_channels": 3},
            VQ | {"z_channels": 3, "embed_dim": 3},
        ),
        list(np.random.default_rng(1).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)),
        guided=False,
    ),
    "retrieval": Kind(
        "StableDiffusionPipeline",
        functools.partial(made, {"kind": "retrieval", "neighbours": 2}),
        list(np.random.default_rng(1).standard_normal((2, 2, 8)).astype(np.float32)),
        load={"text_encoder": None, "tokenizer": None},
    ),
    "layout": Kind(
        "StableDiffusionPipeline",
        functools.partial(made, {"kind": "layout", "n_embed": 8, "n_layer": 1, "max_seq_len": 8, "vocab_size": 102}),
        [[{"label": 0, "box": [0.1, 0.1, 0.5, 0.6]}], [{"label": 2, "box": [0.0, 0.2, 0.9, 0.9]}]],
        load={"text_encoder": None, "tokenizer": None},
    ),
}


def theirs(kind: Kind, folder, noise, cond, negative) -> np.ndarray:
    """What diffusers draws from the folder, float [B, H, W, 3] in [0, 1], starting from our noise."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **kind.load)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == kind.pipeline
    start = torch.from_numpy(np.moveaxis(np.asarray(noise), -1, 1).copy())
    given = dict(kind.call)
    takes = inspect.signature(pipe.__call__).parameters
    if "prompt_embeds" in takes and "prompt" not in given:
        given |= {"prompt_embeds": torch.tensor(np.asarray(cond["context"]))}
        given |= {"negative_prompt_embeds": torch.tensor(np.asarray(negative["context"]))}
    if kind.pipeline == "LDMSuperResolutionPipeline":
        given["image"] = torch.from_numpy(np.moveaxis(np.stack(kind.values), -1, 1).copy())
    if "guidance_scale" in takes:
        given["guidance_scale"] = SCALE
    if "batch_size" in takes:
        given["batch_size"] = len(noise)
    if "latents" in takes:
        given["latents"] = start
    with pytest.MonkeyPatch.context() as patch:
        if "latents" not in takes:  # pipelines that draw their noise themselves
            module = inspect.getmodule(type(pipe))
            patch.setattr(module, "randn_tensor", lambda shape, **_: start.reshape(tuple(shape)))
        return pipe(num_inference_steps=STEPS, output_type="np", **given).images


@pytest.mark.parametrize("name", KINDS)
def test_diffusers_draws_from_what_is_saved(name, tmp_path):
    kind = KINDS[name]
    ldm = kind.model()
    ldm_jax.save(ldm, tmp_path / "saved")
    back = ldm_jax.load(tmp_path / "saved")
    assert back.specification.image_size == ldm.specification.image_size
    assert back.condition.kind == ldm.condition.kind
    if ldm.condition.kind in ("class", "label", "layout"):
        assert tuple(back.condition.setting.class_names) == tiny.CLASSES
    noise = ldm.noise(KEY, 2)
    cond = None if kind.values is None else back.embed(back.params, kind.values)
    how = {"steps": STEPS, "guidance_scale": SCALE if kind.guided and cond is not None else 1.0, "noise": noise}
    ours = back.sample(back.params, KEY, cond, num=2, **how)
    negative = None if cond is None else back.null(back.params, 2)
    drawn = theirs(kind, tmp_path / "saved", noise, cond, negative)
    assert drawn.shape == ours.shape and drawn.std() > 0.02
    np.testing.assert_allclose(ours / 2 + 0.5, drawn, atol=LIMIT)

    # the same network and conditioner; the first stage may have taken scale and shift of the latents
    for part in ("network", "conditioner"):
        jax.tree.map(np.testing.assert_array_equal, back.params[part], ldm.params[part])
    z = np.random.default_rng(2).standard_normal((1, *noise.shape[1:])).astype(np.float32)
    np.testing.assert_allclose(back.decode(back.params, z), ldm.decode(ldm.params, z), atol=LIMIT)
    jax.clear_caches()


def test_names_of_classes_are_the_transformer_pipeline_s(tmp_path):
    ldm_jax.save(KINDS["label, transformer"].model(), tmp_path / "saved")
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert pipe.get_label_ids(["star"]) == [tiny.CLASSES.index("star")]


REFUSED = {
    "semantic": (functools.partial(tiny.model, "semantic"), "takes what this model takes"),
    "inpaint": (functools.partial(tiny.model, "inpaint"), "takes what this model takes"),
    "four channels and a small picture": (functools.partial(tiny.model, "superres"), "LDMSuperResolutionPipeline wants"),
    "class and VQ": (
        functools.partial(made, {"kind": "class", "n_classes": 4, "embed_dim": 8}, stage=VQ),
        "with a first stage of kind 'vq'",
    ),
    "label and U-Net": (
        functools.partial(made, {"kind": "label", "n_classes": 3}, PLAIN | {"num_classes": 4}),
        "the number of a class",
    ),
    "the published transformer": (
        functools.partial(made, {"kind": "label", "n_classes": 3}, DIT | {"freq_shift": 0.0}),
        "freq_shift 1",
    ),
    "scaled by channel and VQ": (
        functools.partial(made, network=PLAIN, stage=VQ, scale=np.float32([1, 2, 3, 4])),
        "standardise=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_pipeline_draws_is_refused_in_a_sentence(name, tmp_path):
    model, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ldm_jax.save(model(), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
