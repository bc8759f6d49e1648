"""Image files to arrays: the one place where bytes become pixels.

`decode_rgb` gives the colours, `decode_mask` what is drawn, `decode_map` the stored numbers. How files are read:

    orientation   of EXIF or XMP is applied; other metadata are not looked at, so that broken ones lose no pixels
    alpha         laid on white, as are transparent palette entries and a transparent colour ("tRNS"), in 8 and in 16 bits
    palettes      resolved
    16 bits       scaled to 8. A file whose values all lie below 256 holds 8 bits in 16, which are kept as they are
    32-bit grey   as 16 bits where no value is above 65535, or else refused; so are floating-point pixels, of unknown range
    CMYK, YCbCr   to RGB as Pillow does, without colour profiles
    many frames   the first one (of an icon the largest)

Formats that start other programs or need a handler (EPS, WMF, MPEG, HDF5, GRIB, BUFR) are not opened, whatever the file's name.
Every failure is a ValueError that names the image, a missing file a FileNotFoundError.
"""

import functools
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

Encoded = bytes | str | Path  # the bytes of an image file, or its path
_NOT_OPENED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
_TURNED = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MISTAKEN = {  # what pictures' files are often instead, by a pattern of their first bytes, and the way out
    rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)": "a HEIC picture, as phones take them: convert it to JPEG or PNG",
    rb".{4}ftyp(avif|avis)": "an AVIF picture, which this Pillow can't open: update Pillow, or convert it to PNG",
    rb".{4}ftyp": "a film: give single pictures",
    rb"version https://git-lfs": "a pointer of Git LFS: fetch the file itself, by git lfs pull",
    rb"%PDF": "a PDF: convert its pages to PNG",
    rb"\s*<(\?xml|svg)": "an SVG or other XML: convert it to PNG",
    rb"\s*<(!doctype|html)": "a web page: download the picture again",
    rb"PK\x03\x04": "a zip archive: unpack it",
    rb"%!PS": "PostScript: convert it to PNG",
}
_SMALL_GREYS = {"L;2": 85, "L;4": 17}  # what Pillow multiplies greys of two and four bits by


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened here, in the order in which they are tried: first those whose files begin
    unmistakably."""
    Image.init()
    first = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000")
    known = [*(name for name in first if name in Image.OPEN), *Image.ID]
    return tuple(name for name in dict.fromkeys(known) if name not in _NOT_OPENED)


@functools.cache
def suffixes() -> frozenset[str]:
    """Suffixes, lower case with a dot, of the files that the installed Pillow can open."""
    known = {*formats(), "MPO"}  # MPO, a JPEG with further frames, is opened as JPEG
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in known)


def decode_rgb(encoded: Encoded, name: str = "image", least: int = 0, dim: bool = False) -> np.ndarray:
    """uint8 [H, W, 3]. `least`: the shorter side that the caller will shrink to; large JPEGs are then decoded at a
    half, a quarter or an eighth of their size, never below twice `least`. `dim`: 16 bits that all lie below 256 are dark, not 8
    bits. ValueError for what can't be read."""
    with _naming(name):
        image = _decoded(encoded, least, dim)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return np.asarray(image.convert("RGB"))


def look_at(encoded: Encoded, name: str = "image") -> tuple[int, int, str]:
    """(width, height, mode) as the file's head says, before any turning; mode "RGB", "grey" or "clear" (with transparency).
    ValueError for what can't be read."""
    with _naming(name):
        image = _open(encoded)
        clear = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
        grey = image.mode == "1" or image.mode.startswith(("L", "I"))
        return *image.size, "clear" if clear else "grey" if grey else "RGB"


def decode_mask(encoded: Encoded, name: str = "mask") -> np.ndarray:
    """float32 [H, W] of zeros and ones, 1 where the mask is drawn.

    Without transparency: 1 where it is light (a mean of red, green and blue of at least 127.5). With transparency: 0 where
    it is clear; of the rest the light part is 1, or all of it if it is light all over or dark all over, as strokes of one
    colour on a transparent layer are. ValueError for what can't be read.
    """
    with _naming(name):
        pixels = np.asarray(_decoded(encoded))
    light = pixels[..., :3].mean(-1) >= 127.5
    drawn = pixels[..., 3] >= 128 if pixels.shape[-1] == 4 else np.ones_like(light)
    if not drawn.all() and (light[drawn].all() or not light[drawn].any()):
        return drawn.astype(np.float32)
    return (drawn & light).astype(np.float32)


def decode_grey(encoded: Encoded, name: str = "image") -> np.ndarray:
    """Grey [H, W]: int32, numbers as stored, of 16 bits; uint8 of 8, where colours are told by their mean. ValueError as
    `decode_rgb`."""
    with _naming(name):
        image = _open(encoded)
        if image.mode.startswith("I"):
            black = _black_of(image, _raw_mode(image))
            image, turned = _load(image)
            grey = np.asarray(image if turned is None else image.transpose(turned)).astype(np.int32)
            return black - grey if black else grey
    return decode_rgb(encoded, name).mean(-1).round().astype(np.uint8)


def decode_map(encoded: Encoded, name: str = "label map") -> np.ndarray:
    """uint8 [H, W], or int32 from 16 and 32 bits: the indices of a palette or greyscale image, as stored.

    Grey saved as colour (red = green = blue) counts as grey, and an alpha channel is passed by where it is opaque all over.
    ValueError for colours, for transparent pixels (they have no class), and for what can't be read.
    """
    with _naming(name):
        image = _open(encoded)
        scale = _SMALL_GREYS.get(_raw_mode(image), 1)
        image, turned = _load(image)
        pixels = np.asarray(image if turned is None else image.transpose(turned))
        if image.mode in ("LA", "PA", "RGBA"):
            if not (pixels[..., -1] == 255).all():
                raise ValueError("it has transparent pixels, which have no class; save it without transparency")
            pixels = pixels[..., :-1]
        if pixels.ndim == 3 and image.mode in ("LA", "PA", "RGB", "RGBA") and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., 0]
        if pixels.ndim != 2 or image.mode == "F":
            raise ValueError(f"a label map holds one index a pixel (palette or greyscale PNG), this is {image.mode}")
        return (pixels // scale if scale > 1 else pixels).astype(np.uint8 if pixels.dtype.itemsize == 1 else np.int32)


def _open(encoded: Encoded) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=formats())
    except UnidentifiedImageError:
        raise ValueError(_looks_like(encoded)) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(error).split(',')[0]}; make it smaller") from None
    except IsADirectoryError:
        raise ValueError("it is a folder") from None


def _looks_like(encoded: Encoded) -> str:
    """What is wrong with bytes that no format begins with."""
    if isinstance(encoded, bytes):
        start = encoded[:64]
    else:
        with open(encoded, "rb") as file:
            start = file.read(64)
    if not start:
        return "it is empty"
    if not start.strip(b"\0"):
        return "it begins with zeros: it was not written to its end; copy it again"
    found = next((said for pattern, said in _MISTAKEN.items() if re.match(pattern, start, re.DOTALL | re.IGNORECASE)), "")
    return f"it is {found}" if found else "it is damaged, or of no known format"


def _raw_mode(image: Image.Image) -> str:
    """How the file holds a pixel, such as "L;4" or "RGB;16B"."""
    args = image.tile[0][3] if getattr(image, "tile", None) else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _load(image: Image.Image) -> tuple[Image.Image, Image.Transpose | None]:
    """The image with its pixels read, and what makes it upright. (Pillow's own `exif_transpose` writes the EXIF data anew, and
    fails where they are broken; its reader of TIFF does so before it gives the pixels.)"""
    turned = _orientation(image) if image.format == "TIFF" else None
    if image.format == "TIFF":
        image.load_end = lambda: None
        image = image.copy()  # of the size of the stored pixels
    else:
        image.load()
        turned = _orientation(image)
    return image, turned


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNED.get(image.getexif().get(0x0112))
    except Exception:  # whatever unreadable metadata raise: the picture stays as it is stored
        return None


def _decoded(encoded: Encoded, least: int = 0, dim: bool = False) -> Image.Image:
    """RGB, or RGBA if there is transparency; upright."""
    image = _open(encoded)
    if least and image.format == "JPEG":
        image.draft(None, (2 * least, 2 * least))
    raw = _raw_mode(image)
    planes = image.tag_v2.get(258, ()) if image.format == "TIFF" and image.tag_v2.get(284) == 2 else ()
    if len(planes) > 1 and max(planes) > 8 and ";16" not in raw:
        raise ValueError("Pillow takes its planes of 16 bits for 8; store its colours pixel by pixel, or compress it")
    black = _black_of(image, raw)
    image, turned = _load(image)
    clear = image.info.get("transparency")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; store 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.asarray(image) if not black else black - np.asarray(image, np.int32)
        grey = grey * (16 if raw == "I;12" else 1)
        image = Image.fromarray(_eight_bits(grey, dim))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(grey == clear, 0, 255).astype(np.uint8)))
    elif ";16" in raw:
        image = _sixteen_bits(encoded, image, clear, dim)
    elif raw in _SMALL_GREYS and isinstance(clear, int):
        image.info["transparency"] = clear * _SMALL_GREYS[raw]
    if image.mode == "La":
        image = image.convert("LA")
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    return image if turned is None else image.transpose(turned)


def _black_of(image: Image.Image, raw: str) -> int:
    """The number that is black: of a TIFF of 12 or 16 bits whose white is 0, which Pillow turns over only up to 8 bits; 0 in
    others. The file is not loaded yet."""
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0
    return (4095 if raw == "I;12" else 65535) if inverted else 0


def _eight_bits(grey: np.ndarray, dim: bool) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"grey values {grey.min()} to {grey.max()} are neither 8 nor 16 bits")
    scaled = grey if grey.max() < 256 and not dim else grey.astype(np.uint32) * 255 // 65535
    return scaled.astype(np.uint8)


def _sixteen_bits(encoded: Encoded, high: Image.Image, clear: object, dim: bool) -> Image.Image:
    """Colours of 16 bits, of which Pillow reads the high bytes: the low ones, if they are all there is, and the transparent
    colour, which is told in 16 bits."""
    keyed = isinstance(clear, tuple) and high.mode == "RGB"
    pixels = np.asarray(high)
    if (dim or pixels.any()) and not keyed:
        return high
    swapped = _open(encoded)
    raw = _raw_mode(swapped)
    other = raw[:-1] + ("B" if raw[-1] == "L" or raw[-1] == "N" and sys.byteorder == "little" else "L")
    other = {"LA;16B": "RGBA"}.get(raw, other)  # of that, Pillow knows one order only: its four bytes are read as they are
    tiles = [(*tile[:3], (other, *tile[3][1:]) if isinstance(tile[3], tuple) else other) for tile in swapped.tile]
    swapped.tile = tiles
    low = np.asarray(_load(swapped)[0])
    low = low[..., [1, 1, 1, 3]] if raw == "LA;16B" else low
    image = high if dim or pixels.any() else Image.fromarray(low, high.mode)
    if keyed:
        wide = pixels.astype(np.int32) * 256 + low
        image.info.pop("transparency", None)
        image.putalpha(Image.fromarray(np.where((wide == clear).all(-1), 0, 255).astype(np.uint8)))
    return image


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns whatever decoding raises into an error that says which image it was."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such file") from error
    except Exception as error:  # Pillow raises struct.error, KeyError, MemoryError and many more on damaged files
        said = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be read as an image: {said}") from error
