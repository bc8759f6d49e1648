"""From a model, or from two sets of pictures, to results.json, results.md and report.html: everything in its order.

    evaluate(ldm, Request(num=1000, guidance_scales=(1.0, 2.0)), out, config=config, folder=workdir / "evaluation")
    compare("samples/", "photos/", Request(features="inception:FILE"), out)
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, evaluation, models, weights
from ldm_jax.data.source import spread_rows
from ldm_jax.primitives.files import write_json
from ldm_jax.scoring import features as feature_networks
from ldm_jax.scoring import reference as references
from ldm_jax.scoring import report
from ldm_jax.scoring.copies import Neighbours
from ldm_jax.scoring.drawing import Conditions, Drawer, as_told
from ldm_jax.scoring.language import evaluate_texts
from ldm_jax.scoring.likelihood import check_density, measure_likelihood
from ldm_jax.scoring.looking import look, of_array, read_pictures
from ldm_jax.scoring.measures import measure, not_alike, numbered
from ldm_jax.scoring.reconstructions import measure_reconstructions
from ldm_jax.scoring.request import SPLITS, Request
from ldm_jax.scoring.sweep import Drawn, Setting, progress, settings_of, sweep, way_of_drawing
from ldm_jax.training import distributed, sharding
from ldm_jax.workdir import versions


def check(features: str, config: Mapping[str, Any], folder: Path) -> None:
    """What `evaluate` will look at the data of `config` with, before there is a model: errors as of `features.check`. Sentences
    are read, not looked at."""
    if config["data"].get("medium") != "text":
        feature_networks.check(features, config, folder)


def evaluate(
    ldm: api.LatentDiffusion,
    request: Request,
    out: Path,
    *,
    config: Mapping[str, Any],
    folder: Path,
    model: Mapping[str, Any],
    mesh: Any = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures a model; returns what OUT/results.json holds (in the first process).

    Args:
      config: of the data: references, conditions and probes are made of config.data.
      folder: where references and probes are kept, for other evaluations too.
      model: what says which model it is, for the record: path, step.
    """
    request.check()
    mesh = sharding.make_mesh() if mesh is None else mesh
    if ldm.config["data"].get("medium") == "text":
        if config["data"].get("medium") != "text":
            raise ValueError("--data: a model of text is measured on its own data; leave it out")
        return evaluate_texts(ldm, request, out, model=model, mesh=mesh, say=say)
    if request.likelihood:
        check_density(ldm.specification)
    feature_networks.check(request.features, config, folder)
    settings = settings_of(ldm.config, request.samplers, request.steps, request.guidance_scales)
    for setting in settings:
        ldm.specification.recipe(setting.sampler).grid(setting.steps)  # a wrong name is said before anything is made
    if request.reference not in SPLITS and (request.memorisation or not Path(request.reference).is_file()):
        references.read(request.reference)
        raise ValueError(f"reference={request.reference!r}: memorisation needs the real pictures; 'train' or 'validation'")
    source = build.make_source(config, request.conditions, ldm.condition.columns)
    as_told(source, ldm.condition)  # a class that the model doesn't know is said before anything is looked at
    distributed.on_first("evaluation", lambda: out.mkdir(parents=True, exist_ok=True))
    network = feature_networks.load(request.features, config, folder, request.resize)
    size = tuple(ldm.specification.image_size)

    def of_split(split: str) -> references.Reference:
        with progress(request.reference_num, f"looking at {split} pictures") as done:
            return references.of_data(config, split, network, mesh, folder=folder, count=request.reference_num,
                                      batch_size=request.batch_size, report=done)  # fmt: skip

    if request.reference in SPLITS:
        reference = of_split(request.reference)
    else:
        reference = references.read(request.reference, network, size)
    sharding.check_weights(mesh, ldm.params, "the model that is measured")
    params = sharding.replicate(mesh, ldm.params)
    on_error = config["data"].get("on_error", "raise")
    conditions = Conditions(ldm.config, ldm.condition, source, request.num, on_error)
    drawer = Drawer(ldm.specification, params, conditions, mesh, request.seed)
    identity = {**model, "weights": feature_networks.digest(ldm.params), "seed": request.seed,
                "drawing": way_of_drawing(ldm.config),
                "conditions": f"{source.info.name} {request.conditions}, {len(source)} rows"}  # fmt: skip
    about = {"identity": identity, "pictures": {"size": list(size), "quantised": "8 bits, rounded to the nearest"},
             "versions": versions(), "config": dict(ldm.config)}  # fmt: skip
    more = None
    if request.memorisation:
        neighbours = Neighbours(config, network, of_split("train"), of_split("validation"), mesh, request.reference_num)

        def more(setting: Setting, drawn: Drawn) -> dict[str, float]:
            found = neighbours.of(drawn.shown, drawn.features, drawn.numbers)
            report.save_rows(out / f"{setting.name}.neighbours.png", found.rows)
            return found.values

    keep = min(request.num, 1000) if request.memorisation else min(request.num, 64)
    results = sweep(drawer, network, reference, settings, request.num, out=out, about=about, batch_size=request.batch_size,
                    resamples=request.resamples, keep=keep, pictures=request.pictures, more=more, prefix="memorisation/",
                    say=say)  # fmt: skip
    if request.reconstructions:
        held_out = references.labelled_source(config, "validation")
        values, pairs = measure_reconstructions(ldm.specification, params, held_out, network, mesh, request.batch_size,
                                                on_error, distance=lpips(config))  # fmt: skip
        results["reconstructions"] = {"pictures": len(held_out), "values": values}
        distributed.on_first("reconstructions", lambda: report.save_rows(out / report.RECONSTRUCTIONS, pairs))
        say(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if request.likelihood:
        both = tuple(as_told(build.make_source(config, split, ldm.condition.columns), ldm.condition) for split in SPLITS)
        values = measure_likelihood(ldm.specification, params, both, request.likelihood, mesh, batch_size=request.batch_size,
                                    on_error=on_error, seed=request.seed)  # fmt: skip
        results["likelihood"] = {"pictures": min(request.likelihood, len(both[1])), "values": values}
        say(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    distributed.on_first("report", lambda: finish(out, results, {}, f"Evaluation of {ldm.config['name']}"))
    return results


def finish(out: Path, results: Mapping[str, Any], rows: Mapping[str, np.ndarray], title: str) -> None:
    """Writes results.json and what people read."""
    write_json(out / "results.json", results)
    report.write(out, results, rows, title)


def lpips(config: Mapping[str, Any]) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """The perceptual distance of config.first_stage_loss.perceptual_path's weights; None where no file is named."""
    section = config.get("first_stage_loss", {})
    path = section.get("perceptual_path", "")
    if not path or path == "random":
        return None
    params = weights.read_lpips(path, section["perceptual_linear_path"] or None)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), params)
    net = models.LPIPS(tuple(section["perceptual_widths"]))
    return lambda x, y: net.apply({"params": params}, x, y)


def compare(
    samples: str | Path,
    real: str | Path,
    request: Request,
    out: Path,
    *,
    mesh: Any = None,
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measures a folder or an array of pictures against another one, or against a file of statistics; returns what
    OUT/results.json holds.

    Args:
      config: of the data that a probe is trained on, where the features are one that isn't there yet.
    """
    request.check()
    feature_networks.check(request.features, config, out)
    mesh = sharding.make_mesh() if mesh is None else mesh
    drawn = read_pictures(samples, request.size)
    images, size = drawn.images, drawn.images.shape[1:3]
    network = feature_networks.load(request.features, config, out, request.resize, request.size or max(size))
    run = network.on(mesh)

    def seen(pictures: np.ndarray, what: str) -> evaluation.FeatureSet:
        with progress(len(pictures), f"looking at {what}") as done:
            return look(run, of_array(pictures, request.batch_size, mesh), done)

    names = drawn.class_names
    if _holds_statistics(real):
        reference = references.read(real, network, size)
    else:
        there = read_pictures(real, request.size)
        pictures, names = there.images, there.class_names or names
        evaluation.as_uint8(pictures, str(real), size)
        if len(pictures) < 2:
            raise ValueError(f"{real} holds 1 picture, which has no distribution to compare with: name 2 or more")
        about = {"data": str(real), "count": len(pictures), "size": list(size), "features": dict(network.about)}
        reference = references.of_features(seen(pictures, str(real)), about, there.labels)
        notes = evaluation.odd_in(some_of(pictures, 1024), f"pictures of {real}")
        reference = dataclasses.replace(reference, notes=(*there.notes, *notes))
    found = seen(images, str(samples))
    labels = numbered(drawn.labels, drawn.class_names, names)
    measured = measure(found, reference, network, resamples=request.resamples, labels=labels, class_names=names)
    notes = [*drawn.notes, *evaluation.odd_in(some_of(images, 1024), f"pictures of {samples}"), *measured.notes]
    if labels is None and drawn.labels is not None:
        notes.append(not_alike(drawn.class_names, names, "the reference's", drawn.labels))
    result = {
        "setting": Path(samples).name, "num": len(images), "values": measured.values,
        "intervals": {name: list(each) for name, each in measured.intervals.items()},
        "notes": notes,
    }  # fmt: skip
    results = {
        "identity": {"samples": str(samples), "reference": str(real)},
        "pictures": {"size": list(size), "resized": request.size or "as they are", "quantised": "8 bits"},
        "features": {"kind": network.kind, **network.about}, "reference": dict(reference.about), "versions": versions(),
        "results": [result],
    }  # fmt: skip
    rows = {"The pictures": some_of(images, 64)[:, None]}
    rows |= {"The reference": some_of(pictures, 64)[:, None]} if reference.features else {}

    def write() -> None:
        out.mkdir(parents=True, exist_ok=True)
        finish(out, results, rows, f"{samples} against {real}")

    distributed.on_first("report", write)
    return results


def some_of(images: np.ndarray, most: int) -> np.ndarray:
    """At most so many of [N, ...], spread over all: they may be in the order of their classes."""
    return images[spread_rows(len(images), min(most, len(images)))]


def _holds_statistics(path: str | Path) -> bool:
    """Whether a file holds means and covariances: then they are taken, also where ADM's pictures lie beside them."""
    path = Path(path)
    if not path.is_file() or path.suffix != ".npz":
        return False
    try:
        with np.load(path, allow_pickle=False) as found:
            return {"mu", "sigma"} <= set(found.files)
    except Exception:  # said by whoever reads it
        return False


def in_words(results: Mapping[str, Any]) -> str:
    """A line a setting: its measures."""
    lines = []
    for result in results["results"]:
        values = ", ".join(f"{name} {value:.4g}" for name, value in result["values"].items())
        lines.append(f"{result['setting']}: {values}")
    return "\n".join(lines)

