"""Which pipeline of diffusers draws with a model, or why none does.

condition             first stage  network  pipeline
none                  none         U-Net    DDIMPipeline
none                  any          U-Net    LDMPipeline
text                  any          U-Net    LDMTextToImagePipeline, which has rows of 77 tokens and a factor of 8 built in
text                  KL           U-Net    StableDiffusionPipeline around LDMBert, with any other
clip_text             KL           U-Net    StableDiffusionPipeline
class                 KL           U-Net    StableDiffusionPipeline; a prompt is the name of a class (`class_table`)
layout, retrieval     KL           U-Net    StableDiffusionPipeline(text_encoder=None, tokenizer=None), given `prompt_embeds`
sdxl                  KL           U-Net    StableDiffusionXLPipeline; with one tower StableDiffusionXLImg2ImgPipeline
sd3                   KL           MMDiT    StableDiffusion3Pipeline
clip_text, inpaint    KL           U-Net    StableDiffusionInpaintPipeline
clip_text, instruct   KL           U-Net    StableDiffusionInstructPix2PixPipeline
label                 any          DiT      DiTPipeline
superres              any          U-Net    LDMSuperResolutionPipeline, with as many channels of latents as of pictures

All of them divide latents by the autoencoder's scaling_factor (but for LDMSuperResolutionPipeline), and only
StableDiffusion3Pipeline adds its shift: what is ignored must have been folded into the first stage's outermost layers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ldm_jax.weights import towers
from ldm_jax.weights.scheduler_settings import PARAMETERS, SET_BY_PIPELINE

TELLS_SHIFT = ("StableDiffusion3Pipeline",)
PAPERS_TOKENS, PAPERS_FACTOR = 77, 8  # of LDMTextToImagePipeline
USUAL_TIMES = 1000.0  # of networks, in all programs of the world
DIT_CLASSES = 1000  # DiTPipeline takes this number for the empty class
Description = Mapping[str, Mapping[str, Any]]


class Pipeline(NamedTuple):
    """`stage`, `encoder`: what the first stage and the conditioner's encoder are called among its parts; None: it has none."""

    name: str
    stage: str | None
    encoder: str | None = None


def pipeline_of(description: Description) -> Pipeline:
    """The pipeline that draws with a whole model. ValueError, one sentence, if diffusers has none."""
    kind, times = _kind(description), description["diffusion"].get("time_scale", USUAL_TIMES)
    if times != USUAL_TIMES:
        raise _none(f"tells its network times up to {times} (config.diffusion.time_scale), all up to {USUAL_TIMES:g}")
    if description["diffusion"].get("learned_variance") and description["network"]["kind"] != "dit":
        raise _none("draws with a U-Net that has learnt variances")
    if kind not in _CHOICES:
        raise _none(f"takes what this model takes (config.conditioner.kind={kind!r})")
    found = _CHOICES[kind](description)
    for part, value, neutral in (("shift", "a shift", 0.0), ("scale", "a scale", 1.0)):
        ignored = found.name not in TELLS_SHIFT if part == "shift" else found.name == "LDMSuperResolutionPipeline"
        if ignored and description["latents"].get(part, neutral) != neutral:
            raise ValueError(
                f"{found.name} ignores {value} of the latents: fold it into the first stage, as ldm_jax.save does"
            )
    return found


def told(pipeline: str, description: Description, where: str) -> dict[str, Any]:
    """The conditioner of a pipeline that was read: its encoder's, if it has one, with the pictures that the network is told by
    channels beside the latents. ValueError for channels of another meaning."""
    network, stage = description["network"], description["first_stage"]
    conditioner = description.get("conditioner") or _wordless(pipeline, network)
    latents = network["in_channels"] if stage["kind"] == "none" else stage["embed_dim"]
    beside = network["in_channels"] - latents
    if not beside or conditioner["kind"] not in ("none", "clip_text", "sdxl"):
        return conditioner
    picture = {
        latents + 1: {"kind": "inpaint", "convention": "stable_diffusion"},
        latents: {"kind": "instruct", "factor": 1 / description["latents"]["scale"]},
    }.get(beside)
    if picture is None or conditioner["kind"] == "none":
        raise ValueError(
            f"{where}: the U-Net of this {pipeline} takes {beside} channels beside {latents} latents; known are {latents + 1} "
            f"with prompts, for inpainting, and {latents}, for instructions"
        )
    return {"kind": "combined", "parts": {"prompt": conditioner, "picture": picture}}


def _wordless(pipeline: str, network: Mapping[str, Any]) -> dict[str, Any]:
    """The conditioner of a pipeline that has no encoder of its own."""
    if "SuperResolution" in pipeline:
        return {"kind": "superres"}
    if network["kind"] == "dit":
        return {"kind": "label", "n_classes": network["num_classes"]}
    return {"kind": "none"}


def scheduler_of(pipeline: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's settings as this pipeline has them: those of Stable Diffusion change some, whatever the file says."""
    changed = _CHANGED.get(pipeline, {})
    taken = PARAMETERS.get(config.get("_class_name"), ())
    changed = {name: value for name, value in changed.items() if name in taken and config.get(name) != value}
    unsaid = sorted(name for name in changed if name not in config)
    return {**config, **changed} | ({SET_BY_PIPELINE: unsaid} if unsaid else {})


_CHANGED = {
    "StableDiffusionPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionImg2ImgPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
}


def latent_factor(stage: Mapping[str, Any]) -> int:
    """How many times smaller than pictures the latents of a first stage are."""
    return 1 if stage["kind"] == "none" else 2 ** (len(stage["ch_mult"]) - 1)


def latent_size(description: Description) -> int | list[int]:
    """`sample_size` of the network: what it was trained for; a number where it is square."""
    network, stage = description["network"], description.get("first_stage", {"kind": "none"})
    size = description.get("latents", {}).get("size") or network.get("image_size") or network.get("input_size")
    if size is None:
        size = stage["resolution"] // latent_factor(stage) if stage["kind"] != "none" else 32
    sides = [size, size] if isinstance(size, int) else [int(side) for side in size]
    return sides[0] if len(set(sides)) == 1 else sides


def _kind(description: Description) -> str:
    """The condition's kind; of a combination those of its parts."""
    conditioner = description.get("conditioner", {"kind": "none"})
    if conditioner["kind"] == "combined":
        return ", ".join(sorted(part["kind"] for part in conditioner["parts"].values()))
    return conditioner["kind"]


def _none(why: str) -> ValueError:
    return ValueError(
        f'no pipeline of diffusers {why}; format="compvis" may hold the model, and `ldm_jax.weights.write_diffusers` writes '
        "its network or first stage alone"
    )


def _unet(description: Description, attends: bool) -> None:
    network = description["network"]
    if network["kind"] != "unet":
        raise _none(f"draws with a {network['kind']} and this condition")
    if network.get("use_spatial_transformer", False) != attends:
        raise _none(f"takes this condition with a U-Net {'without' if attends else 'with'} cross-attention")
    if not attends and network.get("num_classes") is not None:
        raise _none("tells a U-Net the number of a class")


def _square(description: Description, name: str) -> None:
    if not isinstance(size := latent_size(description), int):
        raise _none(f"draws this model's {size[0]} x {size[1]} latents: {name} draws squares")


def _unconditional(description: Description) -> Pipeline:
    _unet(description, attends=False)
    if description["first_stage"]["kind"] == "none":
        if description["diffusion"]["schedule"] == "flow":
            raise _none("draws pictures by rectified flow without a first stage")
        return Pipeline("DDIMPipeline", None)
    _square(description, "LDMPipeline")
    return Pipeline("LDMPipeline", "vqvae")


def _stable(name: str, encoder: str | None = "text_encoder") -> Callable[[Description], Pipeline]:
    def choose(description: Description) -> Pipeline:
        _unet(description, attends=True)
        stage = description["first_stage"]
        if stage["kind"] != "kl":
            raise _none(f"takes this condition with a first stage of kind {stage['kind']!r}, only with 'kl'")
        size = latent_size(description)
        sides = [side * latent_factor(stage) for side in ([size] if isinstance(size, int) else size)]
        if any(side % 8 for side in sides):
            raise _none(f"draws pictures with a side of {sides[0]} pixels and this condition, only multiples of 8")
        return Pipeline(name, "vae", encoder)

    return choose


def _text(description: Description) -> Pipeline:
    _unet(description, attends=True)
    stage, length = description["first_stage"], description["conditioner"]["max_seq_len"]
    if stage["kind"] != "none" and (length, latent_factor(stage)) == (PAPERS_TOKENS, PAPERS_FACTOR):
        return Pipeline("LDMTextToImagePipeline", "vqvae", "bert")
    if stage["kind"] == "vq":
        raise _none(
            f"takes prompts of {length} tokens with a VQ model whose latents are {latent_factor(stage)} times smaller, only "
            f"{PAPERS_TOKENS} with {PAPERS_FACTOR}"
        )
    return _stable("StableDiffusionPipeline")(description)


def _of_three(description: Description) -> Pipeline:
    if description["network"]["kind"] != "mmdit" or description["first_stage"]["kind"] != "kl":
        raise _none("takes this condition with another network than an MMDiT, or another first stage than of kind 'kl'")
    if (tokens := description["conditioner"]["max_sequence_length"]) != towers.TOKENS:
        raise _none(f"keeps how many tokens T5 reads (max_sequence_length={tokens}), it is told {towers.TOKENS}")
    return Pipeline("StableDiffusion3Pipeline", "vae")


def _label(description: Description) -> Pipeline:
    if description["network"]["kind"] != "dit" or description["first_stage"]["kind"] == "none":
        raise _none("tells a U-Net, or a network on pixels, the number of a class")
    if description["network"]["num_classes"] > DIT_CLASSES:
        raise _none(f"knows {description['network']['num_classes']} classes: DiTPipeline has {DIT_CLASSES}")
    _square(description, "DiTPipeline")
    return Pipeline("DiTPipeline", "vae")


def _superres(description: Description) -> Pipeline:
    _unet(description, attends=False)
    network, stage = description["network"], description["first_stage"]
    scale = description["conditioner"].get("scale", latent_factor(stage))
    if stage["kind"] == "none" or network["in_channels"] != 2 * network["out_channels"] or scale != latent_factor(stage):
        raise _none(
            f"enlarges pictures {scale} times by {network['out_channels']} channels of latents that are {latent_factor(stage)} "
            "times smaller: LDMSuperResolutionPipeline wants latents of three channels, as large as the small picture"
        )
    return Pipeline("LDMSuperResolutionPipeline", "vqvae")


def _inpainting(description: Description) -> Pipeline:
    parts = description["conditioner"]["parts"].values()
    if any(part["kind"] == "inpaint" and part.get("convention") != "stable_diffusion" for part in parts):
        raise _none("cuts holes as the paper does (config.conditioner convention), only as 'stable_diffusion'")
    return _stable("StableDiffusionInpaintPipeline")(description)


def _instructed(description: Description) -> Pipeline:
    scale = description["latents"].get("scale", 1.0)
    factor = next(p.get("factor", 1.0) for p in description["conditioner"]["parts"].values() if p["kind"] == "instruct")
    if not math.isclose(factor * scale, 1, rel_tol=1e-4):
        raise ValueError(
            "StableDiffusionInstructPix2PixPipeline shows a picture's latents unscaled, this model learnt them times "
            f"{factor * scale:g}: train with the factor of the part of kind 'instruct' at {1 / scale:g}"
        )
    return _stable("StableDiffusionInstructPix2PixPipeline")(description)


_CHOICES: dict[str, Callable[[Description], Pipeline]] = {
    "none": _unconditional,
    "text": _text,
    "clip_text": _stable("StableDiffusionPipeline"),
    "sdxl": lambda description: _stable(towers.pipeline(description["conditioner"]), towers.TOWERS[-1])(description),
    "sd3": _of_three,
    "class": _stable("StableDiffusionPipeline"),
    "layout": _stable("StableDiffusionPipeline", None),
    "retrieval": _stable("StableDiffusionPipeline", None),
    "clip_text, inpaint": _inpainting,
    "clip_text, instruct": _instructed,
    "label": _label,
    "superres": _superres,
}
