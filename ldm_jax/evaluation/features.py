"""Features of numbered pictures, gathered part by part: over batches, devices, processes and interrupted runs.

Every part says which pictures it is of. Joined parts are in the order of those numbers, so neither how the pictures were split
nor in which order parts came changes any measure. Features are kept as float32, 4 bytes a number: 410 MB for 50,000 pictures of
2048; what is computed of them is float64. Of spatial features (sFID's) only the moments are kept.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from ldm_jax.evaluation.frechet import Moments, merge, moments


@dataclass(frozen=True)
class FeatureSet:
    """Of the pictures number `rows`, int64 [N] and rising: `features` float32 [N, D]; where the network has them, class
    `logits` float32 [N, K], and the `spatial` features' moments."""

    rows: np.ndarray
    features: np.ndarray
    logits: np.ndarray | None = None
    spatial: Moments | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def save(self, path: str | Path) -> None:
        """Writes an uncompressed .npz, beside its place and renamed."""
        path = Path(path)
        arrays = {"rows": self.rows, "features": self.features}
        if self.logits is not None:
            arrays["logits"] = self.logits
        if self.spatial is not None:
            arrays |= {"spatial_count": np.int64(self.spatial.count), "spatial_mean": self.spatial.mean}
            arrays["spatial_scatter"] = self.spatial.scatter
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)


def feature_set(rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> FeatureSet:
    """The features of a batch. `outputs`: "features" [N, D], and "logits" [N, K] and "spatial" [N, S] if there are any.

    Raises:
      ValueError: rows that are named twice, as many rows as features aren't there, or features that are not finite.
    """
    rows = np.asarray(rows, np.int64)
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    if len(np.unique(rows)) != len(rows):
        raise ValueError("a batch of features names a picture twice")
    for name, value in arrays.items():
        if value.ndim != 2 or len(value) != len(rows):
            raise ValueError(f"{name} of shape {value.shape} for {len(rows)} pictures: expected [N, D], a row a picture")
        finite = np.isfinite(value).all(1)
        if not finite.all():
            raise ValueError(
                f"the {name} of {np.count_nonzero(~finite)} of {len(rows)} pictures are not finite, first those of picture "
                f"{rows[~finite][0]}: the pictures or the network's weights are broken"
            )
    order = np.argsort(rows, kind="stable")
    logits = arrays["logits"][order] if "logits" in arrays else None
    spatial = moments(arrays["spatial"], least=1) if "spatial" in arrays else None
    return FeatureSet(rows[order], arrays["features"][order], logits, spatial)


def join(parts: Iterable[FeatureSet]) -> FeatureSet:
    """All parts as one set. ValueError if there are none, they are of different networks, or two have the same picture."""
    parts = sorted((part for part in parts if len(part)), key=lambda part: int(part.rows[0]))
    if not parts:
        raise ValueError("no features to join: not one picture was looked at")
    kinds = {(part.features.shape[1], part.logits is None, part.spatial is None) for part in parts}
    if len(kinds) > 1:
        widths = sorted(kind[0] for kind in kinds)
        raise ValueError(f"features of different networks can't be joined: {widths} numbers a picture")
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    twice = rows[order][1:][np.diff(rows[order]) == 0]
    if len(twice):
        raise ValueError(f"picture {twice[0]} is in two parts, and so are {len(twice) - 1} more: each counts once")
    logits = None if parts[0].logits is None else np.concatenate([part.logits for part in parts])[order]
    spatial = None if parts[0].spatial is None else reduce(merge, (part.spatial for part in parts))
    return FeatureSet(rows[order], np.concatenate([part.features for part in parts])[order], logits, spatial)


def load_features(path: str | Path) -> FeatureSet:
    """What `FeatureSet.save` wrote. ValueError, with the file's name, for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        spatial = None
        if "spatial_mean" in found:
            spatial = Moments(int(found["spatial_count"]), found["spatial_mean"], found["spatial_scatter"])
        return FeatureSet(found["rows"], found["features"], found.get("logits"), spatial)
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy raises zipfile's, zlib's and its own on damaged files
        raise ValueError(f"{path} is no file of features, or it is damaged ({error}): remove it, it is made again") from None
