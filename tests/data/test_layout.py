"""Layout tokens: the reference's coding, by its definition, and back."""

import json

import numpy as np
import pytest

from ldm_jax.data import layout
from ldm_jax.data.layout import LayoutCode

PAPER = LayoutCode()
BOXES = np.float32([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 0.875]])
LABELS = np.int32([3, 600])


def test_the_papers_code():
    assert (PAPER.length, PAPER.grid, PAPER.none) == (92, 90, 8191)
    assert layout.layout_code(92, 8192) == PAPER
    assert layout.layout_code(9, 257) == LayoutCode(3, 257, False)


def test_tokens_by_definition():
    tokens = layout.encode(PAPER, BOXES, LABELS, crop=(0.1, 0.0, 0.9, 1.0))
    assert tokens.dtype == np.int32 and tokens.shape == (92,)
    corner = lambda x, y: int(round(y * 89)) * 90 + int(round(x * 89))  # noqa: E731
    assert tokens[:6].tolist() == [3, 0, 8099, 600, corner(0.25, 0.5), corner(0.75, 0.875)]
    assert (tokens[6:90] == 8191).all()
    assert tokens[90:].tolist() == [corner(0.1, 0.0), corner(0.9, 1.0)]
    assert layout.encode(PAPER, BOXES[:0], LABELS[:0]).tolist() == [8191] * 90 + [0, 8099]


def test_decoding_undoes_it_to_the_grid():
    rng = np.random.default_rng(0)
    low, high = rng.uniform(0, 0.5, (30, 2)), rng.uniform(0.51, 1, (30, 2))
    boxes, labels = np.concatenate([low, high], 1), rng.integers(0, 601, 30)
    crop = (0.2, 0.1, 0.7, 0.9)
    found, found_labels, found_crop = layout.decode(PAPER, layout.encode(PAPER, boxes, labels, crop))
    np.testing.assert_array_equal(found_labels, labels)
    np.testing.assert_allclose(found, boxes, atol=0.5 / 89 + 1e-6)
    np.testing.assert_allclose(found_crop, crop, atol=0.5 / 89 + 1e-6)
    again = layout.encode(PAPER, found, found_labels, found_crop)
    np.testing.assert_array_equal(again, layout.encode(PAPER, boxes, labels, crop))


def test_too_many_are_cut_and_the_order_is_drawn():
    code = LayoutCode(4, 257, False)
    boxes = np.tile(np.float32([[0, 0, 0.5, 0.5]]), (6, 1))
    assert layout.encode(code, boxes, np.arange(6))[::3].tolist() == [0, 1, 2, 3]
    orders = {tuple(layout.encode(code, boxes, np.arange(6), rng=np.random.default_rng(s))[::3].tolist()) for s in range(30)}
    assert len(orders) > 10 and {tuple(sorted(order)) for order in orders} == {(0, 1, 2, 3)}


def test_training_examples_tell_the_crop_if_there_are_tokens_for_it():
    example = {"boxes": BOXES, "box_labels": LABELS, "crop": np.float32([0, 0, 0.5, 1])}
    rng = np.random.default_rng(0)
    assert layout.decode(PAPER, layout.layout_tokens(example, rng, code=PAPER)["layout"])[2][2] == pytest.approx(0.5, abs=0.01)
    bare = LayoutCode(3, 8192, False)
    assert layout.decode(bare, layout.layout_tokens(example, rng, code=bare)["layout"])[2].tolist() == [0, 0, 1, 1]


def test_json(tmp_path):
    objects = [{"name": "star", "box": [0.1, 0.2, 0.3, 0.4]}, {"label": 0, "box": [0, 0, 1, 1]}]
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(objects))
    for source in (path, str(path), objects):
        boxes, labels = layout.read_layout(source, ["circle", "star"])
        np.testing.assert_allclose(boxes, [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]], atol=1e-7)
        assert labels.tolist() == [1, 0]
    assert layout.read_layout([])[0].shape == (0, 4)
    assert layout.read_layout([{"label": 0, "box": list(np.float32(BOX))}])[0].shape == (1, 4)
    spellings = [{"name": "cafe\u0301 ", "box": BOX}, {"name": "caf\u00e9", "box": BOX}]  # an accent, as macOS stores it
    agreeing = [{"label": 1, "name": "caf\u00e9", "box": BOX}, {"label": 1, "name": "mine", "box": BOX}]
    assert layout.read_layout([*spellings, *agreeing], ["circle", "caf\u00e9"])[1].tolist() == [1] * 4


BOX = [0.1, 0.1, 0.5, 0.5]


@pytest.mark.parametrize(
    "objects, message",
    [
        ([{"label": 0, "box": [0.5, 0.1, 0.4, 0.5]}], "object 0: box .*x0 < x1"),
        ([{"label": 0, "box": BOX}, {"label": 0, "box": [10, 10, 50, 50]}], "object 1: .*divide pixels"),
        ([{"label": 0, "box": [0.1, 0.1, 0.5]}], "must be .x0, y0, x1, y1."),
        ([{"label": 0}], "must be .x0"),
        ([{"box": BOX}], 'neither "label" nor "name"'),
        ([{"label": 2, "box": BOX}], "label 2: classes are numbered 0 to 1"),
        ([{"label": "star", "box": BOX}], "names go into"),
        ([{"name": "start", "box": BOX}], "unknown class 'start'. Did you mean 'star'"),
        ([{"label": 0, "name": "star", "box": BOX}], "\"label\" 0 is the class 'circle', and \"name\" says 'star'"),
        ([{"label": 0, "box": [False, False, True, True]}], "must be .x0, y0, x1, y1."),
        ({"label": 0, "box": BOX}, "a layout is a list"),
    ],
)
def test_refused_layouts(objects, message):
    with pytest.raises(ValueError, match=message):
        layout.read_layout(objects, ["circle", "star"])


def test_refused_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        layout.read_layout(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(ValueError, match="bad.json is no JSON"):
        layout.read_layout(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="without names"):
        layout.read_layout([{"name": "star", "box": BOX}])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: LayoutCode(3, 256), "take 257"),
        (lambda: LayoutCode(0), "at least 1 object"),
        (lambda: layout.layout_code(91, 8192), "91 tokens"),
        (lambda: layout.encode(PAPER, BOXES, LABELS[:1]), "2 boxes and 1 labels"),
        (lambda: layout.encode(PAPER, BOXES, [0, 8191]), "label 8191"),
        (lambda: layout.encode(PAPER, BOXES, [0, -1]), "label -1"),
        (lambda: layout.encode(PAPER, BOXES + 0.5, LABELS), "x1 <= 1"),
        (lambda: layout.encode(PAPER, BOXES, LABELS, crop=(0, 0, 2, 1)), "x1 <= 1"),
        (lambda: layout.decode(PAPER, np.zeros(90, int)), "has \\(92,\\)"),
    ],
)
def test_refused_codes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
