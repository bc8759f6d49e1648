"""Reference cases as the parity tests see them: a checkpoint loaded by the public reader, arrays in our layout."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from ldm_jax import diffusion, models, weights


def folders(root: Path, letter: str, has: str) -> list[Path]:
    return [path for path in sorted(root.glob(f"{letter}*")) if (path / has).exists()]


def class_name(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return config.get("_class_name") or config["architectures"][0]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz; images and latents as NHWC."""
    return {name: nhwc(array) for name, array in np.load(path).items()}


def nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -3, -1) if array.ndim in (4, 5) else array


def compare(what: str, ours: jax.Array, theirs: np.ndarray, limit: float) -> None:
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    print(f"{what}: {error:.2e} (limit {limit:.1e})")
    assert error <= limit, (what, error, limit)


def limit(case: dict, prefix: str = "", variant: bool = False) -> float:
    """Ten times the reference's own answer to noise of rounding size, and at least 1e-5 (3e-5 where eps matters)."""
    noise = case.get(f"{prefix}relative_change_for_1e-7_relative_weight_noise", {})
    return max(10 * noise.get("eps_variant" if variant else "normal", 0.0), 3e-5 if variant else 1e-5)


def scaled(folder: Path, variant: dict, into: Path) -> Path:
    """A copy of a model folder in which some tensors are multiplied, so that the eps of every norm matters."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    for file in into.glob("*.safetensors"):
        tensors = load_file(file)
        for key in variant["scaled_keys"]:
            if key in tensors:
                tensors[key] = tensors[key] * np.float32(variant["factor"])
        save_file(tensors, file, {"format": "pt"})
    return into


def loaded(tree: dict) -> dict:
    """The parameters in memory, float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), tree)


@functools.cache
def compiled(module: nn.Module, **options) -> Callable:
    """The module's apply; one compilation serves all checkpoints of equal fields and shapes."""
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs, **options))


class Network:
    """f(x, t, cond) of a checkpoint's network."""

    def __init__(self, checkpoint: weights.Checkpoint):
        fields = dict(checkpoint.description["network"])
        self.module = {"unet": models.UNet, "dit": models.DiT, "mmdit": models.MMDiT}[fields.pop("kind")](**fields)
        self.params = loaded(checkpoint.params["network"])

    def __call__(self, x, t, cond=None) -> jax.Array:
        return compiled(self.module)(self.params, x, t, cond)


def autoencoder(checkpoint: weights.Checkpoint) -> tuple[Callable, Callable, Callable]:
    """encode(x), decode(z), and decode of already quantized latents."""
    fields = dict(checkpoint.description["first_stage"])
    fields = {name: value for name, value in fields.items() if name not in ("kind", "path", "force_upcast")}
    module = models.Autoencoder(**fields | {"n_embed": fields["n_embed"] or None})
    params = loaded(checkpoint.params["first_stage"])
    encode, decode = compiled(module, method="encode"), compiled(module, method="decode")
    plain = compiled(module, method="decode", quantize=False)
    return lambda x: encode(params, x), lambda z: decode(params, z), lambda z: plain(params, z)


def text_encoder(checkpoint: weights.Checkpoint) -> Callable:
    """ids -> TextFeatures."""
    fields = dict(checkpoint.description["conditioner"])
    module = models.CLIPText(**{name: fields[name] for name in fields if name in models.CLIPText.__dataclass_fields__})
    params = loaded(checkpoint.params["conditioner"])
    return lambda ids: compiled(module)(params, ids)


def schedule(checkpoint: weights.Checkpoint) -> diffusion.schedules.Discrete:
    fields = checkpoint.description["diffusion"]
    made = diffusion.make_schedule(
        fields["schedule"], start=fields["linear_start"], end=fields["linear_end"], size=fields["timesteps"]
    )
    return diffusion.schedules.zero_terminal_snr(made) if fields.get("zero_terminal_snr") else made


@functools.cache
def _sampling(module: nn.Module, kind: str, scale: float, sampler: str, options: tuple, grid: tuple) -> Callable:
    made, levels = diffusion.make_sampler(sampler, **dict(options)), diffusion.Level(*map(np.asarray, grid))

    def go(params, x, noise, cond, null):
        def net(x, t, cond):
            return module.apply({"params": params}, x, t, cond)

        if null is None:
            denoise = diffusion.make_denoiser(lambda x, t: net(x, t, cond), kind)
        else:
            denoise = diffusion.classifier_free(diffusion.together(net, kind, [cond, null]), scale)
        return diffusion.sample(denoise, made, x, levels, noise, record=diffusion.trajectory)

    return jax.jit(go)


def run(
    net: Network,
    checkpoint: weights.Checkpoint,
    sampler: str,
    x: np.ndarray,
    grid: diffusion.Level,
    conditions: tuple = (None, None),
    scale: float = 1.0,
    noise: np.ndarray | None = None,
    **options,
) -> tuple[jax.Array, jax.Array]:
    """Final latents and the latents after every step, guided from the second condition towards the first."""
    kind = checkpoint.description["diffusion"]["prediction"]
    levels = tuple(tuple(np.asarray(a).tolist()) for a in (grid.t, grid.alpha, grid.sigma))
    go = _sampling(net.module, kind, scale, sampler, tuple(sorted(options.items())), levels)
    return go(net.params, jnp.asarray(x), None if noise is None else jnp.asarray(noise), *conditions)
