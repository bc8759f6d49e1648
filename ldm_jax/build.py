"""From a ConfigDict to the parts of an experiment. The one reader of configs, and the one place where the rooms meet.

Every `make_*` takes the config (or a plain dict of the same fields, such as a checkpoint's description) and returns one part:
a Linen module, a schedule, a loss. Nothing here allocates parameters or touches data.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import diffusion, first_stage, models, second_stage
from ldm_jax.conditioning import Conditioning, by_array, by_class, by_text, unconditional
from ldm_jax.data import shapes
from ldm_jax.data.folder import folder
from ldm_jax.data.tfds_source import shapes_source, tfds_source
from ldm_jax.data.transform import Transform
from ldm_jax.diffusion import scheduler_config
from ldm_jax.training.optimizer import make_optimizer

PyTree = Any
NETWORKS = {"unet": models.UNet, "dit": models.DiT}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def choose(options: Mapping[str, Any], name: str, what: str) -> Any:
    """`options[name]`, or a ValueError that names what there is."""
    if name in options:
        return options[name]
    near = difflib.get_close_matches(str(name), options, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}={name!r} is not known.{hint} There are: {', '.join(map(repr, options))}.")


def module_from(cls: type, section: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """`cls(**section)`, saying which field of the config is wrong."""
    fields = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    given = {**section, **extra}
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"config.{where}.{name}: {cls.__name__} has no such field.{hint}")
    if missing := sorted(required - given.keys() - {"parent", "name"}):
        raise ValueError(f"config.{where} lacks {', '.join(missing)}")
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def _without(section: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


def compute_dtype(config: Mapping[str, Any]) -> Any:
    return choose(DTYPES, config["dtype"], "config.dtype") if "dtype" in config else jnp.float32


# Data


def make_source(config: Mapping[str, Any], split: str, columns: Sequence[str]) -> Any:
    """The rows of config.data's "train" or "validation" split, with an image and these further columns."""
    section = config["data"]
    split, columns = section[f"{split}_split"], ("image", *columns)
    names = {c: section[f"{c}_column"] for c in columns if section.get(f"{c}_column")}
    kind = choose({"shapes": "shapes", "folder": "folder", "tfds": "tfds"}, section["source"], "config.data.source")
    if kind != "shapes" and not section["path"]:
        what = "the folder of images" if kind == "folder" else "TFDS's data_dir"
        raise ValueError(f"config.data.path is empty: name {what}, --config.data.path=...")
    if kind == "folder":
        return folder(section["path"], split, columns, {c: n for c, n in names.items() if c != "image"})
    if kind == "tfds":
        return tfds_source(section["name"], split, section["path"], columns, names)
    path = section["path"] or Path.home() / ".cache" / "ldm_jax"
    train, validation = section["examples"]
    mix = dataclasses.asdict(make_mix(config))
    return shapes_source(path, split, columns, resolution=section["image_size"], train=train, validation=validation, **mix)


def make_mix(config: Mapping[str, Any]) -> shapes.Mix:
    """What the scenes of `shapes` hold."""
    section = config["data"]
    return shapes.Mix(tuple(section["counts"]), tuple(section["fills"]), section["spread"])


def make_transform(config: Mapping[str, Any], tokenize: Callable | None = None) -> Transform:
    """Rows -> images of config.data.image_size in [-1, 1], and what goes with them."""
    section = config["data"]
    if section["flip"] and section["source"] == "shapes":
        raise ValueError("config.data.flip=True: captions of shapes say left and right, which a flip exchanges")
    return Transform(section["image_size"], section["crop"], section["flip"], tokenize=tokenize)


# First stage


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """Images [B, H, W, 3] in [-1, 1] <-> raw latents [B, H / factor, W / factor, channels], as pure functions of params.

    encode(params, x) -> {"moments": [.., 2C]} (KL) or {"latents": [.., C]}, raw; decode(params, z) -> x.
    `module` is None where diffusion runs on pixels.
    """

    module: Any
    factor: int
    channels: int
    init: Callable[[jax.Array], PyTree]
    encode: Callable[[PyTree, jax.Array], dict[str, jax.Array]]
    decode: Callable[[PyTree, jax.Array], jax.Array]

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if height % self.factor or width % self.factor or min(height, width) < self.factor:
            raise ValueError(f"image size {height} x {width}: both sides must be multiples of {self.factor}")
        return height // self.factor, width // self.factor, self.channels


def make_first_stage(config: Mapping[str, Any]) -> FirstStage:
    """The autoencoder of config.first_stage: kind "kl" or "vq"; "none" passes pixels through."""
    section = config["first_stage"]
    kind = choose({"kl": "kl", "vq": "vq", "none": "none"}, section["kind"], "config.first_stage.kind")
    if kind == "none":
        return FirstStage(None, 1, 3, lambda key: {}, lambda p, x: {"latents": x}, lambda p, z: z)
    fields = _without(section, "kind", "path")
    fields["n_embed"] = fields.get("n_embed") or None
    module = module_from(models.Autoencoder, fields, "first_stage", dtype=compute_dtype(config))
    if (kind == "vq") != (module.n_embed is not None):
        raise ValueError(f"config.first_stage: kind={kind!r} with n_embed={module.n_embed}: only VQ models have a codebook")
    name = "moments" if kind == "kl" else "latents"
    side = module.resolution
    return FirstStage(
        module,
        2 ** (len(module.ch_mult) - 1),
        module.embed_dim,
        lambda key: models.initialize(module, key, jax.ShapeDtypeStruct((1, side, side, module.in_channels), jnp.float32)),
        lambda params, x: {name: module.apply({"params": params}, x, method="encode")},
        lambda params, z: module.apply({"params": params}, z, method="decode"),
    )


def make_first_stage_loss(config: Mapping[str, Any]):
    """`loss_fn(params, batch, key)` of the first stage."""
    stage, options = make_first_stage(config), config["first_stage_loss"]
    if config["first_stage"]["kind"] != "kl":
        raise ValueError(f"first_stage.kind={config['first_stage']['kind']!r} is not trained here; give first_stage.path")

    def encode(params, x):
        return stage.module.apply({"params": params}, x, True, method="encode")

    def decode(params, z):
        return stage.module.apply({"params": params}, z, True, method="decode")

    return first_stage.make_kl_loss(encode, decode, pixel=options["pixel"], kl_weight=options["kl_weight"])


# Conditioner

MODULES = {
    "class": models.ClassEmbedder,
    "text": models.TransformerEmbedder,
    "layout": models.TransformerEmbedder,
    "semantic": models.SpatialRescaler,
    "clip_text": models.CLIPText,
}
# Kinds without a module: what is given goes to the network as it is, under this name.
GIVEN = {"label": "label", "superres": "concat", "inpaint": "concat", "retrieval": "context"}
KINDS = {kind: kind for kind in ("none", *MODULES, *GIVEN)}
NOT_MODULE_FIELDS = ("kind", "tokenizer", "null_probability", "null_label", "layer", "pad_token_id")


def make_conditioner(config: Mapping[str, Any]) -> Any:
    """The Linen module of config.conditioner, or None for kinds that have none."""
    section = config["conditioner"]
    kind = choose(KINDS, section["kind"], "config.conditioner.kind")
    if kind not in MODULES:
        return None
    fields = _without(section, *NOT_MODULE_FIELDS)
    if kind != "semantic":  # which has no dtype: it is one resize
        fields["dtype"] = compute_dtype(config)
    return module_from(MODULES[kind], fields, "conditioner")


def conditioner_inputs(config: Mapping[str, Any]) -> jax.ShapeDtypeStruct | None:
    """Shape of one input of the conditioner, or of what is given in its place."""
    section, module, network = config["conditioner"], make_conditioner(config), config["network"]
    match section["kind"]:
        case "none":
            return None
        case "class" | "label":
            return jax.ShapeDtypeStruct((1,), jnp.int32)
        case "text" | "layout":
            return jax.ShapeDtypeStruct((1, module.max_seq_len), jnp.int32)
        case "clip_text":
            return jax.ShapeDtypeStruct((1, module.max_position_embeddings), jnp.int32)
        case "retrieval":
            return jax.ShapeDtypeStruct((1, 1, network["context_dim"]), jnp.float32)
        case "semantic":
            size = config["data"]["image_size"]
            return jax.ShapeDtypeStruct((1, size, size, module.in_channels), jnp.float32)
    h, w, channels = make_first_stage(config).latent_shape(*[config["data"]["image_size"]] * 2)
    return jax.ShapeDtypeStruct((1, h, w, network["in_channels"] - channels), jnp.float32)


def make_conditioning(
    config: Mapping[str, Any], class_names: Sequence[str] | None = None, tokenizer: Any = None
) -> Conditioning:
    """How the model of `config` is told its condition.

    `class_names`: of the data set, for "class" and "label". `tokenizer`: has encode_one(text, length, strict), for text;
    without it the model takes token numbers only.
    """
    section, module = config["conditioner"], make_conditioner(config)
    kind = section["kind"]
    if kind == "none":
        return unconditional()
    inputs = conditioner_inputs(config)

    def init(key):
        return {} if module is None else models.initialize(module, key, inputs)

    def apply(params, values):
        if module is None:
            return {GIVEN[kind]: values}
        out = module.apply({"params": params}, values)
        if kind == "clip_text":
            out = out.penultimate if section.get("layer") == "penultimate" else out.last
        return {"concat" if kind == "semantic" else "context": out}

    if kind in ("class", "label"):
        # the null class is the last row of the table, as in the paper's class-conditional ImageNet model and in DiT
        null = section.get("null_label", section["n_classes"] - 1) if kind == "class" else section["n_classes"]
        count = null if null >= 0 else section["n_classes"]
        return by_class(kind, init, apply, list(class_names or map(str, range(count)))[:count], max(null, 0))
    if kind in ("text", "clip_text"):
        length, size = inputs.shape[1], module.vocab_size
        if tokenizer is not None and tokenizer.vocab_size > size:
            raise ValueError(f"config.conditioner.vocab_size={size}: the tokenizer has {tokenizer.vocab_size} tokens")
        return by_text(kind, init, apply, tokenizer, length)
    return by_array(kind, init, apply, inputs)


# Diffusion


def make_schedule(config: Mapping[str, Any]) -> Any:
    """The noise schedule of config.diffusion."""
    section = config["diffusion"]
    options = {ours: section[name] for name, ours in _SCHEDULE_OPTIONS.items() if name in section}
    try:
        return diffusion.make_schedule(section["schedule"], **options)
    except TypeError as error:
        raise ValueError(f"config.diffusion: schedule {section['schedule']!r} {str(error).split('() ')[-1]}") from None


def make_recipe(config: Mapping[str, Any], sampler: str | None = None, grid: str | None = None) -> scheduler_config.Recipe:
    """How to sample: by config.scheduler (the settings of a diffusers scheduler) if there is one, else by config.sampling,
    whose `end` says where the last step goes: "clean" (the default) or "first", the table's least noisy level, as CompVis's
    samplers do. `sampler` and `grid` replace either's; a grid given here ends clean."""
    if "scheduler" in config:
        recipe = scheduler_config.read(config["scheduler"])
    else:
        section, schedule = config["sampling"], make_schedule(config)
        ends = {"clean": lambda: diffusion.CLEAN, "first": lambda: schedule(0.0)}
        end = choose(ends, section.get("end", "clean"), "config.sampling.end")()
        recipe = scheduler_config.Recipe(
            schedule,
            config["diffusion"]["prediction"],
            functools.partial(diffusion.make_grid, section["grid"], schedule, end=end),
            _always(diffusion.make_sampler(section["sampler"])),
        )
    if sampler:
        recipe = dataclasses.replace(recipe, sampler=_always(diffusion.make_sampler(sampler)))
    if grid:
        recipe = dataclasses.replace(recipe, grid=functools.partial(diffusion.make_grid, grid, recipe.schedule))
    return recipe


def _always(value: Any) -> Callable[[int], Any]:
    return lambda steps: value


_SCHEDULE_OPTIONS = {
    "linear_start": "start",
    "linear_end": "end",
    "timesteps": "size",
    "scale": "scale",
    "shift": "shift",
}
TRAINABLE = ("none", "class", "label", "text")


def make_network(config: Mapping[str, Any]) -> Any:
    """The Linen module of config.network."""
    section = config["network"]
    cls = choose(NETWORKS, section["kind"], "config.network.kind")
    return module_from(cls, _without(section, "kind"), "network", dtype=compute_dtype(config))


def example_inputs(config: Mapping[str, Any], size: int | None = None) -> tuple[Any, Any, Any]:
    """Shapes of what the network is called with: x [1, h, w, C], t [1], cond."""
    stage, network = make_first_stage(config), make_network(config)
    size = size or config["data"]["image_size"]
    h, w, _ = stage.latent_shape(size, size)
    inputs = conditioner_inputs(config)
    cond, concat = None, 0
    if inputs is not None:
        conditioning = make_conditioning(config)
        cond = jax.eval_shape(lambda key, x: conditioning.apply(conditioning.init(key), x), jax.random.key(0), inputs)
        concat = cond["concat"].shape[-1] if "concat" in cond else 0
    x = jax.ShapeDtypeStruct((1, h, w, network.in_channels - concat), jnp.float32)
    return x, jax.ShapeDtypeStruct((1,), jnp.float32), cond


def make_objective(config: Mapping[str, Any]):
    """(network of (x, t), x0, key) -> (loss, metrics), from config.diffusion."""
    section, schedule = config["diffusion"], make_schedule(config)
    weighting = {"min_snr": {"gamma": "min_snr_gamma"}, "sigmoid": {"bias": "sigmoid_bias"}}.get(section["weighting"], {})
    options = {ours: section[name] for ours, name in weighting.items() if name in section}
    return functools.partial(
        _objective,
        schedule=schedule,
        kind=section["prediction"],
        weighting=diffusion.make_weighting(section["weighting"], schedule, **options),
        times=diffusion.make_times(section["time_sampling"]),
        error=section["loss"],
    )


def _objective(network, x0, key, *, schedule, kind, **options):
    return diffusion.diffusion_loss(network, schedule, kind, x0, key, **options)


def make_diffusion_init(config: Mapping[str, Any], conditioning: Conditioning) -> Callable[[jax.Array], PyTree]:
    """key -> {"network": ..., "conditioner": ...}."""
    network, inputs = make_network(config), example_inputs(config)

    def init(key):
        network_key, conditioner_key = jax.random.split(key)
        return {
            "network": models.initialize(network, network_key, *inputs),
            "conditioner": conditioning.init(conditioner_key),
        }

    return init


def make_diffusion_loss(config: Mapping[str, Any], conditioning: Conditioning, scale: float, shift: float):
    """`loss_fn(params, batch, key)` of the diffusion model; batch as `second_stage` says."""
    network = make_network(config)

    def apply(params, x, t, cond, dropout_key):
        return network.apply({"params": params}, x, t, cond, train=True, rngs={"dropout": dropout_key})

    return second_stage.make_loss(
        apply,
        conditioning.apply,
        conditioning.null,
        make_objective(config),
        scale=scale,
        shift=shift,
        null_probability=config["conditioner"].get("null_probability", 0.0),
    )


def make_stage_optimizer(section: Mapping[str, Any]):
    """The optimizer of config.first_stage_train or config.diffusion_train."""
    names = ("learning_rate", "steps", "warmup_steps", "decay", "b1", "b2", "weight_decay", "clip_norm")
    return make_optimizer(section["optimizer"], **{name: section[name] for name in names})


# Checks


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
        conditioner = make_conditioner(config)
        if conditioner is not None:
            counts["conditioner"] = models.count(models.shapes(conditioner, conditioner_inputs(config)))
    return counts


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError for what can't work, before any data are read or anything compiles."""
    stages = ("first_stage", "latents", "diffusion", "evaluation")
    for name in config["stages"]:
        choose(dict.fromkeys(stages), name, "config.stages")
    stage = make_first_stage(config)
    size = config["data"]["image_size"]
    stage.latent_shape(size, size)
    if "first_stage" in config["stages"] and not config["first_stage"]["path"]:
        if stage.module is not None:
            make_first_stage_loss(config)
            make_stage_optimizer(config["first_stage_train"])
    if "diffusion" in config["stages"]:
        network, section = make_network(config), config["diffusion"]
        if choose(KINDS, config["conditioner"]["kind"], "config.conditioner.kind") not in TRAINABLE:
            raise ValueError(
                f"config.conditioner.kind={config['conditioner']['kind']!r}: there is no training pipeline for it; models "
                f"of this kind can be loaded and sampled. Trained here: {', '.join(TRAINABLE)}"
            )
        if network.out_channels != stage.channels:
            raise ValueError(
                f"config.network.out_channels={network.out_channels}: the first stage's latents have {stage.channels} channels"
            )
        make_objective(config)
        make_stage_optimizer(config["diffusion_train"])
        diffusion.parameterization.coefficients(section["prediction"], diffusion.Level(0.0, 1.0, 0.5))
        jax.eval_shape(functools.partial(models.initialize, network), jax.random.key(0), *example_inputs(config))
        make_recipe(config).grid(config["sampling"]["steps"])


def with_lists(value: Any) -> Any:
    """A ConfigDict's JSON form: tuples as lists, what JSON would make of it."""
    if isinstance(value, Mapping):
        return {name: with_lists(v) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [with_lists(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
