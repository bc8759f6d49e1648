"""Pictures and masks as users give them, checked."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from ldm_jax.conditioning.condition import in_short
from ldm_jax.primitives.arrays import extremes


def check_range(image: Any, what: str = "an image") -> None:
    """ValueError unless the numbers lie in [-1, 1]. Traced ones pass unseen."""
    if (found := extremes(image)) is None:
        return
    low, high = found
    if not (low >= -1.001 and high <= 1.001):  # false for NaN too
        raise ValueError(f"{what} from {low:g} to {high:g}: bring it to [-1, 1]; 0..255 by x / 127.5 - 1")


def picture(value: Any, multiple: int = 1) -> np.ndarray:
    """A user's picture as float32 [H, W, 3]; ValueError if it is none in [-1, 1], or its sides are no multiples."""
    image = np.asarray(value)
    if image.ndim != 3 or image.shape[2] != 3 or not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"an image is float [H, W, 3] in [-1, 1], this is {image.dtype.name} {list(image.shape)}")
    check_size(image.shape[:2], multiple)
    check_range(image)
    return image.astype(np.float32)


def check_pictures(images: Any, multiple: int = 1, noisy: bool = False) -> None:
    """ValueError unless these are pictures float [B, H, W, 3] in [-1, 1], sides multiples; `noisy`: beyond that range too.
    Numbers of traced ones pass unseen."""
    shape = np.shape(images)
    if len(shape) != 4 or shape[-1] != 3 or not jnp.issubdtype(jnp.result_type(images), np.floating):
        raise ValueError(f"pictures as an array are float [B, H, W, 3] in [-1, 1], these are {in_short(images)}")
    check_size(shape[1:-1], multiple)
    if np.size(images) and not noisy:
        check_range(images, "pictures")


def written(flag: str, image: np.ndarray, path: Path) -> str:
    """`--flag FILE`, the file being this picture, float [H, W, 3] in [-1, 1], or whole numbers [H, W]."""
    pixels = np.rint((image + 1) * 127.5).clip(0, 255) if image.ndim == 3 else image
    Image.fromarray(pixels.astype(np.uint8 if pixels.max() < 256 else np.uint16)).save(path)
    return f"--{flag} {shlex.quote(str(path))}"


def check_mask(mask: Any) -> None:
    """ValueError unless the numbers lie in [0, 1]. Traced ones pass unseen."""
    if (found := extremes(mask)) is None:
        return
    low, high = found
    if not (low >= 0 and high <= 1):
        raise ValueError(f"mask from {low:g} to {high:g}: it must be 0 where to keep, 1 where to paint; 0..255 by mask / 255")


def hole(value: Any, size: tuple[int, int]) -> np.ndarray:
    """A user's mask as float32 [H, W, 1] of 0 and 1, a half or more being 1. ValueError if it doesn't fit the image."""
    mask = np.asarray(value, np.float32)
    mask = mask[..., None] if mask.ndim == 2 else mask
    if mask.shape != (*size, 1):
        raise ValueError(f"mask of shape {list(mask.shape)} for an image of {size[0]} x {size[1]}: it must be as large")
    check_mask(mask)
    return (mask >= 0.5).astype(np.float32)


def check_size(size: Sequence[int], multiple: int) -> None:
    """ValueError unless all sides are positive multiples."""
    if any(side % multiple or side < multiple for side in size):
        sides = " x ".join(map(str, size))
        raise ValueError(f"size {sides}: both sides must be multiples of {multiple}; crop or pad it")
