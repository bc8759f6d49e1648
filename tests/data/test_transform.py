"""Rows to examples: geometry is the same for image, label map and boxes."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.folder import folder
from ldm_jax.data.transform import LatentTransform, Transform


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def row():
    """A dark picture with one bright square, which is also in the map and in a box."""
    image, label_map = np.zeros((96, 128, 3), np.uint8), np.zeros((96, 128), np.uint8)
    image[24:48, 40:64], label_map[24:48, 40:64] = 255, 7
    box = np.float32([[40 / 128, 24 / 96, 64 / 128, 48 / 96]])
    return {
        "name": "row",
        "image": png(image),
        "label_map": png(label_map),
        "boxes": box,
        "box_labels": np.int32([7]),
        "label": 3,
        "caption": ("one", "two"),
    }


def where(mask):
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_range_and_types(row):
    example = Transform(48, tokenize=lambda text: np.int32([len(text)]), max_boxes=3)(row)
    assert {k: (v.shape, v.dtype.name) for k, v in example.items()} == {
        "image": ((48, 48, 3), "float32"), "label": ((), "int32"), "tokens": ((1,), "int32"),
        "label_map": ((48, 48), "int32"), "boxes": ((3, 4), "float32"), "box_labels": ((3,), "int32"),
    }  # fmt: skip
    assert example["image"].min() == -1 and example["image"].max() == 1
    assert "tokens" not in Transform(48)(row) and "boxes" not in Transform(48)(row)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("size", [48, 96, (64, 56)])
def test_image_map_and_box_move_together(row, crop, size):
    transform = Transform(size, crop=crop, flip=True, max_boxes=2)
    seen = set()
    for seed in range(12):
        example = transform(row, np.random.default_rng(seed))
        height, width = transform.shape
        in_map = where(example["label_map"] == 7)
        in_box = example["boxes"][0] * [width, height, width, height]
        assert np.abs(in_map - in_box).max() <= 1 and np.abs(where(example["image"][..., 0] > 0) - in_box).max() <= 1
        seen.add(tuple(in_map))
    assert len(seen) >= 2 if crop == "center" else len(seen) > 2


def test_without_rng_nothing_is_random(row):
    transform = Transform(48, crop="random", flip=True, tokenize=lambda text: np.int32([text == "one"]))
    plain = Transform(48)(row)
    for _ in range(5):
        example = transform(row)
        assert np.array_equal(example["image"], plain["image"]) and example["tokens"][0] == 1


def test_one_caption_a_visit(row):
    transform = Transform(48, tokenize=lambda text: np.int32([text == "one"]))
    drawn = [int(transform(row, np.random.default_rng(i))["tokens"][0]) for i in range(40)]
    assert 5 < sum(drawn) < 35
    assert transform({**row, "caption": "one"}, np.random.default_rng(0))["tokens"][0] == 1


def test_fit_then_transform_is_transform(row):
    transform = Transform((40, 48), crop="random", flip=True, max_boxes=2)
    for seed in range(4):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        a, b = transform(row, rngs[0]), transform(transform.fit(row), rngs[1])
        assert all(np.array_equal(a[k], b[k]) for k in a)
    fitted = transform.fit(row)
    assert transform.fit(fitted) is fitted


def test_boxes_lost_to_the_crop(row):
    row["boxes"] = np.float32([[0, 0, 0.05, 0.05], [0.3, 0.3, 0.5, 0.5], [0.4, 0.2, 0.9, 0.9]])
    row["box_labels"] = np.int32([0, 1, 2])
    example = Transform(48, max_boxes=4)(row)
    assert example["box_labels"].tolist() == [2, 1, -1, -1] and not example["boxes"][2:].any()
    assert Transform(48, max_boxes=1)(row)["box_labels"].tolist() == [2]


def test_refusals(row):
    for bad in ({"crop": "middle"}, {"size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Transform(**{"size": 32, **bad})
    with pytest.raises(ValueError, match="row is 128 x 96: smaller than the allowed 100 pixels"):
        Transform(32, min_side=100)(row)
    with pytest.raises(ValueError, match="row has no caption"):
        Transform(32, tokenize=len)({k: v for k, v in row.items() if k != "caption"})
    row["label_map"] = png(np.zeros((96, 96), np.uint8))
    with pytest.raises(ValueError, match="row: its label map is .*aspect"):
        Transform(32)(row)
    with pytest.raises(ValueError, match="flip=True"):
        LatentTransform(flip=True)({"name": "row", "moments": np.zeros((2, 2, 2))})


@pytest.mark.parametrize(
    ("name", "size"), [("flowers5_128", 64), ("emoji_64", 64), ("camvid_256x192", (96, 128)), ("bccd_boxes_256x192", 64)]
)
def test_real_images(data_dir, name, size):
    source = folder(data_dir / name)
    transform = Transform(size, crop="random", flip=True, max_boxes=40)
    for i in range(0, len(source), len(source) // 10):
        example = transform(source[i], np.random.default_rng(i))
        assert example["image"].shape == (*transform.shape, 3) and np.abs(example["image"]).max() <= 1
        assert example["image"].std() > 0.02
        if name == "camvid_256x192":
            assert example["label_map"].max() <= 11


def test_the_short_side_before_the_crop():
    row = {"image": np.zeros((100, 200, 3), np.uint8), "name": "x"}
    encoded = {**row, "image": png(row["image"])}
    for short_side, expected in ((0, (32, 64)), (48, (48, 96)), (-1, (100, 200))):
        assert Transform(32, short_side=short_side).fit(encoded)["image"].shape[:2] == expected
    assert Transform(128, short_side=-1).fit(encoded)["image"].shape[:2] == (128, 256)  # too small to crop as it is
    with pytest.raises(ValueError, match="short_side=16"):
        Transform(32, short_side=16)


def test_a_task_sees_the_finished_example_and_adds_to_it(row):
    seen = []

    def task(example, rng):
        seen.append(example)
        return {"more": np.float32(rng.random())}

    transform = Transform(48, crop="random", flip=True, max_boxes=3, task=task)
    example = transform(row, np.random.default_rng(0))
    assert example.keys() == {"image", "label", "label_map", "boxes", "box_labels", "more"}
    assert seen[0]["name"] == "row" and seen[0]["image"] is example["image"]
    assert seen[0]["boxes"].shape == (len(seen[0]["box_labels"]), 4)  # not padded
    # without a generator it is the row that decides
    assert transform(row)["more"] == transform(row)["more"] != transform({**row, "name": "other"})["more"]
    draws = {transform(row, np.random.default_rng(seed))["more"].item() for seed in range(5)}
    assert len(draws) == 5
    latent = LatentTransform(task=task)({"name": "row", "moments": np.zeros((2, 2, 8))})
    assert latent.keys() == {"moments", "more"} and seen[-1]["crop"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("size", [48, 96, (64, 56)])
def test_whole_boxes_with_the_crop_say_what_boxes_of_the_crop_say(row, size):
    """What is seen of a box is the same, whichever way it is told, cropped and mirrored."""
    seen = {}
    whole = Transform(size, crop="random", flip=True, whole_boxes=True, task=lambda e, rng: seen.update(whole=e) or {})
    parts = Transform(size, crop="random", flip=True, task=lambda e, rng: seen.update(part=e) or {})
    crops = set()
    for seed in range(12):
        for transform in (whole, parts):
            transform(row, np.random.default_rng(seed))
        boxes, crop = seen["whole"]["boxes"], seen["whole"]["crop"]
        inside = (boxes - crop[[0, 1, 0, 1]]) / np.tile(crop[2:] - crop[:2], 2)
        np.testing.assert_allclose(np.clip(inside, 0, 1), seen["part"]["boxes"], atol=1e-5)
        box = np.array(row["boxes"][0])
        mirrored = np.array([1 - box[2], box[1], 1 - box[0], box[3]])
        assert len(boxes) == 0 or min(np.abs(boxes[0] - box).max(), np.abs(boxes[0] - mirrored).max()) < 1e-6
        crops.add(tuple(crop.round(4).tolist()))
    assert len(crops) > 3


def test_a_picture_of_one_line_is_refused_by_name():
    line = np.zeros((1, 60000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(line).save(file, "PNG")
    with pytest.raises(ValueError, match="line.png is 60000 x 1: so narrow that it would become 15360000 x 256"):
        Transform(256).fit({"image": file.getvalue(), "name": "line.png"})
