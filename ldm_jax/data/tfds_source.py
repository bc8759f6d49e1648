"""Prepared TFDS data sets as sources, read without TensorFlow.

Reading needs array_record files. TFDS's own builders need TensorFlow to make them (`pip install "ldm_jax[tfds]"`);
`prepare` does that in a process of its own, once, so that no training process ever loads it:

    python -m ldm_jax.data.tfds_source fashion_mnist DATA_DIR [MANUAL_DIR]
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ldm_jax.data.shapes.builder import prepare as prepare_shapes
from ldm_jax.data.source import Info, MissingColumn, MissingSplit, canonical_split, choose_columns, parse_split

# What columns are called in `shapes`; a slash leads into a sequence of objects.
SHAPES_NAMES = {
    "image": "image",
    "caption": "caption",
    "label": "label",
    "label_map": "label_map",
    "boxes": "objects/box",
    "box_labels": "objects/label",
}


class TfdsSource:
    """The rows of a prepared data set; made by `tfds_source` and `shapes_source`."""

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, columns: Sequence[str] | None, names: Mapping[str, str]):
        label = f"{builder.info.full_name} in {builder.data_dir}"
        wanted, part = parse_split(split)
        known = {canonical_split(s): s for s in builder.info.splits}
        if canonical_split(wanted) not in known:
            there = ", ".join(map(repr, builder.info.splits)) or "none"
            raise MissingSplit(f"{label} has no split {wanted!r} but {there}")
        split = known[canonical_split(wanted)] + (f"[{part[0]}:{part[1]}]" if part else "")
        features = {name: _feature(builder.info.features, name) for name in names.values()}
        absent = {ours: theirs for ours, theirs in names.items() if features[theirs] is None}
        if any(ours in absent for ours in columns or ()):
            ours = next(c for c in columns if c in absent)
            raise MissingColumn(f"{label}: no feature {absent[ours]!r} for {ours!r}; it has {', '.join(builder.info.features)}")
        chosen = choose_columns(label, columns, [c for c in names if c not in absent])
        self._names = {column: names[column] for column in chosen}
        images = {names[c]: tfds.decode.SkipDecoding() for c in ("image", "label_map", "conditioning") if c in chosen}
        try:
            self._source = builder.as_data_source(split, decoders=images)
            if not len(self._source):
                raise ValueError("nothing is in it")
        except (ValueError, AssertionError, IndexError) as error:  # a part of a split that has fewer rows
            rows = builder.info.splits[known[canonical_split(wanted)]].num_examples
            said = str(error).split("\n")[0]
            raise ValueError(f"{label}: split {split!r} can't be read ({said}); {wanted!r} has {rows} rows") from None
        self._yx = "boxes" in chosen and isinstance(features[names["boxes"]], tfds.features.BBoxFeature)
        self._files = [str(path) for path in builder.info.splits[split].filepaths]
        self.info = Info(
            f"{builder.info.full_name} {split}",
            chosen,
            _class_names(features, names, "label"),
            _class_names(features, names, "box_labels"),
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._deliver(index, self._source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Many rows at once, which array_record reads faster than one after the other."""
        return [self._deliver(i, row) for i, row in zip(indices, self._source.__getitems__(list(indices)))]

    def stamp(self) -> str:
        """The names, sizes and times of the data set's files, and what is delivered of them, as a hash."""
        status = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns, os.stat(path).st_ctime_ns) for path in self._files]
        return hashlib.sha256(repr((self.info, self._names, status)).encode()).hexdigest()

    def _deliver(self, index: int, row: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {"name": f"{self.info.name}, number {index}"}
        for column, theirs in self._names.items():
            value = row
            for key in theirs.split("/"):
                value = value[key]
            if column == "caption":
                value = value.decode() if isinstance(value, bytes) else tuple(text.decode() for text in value)
            elif column == "boxes":
                value = np.asarray(value, np.float32).reshape(-1, 4)
                value = value[:, [1, 0, 3, 2]] if self._yx else value
            elif column == "box_labels":
                value = np.asarray(value, np.int32)
            elif column == "label":
                value = int(value)
            out[column] = value
        return out


def tfds_source(
    name: str,
    split: str,
    data_dir: str | Path,
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    manual_dir: str | Path | None = None,
) -> TfdsSource:
    """Any TFDS data set by name ('fashion_mnist', 'oxford_flowers102', 'coco/2017'), prepared now if it is not yet.

    columns     what is needed of `source.COLUMNS`; None: all that `names` finds
    names       what they are called there, if not the same; 'objects/bbox' leads into a sequence. BBoxFeatures, which
                hold y before x, are turned round
    """
    names = {"image": "image", "caption": "caption", "label": "label", **(names or {})}
    return TfdsSource(_builder(name, data_dir, manual_dir), split, columns, names)


def shapes_source(data_dir: str | Path, split: str, columns: Sequence[str] | None = None, **config: Any) -> TfdsSource:
    """The embedded data set, made below `data_dir` on first use; `config` as for `ShapesConfig` (resolution, seed, ...)."""
    return TfdsSource(prepare_shapes(data_dir, **config), split, columns, SHAPES_NAMES)


def prepare(name: str, data_dir: str | Path, manual_dir: str | Path | None = None) -> None:
    """Writes a data set of TFDS's own builders below `data_dir` as array_record. Needs TensorFlow, in a process of its
    own. `manual_dir`: a folder with the original archives under their original names, instead of a download."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"{name} is not prepared in {data_dir}, and preparing one of TFDS's own data sets needs TensorFlow. Once: "
            f'pip install "ldm_jax[tfds]" && python -m ldm_jax.data.tfds_source {name} {data_dir} [MANUAL_DIR]. '
            "Reading what that writes needs no TensorFlow"
        )
    arguments = [name, str(data_dir)] + ([str(manual_dir)] if manual_dir else [])
    command = [sys.executable, "-m", "ldm_jax.data.tfds_source", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"TFDS could not prepare {name} in {data_dir}:\n{done.stderr[-3000:]}")


def _builder(name: str, data_dir: str | Path, manual_dir: str | Path | None) -> tfds.core.DatasetBuilder:
    def find() -> tfds.core.DatasetBuilder | None:
        try:
            builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        except (tfds.core.DatasetNotFoundError, ImportError) as error:
            raise ValueError(f"TFDS knows no data set {name!r}, nor is one prepared in {data_dir}") from error
        except ValueError as error:
            if "file format" not in str(error).lower():
                raise
            raise ValueError(
                f"{name} in {data_dir} is stored in a format that only TensorFlow reads, not as array_record: "
                "choose another data_dir, and it is prepared there anew"
            ) from error
        return builder if builder.info.splits else None

    builder = find()
    if builder is None:
        prepare(name, data_dir, manual_dir)
        builder = find()
    return builder


def _feature(features: Any, path: str) -> Any:
    """The feature that 'objects/box' leads to, or None."""
    for key in path.split("/"):
        features = getattr(features, "feature", features)  # into a Sequence
        if not isinstance(features, tfds.features.FeaturesDict) or key not in features:
            return None
        features = features[key]
    return features


def _class_names(features: Mapping[str, Any], names: Mapping[str, str], column: str) -> tuple[str, ...] | None:
    feature = features.get(names.get(column))
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else None


def _main(name: str, data_dir: str, manual_dir: str | None = None) -> None:
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))


if __name__ == "__main__":
    _main(*sys.argv[1:])
