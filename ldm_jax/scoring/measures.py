"""The numbers of a set of pictures against a reference, by names that say by which network, with intervals and warnings.

All are float64, and functions of the features alone: whoever has the features has the numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax import evaluation
from ldm_jax.evaluation import FeatureSet
from ldm_jax.scoring.features import Features
from ldm_jax.scoring.reference import Reference

MOST = 10_000  # pictures of either set for precision and recall, whose time grows with their product
SUBSETS, SUBSET = 100, 1000  # of the kernel distance
BLOCKS = 10  # that its error is told from


class Measured(NamedTuple):
    """`values`: name -> number; `intervals`: name -> (standard error, low, high), 95 %; `notes`: sentences of warning."""

    values: dict[str, float]
    intervals: dict[str, tuple[float, float, float]]
    notes: list[str]


def numbered(labels: Any, names: Sequence[str] | None, order: Sequence[str] | None) -> np.ndarray | None:
    """Labels [N], numbers of `names`, as numbers of `order`; as they are where either has no names. None for no labels, or
    where one's class is not in `order`."""
    if labels is None:
        return None
    labels = np.asarray(labels)
    if names is None or order is None:
        return labels if labels.min() >= 0 and (order is None or labels.max() < len(order)) else None
    number = {name: i for i, name in enumerate(order)}
    found = [number.get(names[label]) for label in labels]
    return None if None in found else np.int64(found)


def not_alike(mine: Sequence[str] | None, theirs: Sequence[str] | None, whose: str, labels: Any) -> str:
    """What to say where `numbered` found none for `labels`."""
    if mine is None or theirs is None:
        there = f", those of {whose} from 0 to {len(theirs) - 1}" if theirs else ""
        mine = f"numbers from {np.min(labels)} to {np.max(labels)}"
        return f"the pictures' classes are {mine}{there}: how well they agree is not measured"
    mine, theirs = (", ".join(each[:4]) + (", ..." if len(each) > 4 else "") for each in (mine, theirs))
    return f"the pictures' classes ({mine}) are not called as {whose} ({theirs}): how well they agree is not measured"


def measure(
    drawn: FeatureSet,
    reference: Reference,
    features: Features,
    *,
    resamples: int = 10,
    infinity: bool = True,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Measured:
    """Everything that these features allow.

    Args:
      resamples: of the Frechet distance's bootstrap; below 2: no interval.
      infinity: also the distance of infinitely many pictures.
      labels: int [N], the classes that pictures were drawn for: how balanced they are is compared, and how often the network
        that looked at them (a classifier) finds the same.
      texts: what pictures were drawn for: with CLIP, how well they fit, 100 max(cos, 0) (Hessel et al. 2021, eq. 1, whose
        factor is 2.5).

    Raises:
      ValueError: fewer than 2 pictures, or features of another network than the reference's.
    """
    values: dict[str, float] = {}
    intervals: dict[str, tuple[float, float, float]] = {}
    count, dim = drawn.features.shape
    if count < 2:
        raise ValueError(f"{count} picture has no distribution to measure: draw at least 2")
    notes = [*reference.notes, *warnings(count, dim, reference)]
    distance = evaluation.frechet_to(*reference.gaussian)

    def frechet(rows: np.ndarray) -> float:
        return distance(drawn.features[rows])

    name = features.name("frechet")
    if resamples >= 2:
        found = evaluation.bootstrap(frechet, count, resamples, seed)
        values[name], intervals[name] = found.value, found[1:]
    else:
        values[name] = frechet(np.arange(count))
    if infinity and count >= 16:
        values[features.name("infinity")] = evaluation.frechet_at_infinity(drawn.features, distance, seed=seed)
    if drawn.spatial is not None and reference.spatial is not None:
        spatial = drawn.spatial.mean, drawn.spatial.covariance
        values[features.name("spatial")] = evaluation.frechet_of_gaussians(*spatial, *reference.spatial)
    if reference.features is not None:
        _of_sets(drawn, reference.features, features, values, intervals, seed)
    if drawn.logits is not None:
        splits = 10 if count >= 100 else 1
        mixed = drawn.logits[np.random.default_rng(seed).permutation(count)]  # their order may be that of their classes
        score, deviation = evaluation.inception_score(mixed, splits)
        name = features.name("score")
        values[name] = score
        if splits > 1:
            error = deviation / np.sqrt(splits)
            intervals[name] = (error, score - 1.96 * error, score + 1.96 * error)
    if labels is not None and reference.labels is not None:
        notes += evaluation.uneven_classes(labels, reference.labels, class_names)
    if labels is not None and features.kind == "classifier" and drawn.logits is not None:
        asked = numbered(labels, class_names, features.class_names)
        if asked is None:
            notes += (not_alike(class_names, features.class_names, "the classifier's", labels),)
        else:
            values[features.name("accuracy")] = float((drawn.logits.argmax(1) == asked).mean())
    if texts is not None and features.words is not None:
        fits = 100 * np.maximum(np.sum(np.float64(drawn.features) * features.words(texts), axis=1), 0)
        error = fits.std(ddof=1) / np.sqrt(count)
        name = f"{features.kind}/text_score"
        values[name] = float(fits.mean())
        intervals[name] = (float(error), values[name] - 1.96 * float(error), values[name] + 1.96 * float(error))
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise ValueError(f"{broken[0]} is not finite: the features or the reference are broken")
    return Measured(values, intervals, notes)


def _of_sets(
    drawn: FeatureSet,
    real: FeatureSet,
    features: Features,
    values: dict[str, float],
    intervals: dict[str, tuple[float, float, float]],
    seed: int,
) -> None:
    """What needs the real pictures' features themselves: kernel distance, precision, recall, density and coverage."""
    size = min(SUBSET, len(drawn), len(real))
    name = features.name("kernel")
    subsets = SUBSETS if size < max(len(drawn), len(real)) else 1  # all of both are one subset
    kernel, _ = evaluation.kernel_distance_of_subsets(drawn.features, real.features, subsets, size, seed)
    values[name] = kernel
    if min(len(drawn), len(real)) >= 2 * BLOCKS:
        error = evaluation.kernel_distance_error(drawn.features, real.features, BLOCKS, SUBSET, seed)
        intervals[name] = error, kernel - 1.96 * error, kernel + 1.96 * error
    # equally many of both: precision and recall depend on it
    most = min(MOST, len(drawn), len(real))
    if most > 5:
        rng = np.random.default_rng(seed)
        some = [x if len(x) == most else x[rng.permutation(len(x))[:most]] for x in (real.features, drawn.features)]
        overlap = evaluation.precision_recall(*some, k=3)._asdict() | {
            name: value for name, value in evaluation.precision_recall(*some, k=5)._asdict().items()
            if name in ("density", "coverage")
        }  # fmt: skip
        values |= {features.name(name): float(value) for name, value in overlap.items()}


def warnings(count: int, dim: int, reference: Reference) -> list[str]:
    """Sentences where there are too few pictures for what is measured."""
    notes = []
    if count < dim:
        notes.append(
            f"{count} pictures for features of {dim} numbers: their covariance is singular and the Frechet distance far too "
            "large; compare it with distances of as many pictures only, or look at the kernel distance, which has no bias"
        )
    elif count < 10_000:
        notes.append(f"{count} pictures: Frechet distances of so few are too large; compare only with those of as many")
    real = reference.about.get("count")
    if real is not None and real < dim:
        notes.append(f"the reference has {real} pictures for features of {dim} numbers: distances to it are too large")
    return notes


def as_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """A Markdown table; numbers with four digits."""

    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)
