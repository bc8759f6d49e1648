"""What pictures are compared with: features of real ones, through the training's own preprocessing, or files of the world.

Real pictures go the way they go in training (decoding, resizing, crop) and no other; another way is the usual reason why a
published distance can't be found again. They are looked at once and kept in a file with where they came from. A file is taken
only where all of that is as it is now.

    NAME.npz    features, moments, labels; and "about", JSON: data, split, count, size, crop, the hash of their contents, and
                `Features.about`

Statistics of the world are read as they are: ADM's ("mu", "sigma", "mu_s", "sigma_s"), pytorch-fid's and clean-fid's ("mu",
"sigma"). They say nothing of their making, so what is measured against them carries a note.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax import build, evaluation
from ldm_jax.data import fingerprint
from ldm_jax.data.source import Spread
from ldm_jax.evaluation.features import FeatureSet
from ldm_jax.scoring.features import Features
from ldm_jax.scoring.looking import look, of_source
from ldm_jax.training import distributed

Gaussian = tuple[np.ndarray, np.ndarray]
MUST_MATCH = ("network", "weights", "resize", "size")


@dataclasses.dataclass(frozen=True)
class Reference:
    """`gaussian`: mean [D] and covariance [D, D] of the features; `spatial`: the same of sFID's. `features` is None for files
    of statistics alone; `labels` int64 [N] where the data have them. `about`: where it came from."""

    about: Mapping[str, Any]
    gaussian: Gaussian
    spatial: Gaussian | None = None
    features: FeatureSet | None = None
    labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()


def of_features(found: FeatureSet, about: Mapping[str, Any], labels: np.ndarray | None = None) -> Reference:
    """A reference from features. ValueError for fewer than 2 pictures."""
    moments = evaluation.moments(found.features)
    spatial = None if found.spatial is None else (found.spatial.mean, found.spatial.covariance)
    return Reference(about, (moments.mean, moments.covariance), spatial, found, labels)


def of_data(
    config: Mapping[str, Any],
    split: str,
    features: Features,
    mesh: Any,
    *,
    folder: Path,
    count: int = 50_000,
    batch_size: int = 64,
    report: Callable[[int], None] = lambda count: None,
) -> Reference:
    """The reference of config.data's split ("train" or "validation"): `count` pictures spread over it (all, if it has fewer).
    Read from `folder` if it was made there before, of the same data by the same preprocessing and network; else made and
    kept."""
    source = labelled_source(config, split)
    transform = build.make_transform(config)
    chosen = Spread(source, count)
    about = {
        "data": str(source.info.name), "split": config["data"][f"{split}_split"], "count": len(chosen),
        "size": list(transform.array_shape[:-1]), "crop": "center", "quantised": "8 bits", "contents": "",
        "features": dict(features.about),
    }  # fmt: skip
    if len(chosen) < len(source):
        about["rows"] = "any one of each of as many parts"
    if build.make_medium(config).name == "image":
        about |= {"short_side": transform.short_side, "resize": "bicubic, antialiased"}
    else:
        about |= {"geometry": build.with_lists(transform.geometry)}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"reference-{split}-{name}.npz"
    if distributed.agreed(path.is_file()):
        kept = read(path)
        if kept.about.get("stamp") == fingerprint.stamp(source) is not None:
            return kept
        about["contents"] = fingerprint.contents(source)
        if kept.about["contents"] == about["contents"]:
            return kept
    about["contents"] = about["contents"] or fingerprint.contents(source)
    about["stamp"] = fingerprint.stamp(source)
    found = look(features.on(mesh), of_source(chosen, transform, batch_size, mesh, config["data"]["on_error"]), report)
    labels = np.int64([chosen[i]["label"] for i in range(len(chosen))]) if "label" in source.info.columns else None
    reference = of_features(found, about, labels)
    distributed.on_first("reference", lambda: write(reference, path))
    return reference


def labelled_source(config: Mapping[str, Any], split: str) -> Any:
    """The rows of a split, with labels if it has them."""
    try:
        return build.make_source(config, split, ("label",))
    except ValueError:
        return build.make_source(config, split, ())


def write(reference: Reference, path: Path) -> None:
    """Writes features and moments, so that any measure can be taken again, beside its place and renamed."""
    found = reference.features
    arrays = {"rows": found.rows, "features": found.features, "mu": reference.gaussian[0], "sigma": reference.gaussian[1]}
    arrays |= {} if found.logits is None else {"logits": found.logits}
    arrays |= {} if reference.spatial is None else {"mu_s": reference.spatial[0], "sigma_s": reference.spatial[1]}
    arrays |= {} if reference.labels is None else {"labels": reference.labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, about=np.array(json.dumps(dict(reference.about))), **arrays)
    temporary.replace(path)


def read(path: str | Path, features: Features | None = None, size: tuple[int, int] | None = None) -> Reference:
    """A reference from a file: one of `write`, or statistics of ADM, pytorch-fid or clean-fid.

    Args:
      features: the network that it is to be compared by. Refused where the file says that it is of another.
      size: height and width of the pictures that are to be compared. Refused where the file says others.

    Raises:
      ValueError: no such statistics in it, of another network, resize or size; FileNotFoundError: no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file of statistics. Those of guided-diffusion are named in its evaluations/README.md, "
            "such as https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
            "VIRTUAL_imagenet256_labeled.npz; of your own data, give --reference train or validation"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            # ADM's hold thousands of pictures beside the statistics
            found = {name: file[name] for name in file.files if name not in ("arr_0", "arr_1")}
    except Exception as error:  # numpy raises zipfile's, zlib's and its own on damaged files
        raise ValueError(f"{path} can't be read as statistics (.npz): {error}") from None
    if not {"mu", "sigma"} <= found.keys():
        raise ValueError(f"{path} holds {', '.join(found) or 'nothing'}: statistics are named 'mu' and 'sigma'")
    reference = _own(found) if "about" in found else _foreign(path, found)
    if features is not None:
        check(reference, features, path, size)
    return reference


def check(reference: Reference, features: Features, path: Any, size: tuple[int, int] | None = None) -> None:
    """ValueError where a reference can't be compared with pictures of `size` by these features."""
    dim = reference.gaussian[0].shape[-1]
    if "features" not in reference.about:
        if features.kind != "inception":
            raise ValueError(f"{path} holds Inception's statistics: they can't be compared with features of {features.kind}")
        if dim != 2048:
            raise ValueError(f"{path} has features of {dim} numbers; Inception's are 2048")
        return
    theirs = reference.about["features"]
    for field in MUST_MATCH:
        there, here = theirs.get(field), features.about.get(field)
        if there != here:
            raise ValueError(
                f"{path} was made with {field} {there!r} of the features, here it is {here!r}: their numbers can't "
                "be compared; make the reference again, or choose its features"
            )
    if size is not None and reference.about.get("size") not in (None, list(size)):
        raise ValueError(f"{path} was made of pictures of {reference.about['size']} pixels, here they are {list(size)}")


def _own(found: Mapping[str, np.ndarray]) -> Reference:
    spatial = (found["mu_s"], found["sigma_s"]) if "mu_s" in found else None
    features = FeatureSet(found["rows"], found["features"], found.get("logits"))
    return Reference(json.loads(str(found["about"])), (found["mu"], found["sigma"]), spatial, features, found.get("labels"))


def _foreign(path: Path, found: Mapping[str, np.ndarray]) -> Reference:
    gaussian = np.float64(found["mu"]), np.float64(found["sigma"])
    spatial = (np.float64(found["mu_s"]), np.float64(found["sigma_s"])) if {"mu_s", "sigma_s"} <= found.keys() else None
    for mean, covariance in filter(None, (gaussian, spatial)):
        if mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
            raise ValueError(f"{path}: a mean of shape {mean.shape} and a covariance of {covariance.shape} don't fit")
    kind = "ADM's" if spatial else "pytorch-fid's or clean-fid's"
    advice = {"ADM's": "tensorflow"}.get(kind, "legacy (pytorch-fid) or clean (clean-fid)")
    note = (
        f"the reference {path.name} ({kind} file) doesn't say how its pictures were made, nor how many they are: resize with "
        f"{advice}, and trust the number only for pictures preprocessed alike"
    )
    return Reference({"file": str(path), "kind": kind}, gaussian, spatial, notes=(note,))
