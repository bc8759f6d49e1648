"""Network, process, objective and recipe of the diffusion model, from config.network, config.diffusion, config.sampling."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import diffusion, models, second_stage
from ldm_jax.build.adaptation import adapts, control_fields, field_of, make_adaptation, without_word
from ldm_jax.build.autoencoder import first_stage_dtype, make_first_stage
from ldm_jax.build.condition import make_condition
from ldm_jax.build.options import compiler, compute_dtype, image_size, make_stage_optimizer, without
from ldm_jax.conditioning import Condition
from ldm_jax.data import augment
from ldm_jax.primitives.choices import check_choice, choose, construct
from ldm_jax.training.optimizer import passing_by
from ldm_jax.training.program import Program
from ldm_jax.training.state import from_loss

PyTree = Any
NETWORKS = {"unet": models.UNet, "dit": models.DiT, "mmdit": models.MMDiT}
# What a schedule calls fields of config.diffusion.
SCHEDULE_OPTIONS = {
    "linear_start": "start", "linear_end": "end", "timesteps": "size", "scale": "scale", "shift": "shift",
    "time_scale": "time_scale",
}  # fmt: skip
# What changes a table of betas: Lin et al. 2023, its last level is pure noise.
RESCALED = "zero_terminal_snr"
# What an objective is told by fields of config.diffusion beside `prediction`: its own name for them.
_OBJECTIVE_OPTIONS = {
    "loss": "loss",
    "weighting": "weighting",
    "time_sampling": "times",
    "offset_noise": "offset_noise",
    "input_perturbation": "input_perturbation",
    "learned_variance": "learned_variance",
    "elbo_weight": "elbo_weight",
}
# The name of the objective that `diffusion.make_objective` makes; the others are in `diffusion.few_steps.OBJECTIVES`.
DENOISING = "diffusion"
TEACHER = second_stage.TEACHER
PRIOR = second_stage.PRIOR
# Fields of the frozen model's network that the student's may have otherwise.
TEACHER_FIELDS = {"second_time": False, "guidance_dim": 0}
WEIGHTING_OPTIONS = {"min_snr_gamma": "gamma", "sigmoid_bias": "bias"}


def make_schedule(config: Mapping[str, Any]) -> Any:
    """The noise schedule of config.diffusion, its table rescaled where `zero_terminal_snr` says so. `scale` 1 changes no
    schedule, and may stand beside those that have none."""
    section = config["diffusion"]
    options = {ours: section[name] for name, ours in SCHEDULE_OPTIONS.items() if name in section}
    if options.get("scale") == 1:
        del options["scale"]
    try:
        made = diffusion.make_schedule(section["schedule"], **options)
    except TypeError as error:
        advice = "; set config.diffusion.scale=1, which changes nothing" if "'scale'" in str(error) else ""
        raise ValueError(f"config.diffusion: schedule {section['schedule']!r} {str(error).split('() ')[-1]}{advice}") from None
    if not section.get(RESCALED):
        return made
    if not isinstance(made, diffusion.schedules.Discrete):
        raise ValueError(
            f"config.diffusion.{RESCALED}=True rescales a table of betas, and schedule {section['schedule']!r} is continuous: "
            "set it to False"
        )
    return diffusion.schedules.zero_terminal_snr(made)


def make_recipe(config: Mapping[str, Any], sampler: Any = None, grid: Any = None) -> diffusion.Recipe:
    """How to sample: by config.scheduler (the settings of a diffusers scheduler) if there is one, else by config.sampling,
    whose `end` says where the last step goes: "clean" (the default) or "first", the table's least noisy level, as CompVis's
    samplers do.

    A sampler (a name or a `diffusion.Sampler`) and a grid (see `diffusion.Recipe.with_grid`) that are given stand above the
    config's; a named grid given here ends clean. A model that came with a scheduler of diffusers gets that of the sampler's
    name with its own defaults (`weights.scheduler_names`); others keep their grid, unless the name is only known for a
    scheduler: "dpmpp_2m_karras", "LCMScheduler". ValueError for names that can't be combined.
    """
    if isinstance(sampler, str) and (recipe := _by_schedulers_name(config, sampler)) is not None:
        return recipe if grid is None else recipe.with_grid(grid)
    if "scheduler" in config:
        from ldm_jax.weights import schedulers

        recipe = schedulers.read(config["scheduler"])
        recipe = recipe if sampler is None else recipe.with_sampler(sampler)
        return recipe if grid is None else recipe.with_grid(grid)
    section = config["sampling"]
    recipe = diffusion.make_recipe(
        make_schedule(config),
        config["diffusion"]["prediction"],
        section["sampler"] if sampler is None else sampler,
        section["grid"] if grid is None else grid,
        end=section.get("end", "clean") if grid is None else "clean",
    )
    kind = few_steps_kind(config)
    return dataclasses.replace(recipe, wrap=kind.wrap) if kind and kind.wrap else recipe


def _by_schedulers_name(config: Mapping[str, Any], sampler: str) -> diffusion.Recipe | None:
    """What the scheduler of this name makes of the model's process; None where the name is that of a sampler alone."""
    from ldm_jax.weights import scheduler_names

    check_choice(sampler, sorted({*diffusion.SAMPLERS, *scheduler_names.NAMES}), "sampler")
    of = config.get("scheduler")
    if of is None and sampler not in diffusion.SAMPLERS:
        of = scheduler_names.of_process(config["diffusion"])
    if of is not None and sampler in scheduler_names.NAMES and (found := scheduler_names.by_name(sampler, of)) is not None:
        return found
    if sampler not in diffusion.SAMPLERS:
        raise ValueError(f"sampler={sampler!r}: diffusers has none of this name for a model that was trained as this one")
    return None


def make_network(config: Mapping[str, Any], **changes: Any) -> Any:
    """The Linen module of config.network, with other values for some fields."""
    section = config["network"]
    cls = choose(NETWORKS, section["kind"], "config.network.kind")
    return construct(cls, without(section, "kind") | {"dtype": compute_dtype(config)} | changes, "config.network")


def make_control(config: Mapping[str, Any]) -> Any:
    """The Linen module of the ControlNet that config.diffusion_train.control trains; None for none."""
    if "first_stage" not in config or adapts(config) != "control":
        return None
    stage = make_first_stage(config)
    return make_network({**config, "network": control_fields(config, stage.channels, stage.factor)})


def example_inputs(config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Shapes of what the network is called with: x [1, *space, C], t [1], cond."""
    stage, network, condition = make_first_stage(config), make_network(config), make_condition(config)
    *space, channels = stage.latent_shape(*image_size(config))

    def cond_of(key, inputs):
        inputs = condition.encoded(inputs, lambda images: jnp.zeros((len(images), *space, channels)))
        return condition.apply(condition.init(key), inputs)

    cond, concat = jax.eval_shape(cond_of, jax.random.key(0), condition.inputs), 0
    if cond is not None:  # a ControlNet's alone
        cond = {name: part for name, part in cond.items() if name not in models.HINT} or None
    if getattr(network, "guidance_dim", 0):
        cond = dict(cond or {}) | {"guidance": jax.ShapeDtypeStruct((1,), jnp.float32)}
    if config["data"].get("augment"):
        cond = dict(cond or {}) | {"augment": jax.ShapeDtypeStruct((1, augment.NUMBERS), jnp.float32)}
    if cond is not None and "concat" in cond:
        concat = cond["concat"].shape[-1]
        if (lies := list(cond["concat"].shape[1:-1])) != space:
            raise ValueError(
                f"config.conditioner: its map is {' x '.join(map(str, lies))}, the latents of the first stage are "
                f"{' x '.join(map(str, space))}; they are laid side by side"
            )
    x = jax.ShapeDtypeStruct((1, *space, network.in_channels - concat), jnp.float32)
    return x, jax.ShapeDtypeStruct((1,), jnp.float32), cond


def make_objective(config: Mapping[str, Any]) -> diffusion.objectives.Objective:
    """What the network learns, from config.diffusion: its `objective`, with `options` of that one."""
    section, kind = config["diffusion"], few_steps_kind(config)
    options = {ours: section[name] for name, ours in _OBJECTIVE_OPTIONS.items() if name in section}
    weighting = {ours: section[name] for name, ours in WEIGHTING_OPTIONS.items() if name in section}
    schedule, own, where = make_schedule(config), dict(section.get("options", {})), "config.diffusion.options"
    known = inspect.signature(kind.make if kind else diffusion.make_objective).parameters
    for name in own:
        if kind is None:
            raise ValueError(f"{where}.{name}: options are of objectives of few steps; set config.diffusion.objective to one")
        check_choice(name, [p for p in known if p not in ("schedule", "prediction", "times", "steps")], where)
    for path, value in jax.tree_util.tree_leaves_with_path(own):
        if isinstance(value, float) and not math.isfinite(value):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{where}.{name}={value}: must be a finite number")
    if kind is None:
        return diffusion.make_objective(schedule, section["prediction"], weighting_options=weighting, **options)
    default = {name: p.default for name, p in inspect.signature(diffusion.make_objective).parameters.items()}
    for name, ours in _OBJECTIVE_OPTIONS.items():
        if ours in options and ours not in known and options[ours] != default[ours]:
            raise ValueError(
                f"config.diffusion.{name}={options[ours]!r} has no meaning for objective={section['objective']!r}: set it to "
                f"{default[ours]!r}"
            )
    given = {name: options[name] for name in known if name in options}
    if "steps" in known:
        given["steps"] = config["diffusion_train"]["steps"]
    return kind.make(schedule, section["prediction"], **given, **own)


def few_steps_kind(config: Mapping[str, Any]) -> diffusion.few_steps.Kind | None:
    """The kind of config.diffusion.objective; None for the diffusion loss itself, which configs without that field have."""
    name = config.get("diffusion", {}).get("objective", DENOISING)
    return choose({DENOISING: None, **diffusion.few_steps.OBJECTIVES}, name, "config.diffusion.objective")


def check_few_steps(config: Mapping[str, Any], condition: Condition) -> None:
    """ValueError where network, condition or sampler don't fit an objective of few steps."""
    section, kind, network = config["diffusion"], few_steps_kind(config), config["network"]
    name, told = section.get("objective", DENOISING), network.get("second_time", False)
    if bool(told) != bool(kind and kind.second_time):
        must = "it tells no step's length; set it to False" if told else "it tells the network how far to step; set it to True"
        raise ValueError(f"config.network.second_time={told} with config.diffusion.objective={name!r}: {must}")
    if dim := network.get("guidance_dim", 0):
        if not (kind and kind.tells_guidance):
            raise ValueError(
                f"config.network.guidance_dim={dim}: objective={name!r} tells the network no guidance scale; set it to 0"
            )
        told = True
    if kind is None:
        return
    if told and (part := adapts(config)):
        raise ValueError(
            f"{field_of(part)}: objective={name!r} has the network learn how to be told a step's length or a guidance scale, "
            "which a network that stays as it is can't; train all of it, or by another objective"
        )
    batch_size, known = config["diffusion_train"]["batch_size"], inspect.signature(kind.make).parameters
    share = section.get("options", {}).get("share", known["share"].default if "share" in known else 0)
    if 0 < share <= 1 and not round(share * batch_size):
        raise ValueError(
            f"config.diffusion.options.share={share} of config.diffusion_train.batch_size={batch_size} is not one row, and "
            f"objective={name!r} would learn no step: raise either, or set share to 0"
        )
    guided = section.get("options", {}).get("guidance_scale", 1.0) != 1
    if guided and (condition.kind == "none" or not config["conditioner"].get("null_probability", 0.0)):
        raise ValueError(
            "config.diffusion.options.guidance_scale leads away from the empty condition, which this model does not learn: set "
            "it to 1.0, or config.conditioner.null_probability above 0"
        )
    if kind.forward_mode and network.get("attention", "auto") not in ("auto", "xla"):
        raise ValueError(
            f"config.network.attention={network['attention']!r} has no forward-mode derivative, which objective={name!r} "
            "takes: set it to 'auto' or 'xla'"
        )
    if kind.teacher and not config["diffusion_train"].get("start_from"):
        raise ValueError(
            f"config.diffusion_train.start_from='': objective={name!r} learns from a trained model of the same process; name "
            "its working directory"
        )


def make_diffusion_program(
    config: Mapping[str, Any], condition: Condition | None = None, cached: bool | None = None
) -> Program:
    """All that trains the diffusion model. `condition`: one that knows its tokenizer and class names, which a step needs
    where conditions are dropped for text; `cached`: whether batches hold the latents' moments, by default as the config has
    it."""
    section, stage, kind = config["diffusion_train"], make_first_stage(config), few_steps_kind(config)
    network = make_network(config, **({"attention": "xla"} if kind and kind.forward_mode else {}))
    condition = condition or make_condition(config)
    check_few_steps(config, condition)
    inputs, control = example_inputs(config), make_control(config)
    adaptation = make_adaptation(config, condition, control and (lambda key: init_control(config, control, key, inputs)))
    teacher = make_network(teacher_config(config)) if kind and kind.teacher else None
    null_probability = config["conditioner"].get("null_probability", 0.0)
    loss_fn = second_stage.make_loss(
        models.Steered(network, control) if control else network,
        stage,
        condition,
        make_objective(config),
        null_probability=null_probability,
        teacher=teacher,
    )
    if adaptation:
        loss_fn = second_stage.adapted(loss_fn, adaptation.part, adaptation.change)
    batch = batch_shapes(config, condition, section["batch_size"], cached)
    if weight := section.get("dreambooth", {}).get("prior_weight", 0.0):
        loss_fn, batch = second_stage.with_prior(loss_fn, weight), batch | {PRIOR: batch}
    by_history = config["diffusion"]["time_sampling"] == "importance"
    if by_history and section.get("accumulate", 1) > 1:
        raise ValueError("config.diffusion.time_sampling='importance' looks at whole batches: set diffusion_train.accumulate=1")
    history = {diffusion.times.HISTORY: diffusion.times.loss_history()._asdict()} if by_history else {}

    def init(key: jax.Array) -> PyTree:
        network_key, condition_key = jax.random.split(key)
        if adaptation:
            return {adaptation.part: adaptation.init(network_key, constants)} | history
        params = {"network": models.initialize(network, network_key, *inputs)} | history
        return params if condition.frozen else params | {"conditioner": condition.init(condition_key)}

    constants, optimizer = frozen_shapes(config, stage, condition), make_stage_optimizer(section)
    if teacher is not None:
        constants[second_stage.TEACHER] = teacher_shapes(config, condition)
    gradient = from_loss(second_stage.scalars(loss_fn), tuple(constants))
    if by_history:
        gradient = second_stage.recording(loss_fn, make_schedule(config), tuple(constants))
        optimizer = passing_by(optimizer, history)
    return Program(
        init=init,
        gradients=[gradient],
        optimizer=optimizer,
        not_averaged=tuple(history),
        batch=batch,
        constants=constants,
        ema_decay=section["ema_decay"],
        post_hoc=tuple(section.get("post_hoc", ())),
        accumulate=section.get("accumulate", 1),
        compiler=compiler(config),
        loss=loss_fn,
    )


def init_control(config: Mapping[str, Any], control: Any, key: jax.Array, inputs: tuple[Any, Any, Any]) -> PyTree:
    """Random parameters of a ControlNet, whose last layers are zeros. `inputs`: of `example_inputs`."""
    x, t, cond = inputs
    hint = jax.ShapeDtypeStruct((1, *image_size(config), 3), jnp.float32)
    return models.initialize(control, key, x, t, dict(cond or {}) | {"hint": hint})


def frozen_shapes(config: Mapping[str, Any], stage: Any, condition: Condition) -> PyTree:
    """Shapes of what the diffusion model's training does not change: the first stage and, where it is pretrained, the
    conditioner, and where it is adapted, the network, in the arithmetic's type; scale and shift of the latents, [C]."""
    key, dtype = jax.random.key(0), compute_dtype(config)

    def shapes(init: Any, dtype: Any) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), jax.eval_shape(init, key))

    parts = {"first_stage": shapes(stage.init, first_stage_dtype(config))}
    if condition.frozen or adapts(config):
        before = make_condition(without_word(config)) if adapts(config) == "word" else condition
        parts["conditioner"] = shapes(before.init, dtype)
    if adapts(config):
        network, inputs = make_network(config), example_inputs(config)
        parts["network"] = shapes(lambda key: models.initialize(network, key, *inputs), dtype)
    channel = jax.ShapeDtypeStruct((stage.channels,), jnp.float32)
    return parts | {"latents": {"scale": channel, "shift": channel}}


def teacher_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the network of the frozen model that an objective learns from: without what few steps alone need."""
    network = config["network"]
    return {**config, "network": {**network, **{name: off for name, off in TEACHER_FIELDS.items() if name in network}}}


def teacher_shapes(config: Mapping[str, Any], condition: Condition) -> PyTree:
    """Shapes of the frozen model that an objective learns from, in the arithmetic's type: {"network"}, with "conditioner" where
    that is trained here."""
    key, dtype = jax.random.key(0), compute_dtype(config)
    config = teacher_config(config)
    parts = {"network": models.shapes(make_network(config), *example_inputs(config))}
    if not condition.frozen:
        parts["conditioner"] = jax.eval_shape(condition.init, key)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), parts)


def batch_shapes(config: Mapping[str, Any], condition: Condition, batch_size: int, cached: bool | None = None) -> PyTree:
    """Shapes of a batch of the diffusion model's training."""
    stage, size = make_first_stage(config), image_size(config)
    cached = config["latents"]["cache"] if cached is None else cached
    if cached and stage.module is not None:
        *space, channels = stage.latent_shape(*size)
        name = "latents" if stage.module.quantizes else "moments"
        example = {name: jax.ShapeDtypeStruct((1, *space, channels * (1 + (name == "moments"))), jnp.float32)}
    else:
        colours = 3 if stage.module is None else stage.module.in_channels
        example = {"image": jax.ShapeDtypeStruct((1, *size, colours), jnp.float32)}
    example["inputs"] = condition.inputs
    if config["data"].get("augment"):
        example["augment"] = jax.ShapeDtypeStruct((1, augment.NUMBERS), jnp.float32)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), example)


def make_diffusion_init(config: Mapping[str, Any], condition: Condition) -> Any:
    """key -> {"network": ..., "conditioner": ...}, random, the conditioner's too where it is not trained."""
    network, inputs = make_network(config), example_inputs(config)

    def init(key):
        network_key, condition_key = jax.random.split(key)
        return {
            "network": models.initialize(network, network_key, *inputs),
            "conditioner": condition.init(condition_key),
        }

    return init
