"""Low-resolution pictures to learn super-resolution from.

    bicubic        the picture shrunk, anti-aliased
    bsrgan_light   blur, noise, JPEG and shrinking in an order drawn anew, each of strength drawn anew: the degradation of the
                   paper's super-resolution model (Zhang et al. 2021, "Designing a practical degradation model for deep blind
                   image super-resolution"; the mild variant of CompVis/latent-diffusion
                   `ldm/modules/image_degradation/bsrgan_light.py`, whose ranges are taken over)

Noise levels, as in Stable Diffusion's upscaler: low_s = sqrt(abar_s) low + sqrt(1 - abar_s) noise, with the level s told to the
network; abar is of 1000 betas whose square roots run linearly from sqrt(1e-4) to sqrt(0.02). A network that knows how much of
its input is noise can be given pictures of any quality, by the level one claims.

Pictures are float32 [H, W, 3] in [-1, 1]; whatever is random comes from `rng`.
"""

import functools
import io
import math

import numpy as np
from PIL import Image

from ldm_jax.primitives.choices import check_choice

KINDS = ("bicubic", "bsrgan_light")
RESIZINGS = ("nearest", "bilinear", "bicubic", "area")
JPEG_QUALITY = (80, 95)
NOISE = (1.0, 2.0)  # deviation, of 255


def low_resolution(example: dict, rng: np.random.Generator, *, scale: int, kind: str, noise_levels: int = 0) -> dict:
    """A training example's {"low": [H / scale, W / scale, 3]}, and with `noise_levels` the drawn "level", int32 []."""
    low = degrade(example["image"], scale, kind, rng)
    if not noise_levels:
        return {"low": low}
    level = int(rng.integers(noise_levels))
    return {"low": add_noise(low, level, rng), "level": np.int32(level)}


def degrade(image: np.ndarray, scale: int, kind: str = "bicubic", rng: np.random.Generator | None = None) -> np.ndarray:
    """The picture `scale` times smaller. ValueError if its sides are no multiples of `scale`, or the kind is unknown."""
    height, width = image.shape[:2]
    if height % scale or width % scale or min(height, width) < scale:
        raise ValueError(f"image of {height} x {width} to shrink {scale} times: crop it to multiples of {scale}")
    if kind == "bicubic":
        return np.clip(resize(image, height // scale, width // scale), -1, 1)
    check_choice(kind, KINDS, "degradation")
    return _bsrgan_light(image, scale, rng)


def _bsrgan_light(image: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[0] // scale, image.shape[1] // scale
    if scale == 4 and rng.random() < 0.25:
        image = _resized_anyhow(image, image.shape[0] // 2, image.shape[1] // 2, rng)
        scale = 2

    def shrink_some(x: np.ndarray) -> np.ndarray:
        if rng.random() < 0.75:
            by = rng.uniform(1, 2 * scale)
            return _resized_anyhow(x, max(round(x.shape[0] / by), 1), max(round(x.shape[1] / by), 1), rng)
        x = blur(x, gaussian_kernel(25, *[rng.uniform(0.1, 0.6 * scale)] * 2))
        return resize(x, max(x.shape[0] // scale, 1), max(x.shape[1] // scale, 1), "nearest")

    def shrink_to_size(x: np.ndarray) -> np.ndarray:
        return _resized_anyhow(x, height, width, rng)

    steps = [
        lambda x: blur(x, random_kernel(scale, rng)),
        shrink_some,
        shrink_to_size,
        lambda x: x + noise(x.shape, rng),
        lambda x: jpeg(x, int(rng.integers(*JPEG_QUALITY, endpoint=True))) if rng.random() < 0.9 else x,
    ]
    order = list(rng.permutation(len(steps)))
    first, second = sorted((order.index(1), order.index(2)))
    order[first], order[second] = 1, 2  # the size is settled last
    for i in order:
        image = np.clip(steps[i](image), -1, 1)
    return jpeg(image, int(rng.integers(*JPEG_QUALITY, endpoint=True)))


def _resized_anyhow(image: np.ndarray, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    kind = RESIZINGS[rng.integers(len(RESIZINGS))]
    return np.clip(resize(image, height, width, kind, antialias=False), -1, 1)


def resize(image: np.ndarray, height: int, width: int, kind: str = "bicubic", antialias: bool = True) -> np.ndarray:
    """float32 [H, W, C] -> [height, width, C]: two matrix products. Values are not clipped: bicubic may overshoot.

    kind       "nearest"; "bilinear"; "bicubic" (Keys 1981, a = -1/2); "area", the mean of what a pixel covers
    antialias  widen the kernel of bilinear and bicubic when shrinking, as Pillow and MATLAB do and OpenCV and PyTorch don't
    """
    check_choice(kind, RESIZINGS, "kind")
    if image.shape[0] != height:
        image = np.tensordot(_weights(image.shape[0], height, kind, antialias), image, 1)
    if image.shape[1] != width:
        image = np.einsum("vw,hwc->hvc", _weights(image.shape[1], width, kind, antialias), image, optimize=True)
    return np.ascontiguousarray(image, np.float32)


@functools.lru_cache(maxsize=256)
def _weights(old: int, new: int, kind: str, antialias: bool) -> np.ndarray:
    """float32 [new, old], rows summing to 1: what each new pixel takes of the old ones."""
    step = old / new
    centres = (np.arange(new) + 0.5) * step
    if kind == "nearest":
        return np.eye(old, dtype=np.float32)[np.minimum(centres.astype(int), old - 1)]
    if kind == "area":
        edges = np.arange(new + 1) * step
        pixels = np.arange(old)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return (np.maximum(covered, 0) / step).astype(np.float32)
    reach = {"bilinear": 1, "bicubic": 2}[kind]
    width = max(step, 1.0) if antialias else 1.0
    weights = np.zeros((new, old))
    for i, centre in enumerate(centres):
        pixels = np.arange(math.floor(centre - reach * width), math.ceil(centre + reach * width) + 1)
        x = np.abs((pixels + 0.5 - centre) / width)
        if kind == "bilinear":
            w = np.maximum(1 - x, 0)
        else:
            w = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
        inside = (pixels >= 0) & (pixels < old)  # what lies outside of the picture has no weight
        weights[i, pixels[inside]] = w[inside] / w[inside].sum()
    return weights.astype(np.float32)


def random_kernel(scale: int, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian blur, in half of the cases anisotropic."""
    if rng.random() < 0.5:
        widest = (4 + scale) / 4
        axes = np.sqrt(widest * rng.random(2) + 1e-3)
        return gaussian_kernel(int(rng.integers(2, 12)) + 3, *axes, angle=rng.random() * math.pi)
    deviation = (2 + 0.2 * scale) / 4 * rng.random() + 1e-3
    return gaussian_kernel(int(rng.integers(2, 5)) + 3, deviation, deviation)


def gaussian_kernel(size: int, deviation: float, other: float, angle: float = 0.0) -> np.ndarray:
    """float32 [size, size], summing to 1: deviations in pixels along `angle` (radians) and across."""
    place = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(place, place, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    exponent = -0.5 * ((along / deviation) ** 2 + (across / other) ** 2)
    kernel = np.exp(exponent - exponent.max())
    return (kernel / kernel.sum()).astype(np.float32)


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """float32 [H, W, C] correlated with a kernel [k, k], mirrored at its edges (the edge pixels repeated): one axis after the
    other if the kernel is a product, as an isotropic Gaussian is, else by FFT. Within 1e-6 of the sum over taps."""
    size = len(kernel)
    before, after = (size - 1) // 2, size // 2
    down, across = kernel.sum(1, dtype=np.float64), kernel.sum(0, dtype=np.float64) / kernel.sum(dtype=np.float64)
    if np.abs(np.outer(down, across) - kernel).sum() < 3e-7:
        from scipy import ndimage  # here, and fftconvolve below, because importing them takes a second

        origin = before - after  # an even kernel's middle is the one before its half
        once = ndimage.correlate1d(image, down, 0, mode="reflect", origin=origin)
        return ndimage.correlate1d(once, across, 1, mode="reflect", origin=origin)
    from scipy.signal import fftconvolve

    padded = np.pad(image, ((before, after), (before, after), (0, 0)), "symmetric")
    return fftconvolve(padded, kernel[::-1, ::-1, None], "valid", axes=(0, 1)).astype(np.float32)


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a drawn deviation: a colour each, the same in all channels, or correlated between them."""
    deviation = rng.uniform(*NOISE) / 127.5
    kind = rng.random()
    if kind < 0.4:
        drawn = rng.standard_normal(shape)
    elif kind < 0.8:
        drawn = np.broadcast_to(rng.standard_normal((*shape[:2], 1)), shape)
    else:
        mixed = rng.standard_normal((3, 3))
        mixed /= np.linalg.norm(mixed, axis=0)
        drawn = rng.standard_normal(shape) @ mixed
    return (deviation * drawn).astype(np.float32)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The picture after saving and opening it as JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / np.float32(127.5) - np.float32(1)


@functools.cache
def _alpha_bar() -> np.ndarray:
    return np.cumprod(1 - np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2)


def add_noise(low: np.ndarray, level: int, rng: np.random.Generator) -> np.ndarray:
    """The picture at noise level `level`, 0 (almost clean) to 999 (almost nothing but noise)."""
    if not 0 <= level < 1000:
        raise ValueError(f"noise level {level}: levels are numbered 0 to 999")
    kept = _alpha_bar()[level]
    return (math.sqrt(kept) * low + math.sqrt(1 - kept) * rng.standard_normal(low.shape)).astype(np.float32)
