"""Bytes to pixels, for every kind of file that a folder of photos may hold."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.decode import decode_grey, decode_map, decode_mask, decode_rgb, look_at, suffixes
from tests.limits import Limits


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


def test_sixteen_bits_whose_white_is_zero():
    """As scanners write them: as bright as the eight bits of the same picture."""
    stored = np.uint16([[0, 32768, 65535]])
    file = encoded(Image.fromarray(stored), "TIFF", tiffinfo={262: 0})
    assert decode_rgb(file)[0, :, 0].tolist() == [255, 127, 0]
    assert decode_grey(file).tolist() == (65535 - stored.astype(int)).tolist()
    assert decode_map(file).tolist() == stored.tolist()


def test_grey_keeps_numbers_and_tells_colours_by_their_mean(picture):
    stored = np.uint16([[7, 200, 300], [4000, 65535, 0]])
    found = decode_grey(encoded(Image.fromarray(stored)))
    assert found.dtype == np.int32 and found.tolist() == stored.tolist()
    found = decode_grey(encoded(Image.fromarray(picture)))
    assert found.dtype == np.uint8 and np.array_equal(found, picture.mean(-1).round())
    with pytest.raises(ValueError, match="scan.png cannot be read as an image"):
        decode_grey(b"no picture", "scan.png")


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


def png(pixels: np.ndarray, colour: int, bits: int, clear: tuple[int, ...] = ()) -> bytes:
    """A PNG of any bit depth: `pixels` uint16 [H, W, C] (or [H, W]), `colour` its colour type, `clear` its tRNS."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        spread = (pixels[..., None] >> np.arange(bits)[::-1]) & 1
        rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in spread]
    trns = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + trns + chunk(b"IDAT", data) + chunk(b"IEND", b"")


COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type -> channels


@pytest.mark.parametrize("colour", COLOURS)
def test_sixteen_bits_that_hold_eight(colour):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, COLOURS[colour])).astype(np.uint16)
    values[0, 0] = 255
    wide = decode_rgb(png(values * 257, colour, 16))
    assert np.abs(decode_rgb(png(values, colour, 16)).astype(int) - wide).max() <= 1
    if colour in (0, 2):
        assert np.array_equal(decode_rgb(png(values, colour, 16)), np.broadcast_to(values, (5, 7, 3)))
        assert not decode_rgb(png(values * 0, colour, 16)).any()
    else:
        assert (decode_rgb(png(values * 0, colour, 16)) == 255).all()  # transparent all over


@pytest.mark.parametrize(("colour", "bits"), [(0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)])
def test_a_transparent_colour_is_exact(colour, bits):
    high = {2: 3, 4: 15, 8: 255, 16: 65535}[bits]
    values = np.random.default_rng(0).integers(0, high, (6, 6, COLOURS[colour])).astype(np.uint16)
    values[0, 0] = key = values[3, 3].copy()
    values[0, 1] = key ^ 1  # of the same high byte in 16 bits
    clear = (values == key).all(-1)
    opaque, out = (decode_rgb(png(values, colour, bits, said)) for said in ((), tuple(key.tolist())))
    assert (out[clear] == 255).all() and np.array_equal(out[~clear], opaque[~clear]) and not clear[0, 1]


def test_grey_of_thirty_two_bits():
    for values, right in (([0, 7, 255], [0, 7, 255]), ([0, 257, 65535], [0, 1, 255])):
        data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
        assert decode_rgb(data)[0, :, 0].tolist() == right
    for wrong in (-1, 65536):
        with pytest.raises(ValueError, match="neither 8 nor 16 bits"):
            decode_rgb(encoded(Image.fromarray(np.array([[0, wrong]], np.int32)), "TIFF"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_map_keeps_numbers_of_any_depth(bits):
    values = np.random.default_rng(0).integers(0, 2 ** min(bits, 9), (9, 5)).astype(np.uint16)
    assert np.array_equal(decode_map(png(values, 0, bits)), values)


def test_map_saved_as_colour_or_with_alpha():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    opaque, clear = np.full_like(grey, 255), np.where(grey == 5, 0, 255).astype(np.uint8)
    for channels in ([grey] * 3, [grey] * 3 + [opaque], [grey, opaque]):
        assert np.array_equal(decode_map(encoded(Image.fromarray(np.dstack(channels)))), grey)
    for channels in ([grey] * 3 + [clear], [grey, clear]):
        with pytest.raises(ValueError, match="x.png .*transparent pixels"):
            decode_map(encoded(Image.fromarray(np.dstack(channels))), "x.png")


def test_first_of_many_frames(picture):
    other = Image.fromarray(255 - picture)
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        one = decode_rgb(encoded(Image.fromarray(picture), kind, **options))
        many = decode_rgb(encoded(Image.fromarray(picture), kind, save_all=True, append_images=[other], **options))
        assert np.array_equal(one, many), kind


def drawing(colour, alpha, kind="RGBA"):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, alpha
    return encoded(Image.fromarray(pixels).convert(kind) if kind != "RGBA" else Image.fromarray(pixels))


def test_masks():
    drawn = np.zeros((4, 6), bool)
    drawn[1:3, 2:4] = True
    where = drawn[..., None]
    right = drawn.astype(np.float32)
    cases = {
        "white on black": drawing(np.where(where, 255, 0), 255),
        "grey": drawing(np.where(where, 255, 0), 255, "L"),
        "grey with an opaque layer": drawing(np.where(where, 255, 0), 255, "LA"),
        "white on a transparent layer": drawing(255, drawn * 255),
        "white, cut out of black": drawing(np.where(where, 255, 0), drawn * 255),
        "black on a transparent layer": drawing(0, drawn * 255),
        "red on a transparent layer": drawing(np.where(where, [255, 0, 0], 0), drawn * 255),
        "one soft brush": drawing(200, np.where(drawn, 220, 30)),
        "white and black on a transparent layer": drawing(np.where(where, 255, 0), np.where(np.arange(6) > 4, 0, 255)),
        "sixteen bits": png(drawn.astype(np.uint16) * 65535, 0, 16),
        "one bit": png(drawn.astype(np.uint16), 0, 1),
        "sixteen bits with alpha": png(np.dstack([drawn * 0, drawn * 65535]).astype(np.uint16), 4, 16),
        "a transparent colour": png(drawn.astype(np.uint16) * 40, 0, 8, (0,)),
    }
    for name, data in cases.items():
        mask = decode_mask(data)
        assert mask.dtype == np.float32 and np.array_equal(mask, right), name
    assert not decode_mask(drawing(255, 0)).any() and decode_mask(drawing(255, 255)).all()
    with pytest.raises(ValueError, match="hole.png cannot be read"):
        decode_mask(b"", "hole.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_with_broken_metadata(picture, orientation, kind):
    """A rational of -1 / 0 can be read, but not written: the picture is turned all the same."""
    right = {2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1], 5: picture.swapaxes(0, 1)}
    right |= {6: np.rot90(picture, -1), 7: picture[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(picture)}
    entry = struct.Struct("<HHI4s")
    ifd = struct.pack("<H", 2) + entry.pack(0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    ifd += entry.pack(0x011A, 5, 1, struct.pack("<I", 38)) + bytes(4)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<ii", -1, 0)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    if kind == "TIFF":
        options["tiffinfo"] = {0x0112: orientation}
    else:
        options["exif"] = exif
    out = decode_rgb(encoded(Image.fromarray(picture), kind, **options))
    expected = right.get(orientation, picture)
    assert out.shape == expected.shape and np.abs(out.astype(int) - expected).mean() < 2


def test_metadata_of_nonsense_lose_no_pixels(picture):
    plain = decode_rgb(encoded(Image.fromarray(picture), "JPEG", quality=90))
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 100, 3000):
        exif = b"Exif\0\0II*\0" + rng.integers(0, 256, size).astype(np.uint8).tobytes()
        assert np.array_equal(decode_rgb(encoded(Image.fromarray(picture), "JPEG", quality=90, exif=exif)), plain)


def test_suffixes():
    assert {".jpg", ".jfif", ".jpe", ".png", ".webp", ".ppm", ".tga", ".tif", ".mpo", ".jp2"} <= suffixes()
    assert not {".eps", ".pdf", ".mpg", ".h5", ".wmf", ".txt", ""} & suffixes()


def test_formats_that_start_programs_are_not_opened():
    with pytest.raises(ValueError, match="photo.jpg cannot be read"):
        decode_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n", "photo.jpg")


def fuzz(count: int, seed: int) -> dict[str, int]:
    """How many of `count` mutated files were read and refused. Anything but a ValueError comes through."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (12, 16, 4)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010E] = 6, 72.0, "words"
    rgb, grey = picture.convert("RGB"), picture.convert("L")
    files = [encoded(rgb, "JPEG", exif=exif), encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb, "JPEG", progressive=True)]
    files += [encoded(image, "PNG", exif=exif) for image in (picture, rgb, grey, rgb.quantize(9), grey.convert("1"))]
    files += [png(rng.integers(0, 65536, (6, 6, 3)).astype(np.uint16), 2, 16, (1, 2, 3))]
    files += [encoded(rgb, "GIF"), encoded(rgb, "GIF", save_all=True, append_images=[grey.convert("RGB")])]
    files += [encoded(picture, "WEBP"), encoded(rgb, "WEBP", exif=exif), encoded(rgb, "BMP"), encoded(rgb.quantize(), "BMP")]
    files += [encoded(rgb, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    files += [encoded(rgb, "PPM"), encoded(rgb, "TGA"), encoded(picture, "ICO"), encoded(rgb, "PCX")]
    files += [encoded(rgb, kind) for kind in ("AVIF", "DDS", "JPEG2000", "SGI", "ICNS", "IM") if kind in Image.SAVE]
    found, limits = {"read": 0, "refused": 0}, Limits()
    for number in range(count):
        data = bytearray(files[number % len(files)])
        head = len(data) if rng.random() < 0.5 else min(len(data), 120)
        for _ in range(rng.integers(1, 8)):
            place = int(rng.integers(head))
            match int(rng.integers(6)):
                case 0:
                    data[place] ^= 1 << int(rng.integers(8))
                case 1:
                    data[place] = int(rng.integers(256))
                case 2:
                    data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
                case 3:
                    del data[place : place + int(rng.integers(1, 9))]
                case 4:
                    data[place:place] = data[: int(rng.integers(1, 20))]
                case 5 if rng.random() < 0.3:
                    del data[max(place, 8) :]
            head = min(head, len(data))
            if not head:
                break
        for read in (decode_rgb, decode_map, decode_mask):
            try:
                with limits:
                    read(bytes(data), "x.png")
                found["read"] += 1
            except ValueError as error:
                assert str(error).startswith("x.png cannot be read"), error
                found["refused"] += 1
    print(f"pictures: at most {limits.most[0]:.2f} s and {limits.most[1]:.0f} MB")
    return found


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_end_in_errors_with_a_name():
    """Files with some bytes changed, each read in three ways; LDM_JAX_FUZZ=100000 tries more."""
    count = int(os.environ.get("LDM_JAX_FUZZ", 4000))
    found = fuzz(count, seed=int(os.environ.get("LDM_JAX_FUZZ_SEED", 0)))
    assert found["read"] > count / 4 and found["refused"] > count / 4


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "it is empty"),
        (bytes(100), "it begins with zeros"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(100), "a HEIC picture, as phones take them: convert it"),
        (b"\0\0\0\x20ftypisom\0\0\2\0" + bytes(100), "a film"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%PDF-1.4\n", "a PDF"),
        (b'<?xml version="1.0"?><svg>', "SVG"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04\x14\0", "unpack it"),
        (b"hello", "damaged, or of no known format"),
    ],
)
def test_what_is_no_picture_is_named(data, said, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for encoded in (data, path, str(path)):
        for read in (decode_rgb, decode_mask, decode_map, look_at):
            with pytest.raises(ValueError, match=f"a.jpg cannot be read as an image: .*{said}"):
                read(encoded, "a.jpg")


def test_a_folder_and_an_enormous_picture_are_named(tmp_path):
    with pytest.raises(ValueError, match="x cannot be read as an image: it is a folder$"):
        decode_rgb(tmp_path, "x")
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0"))):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    with pytest.raises(ValueError, match=r"Image size \(3600000000 pixels\) exceeds limit of \d+ pixels; make it smaller"):
        decode_rgb(png, "x")


@pytest.mark.parametrize("suffix, options", [("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_of_many_frames_the_first_is_taken(suffix, options, tmp_path):
    frames = [Image.fromarray(np.full((6, 9, 3), value, np.uint8)) for value in (10, 200, 90)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (decode_rgb(tmp_path / f"a.{suffix}") == 10).all()


def planar_tiff(planes: np.ndarray, bits: int) -> bytes:
    """An uncompressed little-endian TIFF of three planes [3, H, W], each stored by itself."""
    _, height, width = planes.shape
    body, entries = planes.astype(f"<u{bits // 8}").tobytes(), 10
    size, at = len(body) // 3, 8 + 2 + 12 * entries + 4  # behind the directory: bits, offsets, counts, pixels
    pixels = at + 6 + 12 + 12
    tags = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, at), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, at + 6),
        (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 3, at + 18), (284, 3, 1, 2),
    ]  # fmt: skip
    directory = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    lists = struct.pack("<3H3I3I", *[bits] * 3, *[pixels + i * size for i in range(3)], *[size] * 3)
    return b"II*\0" + struct.pack("<I", 8) + directory + lists + body


def test_planes_of_sixteen_bits_are_refused_and_not_mistaken(picture):
    planes = picture.transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_rgb(planar_tiff(planes, 8)), picture)
    with pytest.raises(ValueError, match="it.tif cannot be read as an image: Pillow takes its planes of 16 bits for 8"):
        decode_rgb(planar_tiff(planes.astype(np.uint16) * 257, 16), "it.tif")
