"""Network, process, objective and recipe of the diffusion model, from config.network, config.diffusion, config.sampling."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import diffusion, models, second_stage
from ldm_jax.build.autoencoder import make_first_stage
from ldm_jax.build.condition import make_condition
from ldm_jax.build.options import compiler, compute_dtype, image_size, make_stage_optimizer, without
from ldm_jax.conditioning import Condition
from ldm_jax.primitives.choices import choose, construct
from ldm_jax.training.optimizer import passing_by
from ldm_jax.training.program import Program
from ldm_jax.training.state import from_loss

PyTree = Any
NETWORKS = {"unet": models.UNet, "dit": models.DiT}
# What a schedule calls fields of config.diffusion.
_SCHEDULE_OPTIONS = {"linear_start": "start", "linear_end": "end", "timesteps": "size", "scale": "scale", "shift": "shift"}
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
_WEIGHTING_OPTIONS = {"min_snr_gamma": "gamma", "sigmoid_bias": "bias"}


def make_schedule(config: Mapping[str, Any]) -> Any:
    """The noise schedule of config.diffusion."""
    section = config["diffusion"]
    options = {ours: section[name] for name, ours in _SCHEDULE_OPTIONS.items() if name in section}
    try:
        return diffusion.make_schedule(section["schedule"], **options)
    except TypeError as error:
        raise ValueError(f"config.diffusion: schedule {section['schedule']!r} {str(error).split('() ')[-1]}") from None


def make_recipe(config: Mapping[str, Any], sampler: Any = None, grid: str | None = None) -> diffusion.Recipe:
    """How to sample: by config.scheduler (the settings of a diffusers scheduler) if there is one, else by config.sampling,
    whose `end` says where the last step goes: "clean" (the default) or "first", the table's least noisy level, as CompVis's
    samplers do. A sampler (a name or a `diffusion.Sampler`) and a grid's name that are given stand above the config's; a grid
    given here ends clean. ValueError for names that can't be combined."""
    if "scheduler" in config:
        from ldm_jax.weights import schedulers

        recipe = schedulers.read(config["scheduler"])
        recipe = recipe if sampler is None else recipe.with_sampler(sampler)
        return recipe if grid is None else recipe.with_grid(grid)
    section = config["sampling"]
    return diffusion.make_recipe(
        make_schedule(config),
        config["diffusion"]["prediction"],
        section["sampler"] if sampler is None else sampler,
        grid or section["grid"],
        end="clean" if grid else section.get("end", "clean"),
    )


def make_network(config: Mapping[str, Any]) -> Any:
    """The Linen module of config.network."""
    section = config["network"]
    cls = choose(NETWORKS, section["kind"], "config.network.kind")
    return construct(cls, without(section, "kind") | {"dtype": compute_dtype(config)}, "config.network")


def example_inputs(config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Shapes of what the network is called with: x [1, *space, C], t [1], cond."""
    stage, network, condition = make_first_stage(config), make_network(config), make_condition(config)
    *space, channels = stage.latent_shape(*image_size(config))

    def cond_of(key, inputs):
        inputs = condition.encoded(inputs, lambda images: jnp.zeros((len(images), *space, channels)))
        return condition.apply(condition.init(key), inputs)

    cond, concat = jax.eval_shape(cond_of, jax.random.key(0), condition.inputs), 0
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
    """What the network learns, from config.diffusion."""
    section = config["diffusion"]
    options = {ours: section[name] for name, ours in _OBJECTIVE_OPTIONS.items() if name in section}
    weighting = {ours: section[name] for name, ours in _WEIGHTING_OPTIONS.items() if name in section}
    return diffusion.make_objective(make_schedule(config), section["prediction"], weighting_options=weighting, **options)


def make_diffusion_program(
    config: Mapping[str, Any], condition: Condition | None = None, cached: bool | None = None
) -> Program:
    """All that trains the diffusion model. `condition`: one that knows its tokenizer and class names, which a step needs
    where conditions are dropped for text; `cached`: whether batches hold the latents' moments, by default as the config has
    it."""
    section, stage, network = config["diffusion_train"], make_first_stage(config), make_network(config)
    condition = condition or make_condition(config)
    inputs = example_inputs(config)
    frozen = condition.frozen
    loss_fn = second_stage.make_loss(
        network, stage, condition, make_objective(config), null_probability=config["conditioner"].get("null_probability", 0.0)
    )
    by_history = config["diffusion"]["time_sampling"] == "importance"
    if by_history and section.get("accumulate", 1) > 1:
        raise ValueError("config.diffusion.time_sampling='importance' looks at whole batches: set diffusion_train.accumulate=1")
    history = {diffusion.times.HISTORY: diffusion.times.loss_history()._asdict()} if by_history else {}

    def init(key: jax.Array) -> PyTree:
        network_key, condition_key = jax.random.split(key)
        params = {"network": models.initialize(network, network_key, *inputs)} | history
        return params if frozen else params | {"conditioner": condition.init(condition_key)}

    constants, optimizer = frozen_shapes(config, stage, condition), make_stage_optimizer(section)
    gradient = from_loss(second_stage.scalars(loss_fn), tuple(constants))
    if by_history:
        gradient = second_stage.recording(loss_fn, make_schedule(config), tuple(constants))
        optimizer = passing_by(optimizer, history)
    return Program(
        init=init,
        gradients=[gradient],
        optimizer=optimizer,
        not_averaged=tuple(history),
        batch=batch_shapes(config, condition, section["batch_size"], cached),
        constants=constants,
        ema_decay=section["ema_decay"],
        post_hoc=tuple(section.get("post_hoc", ())),
        accumulate=section.get("accumulate", 1),
        compiler=compiler(config),
        loss=second_stage.scalars(loss_fn),
    )


def frozen_shapes(config: Mapping[str, Any], stage: Any, condition: Condition) -> PyTree:
    """Shapes of what the diffusion model's training does not change: the first stage and, where it is pretrained, the
    conditioner, in the arithmetic's type; scale and shift of the latents, [C]."""
    key, dtype = jax.random.key(0), compute_dtype(config)
    parts = {"first_stage": jax.eval_shape(stage.init, key)}
    if condition.frozen:
        parts["conditioner"] = jax.eval_shape(condition.init, key)
    parts = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), parts)
    channel = jax.ShapeDtypeStruct((stage.channels,), jnp.float32)
    return parts | {"latents": {"scale": channel, "shift": channel}}


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
