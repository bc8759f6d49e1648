"""Reference outputs and weights for parity tests, in our layout: NHWC arrays, nested parameters."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ldm_jax.models import shapes


def cases(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        pytest.skip(f"no case {pattern} in {folder}")
    return found


class Case:
    """A folder of reference weights, inputs and outputs."""

    def __init__(self, folder: Path, config: str = "config.json", io: str = "io.npz"):
        self.folder = folder
        self.config = json.loads((folder / config).read_text())
        self.io = dict(np.load(folder / io))

    def __getitem__(self, key: str) -> jax.Array:
        """An array of io.npz, images and maps as NHWC."""
        array = self.io[key]
        return jnp.asarray(np.moveaxis(array, 1, -1) if array.ndim == 4 else array)

    def limit(self, variant: bool = False) -> float:
        noise = self.config.get("relative_change_for_1e-7_relative_weight_noise", {})
        which = "eps_variant" if variant else "normal"
        return max(10 * noise.get(which, 0.0), 3e-5 if variant else 1e-5)

    def weights(self, variant: bool = False, file: str = "weights.safetensors") -> dict[str, np.ndarray]:
        weights = {key: value.astype(np.float32) for key, value in load_file(self.folder / file).items()}
        if variant:
            for key in self.config["eps_variant"]["scaled_keys"]:
                weights[key] = weights[key] * np.float32(self.config["eps_variant"]["factor"])
        return weights


def rename(key: str) -> tuple[str, ...]:
    """`a.0.b.weight` -> ("a_0", "b", "weight"): every dot nests, but numbers join the name before them."""
    return tuple(re.sub(r"\.(?=\d+(\.|$))", "_", key).split("."))


def to_params(weights: dict[str, np.ndarray], module, *inputs, **kwargs) -> dict:
    """The reference's weights as parameters of `module`; every key must find its place, and every place its key."""
    wanted = {
        tuple(part.key for part in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(shapes(module, *inputs, **kwargs))[0]
    }
    params: dict = {}
    for key, value in weights.items():
        *path, leaf = rename(key)
        names = ["kernel", "scale", "embedding"] if leaf == "weight" else [leaf]
        name = next((n for n in names if (*path, n) in wanted), None)
        assert name is not None, f"{key} has no place"
        shape = wanted.pop((*path, name)).shape
        if name == "kernel":
            value = value.transpose(*range(2, value.ndim), 1, 0)
            value = value.reshape(value.shape[-2:]) if len(shape) == 2 and set(value.shape[:-2]) == {1} else value
        assert value.shape == shape, (key, value.shape, shape)
        node = params
        for part in path:
            node = node.setdefault(part, {})
        node[name] = jnp.asarray(value)
    assert not wanted, f"no weights for {sorted(wanted)}"
    return params


def error(ours: jax.Array, theirs: jax.Array) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max())


def assert_close(ours: jax.Array, theirs: jax.Array, limit: float, what: str) -> None:
    difference = error(ours, theirs)
    print(f"{what}: {difference:.1e} (limit {limit:.1e})")
    assert difference <= limit, f"{what}: {difference:.2e} > {limit:.1e}"
