"""What can be said of a config before anything compiles: how large it is, and whether it can work."""

import dataclasses
import importlib.util
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import diffusion, models
from ldm_jax.build.autoencoder import POSTERIORS, make_first_stage, make_first_stage_program
from ldm_jax.build.check_data import check_data
from ldm_jax.build.check_tuning import check_tuning
from ldm_jax.build.condition import is_told, make_condition
from ldm_jax.build.data import make_medium
from ldm_jax.build.diffusion import (
    DENOISING,
    NETWORKS,
    RESCALED,
    SCHEDULE_OPTIONS,
    WEIGHTING_OPTIONS,
    example_inputs,
    make_diffusion_program,
    make_network,
    make_recipe,
)
from ldm_jax.build.options import dims, image_size, make_stage_optimizer
from ldm_jax.conditioning import Condition, kind_of
from ldm_jax.first_stage import FirstStage
from ldm_jax.media import MEDIA
from ldm_jax.primitives.choices import check_choice
from ldm_jax.training.optimizer import DECAYS, OPTIMIZERS
from ldm_jax.training.program import Program

STAGES = ("first_stage", "latents", "diffusion", "evaluation")
SECOND_STAGE = ("latents", "network", "conditioner", "diffusion", "diffusion_train", "sampling")  # what it is described by
# what looks at pictures, as in "inception:FILE"
FEATURES = ("inception", "clip", "dinov2", "classifier", "contrastive", "auto")


def make_program(config: Mapping[str, Any], stage: str, condition: Condition | None = None) -> Program:
    """The training step of a stage, "first_stage" or "diffusion", from a config alone: no working directory, data or files."""
    if check_choice(stage, ("first_stage", "diffusion"), "stage") == "first_stage":
        return make_first_stage_program(config)
    if condition is None:
        condition = make_condition(config)
        if condition.null is None:  # of text without a tokenizer: any tokens serve to compile the step
            condition.null = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), condition.inputs)
    return make_diffusion_program(config, condition)


def further_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that config.network, config.first_stage and config.diffusion may have beside those that they have, by whole name
    ("network.remat"), with the values that hold while they lack them. Choices that don't exist are left to `check`."""
    found: dict[str, Any] = {}
    stage = {"kl": models.Autoencoder, "vq": models.Autoencoder, "text": models.TextAutoencoder}
    for name, kinds in (("network", NETWORKS), ("first_stage", stage)):
        if module := kinds.get(config.get(name, {}).get("kind")):
            for field in dataclasses.fields(module):
                if field.name not in ("parent", "name", "dtype") and field.default is not dataclasses.MISSING:
                    found[f"{name}.{field.name}"] = field.default
    section = config.get("diffusion", {})
    for where, options, kinds in (
        ("schedule", SCHEDULE_OPTIONS, diffusion.SCHEDULES), ("weighting", WEIGHTING_OPTIONS, diffusion.WEIGHTINGS),
    ):  # fmt: skip
        if made := kinds.get(section.get(where)):
            taken = inspect.signature(made).parameters
            found |= {f"diffusion.{ours}": taken[its].default for ours, its in options.items() if its in taken}
            if where == "schedule" and isinstance(made(), diffusion.schedules.Discrete):
                found[f"diffusion.{RESCALED}"] = False
    return {
        name: value
        for name, value in found.items()
        if value is not inspect.Parameter.empty and name.split(".")[1] not in config[name.split(".")[0]]
    }


def parameter_counts(config: Mapping[str, Any]) -> dict[str, int]:
    """How many parameters each network has ("unet" or "dit", "conditioner", "encoder", "decoder", "first_stage"), without
    allocating any. What a config does not have is left out."""
    counts = {}
    stage = make_first_stage(config)
    if stage.module is not None:
        shapes = jax.eval_shape(stage.init, jax.random.key(0))
        counts |= {name: models.count(shapes[name]) for name in ("encoder", "decoder")}
        counts["first_stage"] = models.count(shapes)
    if "network" in config and config["network"].get("kind"):
        counts[config["network"]["kind"]] = models.count(models.shapes(make_network(config), *example_inputs(config)))
        conditioner = jax.eval_shape(make_condition(config).init, jax.random.key(0))
        if conditioner:
            counts["conditioner"] = models.count(conditioner)
    return counts


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError for what can't work, before any data are read or anything compiles."""
    for name in config["stages"]:
        check_choice(name, STAGES, "config.stages")
    ordered = tuple(name for name in STAGES if name in config["stages"])
    if tuple(config["stages"]) != ordered:
        raise ValueError(f"config.stages={tuple(config['stages'])}: give {ordered}, in this order, each once")
    if is_told(config) and (missing := [f"config.{name}" for name in SECOND_STAGE if name not in config]):
        raise ValueError(
            f"config.stages={tuple(config['stages'])}: this config describes a first stage alone, without {', '.join(missing)}"
            "; name what it trains in config.first_stage.path of a config that has them"
        )
    check_numbers(config)
    stage = make_first_stage(config)
    check_sides(config)
    check_medium(config, stage)
    check_dims(config)
    stage.latent_shape(*image_size(config))
    check_choice(config["evaluation"].get("features", "auto").partition(":")[0], FEATURES, "config.evaluation.features")
    inception = config["evaluation"].get("inception_path", "")
    if inception and not Path(inception).exists():
        raise ValueError(
            f"config.evaluation.inception_path={inception!r}: no such file. The one to have is pytorch-fid's, "
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
        )
    if config["log"].get("wandb", "") and importlib.util.find_spec("wandb") is None:
        raise ValueError(f"config.log.wandb={config['log']['wandb']!r}: the package isn't there (pip install wandb)")
    if "first_stage" in config["stages"] and not config["first_stage"]["path"] and stage.module is not None:
        section = config["first_stage_loss"]
        program = make_first_stage_program(config)
        if section.get("perceptual_weight", 0) > 0 or section.get("alignment_weight", 0) > 0:
            check_perceptual(section)
        program.shapes  # noqa: B018 -- every module is traced
    if "diffusion" in config["stages"]:
        check_diffusion(config)


def check_sides(config: Mapping[str, Any]) -> None:
    """Raises ValueError where data have another number of sides than their medium."""
    size, medium = image_size(config), make_medium(config)
    if len(size) != medium.axes:
        raise ValueError(f"config.data.image_size={size}: medium={medium.name!r} has {medium.axes} sides")


def check_medium(config: Mapping[str, Any], stage: FirstStage) -> None:
    """Raises ValueError where the medium doesn't fit the data that are named, or the first stage it."""
    medium, data = make_medium(config), config["data"]
    check_choice(data["source"], medium.sources, f"config.data.source (of medium={medium.name!r})")
    medium.check()
    if medium.name == "text" and (kind := config["first_stage"]["kind"]) != "text":
        raise ValueError(f"config.first_stage.kind={kind!r}: numbers of words are no amounts; a model of text has kind='text'")
    if stage.image_channels != medium.channels:
        raise ValueError(
            f"config.first_stage.in_channels={stage.image_channels}: medium={medium.name!r} gives arrays of "
            f"{medium.channels} channels"
        )
    given = getattr(stage.module, "out_ch", stage.image_channels)
    if given != stage.image_channels:
        raise ValueError(f"config.first_stage.out_ch={given}: must be {stage.image_channels}, config.first_stage.in_channels")


def check_dims(config: Mapping[str, Any]) -> None:
    """Raises ValueError where data, first stage and network don't agree on how many spatial axes there are."""
    axes, size = dims(config), image_size(config)
    if len(size) != axes:
        section = "network" if config["first_stage"]["kind"] == "none" else "first_stage"
        raise ValueError(f"config.{section}.dims={axes}: must be {len(size)}, the sides of config.data.image_size={size}")
    if "diffusion" in config["stages"] and (told := config["network"].get("dims", 2)) != axes:
        raise ValueError(f"config.network.dims={told}: must be {axes}, as config.first_stage.dims is")


def check_diffusion(config: Mapping[str, Any]) -> None:
    """Raises ValueError where network, condition, first stage and process don't fit one another."""
    kind_of(config["conditioner"]).check_fields(config["conditioner"])
    check_tuning(config)
    stage, network, condition = make_first_stage(config), make_network(config), make_condition(config)
    learned = 2 if config["diffusion"].get("learned_variance") else 1
    if network.out_channels != learned * stage.channels:
        raise ValueError(
            f"config.network.out_channels={network.out_channels}: the first stage's latents have {stage.channels} channels"
            + (", and the learned variance as many" if learned == 2 else "")
        )
    condition.check()
    if condition.companions and not condition.flags:
        raise ValueError(
            f"config.conditioner.kind={condition.kind!r} stands beside another condition, which nothing tells a model alone: "
            "make it a part of kind 'combined', with a prompt as the other"
        )
    kind, axes = condition.kind, dims(config)
    of_pictures = condition.of_pictures and not condition.of_text
    if axes != 2 and (condition.spatial or of_pictures or condition.encodes or condition.whole_boxes):
        raise ValueError(f"config.conditioner.kind={kind!r} is told pictures: with dims={axes} choose none, class or text")
    if condition.of_pictures and config["latents"]["cache"] and stage.module is not None:
        raise ValueError(f"config.latents.cache=True: kind={kind!r} makes its condition of the pictures; set it to False")
    labels = condition.network_classes
    found = network.num_classes if isinstance(getattr(network, "num_classes", None), int) else 0
    if config["network"]["kind"] == "unet" and (found < labels or bool(found) != bool(labels)):
        told = "the classes and the empty one" if kind == "label" else "the noise levels"
        raise ValueError(f"config.network.num_classes={found or None}: must be {labels or None}, {told} of config.conditioner")
    x, _, _ = example_inputs(config)
    if x.shape[-1] != stage.channels:
        raise ValueError(
            f"config.network.in_channels={network.in_channels}: must be {network.in_channels - x.shape[-1] + stage.channels}, "
            f"{stage.channels} of the latents and {network.in_channels - x.shape[-1]} of the condition"
        )
    make_diffusion_program(config, condition).shapes  # noqa: B018 -- every module is traced
    make_recipe(config).grid(config["sampling"]["steps"])


# (section, field) -> what it must be, and the test. Fields that a config lacks are passed by.
_AT_LEAST_0 = ("at least 0", lambda v: v >= 0)
_AT_LEAST_1 = ("a whole number of at least 1", lambda v: v >= 1 and v == int(v))
_WHOLE = ("a whole number of at least 0", lambda v: v >= 0 and v == int(v))
_POSITIVE = ("above 0", lambda v: v > 0)
_SHARE = ("from 0 to 1", lambda v: 0 <= v <= 1)
_BELOW_1 = ("at least 0 and below 1", lambda v: 0 <= v < 1)
_TRAIN = {
    "steps": _AT_LEAST_1, "batch_size": _AT_LEAST_1, "learning_rate": _POSITIVE, "warmup_steps": _WHOLE, "b1": _BELOW_1,
    "b2": _BELOW_1, "weight_decay": _AT_LEAST_0, "clip_norm": _AT_LEAST_0, "ema_decay": _BELOW_1, "accumulate": _AT_LEAST_1,
    "patience": _WHOLE,
}  # fmt: skip
_FIRST_STAGE_LOSS = dict.fromkeys(
    (
        "perceptual_weight", "kl_weight", "disc_weight", "disc_factor", "disc_start", "disc_learning_rate", "r1_weight",
        "lecam_weight", "codebook_weight", "codebook_kmeans", "codebook_restart", "beta", "equivariance_weight",
        "alignment_weight", "latent_noise",
    ),
    _AT_LEAST_0,
)  # fmt: skip
_HEADS = ("a whole number of at least 1, or -1", lambda v: v == -1 or (v >= 1 and v == int(v)))
_SIZES = dict.fromkeys(
    (
        "in_channels", "out_channels", "out_ch", "ch", "ch_mult", "resolution", "attn_resolutions", "z_channels", "embed_dim",
        "norm_num_groups", "model_channels", "channel_mult", "attention_resolutions", "num_res_blocks", "context_dim",
        "hidden_size", "depth", "patch_size", "input_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "max_seq_len", "vocab_size", "heads", "dim_head", "neighbours", "n_classes", "scale",
        "num_classes",
    ),
    _AT_LEAST_1,
)  # fmt: skip
_AXES = {
    "dims": ("1, 2 or 3, how many axes the data have", lambda v: v in (1, 2, 3)),
    "strides": ("1 or 2 for each axis", lambda v: v in (1, 2)),
    "kernel_size": ("odd, for all axes or for each", lambda v: v >= 1 and v % 2 == 1),
}
NUMBERS: dict[str, dict[str, tuple[str, Any]]] = {
    "": {"seed": ("a whole number from 0 to 2**64 - 1", lambda v: 0 <= v < 2**64 and v == int(v))},
    "data": {"image_size": ("whole sides of at least 1", lambda v: v >= 1), "workers": _WHOLE, "spread": _SHARE,
             "augment": _SHARE,
             "frame_step": _AT_LEAST_1, "vocab_size": _AT_LEAST_1,
             "counts": _AT_LEAST_0, "fills": _AT_LEAST_0, "examples": _AT_LEAST_1,
             "short_side": ("a whole number of at least -1", lambda v: v >= -1 and v == int(v))},
    "mesh": dict.fromkeys(("data", "fsdp", "tensor"), _HEADS),
    "first_stage": _SIZES
    | _AXES
    | {"dropout": _BELOW_1, "num_res_blocks": _WHOLE, "n_embed": _WHOLE, "fsq_levels": _AT_LEAST_1}
    | dict.fromkeys(("latents", "width", "resampler_depth"), _AT_LEAST_1),
    "first_stage_loss": _FIRST_STAGE_LOSS
    | {"log_variance": ("a number", lambda v: True), "stft_weight": _AT_LEAST_0, "stft_windows": _AT_LEAST_1}
    | {"codebook_decay": _BELOW_1, "disc_ndf": _AT_LEAST_1, "disc_layers": _AT_LEAST_1, "perceptual_widths": _AT_LEAST_1},
    "first_stage_train": _TRAIN,
    "network": _SIZES
    | _AXES
    | {"dropout": _BELOW_1, "num_heads": _HEADS, "num_head_channels": _HEADS, "transformer_depth": _WHOLE,
       "mlp_ratio": _POSITIVE, "guidance_dim": _WHOLE,
       "context_waves": ("a whole number from 0 to 16", lambda v: 0 <= v <= 16 and v == int(v))},
    "conditioner": _SIZES
    | {"null_probability": _SHARE, "noise_levels": _WHOLE, "n_embed": _AT_LEAST_1, "n_layer": _WHOLE, "n_stages": _WHOLE,
       "multiplier": _POSITIVE, "mask_area": _SHARE, "token_std": _POSITIVE, "position_std": _POSITIVE,
       "conv_kernel": ("0, or an odd number of words", lambda v: v == 0 or v >= 1 and v % 2 == 1)},
    "diffusion": {"offset_noise": _AT_LEAST_0, "input_perturbation": _AT_LEAST_0, "elbo_weight": _AT_LEAST_0,
                  "timesteps": _AT_LEAST_1, "min_snr_gamma": _POSITIVE, "time_scale": _POSITIVE, "scale": _POSITIVE},
    "diffusion_train": _TRAIN,
    "diffusion_train.lora": {"rank": _WHOLE, "alpha": _AT_LEAST_0},
    "diffusion_train.textual_inversion": {"vectors": _AT_LEAST_1},
    "diffusion_train.control": {"hint_channels": _AT_LEAST_1},
    "diffusion_train.dreambooth": {"prior_weight": _AT_LEAST_0, "class_pictures": _AT_LEAST_1},
    "sampling": {"steps": _AT_LEAST_1, "guidance_scale": ("a number", lambda v: True)},
    "evaluation": {"prompts": _WHOLE, "batch_size": _AT_LEAST_1, "probe_steps": _AT_LEAST_1,
                   "num": ("0, or a whole number of at least 2", lambda v: v == int(v) and (v == 0 or v >= 2))},
    "log": {"every": _WHOLE, "images_every": _WHOLE, "validation_every": _WHOLE, "validation_images": _AT_LEAST_1,
            "watchdog_seconds": _AT_LEAST_0, "profile": _WHOLE},
    "latents": {"scale": _AT_LEAST_0, "scale_batches": _AT_LEAST_1, "shift": ("a number", lambda v: True)},
    "checkpoint": {"every": _WHOLE, "keep": _AT_LEAST_1, "rewinds": _WHOLE, "snapshots": _WHOLE},
}  # fmt: skip


# (section, field) -> the names that it may be.
CHOICES = {
    ("data", "medium"): MEDIA,
    ("data", "source"): tuple(dict.fromkeys(source for medium in MEDIA.values() for source in medium.sources)),
    ("data", "crop"): ("center", "random"),
    ("data", "on_error"): ("raise", "skip"),
    ("first_stage", "attn_type"): ("vanilla", "none"),
    ("first_stage_loss", "disc_loss"): ("hinge", "vanilla"),
    ("first_stage_loss", "pixel"): ("l1", "l2"),
    ("first_stage_loss", "reduction"): ("sum", "mean"),
    ("latents", "posterior"): POSTERIORS,
    ("diffusion", "schedule"): tuple(diffusion.SCHEDULES),
    ("diffusion", "prediction"): tuple(diffusion.PREDICTIONS),
    ("diffusion", "loss"): ("l1", "l2", "huber"),
    ("diffusion", "objective"): (DENOISING, *diffusion.few_steps.OBJECTIVES),
    ("diffusion", "weighting"): tuple(diffusion.WEIGHTINGS),
    ("diffusion", "time_sampling"): (*diffusion.TIMES, "importance"),
    ("evaluation", "which"): ("last", "best"),
    ("sampling", "sampler"): tuple(diffusion.SAMPLERS),
    ("sampling", "grid"): tuple(diffusion.GRIDS),
    **{
        (section, name): names
        for section in ("first_stage_train", "diffusion_train")
        for name, names in (("optimizer", OPTIMIZERS), ("decay", DECAYS), ("mu_dtype", ("float32", "bfloat16")))
    },
}


# Fields that are off by default, and what is to be on beside them if they are to have an effect.
NEEDS = {
    **{
        ("first_stage_loss", name): ("first_stage_loss", "disc_weight")
        for name in ("r1_weight", "lecam_weight", "alternate", "disc_actnorm")
    },
    ("first_stage", "unit_codes"): ("first_stage", "n_embed"),
    ("checkpoint", "snapshots"): ("diffusion_train", "post_hoc"),
}

# Fields of so many numbers.
LENGTHS = {("data", "examples"): 2, ("data", "counts"): 3, ("data", "fills"): 3, ("log", "profile"): 2}


def check_numbers(config: Mapping[str, Any]) -> None:
    """ValueError naming the first field, whole name and all, whose number can't be meant: negative, above one, not finite."""
    for section, fields in NUMBERS.items():
        values = config
        for scope in section.split(".") if section else ():
            values = values.get(scope, {})
        for name, (must, test) in fields.items():
            value = values.get(name)
            for number in jax.tree.leaves(value):
                if isinstance(number, (int, float)) and not (math.isfinite(number) and test(number)):
                    also = "" if math.isfinite(number) else ", and finite"
                    raise ValueError(f"config.{section}{'.' * bool(section)}{name}={value}: must be {must}{also}")
    for (section, name), length in LENGTHS.items():
        if name in (values := config.get(section, {})) and np.shape(values[name]) != (length,):
            raise ValueError(f"config.{section}.{name}={values[name]}: must be {length} numbers")
    for (section, name), names in CHOICES.items():
        if name in config.get(section, {}):
            check_choice(config[section][name], names, f"config.{section}.{name}")
    for (section, name), (other, field) in NEEDS.items():
        if (value := config.get(section, {}).get(name)) and not config.get(other, {}).get(field):
            raise ValueError(f"config.{section}.{name}={value} has no effect without config.{other}.{field}: set that as well")
    for section in ("first_stage_train", "diffusion_train"):
        train = config.get(section, {})
        if train.get("warmup_steps", 0) > train.get("steps", math.inf):
            raise ValueError(
                f"config.{section}.warmup_steps={train['warmup_steps']}: must be at most config.{section}.steps, "
                f"{train['steps']}"
            )
        if "optimizer" in train:
            try:
                make_stage_optimizer(train)  # or it has something that this one can't use
            except ValueError as error:
                raise ValueError(f"config.{section}.{error}") from None
        if (parts := train.get("accumulate", 1)) > 1 and train["batch_size"] % parts:
            raise ValueError(
                f"config.{section}.accumulate={parts}: must divide config.{section}.batch_size={train['batch_size']}"
            )
    check_data(config)
    latents = config.get("latents", {})
    if latents.get("standardise") and (latents.get("scale") or latents.get("shift")):
        raise ValueError("config.latents.scale and shift are one for all channels: set latents.standardise=False beside them")
    if config.get("diffusion_train", {}).get("post_hoc") and not config["checkpoint"].get("snapshots", 0):
        raise ValueError("config.checkpoint.snapshots=0: must be at least 1 where config.diffusion_train.post_hoc is set")


def check_perceptual(section: Mapping[str, Any]) -> None:
    """ValueError unless the files for LPIPS are named and there."""
    path = section["perceptual_path"]
    if path == "random":
        return
    what = "VGG16's and LPIPS's weights"
    if not path or not Path(path).exists():
        raise ValueError(
            f"config.first_stage_loss.perceptual_path={path!r}: no such file of {what}. Download torchvision's VGG16 "
            "(https://download.pytorch.org/models/vgg16-397923af.pth) and LPIPS's linear layers "
            "(https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1/vgg.pth), name them in perceptual_path and "
            "perceptual_linear_path; .pth files are read as they are. A CompVis first stage's model.ckpt holds both. Or train "
            "without: perceptual_weight=0; or on features of an untrained network: perceptual_path='random'"
        )
