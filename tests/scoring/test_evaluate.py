"""From models, folders and arrays to numbers: how pictures are batched, split or interrupted changes none of them."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_jax import LatentDiffusion, build, evaluation, scoring
from ldm_jax.api import Specification
from ldm_jax.cli.evaluation import beside, main, parser
from ldm_jax.data.pipeline import InMemory
from ldm_jax.data.source import Info
from ldm_jax.data.transform import Transform
from ldm_jax.primitives.files import read_json
from ldm_jax.scoring import curves, looking, sweep
from ldm_jax.scoring import evaluation as whole
from ldm_jax.scoring import features as networks
from ldm_jax.scoring import reference as references
from ldm_jax.scoring.copies import Neighbours
from ldm_jax.scoring.drawing import Conditions, Drawer, as_told
from ldm_jax.scoring.features import Features
from ldm_jax.training import sharding
from tests import tiny

NAMES = tiny.CLASSES


def linear(kind="classifier", seed=0, dim=6):
    """Features that are products with fixed numbers; nothing to train."""
    weights = np.random.default_rng(seed).normal(size=(8 * 8 * 3, dim)).astype(np.float32) / 14

    def run(params, images):
        seen = images.reshape(len(images), -1) @ params
        return {"features": seen, "logits": seen[:, :3]}

    return Features(kind, {"network": "linear", "weights": str(seed), "resize": "none"}, jnp.asarray(weights), run)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of small photos in class folders, and the config of a model of them."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (10, 12, 3)) + 60 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    config = {**tiny.model("class").config, "evaluation": {"inception_path": ""}}
    config["data"] = {
        "source": "folder", "path": str(root), "image_size": 8, "train_split": "train", "validation_split": "validation",
        "crop": "center", "flip": False, "on_error": "raise", "short_side": 0,
    }  # fmt: skip
    return root, config


@pytest.fixture(scope="module")
def model(data):
    ldm = tiny.model("class")
    ldm.config["data"] = data[1]["data"]  # the transform of conditions reads it
    yield ldm
    tiny.model.cache_clear()


def drawer(model, config, mesh, num, seed=0):
    source = references.labelled_source(config, "validation")
    params = sharding.replicate(mesh, model.params)
    return Drawer(model.specification, params, Conditions(config, model.condition, source, num), mesh, seed)


SETTING = sweep.Setting("ddim", 2, 2.0)


def test_devices_batches_and_interruptions_change_nothing(data, model, tmp_path, monkeypatch):
    """20 pictures on 8 devices, and on one in other batches, stopped on the way and gone on with."""
    config, features = data[1], linear()
    meshes = sharding.make_mesh(), sharding.make_mesh(devices=jax.devices()[:1])
    whole = sweep.draw(drawer(model, config, meshes[0], 20), features, SETTING, 20, out=tmp_path / "a", identity={"x": 1},
                       batch_size=8)  # fmt: skip
    assert whole.features.rows.tolist() == list(range(20)) and whole.shown.shape == (20, 8, 8, 3)

    monkeypatch.setattr(sweep, "PART", 6)
    single, other = drawer(model, config, meshes[1], 20), tmp_path / "b"
    seen, original = [], sweep.features_of

    def stops(run, batch, report):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(batch.rows)
        return original(run, batch, report)

    monkeypatch.setattr(sweep, "features_of", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep.draw(single, features, SETTING, 20, out=other, identity={"x": 1}, batch_size=4)
    assert sum(len(evaluation.load_features(path)) for path in other.glob("*[0-9].npz")) == 12
    monkeypatch.setattr(sweep, "features_of", original)
    rest = sweep.draw(single, features, SETTING, 20, out=other, identity={"x": 1}, batch_size=4)
    assert np.concatenate(seen).tolist() == list(range(12))
    np.testing.assert_array_equal(rest.features.rows, whole.features.rows)
    # batches of another shape are drawn with other roundings in float32, which may move a pixel by one of its 8 bits; what is
    # more than that in the features is rounding of their own product
    moved = np.abs(rest.shown.astype(int) - whole.shown.astype(int))
    assert moved.max() <= 1 and (moved > 0).mean() < 1e-3
    most = moved.reshape(20, -1) / 127.5 @ np.abs(np.asarray(features.params))
    assert np.all(np.abs(rest.features.features - whole.features.features) <= most + 1e-5)
    with pytest.raises(ValueError, match="another evaluation.*x: 1 there, 2 now"):
        sweep.draw(single, features, SETTING, 20, out=other, identity={"x": 2}, batch_size=4)


def test_a_picture_is_what_sample_draws_with_its_key(data, model):
    """Keys one a picture: picture 5 of a batch is picture 5 of any other, and of `sample`."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    draws = drawer(model, data[1], mesh, 20)
    options = {"sampler": "ddim", "steps": 2, "guidance_scale": 2.0}
    numbers = np.array([5, 3, 19, -1])
    found = np.asarray(draws(numbers, options))
    labels = draws.conditions.labels()[numbers]
    cond = model.embed(model.params, labels.astype(np.int32))
    keys = jnp.stack([jax.random.fold_in(jax.random.key(0), i) for i in (5, 3, 19, 19)])
    np.testing.assert_allclose(found, model.sample(model.params, keys, cond, **options), atol=1e-4)
    np.testing.assert_allclose(found[2], found[3], atol=1e-4)
    with pytest.raises(ValueError, match="4 keys for 2 pictures"):
        model.sample(model.params, keys, model.embed(model.params, labels[:2].astype(np.int32)), **options)


def test_conditions_have_the_balance_of_their_source(data, model):
    source = references.labelled_source(data[1], "validation")
    for num in (6, 12, 36):
        labels = Conditions(data[1], model.condition, source, num).labels()
        assert np.bincount(labels).tolist() == [num // 3] * 3
    conditions = Conditions(data[1], model.condition, source, 6)
    assert conditions.words(np.array([0, 5])) == [NAMES[0], NAMES[2]]
    np.testing.assert_array_equal(conditions.inputs(np.arange(6)), conditions.labels())


def test_classes_of_other_data_are_told_by_name(data, model, tmp_path):
    """Of a folder with fewer classes their numbers are others' in the model."""
    for split in ("train", "val"):
        for name in NAMES[1:]:
            shutil.copytree(data[0] / split / name, tmp_path / "fewer" / split / name)
    shutil.copytree(tmp_path / "fewer", tmp_path / "strange")
    (tmp_path / "strange" / "val" / NAMES[1]).rename(tmp_path / "strange" / "val" / "cube")

    def conditions(name):
        config = {**data[1], "data": data[1]["data"] | {"path": str(tmp_path / name)}}
        source = references.labelled_source(config, "validation")
        return Conditions(config, model.condition, source, len(source))

    fewer = conditions("fewer")
    assert fewer.labels().tolist() == [0] * 4 + [1] * 4  # as references and classifiers of the same data number them
    told = fewer.inputs(np.arange(8))
    assert told.tolist() == [1] * 4 + [2] * 4 == model.condition.parse(fewer.words(np.arange(8))).tolist()
    with pytest.raises(ValueError, match="the model knows no class 'cube'; its classes are circle, square, star"):
        conditions("strange")


def test_boxes_of_other_data_are_told_by_name():
    condition = build.make_condition(tiny.model("layout").config, ("cat", "dog", "horse"), None)
    box = [0.1, 0.1, 0.5, 0.5]
    rows = [{"image": np.zeros((8, 8, 3), np.uint8), "name": "a", "boxes": np.float32([box, box]), "box_labels": [1, 0]}]
    source = InMemory(Info("a", ("image", "boxes", "box_labels"), box_names=("dog", "horse")), rows, 0)
    assert as_told(source, condition)[0]["box_labels"].tolist() == [2, 1] and source[0]["box_labels"] == [1, 0]


def test_a_condition_that_cannot_be_read_is_passed_over_where_that_is_asked_for(data, tmp_path):
    """A picture to enlarge: the next one that can be read stands for one that can't, in the inputs as in their words."""
    root, config = data
    shutil.copytree(root, tmp_path / "photos")
    (tmp_path / "photos" / "val" / NAMES[1] / "0.png").write_bytes(b"no picture")
    told = {"kind": "superres", "scale": 4, "degradation": "bicubic", "noise_levels": 0, "null_probability": 0.0}
    condition, found = build.make_condition({**config, "conditioner": told}), []
    for place in (root, tmp_path / "photos"):
        here = {**config, "data": {**config["data"], "path": str(place)}}
        conditions = Conditions(here, condition, references.labelled_source(here, "validation"), 12, "skip")
        inputs = conditions.inputs(np.arange(12))
        found.append((jax.tree.leaves(inputs), [word.replace(str(place), "") for word in conditions.words(np.arange(12))]))
    (whole, words), (rest, passed) = found
    stands = [*range(4), 5, *range(5, 12)]
    for one, other in zip(whole, rest):
        np.testing.assert_array_equal(one[stands], other)
    assert passed == [words[i] for i in stands] and len(set(words)) == 12
    with pytest.raises(ValueError, match="cannot be read as an image"):
        Conditions(here, condition, references.labelled_source(here, "validation"), 12).inputs(np.arange(12))


def test_references_go_the_way_of_training_and_are_kept(data, tmp_path):
    root, config = data
    features, mesh = linear(), sharding.make_mesh()
    found = scoring.of_data(config, "train", features, mesh, folder=tmp_path, batch_size=8)
    transform, source = Transform(8), references.labelled_source(config, "train")
    images = np.stack([transform(source[i])["image"] for i in range(24)])
    expected = images.reshape(24, -1) @ np.asarray(features.params)
    np.testing.assert_allclose(found.features.features, expected, atol=1e-5)
    np.testing.assert_allclose(found.gaussian[1], np.cov(expected.T), atol=1e-5)
    assert found.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert {name: found.about[name] for name in ("count", "size", "split", "crop")} == {
        "count": 24, "size": [8, 8], "split": "train", "crop": "center"
    }  # fmt: skip
    (path,) = tmp_path.glob("*.npz")

    def fails(params, images):
        raise AssertionError("looked at again")

    blind = Features("classifier", features.about, features.params, fails)
    kept = scoring.of_data(config, "train", blind, mesh, folder=tmp_path)
    np.testing.assert_array_equal(kept.features.features, found.features.features)
    changed = next((root / "train" / NAMES[0]).glob("*.png"))
    before = changed.read_bytes()
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(changed)
    again = scoring.of_data(config, "train", features, mesh, folder=tmp_path, batch_size=8)
    changed.write_bytes(before)
    assert np.abs(again.features.features - found.features.features).max() > 0.01

    assert scoring.read(path, features, (8, 8)).about["data"] == str(root)
    with pytest.raises(ValueError, match="weights '0' of the features, here it is '1'"):
        scoring.read(path, linear(seed=1))
    with pytest.raises(ValueError, match=r"made of pictures of \[8, 8\] pixels, here they are \[16, 16\]"):
        scoring.read(path, features, (16, 16))


def test_statistics_of_the_world(tmp_path):
    """ADM's, pytorch-fid's and clean-fid's files; Inception's only, of its 2048 numbers, and with a warning."""
    inception = Features("inception", {"network": "InceptionV3"}, {}, lambda params, images: {})
    mean, covariance = np.zeros(2048), np.eye(2048, dtype=np.float32)
    np.savez(tmp_path / "fid.npz", mu=mean, sigma=covariance)
    found = scoring.read(tmp_path / "fid.npz", inception)
    assert found.spatial is None and found.features is None and "pytorch-fid" in found.notes[0]
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), mu=mean, sigma=covariance,
             mu_s=np.ones(2023, np.float32), sigma_s=np.eye(2023, dtype=np.float32))  # fmt: skip
    found = scoring.read(tmp_path / "adm.npz", inception)
    assert found.spatial[0].shape == (2023,) and found.gaussian[1].dtype == np.float64 and "tensorflow" in found.notes[0]
    with pytest.raises(ValueError, match="Inception's statistics"):
        scoring.read(tmp_path / "fid.npz", linear())
    np.savez(tmp_path / "small.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ValueError, match="features of 64 numbers; Inception's are 2048"):
        scoring.read(tmp_path / "small.npz", inception)
    np.savez(tmp_path / "other.npz", mean=np.zeros(64))
    with pytest.raises(ValueError, match="holds mean: statistics are named 'mu' and 'sigma'"):
        scoring.read(tmp_path / "other.npz")
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(4), sigma=np.eye(5))
    with pytest.raises(ValueError, match="don't fit"):
        scoring.read(tmp_path / "wrong.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"broken.npz can't be read as statistics"):
        scoring.read(tmp_path / "broken.npz")
    with pytest.raises(FileNotFoundError, match="openaipublic"):
        scoring.read(tmp_path / "none.npz")


def test_measures_have_the_network_s_name_and_say_what_is_odd():
    rng = np.random.default_rng(0)
    outputs = {"features": rng.normal(size=(40, 6)), "logits": rng.normal(size=(40, 3)), "spatial": rng.normal(size=(40, 5))}
    found = evaluation.feature_set(np.arange(40), outputs)
    about = {"count": 40}
    itself = references.of_features(found, about, np.zeros(40))
    for features, names in (
        (linear("inception"), {"fid", "fid_infinity", "sfid", "kid", "inception_score"}),
        (linear("classifier"), {"frechet_distance", "frechet_distance_infinity", "spatial_frechet_distance", "kernel_distance",
                                "score"}),
    ):  # fmt: skip
        measured = scoring.measure(found, itself, features, labels=[0] * 20 + [1] * 20)
        kind = features.kind
        assert {f"{kind}/{name}" for name in names} <= set(measured.values)
        assert {f"{kind}/{name}" for name in ("precision", "recall", "density", "coverage")} <= set(measured.values)
        assert ("classifier/accuracy" in measured.values) == (kind == "classifier")
        first = next(iter(measured.values))
        assert abs(measured.values[first]) < 1e-9  # of a set with itself
        error, low, high = measured.intervals[first]
        assert error > 0 and low < measured.values[first] < high
        assert any("compare only with those of as many" in note for note in measured.notes)
        assert any("class 0 is 50.0%" in note or "class 1" in note for note in measured.notes)
    few = evaluation.feature_set(np.arange(4), {name: value[:4] for name, value in outputs.items()})
    assert any("4 pictures for features of 6 numbers" in note for note in scoring.measure(few, itself, linear()).notes)
    one = evaluation.feature_set([0], {"features": outputs["features"][:1]})
    with pytest.raises(ValueError, match="at least 2"):
        scoring.measure(one, itself, linear())


def test_the_interval_of_a_kernel_distance_is_of_other_pictures():
    """Of as many pictures as the reference's, a subset is all of them: what differs between subsets is nothing."""
    found = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        drawn, real = (evaluation.feature_set(np.arange(60), {"features": rng.normal(size=(60, 6))}) for _ in range(2))
        found.append(scoring.measure(drawn, references.of_features(real, {"count": 60}), linear(), resamples=0))
    (one, (error, low, high)), (other, _) = ((x.values["classifier/kernel_distance"], x.intervals["classifier/kernel_distance"])
                                             for x in found)  # fmt: skip
    assert error > abs(one - other) / 5 and low < one < high
    few = evaluation.feature_set(np.arange(8), {"features": drawn.features[:8]})
    measured = scoring.measure(few, references.of_features(real, {"count": 60}), linear(), resamples=0)
    assert "classifier/kernel_distance" in measured.values and "classifier/kernel_distance" not in measured.intervals


def test_the_score_of_pictures_in_the_order_of_their_classes():
    """As a folder of class folders has them: no split of the score may hold one class alone."""
    labels = np.repeat(np.arange(4), 50)
    rng = np.random.default_rng(0)
    outputs = {"features": rng.normal(size=(200, 6)), "logits": 20 * np.eye(4)[labels]}
    found = evaluation.feature_set(np.arange(200), outputs)
    itself = references.of_features(found, {"count": 200})
    measured = scoring.measure(found, itself, linear(), resamples=0)
    score, (error, low, high) = measured.values["classifier/score"], measured.intervals["classifier/score"]
    assert 3.4 < score <= 4.0001  # 4 kinds, each told surely; splits of 20 lose a little
    assert 0 < error < 0.1 and low < score < high


def test_a_copying_model_is_found_out(data, tmp_path):
    config, features, mesh = data[1], linear(), sharding.make_mesh()
    parts = [scoring.of_data(config, split, features, mesh, folder=tmp_path, batch_size=8) for split in ("train", "validation")]
    neighbours = Neighbours(config, features, *parts, mesh)
    transform, source = Transform(8), references.labelled_source(config, "train")
    copied = np.stack([transform.view(source[i])["image"] for i in range(0, 24, 3)])
    seen = evaluation.feature_set(np.arange(8), {"features": parts[0].features.features[::3]})
    found = neighbours.of(copied, seen, np.arange(8), shown=4)
    assert set(found.values.values()) == {1.0} and len(found.values) == 4
    for sample, in_pixels, in_features in found.rows:
        np.testing.assert_array_equal(sample, in_pixels)
        np.testing.assert_array_equal(sample, in_features)
    some = neighbours.of(copied[[2, 5]], seen, np.array([2, 5]))  # the others' features count all the same
    assert {row[0].tobytes() for row in some.rows} == {copied[2].tobytes(), copied[5].tobytes()}
    assert all((row == row[0]).all() for row in some.rows) and some.values == found.values
    same = {**config, "data": config["data"] | {"validation_split": "train"}}
    with pytest.raises(ValueError, match="all held-out pictures are training pictures.*validation_split='train'"):
        Neighbours(same, features, parts[0], parts[0], mesh)


def test_a_network_in_the_home_directory_is_found(tmp_path, monkeypatch):
    """Shells put the home directory for a ~ that a word begins with, and leave the one behind a colon."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights.pth").write_bytes(b"")
    assert networks.check("inception:~/weights.pth") == ("inception", str(tmp_path / "weights.pth"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        networks.check("inception:~/none.pth")


def test_comparisons_of_the_folder_one_is_in_lie_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine" / "more").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine" / "more")
    for samples, place in ((".", "mine/more-evaluation"), ("..", "mine-evaluation"), ("../more/", "mine/more-evaluation")):
        assert beside(parser().parse_args(["--samples", samples])).resolve() == tmp_path.resolve() / place


def test_what_can_not_be_loaded_says_what_to_fetch(data, tmp_path):
    config = data[1]
    with pytest.raises(FileNotFoundError, match=r"no such file; fetch https://github.com/mseitzer/pytorch-fid"):
        networks.load(f"inception:{tmp_path / 'none.pth'}")
    with pytest.raises(FileNotFoundError, match="a file is needed; fetch the repository openai/clip"):
        networks.load("clip")
    with pytest.raises(ValueError, match=r"features='inceptoin' is not known. Did you mean 'inception'"):
        networks.load("inceptoin:x")
    with pytest.raises(ValueError, match="resize='clea' is not known"):
        networks.load("inception:x", resize="clea")
    with pytest.raises(ValueError, match="without one, name a probe"):
        networks.load("classifier")
    assert networks.choose_kind(config) == ("classifier", "")
    assert networks.choose_kind(config | {"evaluation": {"inception_path": "x.pth"}}) == ("inception", "x.pth")
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(bare / "1.png")
    unlabelled = {**config, "data": config["data"] | {"path": str(bare)}}
    assert networks.choose_kind(unlabelled) == ("contrastive", "")
    with pytest.raises(ValueError, match="has no labels to learn; choose 'contrastive'"):
        networks.load("classifier", unlabelled, tmp_path)


def test_folders_and_arrays_of_pictures(data, tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (5, 9, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=images, arr_1=np.arange(5))
    np.save(tmp_path / "b.npy", images.astype(np.float32) / 127.5 - 1)
    found, labels, *_ = looking.read_pictures(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, images)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(looking.read_pictures(tmp_path / "b.npy")[0], images)
    found, labels, *_ = looking.read_pictures(data[0], size=8)
    assert found.shape == (24, 8, 8, 3) and np.bincount(labels).tolist() == [8, 8, 8]
    assert looking.read_pictures(data[0]).images.shape == (24, 10, 12, 3)
    with pytest.raises(ValueError, match="are 8 x 9 pixels and should be 8 x 8"):
        looking.read_pictures(tmp_path / "a.npz", size=8)
    with pytest.raises(FileNotFoundError, match="no folder of pictures"):
        looking.read_pictures(tmp_path / "none")
    odd = tmp_path / "odd"
    odd.mkdir()
    for i, size in enumerate(((8, 8), (8, 9))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(odd / f"{i}.png")
    with pytest.raises(ValueError, match=r"1.png is 9 x 8 pixels and the first picture 8 x 8; say with --size"):
        looking.read_pictures(odd)
    mesh = sharding.make_mesh()
    seen = looking.look(linear().on(mesh), looking.of_array(images[:, :8], 4, mesh))
    expected = (images[:, :8].astype(np.float32) / 127.5 - 1).reshape(5, -1) @ np.asarray(linear().params)
    np.testing.assert_allclose(seen.features, expected, atol=1e-5)


@pytest.fixture
def with_linear(monkeypatch):
    monkeypatch.setattr(networks, "load", lambda *_, **__: linear())


def test_arrays_whose_numbers_or_labels_mean_something_else(tmp_path):
    """From 0 to 1 black would be grey; labels are whole numbers, or names."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "unit.npy", images.astype(np.float32) / 255)
    with pytest.raises(ValueError, match=r"none below 0. Black is -1 here.*give uint8"):
        looking.read_pictures(tmp_path / "unit.npy")
    np.savez(tmp_path / "named.npz", arr_0=images, arr_1=["red", "blue", "red", "green"])
    named = looking.read_pictures(tmp_path / "named.npz")
    assert [named.class_names[i] for i in named.labels] == ["red", "blue", "red", "green"]
    for labels, said in ((np.eye(4), "expected one number or name"), ([0.5] * 4, "labels of float64 are no classes")):
        np.savez(tmp_path / "odd.npz", arr_0=images, arr_1=labels)
        with pytest.raises(ValueError, match=said):
            looking.read_pictures(tmp_path / "odd.npz")
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match="one.png is one picture: name the folder"):
        looking.read_pictures(tmp_path / "one.png")
    np.save(tmp_path / "objects.npy", np.array([None, 1]))
    with pytest.raises(ValueError, match="it holds Python objects") as raised:
        looking.read_pictures(tmp_path / "objects.npy")
    assert "unsafely" not in str(raised.value)


def test_labels_that_are_no_numbers_of_the_reference_s_classes_are_not_compared(data, tmp_path, with_linear):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    beyond = "numbers from 0 to 11, those of the reference's from 0 to 2"
    for labels, said in ((np.arange(12), beyond), ([-1] * 12, "from -1 to -1")):
        np.savez(tmp_path / "labels.npz", arr_0=images, arr_1=labels)
        flags = ["--samples", str(tmp_path / "labels.npz"), "--reference", str(data[0]), "--size", "8", "--out", str(tmp_path)]
        assert main([*flags, "--resamples", "0"]) == 0
        result = read_json(tmp_path / "results.json")["results"][0]
        assert "classifier/accuracy" not in result["values"]
        assert any(said in note for note in result["notes"])


def test_what_a_folder_holds_besides_is_said_and_its_captions_are_not_asked_for(data, tmp_path, with_linear):
    samples = shutil.copytree(data[0] / "val" / NAMES[0], tmp_path / "mine")
    (samples / "0.txt").write_text("the one that has a caption")
    (samples / "9.heic").write_bytes(b"")
    flags = ["--samples", str(samples), "--size", "8", "--out", str(tmp_path / "out"), "--resamples", "0"]
    assert main([*flags, "--reference", str(data[0])]) == 0
    found = read_json(tmp_path / "out" / "results.json")
    notes = " ".join(found["results"][0]["notes"])
    assert f"{samples}: left out: 1 image files that are not read (.heic)" in notes
    assert f"{data[0]}: its training split alone is looked at; validation has 12 more" in notes and "test has" not in notes
    for i in (1, 2, 3):
        (samples / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="mine holds 1 picture, which has no distribution to compare with"):
        main(["--samples", str(data[0]), "--reference", str(samples), *flags[2:]])


def test_a_sweep_ends_in_tables_curves_and_a_page_and_is_not_drawn_twice(data, model, tmp_path, with_linear, monkeypatch):
    config, out = data[1], tmp_path / "out"
    request = scoring.Request(num=16, samplers=("ddim",), steps=(2,), guidance_scales=(2.0, 3.0), batch_size=8, resamples=2,
                              memorisation=True)  # fmt: skip
    said = []
    options = {"config": config, "folder": tmp_path, "model": {"model": "tiny"}, "say": said.append}
    results = scoring.evaluate(model, request, out, **options)
    assert [result["setting"] for result in results["results"]] == ["ddim-2-g2", "ddim-2-g3"]
    stored = read_json(out / "results.json")
    assert stored["results"] == json.loads(json.dumps(results["results"]))
    for result in stored["results"]:
        assert all(np.isfinite(value) for value in result["values"].values()) and result["num"] == 16
    assert {"identity", "features", "reference", "versions", "pictures", "config"} <= stored.keys()
    page, table = (out / "report.html").read_text(), (out / "results.md").read_text()
    assert page.count("data:image/png;base64,") == 4 and page.count("<svg") == 3  # samples, neighbours; three curves
    assert not re.search(r'(src|href)="(?!data:)', page) and "classifier/frechet_distance" in page
    assert "| classifier/frechet_distance |" in table and "±" in table
    assert len(list(out.glob("*.svg"))) == 3 and not (out / "parts").exists()

    monkeypatch.setattr(sweep, "draw", lambda *_, **__: pytest.fail("drawn again"))
    again = scoring.evaluate(model, request, out, **options)
    assert again["results"] == stored["results"] and said[-1] == "ddim-2-g3: measured before"
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 4
    with pytest.raises(ValueError, match="sampler='ddmi'"):
        scoring.evaluate(model, scoring.Request(num=4, samplers=("ddmi",)), out, **options)
    with pytest.raises(FileNotFoundError, match="no such file of statistics"):
        scoring.evaluate(model, scoring.Request(num=4, reference="trian"), out, **options)


def test_what_was_measured_before_stays_and_what_is_asked_for_more_is_done(data, model, tmp_path, with_linear, monkeypatch):
    out, said, drawn, draw = tmp_path / "out", [], [], sweep.draw
    monkeypatch.setattr(whole, "measure_likelihood", lambda *_, **__: {"bits_per_dimension": 5.0})

    def counted(drawer, features, setting, *arguments, **options):
        drawn.append(setting.name)
        return draw(drawer, features, setting, *arguments, **options)

    monkeypatch.setattr(sweep, "draw", counted)

    def evaluate(scales, **asked):
        drawn.clear()
        request = scoring.Request(num=8, samplers=("ddim",), steps=(2,), guidance_scales=scales, batch_size=8,
                                  **{"resamples": 0} | asked)  # fmt: skip
        scoring.evaluate(model, request, out, config=data[1], folder=tmp_path, model={"model": "tiny"}, say=said.append)
        found = read_json(out / "results.json")
        return found, {result["setting"]: result for result in found["results"]}

    _, first = evaluate((1.0, 2.0))
    found, results = evaluate((3.0,), reconstructions=True, likelihood=4)
    assert list(results) == ["ddim-2-g1", "ddim-2-g2", "ddim-2-g3"] and results | first == results
    assert drawn == ["ddim-2-g3"] and found["likelihood"]["values"] == {"bits_per_dimension": 5}
    again, results = evaluate((3.0,))
    assert drawn == [] and all(again[name] == found[name] for name in ("reconstructions", "likelihood", "results"))
    page = (out / "report.html").read_text()
    assert "Held-out pictures and their reconstructions" in page and page.count("data:image/png;base64,") == 4
    # more is asked of a setting: it is measured again, with the same pictures
    _, more = evaluate((1.0,), memorisation=True, resamples=3, pictures=True)
    name, values = "ddim-2-g1", more["ddim-2-g1"]["values"]
    assert drawn == [name] and len(list((out / "pictures" / name).glob("*.png"))) == 8
    assert results[name]["values"].items() < values.items() and sum(each.startswith("memorisation/") for each in values) == 4
    distance = "classifier/frechet_distance"
    assert distance in more[name]["intervals"] and distance not in results[name]["intervals"]
    for asked in ({"memorisation": True, "resamples": 3, "pictures": True}, {"resamples": 3}):
        assert evaluate((1.0,), **asked)[1] == more and drawn == []
    _, fewer = evaluate((1.0,))
    assert drawn == [name] and fewer[name]["values"] == values and fewer[name]["resamples"] == 0
    (out / "pictures" / name / "000003.png").unlink()
    evaluate((1.0,), pictures=True)
    assert drawn == [name] and (out / "pictures" / name / "000003.png").is_file()


def test_parts_of_a_call_that_kept_less_are_drawn_again(data, model, tmp_path, monkeypatch):
    """Stopped without pictures and with few kept, gone on with all: all are there, and each is counted once."""
    features, mesh = linear(), sharding.make_mesh(devices=jax.devices()[:1])
    draws, original = drawer(model, data[1], mesh, 8), sweep.features_of
    monkeypatch.setattr(sweep, "PART", 4)

    def part(out, keep, pictures=None, last=8):
        def stops(run, batch, report):
            if batch.rows[0] == last:
                raise KeyboardInterrupt
            return original(run, batch, report)

        monkeypatch.setattr(sweep, "features_of", stops)
        return sweep.draw(draws, features, SETTING, 8, out=out, identity={}, batch_size=4, keep=keep, pictures=pictures)

    expected = part(tmp_path / "whole", 8)
    with pytest.raises(KeyboardInterrupt):
        part(tmp_path / "parts", 2, last=4)
    found = part(tmp_path / "parts", 8)
    np.testing.assert_array_equal(found.shown, expected.shown)
    np.testing.assert_array_equal(found.features.features, expected.features.features)
    found = part(tmp_path / "parts", 2, tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == len(found.features) == 8


def test_pictures_that_are_shown_are_of_all_classes(data, model, tmp_path, monkeypatch):
    """Conditions stand in the order of their classes."""
    draws = drawer(model, data[1], sharding.make_mesh(devices=jax.devices()[:1]), 12)
    labels = draws.conditions.labels()

    def batches(numbers, batch_size, options):
        for start in range(0, len(numbers), batch_size):
            rows = numbers[start : start + batch_size]
            yield looking.Pictures(rows, np.zeros((len(rows), 8, 8, 3), np.float32) + labels[rows, None, None, None] / 4)

    monkeypatch.setattr(draws, "batches", batches)
    found = sweep.draw(draws, linear(), SETTING, 12, out=tmp_path, identity={}, batch_size=4, keep=3)
    assert labels[found.numbers].tolist() == [0, 1, 2] and len(found.features) == 12
    assert found.shown[:, 0, 0, 0].tolist() == [128, 159, 191]  # 0, 1/4 and 1/2 in 8 bits
    again = sweep.draw(draws, linear(), SETTING, 12, out=tmp_path, identity={}, batch_size=4, keep=3)  # from its parts
    np.testing.assert_array_equal(again.shown, found.shown)


def test_another_grid_is_another_evaluation(data, model, tmp_path, with_linear, monkeypatch):
    """`sampling.grid` may change in a working directory: numbers of the old one aren't told of the new one, parts not mixed."""
    config, out = data[1], tmp_path / "out"
    request = scoring.Request(num=8, samplers=("ddim",), steps=(2,), guidance_scales=(2.0,), batch_size=8, resamples=0)
    options = {"config": config, "folder": tmp_path, "model": {"model": "tiny"}}

    def of(**sampling):
        own = {**model.config, "sampling": model.config["sampling"] | sampling}
        spec = model.specification
        return LatentDiffusion(Specification(own, spec.condition, spec.scale, spec.shift), model.params)

    def distance(ldm, out):
        return scoring.evaluate(ldm, request, out, **options)["results"][0]["values"]["classifier/frechet_distance"]

    first, again = distance(of(), out), distance(of(grid="karras"), out)
    assert again == distance(of(grid="karras"), tmp_path / "fresh") != first
    monkeypatch.setattr(sweep, "draw", lambda *_, **__: pytest.fail("drawn again"))
    # a setting's own three are no other evaluation
    assert distance(of(grid="karras", sampler="heun", steps=7, guidance_scale=9.0), out) == again
    parts = tmp_path / "parts"
    sweep._open(parts, {"drawing": sweep.way_of_drawing(of().config)})
    with pytest.raises(ValueError, match="drawing.grid: 'trailing' there, 'karras' now.*: choose another --out"):
        sweep._open(parts, {"drawing": sweep.way_of_drawing(of(grid="karras").config)})
    assert sweep.way_of_drawing({"sampling": {"sampler": "ddim", "steps": 3}, "scheduler": {"betas": (1, 2)}}) == {
        "scheduler": {"betas": [1, 2]}
    }


def test_the_command_compares_folders(data, tmp_path, with_linear, capsys):
    root, _ = data
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", arr_0=noise)
    found = {}
    for name, samples in (("same", root), ("noise", tmp_path / "noise.npz")):
        out = tmp_path / name
        flags = ["--samples", str(samples), "--reference", str(root), "--size", "8", "--out", str(out)]
        assert main([*flags, "--features", "classifier", "--resamples", "0", "--batch_size", "8"]) == 0
        found[name] = read_json(out / "results.json")["results"][0]["values"]["classifier/frechet_distance"]
    assert abs(found["same"]) < 1e-6 and found["noise"] > 0.1
    assert "note: 24 pictures: Frechet" in capsys.readouterr().out
    for flags, said in (
        (["--samples", str(root)], "without --reference"),
        (["--samples", str(root), "--reference", str(root), "--steps", "3"], "--steps is of drawing"),
        (["--samples", str(root), "--reference", str(root), "--guidance_scale", "1;2"], "separated by commas"),
        (["--samples", str(root), "--reference", str(root), "--features", "clasifier"], "Did you mean .classifier"),
        (["--workdir", str(root), "--num", "1"], "num=1: at least 2"),
        (["--workdir", str(root), "--guidance_scale", "nan"], "must be finite"),
        (["--workdir", str(root / "none")], "does not exist"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            main(flags)


def test_curves_go_through_their_points():
    svg = curves.chart({"a": [(0, 1), (1, 3)], "b": [(0.5, 2)]}, "steps", "distance <", "title")
    assert svg.count("<circle") == 3 and "distance &lt;" in svg and ">b</text>" in svg
    places = [tuple(map(float, place)) for place in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    np.testing.assert_allclose(places[2], np.mean(places[:2], 0), atol=0.1)  # (0.5, 2) lies between (0, 1) and (1, 3)
    assert curves.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and curves.ticks(-3, 17) == [0, 5, 10, 15]
    curves.chart({"one": [(1, 1)]}, "x", "y")
    with pytest.raises(ValueError, match="no point"):
        curves.chart({}, "x", "y")


def test_pictures_that_fit_their_words_score_higher():
    """A network that reads: the cosine of unit vectors, below 0 counted as 0, times 100."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(40, 6))
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    found = evaluation.feature_set(np.arange(40), {"features": seen})
    reference = references.of_features(found, {"count": 40})
    at = {str(i): row for i, row in enumerate(seen)} | {f"not {i}": -row for i, row in enumerate(seen)}
    network = dataclasses.replace(linear("clip"), words=lambda texts: np.stack([at[text] for text in texts]))

    def score(texts):
        return scoring.measure(found, reference, network, resamples=0, texts=texts).values["clip/text_score"]

    names = [str(i) for i in range(40)]
    assert score(names) == pytest.approx(100)
    assert score([f"not {name}" for name in names]) == 0
    cosines = np.sum(seen * np.roll(seen, 1, axis=0), 1)
    assert score(names[-1:] + names[:-1]) == pytest.approx(100 * np.maximum(cosines, 0).mean())
    assert "clip/text_score" not in scoring.measure(found, reference, linear("clip"), resamples=0, texts=names).values


def coloured(root, names, counts=(8, 8, 8)):
    """Class folders, each of pictures of one colour; two splits of what a classifier learns in a moment."""
    rng = np.random.default_rng(0)
    for split, more in (("train", 1), ("validation", 2)):
        for channel, (name, count) in enumerate(zip(names, counts)):
            (root / split / name).mkdir(parents=True)
            for i in range(count // more):
                pixels = rng.integers(0, 60, (8, 8, 3)) + 180 * np.eye(3, dtype=int)[channel]
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def test_classes_are_matched_by_name_and_a_probe_by_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(networks, "PROBE_STEPS", 30)
    real = coloured(tmp_path / "real", ("red", "green", "blue"))
    other = coloured(tmp_path / "other", ("a_red", "m_green", "z_blue"))
    fewer = tmp_path / "fewer"  # the red and the green ones alone, called so
    for name in ("red", "green"):
        shutil.copytree(real / "train" / name, fewer / name)
    out = ["--size", "8", "--features", "classifier", "--resamples", "0", "--batch_size", "8", "--out", str(tmp_path / "out")]

    def results(samples, reference):
        assert main(["--samples", str(samples), "--reference", str(reference), *out]) == 0
        return read_json(tmp_path / "out" / "results.json")

    first = results(fewer, real)
    assert first["results"][0]["values"]["classifier/accuracy"] == 1.0
    assert any("class blue is 0.0%" in note for note in first["results"][0]["notes"])
    second = results(other / "train", other)
    assert second["results"][0]["values"]["classifier/accuracy"] == 1.0
    assert second["features"]["weights"] != first["features"]["weights"]
    assert results(fewer, real)["features"]["weights"] == first["features"]["weights"]
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (8, 8)).save(bare / "1.png")
    with pytest.raises(ValueError, match="has no labels to learn; choose .* or a classifier that is there"):
        results(fewer, bare)
    strange = results(other / "train", real)["results"][0]
    assert "classifier/accuracy" not in strange["values"]
    said = "classes (a_red, m_green, z_blue) are not called as the reference's (blue, green, red)"
    assert any(said in note for note in strange["notes"])


def test_comparisons_have_folders_of_their_own(data, tmp_path, with_linear):
    samples = shutil.copytree(data[0] / "train", tmp_path / "mine")
    (tmp_path / "mine-evaluation").mkdir()
    (tmp_path / "mine-evaluation" / "results.json").write_text("mine")
    for reference in ("train", "val"):
        flags = ["--samples", str(samples), "--reference", str(data[0] / reference)]
        assert main([*flags, "--size", "8", "--resamples", "0"]) == 0
    found = sorted((tmp_path / "mine-evaluation").glob("*/results.json"))
    assert {read_json(path)["identity"]["reference"] for path in found} == {str(data[0] / name) for name in ("train", "val")}
    assert (tmp_path / "mine-evaluation" / "results.json").read_text() == "mine"
    for flag in (["--num", "10"], ["--seed", "7"], ["--which", "best"], ["--conditions", "train"], ["--reference_num", "20"]):
        with pytest.raises(ValueError, match=f"{flag[0]} is of a model"):
            main(["--samples", str(samples), "--reference", str(data[0]), *flag])
