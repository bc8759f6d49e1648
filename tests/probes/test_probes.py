"""Judges learn what can be seen, come back from disk as they were, and say what they can't do."""

import jax
import numpy as np
import pytest

from ldm_jax import probes
from ldm_jax.cli.probes import main
from ldm_jax.data.pipeline import InMemory
from ldm_jax.data.source import Info
from ldm_jax.probes import learning
from ldm_jax.probes import probe as module
from ldm_jax.training.loop import Interrupted

SIZE, NAMES = 16, ("red", "green", "blue")
SMALL = dict(steps=40, batch_size=16, widths=(8, 16))


def rows(count, seed, captions=True):
    """Noisy pictures whose left half has one of three colours; the map says where it is."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        label = i % 3
        image = rng.integers(0, 80, (SIZE, SIZE, 3), dtype=np.uint8)
        image[:, : SIZE // 2, label] += 170
        label_map = np.zeros((SIZE, SIZE), np.uint8)
        label_map[:, : SIZE // 2] = 1 + label
        row = {"name": str(i), "image": image, "label": label, "label_map": label_map}
        made.append(row | ({"caption": f"a {NAMES[label]} side"} if captions else {}))
    columns = ("image", "label", "label_map") + (("caption",) if captions else ())
    return InMemory(Info("sides", columns, NAMES), made, 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A probe of every kind, and where it is."""
    folder = tmp_path_factory.mktemp("probes")
    return {kind: (probes.train(kind, rows(48, 0), SIZE, folder / kind, **SMALL), folder / kind) for kind in probes.KINDS}


@pytest.mark.parametrize(
    ("kind", "name", "least"),
    [("classifier", "accuracy", 0.95), ("segmenter", "mean_iou", 0.5), ("contrastive", "recall_at_1", 0.9)],
)
def test_judges_learn_what_is_there_to_see(trained, kind, name, least):
    assert probes.measure(trained[kind][0], rows(30, 1))[name] > least


def test_pictures_that_cannot_be_read_are_left_out_where_that_is_asked_for(trained, tmp_path):
    probe, whole = trained["classifier"][0], rows(9, 1)
    broken = [dict(whole[i]) for i in range(9)]
    broken[4:4] = [{**whole[4], "image": b"no picture"}]
    source = InMemory(whole.info, broken, 0)
    assert probes.measure(probe, source, on_error="skip") == probes.measure(probe, whole)
    few = {**SMALL, "steps": 2}
    one, other = (
        probes.train("classifier", each, SIZE, tmp_path / str(i), on_error="skip", **few)
        for i, each in enumerate((whole, source))
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        probes.train("classifier", source, SIZE, tmp_path / "raises", **few)


@pytest.mark.parametrize("kind", probes.KINDS)
def test_a_judge_comes_back_as_it_was(trained, kind):
    probe, folder = trained[kind]
    again = probes.load(folder)
    images = np.random.default_rng(0).uniform(-1, 1, (3, SIZE, SIZE, 3))
    assert again.options == probe.options and again.class_names == NAMES
    np.testing.assert_array_equal(again(images), probe(images))
    if kind == "contrastive":
        np.testing.assert_array_equal(again.words(["a red side"]), probe.words(["a red side"]))


def test_a_finished_judge_is_not_trained_again_and_another_is_refused(trained):
    probe, folder = trained["classifier"]
    again = probes.train("classifier", rows(48, 0), SIZE, folder, **SMALL)
    jax.tree.map(np.testing.assert_array_equal, again.params, probe.params)
    with pytest.raises(ValueError, match="another probe"):
        probes.train("segmenter", rows(48, 0), SIZE, folder, **SMALL)


def test_judging_in_parts_is_judging_at_once(trained, monkeypatch):
    probe, _ = trained["classifier"]
    images = np.random.default_rng(0).uniform(-1, 1, (5, SIZE, SIZE, 3))
    whole = probe(images)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    np.testing.assert_allclose(probe(images), whole, atol=1e-5)
    np.testing.assert_allclose(whole.sum(-1), 1, rtol=1e-5)
    head = probe.params["head"]
    logits = probe.features(images) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.nn.softmax(logits), whole, atol=1e-5)
    with pytest.raises(ValueError, match="classifier's"):
        trained["segmenter"][0].features(images)


def test_pictures_of_another_size_are_brought_to_the_judges(trained):
    probe, _ = trained["classifier"]
    image = np.stack([rows(3, 2)[i]["image"] for i in range(3)]).astype(np.float32) / 127.5 - 1
    large = image.repeat(2, 1).repeat(2, 2)
    assert probe(large).argmax(-1).tolist() == probe(image).argmax(-1).tolist() == [0, 1, 2]


def test_without_captions_a_judge_tells_pictures_apart(tmp_path):
    probe = probes.train("contrastive", rows(48, 0, captions=False), SIZE, tmp_path, **SMALL)
    vectors = probe(np.stack([rows(6, 3)[i]["image"] for i in range(6)]).astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    products = vectors @ vectors.T - 2 * np.eye(6)
    assert (products.argmax(-1) % 3).tolist() == [0, 1, 2, 0, 1, 2]  # the nearest other picture has the same colour
    with pytest.raises(ValueError, match="knows no words"):
        probe.words(["a red side"])


@pytest.mark.parametrize(
    "images, said",
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"uint8\[2, 8, 8, 3\]: expected floating-point"),
        (np.full((2, 8, 8, 3), 200.0), r"from 200 to 200: expected \[-1, 1\]"),
        (np.full((2, 8, 8, 3), np.nan), "from nan to nan"),
        (np.zeros((8, 8, 3)), r"float64\[8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3)), r"float64\[0, 8, 8, 3\]"),
    ],
)
def test_what_is_no_picture_is_not_judged(images, said):
    """A network would say something of it."""
    judge = module.Probe("classifier", (8, 8), {"n_classes": 3}, {})
    for look in (judge, judge.features):
        with pytest.raises(ValueError, match=said):
            look(images)


def test_classes_of_other_data_are_judged_by_name():
    """A folder with fewer classes numbers them otherwise than the one that was learnt from."""

    class Judge:  # tells three classes by their brightness
        kind, size, class_names = "classifier", (8, 8), ("black", "grey", "white")

        def __call__(self, images):
            return np.eye(3)[np.rint(images.mean((1, 2, 3)) + 1).astype(int)]

    def source(names):
        found = [{"image": np.full((8, 8, 3), level, np.uint8), "label": i, "name": "x"} for i, level in enumerate((128, 255))]
        return InMemory(Info("x", ("image", "label"), names), found, 0)

    assert probes.measure(Judge(), source(("grey", "white"))) == {"accuracy": 1.0}
    assert probes.measure(Judge(), source(("white", "grey"))) == {"accuracy": 0.0}
    with pytest.raises(ValueError, match="the classifier didn't learn 'silver'; it knows black, grey, white"):
        probes.measure(Judge(), source(("silver", "white")))


def test_what_judges_need(tmp_path):
    bare = InMemory(Info("bare", ("image",)), [rows(1, 0)[0]], 0)
    with pytest.raises(ValueError, match="learns from label, but bare has image"):
        probes.train("classifier", bare, SIZE, tmp_path)
    with pytest.raises(ValueError, match="choose classifier"):
        probes.train("critic", bare, SIZE, tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no probe"):
        probes.load(tmp_path)


def test_varied_pictures_stay_filled_and_differ():
    image = np.linspace(0.5, 1, 16 * 16 * 3).reshape(1, 16, 16, 3).astype(np.float32).repeat(4, 0)
    varied = np.asarray(jax.jit(learning.varied)(image, jax.random.key(0)))
    assert varied.min() >= 0.5 - 1e-5 and varied.max() <= 1 + 1e-5
    assert len({round(float(v.mean()), 5) for v in varied}) == 4
    still = jax.jit(lambda image: learning.varied(image, jax.random.key(0), zoom=0.0))(image)
    np.testing.assert_allclose(still, image, atol=1e-5)
    recoloured = np.asarray(jax.jit(learning.recoloured)(image, jax.random.key(0)))
    assert np.abs(recoloured).max() <= 1 and not np.allclose(recoloured, image, atol=0.01)


def test_who_is_stopped_while_a_judge_learns_is_stopped(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Interrupted(3)

    monkeypatch.setattr(learning, "run_loop", stop)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 3; its state is saved"):
        probes.train("classifier", rows(48, 0), SIZE, tmp_path, **SMALL)


def test_the_command(tmp_path, capsys):
    assert main(["train", "--kind", "classifier", "--data", str(tmp_path), "--out", str(tmp_path / "j")]) == 1
    assert "say at which --size" in capsys.readouterr().err
