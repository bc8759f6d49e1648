"""Network, process, loss and sampling recipe of the diffusion model, from config.network, config.diffusion, config.sampling."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import diffusion, models, second_stage
from ldm_jax.build.conditioner import conditioner_inputs, make_conditioning
from ldm_jax.build.first_stage import make_first_stage
from ldm_jax.build.options import choose, compute_dtype, module_from, without
from ldm_jax.conditioning import Conditioning, encoded
from ldm_jax.diffusion.recipe import Recipe
from ldm_jax.weights import schedulers

PyTree = Any
NETWORKS = {"unet": models.UNet, "dit": models.DiT}
_SCHEDULE_OPTIONS = {
    "linear_start": "start",
    "linear_end": "end",
    "timesteps": "size",
    "scale": "scale",
    "shift": "shift",
}


def make_schedule(config: Mapping[str, Any]) -> Any:
    """The noise schedule of config.diffusion."""
    section = config["diffusion"]
    options = {ours: section[name] for name, ours in _SCHEDULE_OPTIONS.items() if name in section}
    try:
        return diffusion.make_schedule(section["schedule"], **options)
    except TypeError as error:
        raise ValueError(f"config.diffusion: schedule {section['schedule']!r} {str(error).split('() ')[-1]}") from None


def make_recipe(config: Mapping[str, Any], sampler: str | None = None, grid: str | None = None) -> Recipe:
    """How to sample: by config.scheduler (the settings of a diffusers scheduler) if there is one, else by config.sampling,
    whose `end` says where the last step goes: "clean" (the default) or "first", the table's least noisy level, as CompVis's
    samplers do. `sampler` and `grid` replace either's; a grid given here ends clean."""
    if "scheduler" in config:
        recipe = schedulers.read(config["scheduler"])
    else:
        section, schedule = config["sampling"], make_schedule(config)
        ends = {"clean": lambda: diffusion.CLEAN, "first": lambda: schedule(0.0)}
        end = choose(ends, section.get("end", "clean"), "config.sampling.end")()
        recipe = Recipe(
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


def make_network(config: Mapping[str, Any]) -> Any:
    """The Linen module of config.network."""
    section = config["network"]
    cls = choose(NETWORKS, section["kind"], "config.network.kind")
    return module_from(cls, without(section, "kind"), "network", dtype=compute_dtype(config))


def example_inputs(config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Shapes of what the network is called with: x [1, h, w, C], t [1], cond."""
    stage, network = make_first_stage(config), make_network(config)
    side = config["data"]["image_size"]
    h, w, channels = stage.latent_shape(side, side)
    conditioning, concat = make_conditioning(config), 0

    def condition(key, inputs):
        inputs = encoded(conditioning, inputs, lambda images: jnp.zeros((len(images), h, w, channels)))
        return conditioning.apply(conditioning.init(key), inputs)

    cond = jax.eval_shape(condition, jax.random.key(0), conditioner_inputs(config))
    if cond is not None and "concat" in cond:
        concat = cond["concat"].shape[-1]
        if cond["concat"].shape[1:3] != (h, w):
            raise ValueError(
                f"config.conditioner: its map is {cond['concat'].shape[1]} x {cond['concat'].shape[2]}, the latents of the "
                f"first stage are {h} x {w}; they are laid side by side"
            )
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
