"""Label maps by index and by colour, and what is wrong with them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data import label_maps
from ldm_jax.data.transform import Transform

MAP = np.int32([[0, 1, 2, 2], [2, 1, 0, 0]])
PALETTE = ((128, 128, 128), (128, 0, 0), (0, 0, 192))


def encoded(pixels, format="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def test_indices_and_colours():
    assert label_maps.read_map(encoded(MAP.astype(np.uint8)), 3).tolist() == MAP.tolist()
    coloured = encoded(label_maps.to_colours(MAP, PALETTE))
    found = label_maps.read_map(coloured, 3, PALETTE, size=(2, 4))
    assert found.tolist() == MAP.tolist() and found.dtype == np.int32
    assert label_maps.to_colours(np.int32([[-1, 7]]), PALETTE).tolist() == [[[0, 0, 0]] * 2]


def test_palettes(tmp_path):
    path = tmp_path / "palette.json"
    named = {"sky": [128, 128, 128], "building": [128, 0, 0], "pole": [0, 0, 192]}
    for written in (named, list(named.values())):
        path.write_text(json.dumps(written))
        assert label_maps.read_palette(path) == PALETTE
    path.write_text(json.dumps(named))
    assert label_maps.read_palette(path, ["pole", "sky", "building"]) == (PALETTE[2], PALETTE[0], PALETTE[1])
    for wrong, message in (
        ([[1, 2]], "a palette is"),
        ([[1, 2, 300]], "from 0 to 255"),
        ([[1, 2, 3], [1, 2, 3]], r"two classes have the colour \(1, 2, 3\)"),
        ([], "a palette is"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            label_maps.read_palette(path)
    path.write_text(json.dumps(named))
    with pytest.raises(ValueError, match="its classes are sky"):
        label_maps.read_palette(path, ["sky", "road"])
    path.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        label_maps.read_palette(path)


def test_default_colours_are_those_of_voc_and_differ():
    palette = label_maps.bit_palette(255)
    assert palette[:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert len(set(palette)) == 255


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: label_maps.read_map(encoded(MAP.astype(np.uint8)), 2), r"class 2 in 37.5% of its pixels.*0 to 1"),
        (lambda: label_maps.read_map(encoded(np.uint8([[255, 0]])), 12), "class 255"),
        (lambda: label_maps.read_map(encoded(MAP.astype(np.uint8)), 3, size=(4, 2)), r"is 2 x 4 .*wanted 4 x 2"),
        (
            lambda: label_maps.read_map(encoded(label_maps.to_colours(MAP, PALETTE)), 2, PALETTE[:2]),
            r"colour \(0, 0, 192\) is none of the palette's 2",
        ),
        (lambda: label_maps.read_map(encoded(label_maps.to_colours(MAP, PALETTE)), 3), "one index a pixel"),
        (
            lambda: label_maps.read_map(
                encoded(label_maps.to_colours(np.tile(MAP, (8, 8)), PALETTE), "JPEG", quality=60), 3, PALETTE
            ),
            "JPEG and smooth resizing change colours",
        ),
        (lambda: label_maps.read_map(encoded(label_maps.to_colours(MAP, PALETTE)), 2, PALETTE), "class 2"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_training_reads_colours_and_names_the_row_that_is_wrong(tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    large = np.repeat(np.repeat(MAP[:, :2], 8, 0), 8, 1)
    row = {"name": "street 7", "image": encoded(image), "label_map": encoded(label_maps.to_colours(large, PALETTE))}
    example = Transform(8, palette=PALETTE)(row)
    assert example["label_map"].tolist() == large[::2, ::2].tolist()
    with pytest.raises(ValueError, match="label map of street 7: colour"):
        Transform(8, palette=PALETTE[:2])(row)
    with pytest.raises(ValueError, match="label map of street 7: class 2"):
        Transform(8, palette=PALETTE, task=lambda e, rng: label_maps.checked_map(e, rng, n_classes=2))(row)
