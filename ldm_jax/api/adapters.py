"""LoRA on a loaded model: read from a file, added to parameters, written from a training.

    lora = ldm.read_lora("style.safetensors")                  factors, at the places of the kernels that they change
    params = ldm_jax.apply_lora(ldm.params, lora, scale)       pure; scale may be traced
    styled = ldm.with_lora("style.safetensors", 0.8)           a model like ldm with these parameters: merged
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import models, weights
from ldm_jax.api.specification import Specification

PyTree = Any
Lora = str | Path | Mapping[str, Any]


def read_lora(spec: Specification, path: str | Path) -> PyTree:
    """The factors in a LoRA file or folder (peft, diffusers, kohya), {"network": ..., "conditioner": ...}, float32.

    ValueError if the file is no LoRA, or one for another model."""
    return jax.tree.map(jnp.asarray, weights.read_lora(path, spec.config))


def with_lora(
    spec: Specification, params: PyTree, lora: Lora | Sequence[Lora], scale: float | jax.Array | Sequence[Any] = 1.0
) -> PyTree:
    """`params` with one adaptation or several added: files, or factors from `read_lora`; `scale` is one number, or one each."""
    several = list(lora) if isinstance(lora, (list, tuple)) else [lora]
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(several)
    if len(scales) != len(several):
        raise ValueError(f"{len(scales)} scales for {len(several)} LoRAs: give one for all, or one each")
    for one, strength in zip(several, scales):
        if not isinstance(one, (str, Path, Mapping)):
            raise ValueError(f"a LoRA is a path, or factors from read_lora; this is a {type(one).__name__}")
        _check_scale(strength)
        factors = one if isinstance(one, Mapping) else read_lora(spec, one)
        params = models.apply_lora(params, factors, strength)
    return params


def _check_scale(scale: Any) -> None:
    """ValueError unless it is one number; of traced ones the shape is looked at alone."""
    known = not isinstance(scale, jax.core.Tracer)
    try:
        fits = np.shape(scale) == () and not (known and not np.isfinite(float(scale))) and not isinstance(scale, str)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"scale={scale!r} of a LoRA: it must be a finite number, 0 for none and 1 for all of it")


def save_lora(spec: Specification, lora: PyTree, path: str | Path) -> None:
    """Writes factors as diffusers' `load_lora_weights` takes them: a folder, or a file that ends with .safetensors. ValueError
    if it exists."""
    weights.write_lora(path, spec.config, jax.device_get(lora))
