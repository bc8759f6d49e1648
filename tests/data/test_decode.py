"""Bytes to pixels, for every kind of file that a folder of photos may hold."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.decode import decode_map, decode_rgb


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    ramp = np.linspace(0, 255, 48).astype(np.uint8)
    return np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[:32, None], (1, 48)), np.full((32, 48), 90, np.uint8)], -1)


def test_rgb_from_bytes_and_path(picture, tmp_path):
    data = encoded(Image.fromarray(picture))
    (tmp_path / "a.png").write_bytes(data)
    for given in (data, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(decode_rgb(given), picture)


def test_alpha_on_white(picture):
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:, 24:] = 255
    alpha[0] = 128
    out = decode_rgb(encoded(Image.fromarray(np.dstack([picture, alpha]))))
    assert (out[1:, :24] == 255).all() and np.array_equal(out[1:, 24:], picture[1:, 24:])
    half = (picture[0].astype(int) * 128 + 255 * 127) / 255
    assert np.abs(out[0] - half).max() <= 1


def test_grey_with_alpha():
    grey = np.dstack([np.full((8, 8), 10, np.uint8), np.zeros((8, 8), np.uint8)])
    assert (decode_rgb(encoded(Image.fromarray(grey, "LA"))) == 255).all()


def test_palette_gives_colours_not_indices(picture):
    palette = Image.fromarray(picture).quantize(16)
    out = decode_rgb(encoded(palette))
    assert np.array_equal(out, np.asarray(palette.convert("RGB"))) and out.std(-1).max() > 10
    transparent = decode_rgb(encoded(palette, transparency=0))
    index = np.asarray(palette)
    assert (transparent[index == 0] == 255).all() and np.array_equal(transparent[index != 0], out[index != 0])


def test_sixteen_bits():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert decode_rgb(encoded(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_and_one_bit():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(grey))), np.dstack([grey] * 3))
    assert set(np.unique(decode_rgb(encoded(Image.fromarray(grey > 30))))) == {0, 255}


def test_cmyk_jpeg(picture):
    out = decode_rgb(encoded(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95))
    assert out.shape == (32, 48, 3) and np.abs(out.astype(int) - picture).mean() < 8


def test_exif_orientation(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    out = decode_rgb(encoded(Image.fromarray(picture), "JPEG", quality=100, subsampling=0, exif=exif))
    assert out.shape == (48, 32, 3) and np.abs(out.astype(int) - np.rot90(picture, -1)).mean() < 3


def test_large_jpegs_are_decoded_small_enough_to_shrink():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).resize((1200, 800), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95)
    assert decode_rgb(data, least=64).shape == (200, 300, 3)
    assert decode_rgb(data, least=300).shape == (800, 1200, 3)
    small = np.asarray(Image.fromarray(decode_rgb(data, least=64)).resize((96, 64), Image.Resampling.BICUBIC))
    exact = np.asarray(smooth.resize((96, 64), Image.Resampling.BICUBIC))
    assert np.abs(small.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damage_is_named(picture, damage):
    data = encoded(Image.fromarray(picture), "JPEG")
    data = {"truncated": data[: len(data) // 2], "garbage": b"no image at all", "empty": b""}[damage]
    with pytest.raises(ValueError, match="holiday.jpg cannot be read"):
        decode_rgb(data, "holiday.jpg")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        decode_rgb(tmp_path / "gone.png", "gone.png")


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="range"):
        decode_rgb(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


def test_map_keeps_indices(picture):
    indices = (np.arange(24).reshape(4, 6) % 7).astype(np.uint8)
    palette = Image.fromarray(indices, "L").convert("P")
    palette = Image.fromarray(indices)
    palette.putpalette([5, 6, 7] * 256)
    for image in (Image.fromarray(indices), palette):
        out = decode_map(encoded(image))
        assert out.dtype == np.uint8 and np.array_equal(out, indices)
    wide = indices.astype(np.uint16) + 300
    assert np.array_equal(decode_map(encoded(Image.fromarray(wide))), wide)
    with pytest.raises(ValueError, match="x.png.*index a pixel.*RGB"):
        decode_map(encoded(Image.fromarray(picture)), "x.png")
