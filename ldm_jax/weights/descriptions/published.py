"""Models that are known by their tensors' names and shapes: the facts that these do not show.

Stable Diffusion 1, 2 and XL and its refiner, fine-tuned or not, are known by their text encoders, 3 by its transformer; the
models of the paper by sizes. What no tensor says: heads, the schedule, the latents' scale, the size of pictures, and of Stable
Diffusion 2 whether the network predicts eps or v.
"""

from collections.abc import Mapping
from typing import Any

PREDICTIONS = {"eps": "eps", "epsilon": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v"}
# network: fields that must be equal, of those that shapes show; told: of the conditioner, its kind by its tensors
STABLE = {"linear_start": 0.00085, "linear_end": 0.012}


def _paper(told: str, heads: int, head_channels: int, end: float, network: dict, scale: float = 1.0, **more: Any) -> dict:
    heads = {"num_heads": heads, "num_head_channels": head_channels}
    facts = {"heads": heads, "linear_start": 0.0015, "linear_end": end, "scale": scale, "size": 256} | more
    return {"told": told, "network": network, **facts}


FAMILIES: dict[str, dict] = {
    "Stable Diffusion 1": {"told": "clip", "heads": {"num_heads": 8}, **STABLE, "scale": 0.18215, "size": 512},
    "Stable Diffusion 2": {
        "told": "openclip", "heads": {"num_head_channels": 64}, **STABLE, "scale": 0.18215, "size": {"eps": 512, "v": 768},
    },
    "Stable Diffusion XL": {
        "told": "xl", "heads": {"num_head_channels": 64}, **STABLE, "scale": 0.13025, "size": 1024, "force_upcast": True,
    },
    "the paper's text-to-image (LAION)": _paper(
        "text", 8, -1, 0.012, {"context_dim": 1280}, 0.18215, linear_start=0.00085
    ),
    "the paper's text-to-image (Conceptual Captions)": _paper("text", -1, 32, 0.0195, {"context_dim": 640}),
    "the paper's class-conditional (f4)": _paper(
        "class", 1, -1, 0.0195, {"model_channels": 192, "channel_mult": (1, 2, 3, 5)}
    ),
    "the paper's class-conditional (f8)": _paper("class", -1, 32, 0.0195, {"model_channels": 256, "channel_mult": (1, 2, 4)}),
    "the paper's faces or bedrooms": _paper(
        "none", -1, 32, 0.0195, {"in_channels": 3, "model_channels": 224, "channel_mult": (1, 2, 3, 4)}
    ),
    "the paper's churches": _paper(
        "none", 8, -1, 0.0155, {"in_channels": 4, "model_channels": 192, "resblock_updown": True}, 0.0
    ),
    "the paper's super-resolution": _paper(
        "beside", -1, 32, 0.0155, {"in_channels": 6, "model_channels": 160}, conditioner={"kind": "superres"}
    ),
    "the paper's inpainting": _paper(
        "beside", 8, -1, 0.0205, {"in_channels": 7, "model_channels": 256, "resblock_updown": True},
        conditioner={"kind": "inpaint"},
    ),
    "the paper's semantic synthesis": _paper("semantic", 8, -1, 0.0205, {"in_channels": 6, "model_channels": 128}),
    "the paper's layouts": _paper("layout", -1, 32, 0.0205, {"context_dim": 512, "transformer_depth": 3}),
    "the retrieval-augmented model": _paper(
        "retrieval", -1, 32, 0.015, {"in_channels": 16, "model_channels": 448}, 0.22765929, size=768,
        conditioner={"kind": "retrieval"},
    ),
}  # fmt: skip
STABLE_DIFFUSION_3 = {"scale": 1.5305, "shift": 0.0609, "size": 1024}  # and 3.5: their latents
SCHEDULERS = {
    "Stable Diffusion 3": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    "Stable Diffusion XL": {
        "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "steps_offset": 1, "timestep_spacing": "leading",
    }
}  # fmt: skip
BERT_VOCABULARY = 30522


def family(told: str, network: Mapping[str, Any]) -> str:
    """The name in `FAMILIES` of a model told so, with a network of these fields. ValueError if there is none."""
    for name, facts in FAMILIES.items():
        if facts["told"] == told and all(network[field] == value for field, value in facts.get("network", {}).items()):
            return name
    raise ValueError(
        f"a U-Net of {network['model_channels']} channels times {network['channel_mult']}, told by {told!r}, is none of the "
        f"models known by their sizes ({'; '.join(FAMILIES)}), and no shape shows how many heads its attention has"
    )


def diffusion(name: str, prediction: str) -> dict[str, Any]:
    """The process of a family."""
    facts = FAMILIES[name]
    ends = {key: facts[key] for key in STABLE}
    return {"schedule": "scaled_linear", **ends, "timesteps": 1000, "prediction": prediction, "loss": "l2"}


def predicts(name: str, given: str | None, metadata: Mapping[str, str], stated: bool) -> str:
    """What the network predicts: as `given`, or as the file's metadata say (modelspec.prediction_type, or an architecture such
    as stable-diffusion-v2-768-v); `stated`: a tensor will say that it is v. ValueError where nothing does and it may be either.
    """
    said = metadata.get("modelspec.prediction_type", "").lower()
    architecture = metadata.get("modelspec.architecture", "")
    if said not in PREDICTIONS and "-v2-" in architecture:
        said = "v" if "768-v" in architecture else "eps"
    if stated:
        said = "v"
    if said in PREDICTIONS and given is not None and PREDICTIONS[said] != given:
        raise ValueError(f"prediction={given!r}, but the file says that its network predicts {PREDICTIONS[said]}")
    if given is not None or said in PREDICTIONS:
        return given or PREDICTIONS[said]
    if name == "Stable Diffusion 2":
        raise ValueError(
            "it is a Stable Diffusion 2, and whether its network predicts eps (those of 512 pixels) or v (of 768) can't be "
            'read from its weights: say prediction="eps" or prediction="v"'
        )
    return "eps"
