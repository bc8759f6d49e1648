"""Image files to arrays: the one place where bytes become pixels.

`decode_rgb` gives uint8 [H, W, 3] whatever the file holds: EXIF orientation is applied, transparency is laid on white,
palettes are resolved, 16 bits become 8, grey and CMYK become RGB. `decode_map` gives the stored indices.
Every failure is a ValueError that names the image.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Encoded = bytes | str | Path  # the bytes of an image file, or its path


def decode_rgb(encoded: Encoded, name: str = "image", least: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]. `least`: the shorter side that the caller will shrink to; large JPEGs are then decoded at a
    half, a quarter or an eighth of their size, never below twice `least`."""
    with _naming(name):
        image = _open(encoded)
        if least and image.format == "JPEG":
            image.draft(None, (2 * least, 2 * least))
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return np.asarray(image.convert("RGB"))


def decode_map(encoded: Encoded, name: str = "label map") -> np.ndarray:
    """uint8 [H, W], or int32 from 16 bits: the indices of a palette or greyscale PNG, as stored."""
    with _naming(name):
        image = _open(encoded)
        image.load()
        if image.mode not in ("P", "L", "1", "I", "I;16", "I;16B", "I;16L", "I;16N"):
            raise ValueError(f"a label map holds one index a pixel (palette or greyscale PNG), this is {image.mode}")
        return np.asarray(image).astype(np.uint8 if image.mode in ("P", "L", "1") else np.int32)


def _open(encoded: Encoded) -> Image.Image:
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def _eight_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    if mode == "F":
        raise ValueError("floating-point pixels have no agreed range; store 8 or 16 bits")
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"grey values {pixels.min()} to {pixels.max()} are neither 8 nor 16 bits")
    return (pixels.astype(np.uint32) * 255 // 65535).astype(np.uint8)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns whatever decoding raises into an error that says which image it was."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such file") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}") from error
