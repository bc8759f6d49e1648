"""TFDS data sets as sources, without TensorFlow at run time."""

import importlib.util
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ldm_jax.data.pipeline import eval_batches, in_memory
from ldm_jax.data.shapes import SHAPES, read_back
from ldm_jax.data.shapes.builder import prepare
from ldm_jax.data.tfds_source import TfdsSource, shapes_source, tfds_source
from ldm_jax.data.transform import Transform


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("tfds")
    prepare(where, train=30, validation=10)
    return where


def test_shapes_source(folder):
    source = shapes_source(folder, "train", train=30, validation=10)
    assert len(source) == 30 and source.info.class_names == source.info.box_names == SHAPES
    row = source[3]
    assert isinstance(row["caption"], str) and isinstance(row["label"], int) and isinstance(row["image"], bytes)
    assert row["boxes"].shape == (len(row["box_labels"]), 4) and row["box_labels"][0] == row["label"]
    example = Transform(32, max_boxes=3)(row)
    assert set(np.unique(example["label_map"])) == {0, *(1 + row["box_labels"])}
    assert SHAPES[row["label"]] in [f.words[1] for f in read_back(example["image"])]
    assert "tensorflow" not in sys.modules


def test_by_name_in_a_directory(folder):
    (config,) = (p.name for p in (folder / "shapes").iterdir())
    source = tfds_source(f"shapes/{config}", "train", folder, ("image", "caption", "boxes"), {"boxes": "objects/box"})
    shapes = shapes_source(folder, "train", ("image", "caption", "boxes"), train=30, validation=10)
    assert len(source) == 30 and all(np.array_equal(source[4][c], shapes[4][c]) for c in shapes.info.columns)


def test_many_rows_at_once_are_the_same(folder):
    source = shapes_source(folder, "validation", ("image", "caption"), train=30, validation=10)
    for one, other in zip(in_memory(source, dict), source.__getitems__(range(10))):
        assert one == other
    assert [source[i] for i in range(10)] == source.__getitems__(range(10))
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2] == source[2] and copy.info == source.info


def test_splits_and_parts(folder):
    config = {"train": 30, "validation": 10}
    assert len(shapes_source(folder, "val", **config)) == 10
    parts = [shapes_source(folder, s, ("caption",), **config) for s in ("train", "train[:40%]", "train[40%:]")]
    assert [len(p) for p in parts] == [30, 12, 18] and parts[0][12]["caption"] == parts[2][0]["caption"]
    with pytest.raises(ValueError, match="no split 'test' but 'train', 'validation'"):
        shapes_source(folder, "test", **config)


def test_missing_columns(folder):
    builder = prepare(folder, train=30, validation=10)
    with pytest.raises(ValueError, match="no feature 'text' for 'caption'; it has image, caption"):
        TfdsSource(builder, "train", ("caption",), {"image": "image", "caption": "text"})
    with pytest.raises(ValueError, match="unknown column 'pixels'"):
        TfdsSource(builder, "train", ("pixels",), {"image": "image"})
    with pytest.raises(ValueError, match="no column 'boxes'; its rows have image"):
        TfdsSource(builder, "train", ("boxes",), {"image": "image"})


class Boxed(tfds.core.GeneratorBasedBuilder):
    """A data set with TFDS's own boxes, which hold y before x, and several captions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        f = tfds.features
        objects = f.Sequence({"bbox": f.BBoxFeature(), "label": f.ClassLabel(num_classes=4)})
        features = {"image": f.Image(shape=(None, None, 3)), "texts": f.Sequence(f.Text()), "objects": objects}
        return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        from PIL import Image

        box = tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.3, xmax=0.4)
        for i in range(3):
            image = Image.fromarray(np.full((8, 8, 3), i, np.uint8))
            yield i, {"image": image, "texts": ["a", "b"], "objects": [{"bbox": box, "label": 3}]}


def test_boxes_of_tfds_are_turned_round(tmp_path):
    builder = Boxed(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    names = {"image": "image", "caption": "texts", "boxes": "objects/bbox", "box_labels": "objects/label"}
    source = TfdsSource(builder, "train", None, names)
    assert np.allclose(source[0]["boxes"], [[0.2, 0.1, 0.4, 0.3]]) and source[0]["box_labels"].tolist() == [3]
    assert source[0]["caption"] == ("a", "b")


def test_unknown_and_unprepared(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="knows no data set 'fashion_mist'"):
        tfds_source("fashion_mist", "train", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"fashion_mnist is not prepared.*ldm_jax\[tfds\].*python -m"):
        tfds_source("fashion_mnist", "train", tmp_path)


@pytest.mark.slow
def test_fashion_mnist_from_its_archives(data_dir, tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("preparing TFDS's own data sets needs TensorFlow (extra: tfds)")
    source = tfds_source("fashion_mnist", "train", tmp_path, manual_dir=data_dir / "fashion_mnist")
    assert len(source) == 60_000 and source.info.class_names[9] == "Ankle boot"
    test = tfds_source("fashion_mnist", "test[:100]", tmp_path, ("image", "label"))
    seen = list(eval_batches(test, Transform(32), 50))
    assert len(seen) == 2 and seen[0]["image"].shape == (50, 32, 32, 3) and set(seen[0]["label"]) == set(range(10))
    assert "tensorflow" not in sys.modules
