"""Trained models that config.diffusion_train.start_from names, for the three things that a training may do with one: go on from
it, adapt it without changing it, or learn from it."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, models
from ldm_jax.api import trained_on
from ldm_jax.conditioning import Condition, words
from ldm_jax.data.tokenizer import Tokenizer
from ldm_jax.experiment import unsaid
from ldm_jax.experiment.stage import Experiment
from ldm_jax.primitives.files import read_json
from ldm_jax.training import distributed, sharding
from ldm_jax.training.bucket import stage_folder
from ldm_jax.training.checkpoint_reader import steps_in
from ldm_jax.workdir import absolute

PyTree = Any
TIME_SCALE = 1000.0  # times that a network is told end there, where the config has no other
_PROCESS = ("schedule", "prediction", *build.SCHEDULE_OPTIONS, build.RESCALED)  # fields of config.diffusion that say it
WORDS = {"token_emb": 0, "to_logits": -1}  # what a conditioner that learns words has by word, and along which axis


def pretrained(
    config: Mapping[str, Any],
    params: PyTree,
    tokenizer: Any = None,
    latents: tuple[Any, Any] | None = None,
    say: Callable[[str], None] = print,
) -> PyTree:
    """Network and conditioner to go on from, of anything that `load` reads.

    What it doesn't have stays what it is in `params`: embeddings of further inputs (`models.ADDED_INPUTS`), blocks over time,
    where films go on from pictures (`models.inflated`), fields of words (`context_waves`), and words. Words that both have keep
    what was learnt of them, whatever their numbers. Channels beside the latents that it isn't told count for nothing at first
    (`models.widened`); what told it its condition is the part of that kind where there are several now.

    Args:
      tokenizer: that of this training's captions, if any.
      latents: their scale and shift here, if known.
      say: is told where the model was trained otherwise, or on fewer channels: it has to learn anew what it is asked for.

    Raises:
      ValueError: unless shaped as `params`, and told times in the same units.
    """
    path = config["diffusion_train"]["start_from"]
    ldm = api.load_whole(path)
    ours, theirs = (of.get("diffusion", {}).get("time_scale", TIME_SCALE) for of in (config, ldm.config))
    if ours != theirs:
        raise ValueError(
            f"config.diffusion.time_scale={ours}: the model to start from, {path}, is told times up to {theirs}; set it to that"
        )
    found = {name: ldm.params.get(name, part) for name, part in params.items()}
    if "network" in params:
        same = models.inflated(found["network"], params["network"])
        wide = models.widened(same, params["network"])
        if wide is not same:
            say(f"diffusion: the model to start from, {path}, sees less beside its latents: the other channels begin at zero")
        found["network"] = _with_fresh(wide, params["network"])
    if "conditioner" in params:
        found["conditioner"] = _as_part(found["conditioner"], params["conditioner"], config, ldm.config)
    numbers = _numbers(tokenizer, ldm)
    if numbers is not None and "conditioner" in params:
        found["conditioner"] = _by_word(found["conditioner"], params["conditioner"], numbers)
    check_shapes(path, found, params)
    if "network" in params and (said := _otherwise(config, ldm, latents)):
        say(f"diffusion: the model to start from, {path}, was trained with {said[1]}; this training has {said[0]}")
    return found


def _with_fresh(found: PyTree, params: PyTree) -> PyTree:
    """`found` with those inputs' embeddings and blocks over time of `params` that it lacks."""
    if not isinstance(params, Mapping) or not isinstance(found, Mapping):
        return found
    both = {name: _with_fresh(part, params[name]) if name in params else part for name, part in found.items()}
    fresh = {name for name in params if name in models.ADDED_INPUTS or name.endswith((models.OVER_TIME, models.BY_PLACE))}
    return {name: part for name, part in params.items() if name in fresh} | both


def _as_part(found: PyTree, params: PyTree, config: Mapping[str, Any], theirs: Mapping[str, Any]) -> PyTree:
    """The conditioner of a model with one condition, as a part of this training's, where that has several."""
    kind, parts = theirs.get("conditioner", {}).get("kind"), config.get("conditioner", {}).get("parts", {})
    names = [name for name, part in parts.items() if part["kind"] == kind and name in params]
    return {**params, names[0]: found} if names else found


def _numbers(tokenizer: Any, ldm: Any) -> np.ndarray | None:
    """The numbers that a model has for the words of this training, `Tokenizer.numbers_in`; None where one of both learnt no
    words of its own."""
    theirs = ldm.specification.condition.setting.tokenizer
    if not all(isinstance(of, Tokenizer) and not of.is_clip for of in (tokenizer, theirs)):
        return None
    return tokenizer.numbers_in(theirs)


def _by_word(found: PyTree, params: PyTree, numbers: np.ndarray, axis: int | None = None) -> PyTree:
    """`found` with what it has by word (`WORDS`) in the order of `numbers`, and that of `params` where these are -1."""
    if isinstance(found, Mapping) and isinstance(params, Mapping):
        return {
            name: _by_word(part, params.get(name), numbers, WORDS.get(name, axis)) for name, part in found.items()
        }
    if axis is None or params is None or found.ndim != params.ndim:
        return found
    if np.delete(found.shape, axis).tolist() != np.delete(params.shape, axis).tolist():
        return found
    known = np.full(params.shape[axis], -1)
    if found.shape == params.shape:  # behind the words stands what is none, such as a hole in a sentence
        known = np.arange(len(known))
    known[: len(numbers)] = numbers
    rows = np.take(np.asarray(found), np.maximum(known, 0), axis)
    rows = sharding.place(rows, params.sharding)  # of all devices, as `params` are
    return jnp.where(np.expand_dims(known >= 0, [i for i in range(rows.ndim) if i != axis % rows.ndim]), rows, params)


def _check_words(path: str, tokenizer: Any, ldm: Any, new: bool = False) -> None:
    """ValueError unless the frozen model numbers the words of this training as this training does. `new`: this training may
    have words besides, behind those of the model."""
    if known := getattr(ldm.specification.condition.setting.tokenizer, "added", ()):
        raise ValueError(
            f"config.diffusion_train.start_from={path!r} was taught words ({', '.join(known)}), which it has as a file: start "
            "from the model that it was taught on, and put them onto what is learnt by with_embedding (ldm_jax.save_embedding)"
        )
    numbers = _numbers(tokenizer, ldm)
    if numbers is not None and new:
        size = ldm.specification.condition.setting.tokenizer.vocab_size
        numbers = numbers[:size] if (numbers[size:] < 0).all() else numbers
    if numbers is not None and not np.array_equal(numbers, np.arange(len(numbers))):
        raise ValueError(
            f"config.diffusion_train.start_from={path!r} numbers words otherwise than the captions of this training, and it "
            f"stays as it is: use its tokenizer, --config.conditioner.tokenizer={path}/tokenizer.json"
        )


def base(config: Mapping[str, Any], shapes: PyTree, latents: tuple[Any, Any], tokenizer: Any = None) -> PyTree:
    """Network and conditioner that are adapted and stay as they are, in the arithmetic's type.

    Args:
      latents: their scale and shift. The network knows no others.
      tokenizer: that of this training's captions, if any.

    Raises:
      ValueError: unless shaped as `shapes`, of the same process, with latents alike and words of the same numbers.
    """
    path = config["diffusion_train"]["start_from"]
    ldm = api.load_whole(path, dtype=build.compute_dtype(config))
    _check_words(path, tokenizer, ldm, new=True)
    ours, theirs = _processes(config, ldm)
    said = ours.keys() & theirs.keys()  # a scheduler's file says more than its schedule needs
    _check_process(*({name: of[name] for name in said} for of in (ours, theirs)), f"the model that is adapted, {path}")
    spec = ldm.specification
    if not all(np.allclose(there, here, rtol=1e-3, atol=1e-6) for there, here in zip((spec.scale, spec.shift), latents)):
        raise ValueError(
            f"config.latents: scale {latents[0]} and shift {latents[1]}, where the model that is adapted ({path}) has "
            f"{spec.scale} and {spec.shift}: leave config.latents.scale at 0"
        )
    found = {name: ldm.params.get(name, {}) for name in shapes}
    check_shapes(path, found, shapes)
    return found


def remember(experiment: Experiment, params: PyTree) -> None:
    """Writes down which model is adapted or learnt from, when training begins. ValueError where it has begun from other
    weights: what is learnt so far belongs to those."""
    workdir = experiment.workdir
    begun = distributed.agreed(bool(steps_in(stage_folder(workdir, "diffusion"))))
    _check_same(experiment.config, workdir, not begun or distributed.agreed(trained_on.is_that(workdir, params)))
    distributed.on_first("working directory", experiment.check_place)
    distributed.on_first(trained_on.MODEL, lambda: trained_on.remember(workdir, params))


def check_moved(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError where what is learnt from stands at another place than when a training began, and has other weights: before
    the working directory is told that place."""
    kind, path, there = build.few_steps_kind(config), config["diffusion_train"]["start_from"], workdir / "config.json"
    if not (build.adapts(config) or (kind and kind.teacher)) or not there.is_file():
        return
    same = absolute(config)["diffusion_train"]["start_from"] == read_json(there)["diffusion_train"]["start_from"]
    if not same and steps_in(stage_folder(workdir, "diffusion")) and (workdir / trained_on.MODEL).is_file():
        params = api.load_whole(path, dtype=build.compute_dtype(config)).params
        _check_same(config, workdir, trained_on.is_that(workdir, {name: params[name] for name in ("network", "conditioner")}))


def _check_same(config: Mapping[str, Any], workdir: Path, same: bool) -> None:
    if not same:
        raise ValueError(
            f"config.diffusion_train.start_from={config['diffusion_train']['start_from']!r} has other weights than the model "
            f"from which this training began, and what {workdir} has learnt belongs to that one: give it back, or train in "
            "another --workdir"
        )


def control(config: Mapping[str, Any], fresh: PyTree, say: Callable[[str], None] = print) -> PyTree:
    """What a ControlNet begins as: the way down of the network that it is to steer, in float32, and the rest of `fresh`; or the
    one that steers that network there already."""
    ldm = api.load_whole(config["diffusion_train"]["start_from"])
    if (found := ldm.params.get("control")) is None:
        found = models.begun(fresh, ldm.params["network"])
    else:
        say(f"diffusion: going on from the ControlNet of {config['diffusion_train']['start_from']}")
    check_shapes(config["diffusion_train"]["start_from"], found, fresh)
    return found


def word(config: Mapping[str, Any], condition: Condition, conditioner: PyTree, texts: Iterable[str]) -> PyTree:
    """What the vectors of config.diffusion_train.textual_inversion begin as, float32 [n, D] by text encoder.

    Args:
      conditioner: the frozen model's, which lacks the word.
      texts: the captions of the training set.

    Raises:
      ValueError: where no caption has the word, or the model doesn't know the initial one.
    """
    section = build.make_word(config)
    if not any(words.is_whole_in(condition, section["word"], text) for text in texts):
        raise ValueError(
            f"config.diffusion_train.textual_inversion.word={section['word']!r}: no caption of the training set has it, or "
            f"none as long as is read ({condition.length} tokens with begin and end); give all pictures some that do, "
            f"--config.data.captions='(\"a photo of {section['word']}\",)'"
        )
    return words.initial(condition, conditioner, section["initial"], section["vectors"])


def teacher(config: Mapping[str, Any], shapes: PyTree, scale: Any, tokenizer: Any = None) -> PyTree:
    """Network and conditioner of the frozen model that training learns from. `tokenizer` as for `base`.

    Raises:
      ValueError: one of other shapes or another process, or whose latents are scaled or words numbered otherwise.
    """
    path = config["diffusion_train"]["start_from"]
    ldm = api.load_whole(path)
    _check_words(path, tokenizer, ldm)
    _check_process(*_processes(config, ldm), f"the model that is learnt from, {path}")
    if not np.allclose(ldm.specification.scale, scale, rtol=0.02):
        raise ValueError(
            f"config.diffusion_train.start_from={path!r}: its latents are scaled by {ldm.specification.scale}, these by "
            f"{np.asarray(scale)}; set config.first_stage.path to the first stage that it was trained with"
        )
    found = {name: ldm.params[name] for name in shapes}
    check_shapes(path, found, shapes)
    return jax.tree.map(lambda x, shape: jnp.asarray(x, shape.dtype), found, shapes)


def _processes(config: Mapping[str, Any], ldm: Any) -> list[dict[str, Any]]:
    """What this config and a model say of their noise, what earlier configs lack filled in."""
    usual = {"time_scale": TIME_SCALE, "scale": 1.0, build.RESCALED: False}
    return [usual | of.get("diffusion", {}) for of in (config, ldm.config)]


def _otherwise(config: Mapping[str, Any], ldm: Any, latents: tuple[Any, Any] | None) -> tuple[str, str] | None:
    """What this training and a model say of their process, their latents, and of what their networks' shapes don't tell, where
    that is not the same; None where it is."""
    ours, theirs = _processes(config, ldm)
    names = [name for name in _PROCESS if name in ours and name in theirs and ours[name] != theirs[name]]
    said = [[f"{name}={of[name]!r}" for name in names] for of in (ours, theirs)]
    for part in ("network", "conditioner"):
        said = [own + more for own, more in zip(said, unsaid.said(config, ldm.config, part))]
    for name, here in zip(("scale", "shift"), latents or ()):
        if not np.allclose(there := getattr(ldm.specification, name), here, rtol=1e-3, atol=1e-6):
            for words, value in zip(said, (here, there)):
                words.append(f"latents' {name} {', '.join(f'{number:.5g}' for number in np.ravel(value))}")
    return None if not said[0] else (", ".join(said[0]), ", ".join(said[1]))


def _check_process(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> None:
    """ValueError where the noise is another than that of `what`."""
    for name in _PROCESS:
        if (name in ours or name in theirs) and ours.get(name) != theirs.get(name):
            way_out = "" if theirs.get(name) is None else f", --config.diffusion.{name}={theirs[name]}"
            said = f"config.diffusion.{name}={ours.get(name)!r}: {what}, has {theirs.get(name)!r}"
            raise ValueError(f"{said}; give both the same process{way_out}")


def check_shapes(path: str, found: PyTree, params: PyTree) -> None:
    """ValueError, naming the first leaf that differs, unless both are shaped alike."""
    there, here = (
        {jax.tree_util.keystr(at, simple=True, separator="/"): x.shape for at, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (found, params)
    )
    for name in {**there, **here}:
        if there.get(name) != here.get(name):
            raise ValueError(
                f"config.diffusion_train.start_from={path!r} is another model: {name} is {there.get(name)} there, "
                f"{here.get(name)} here"
            )
