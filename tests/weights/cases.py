"""Reference cases as the parity tests see them: a checkpoint loaded by the public reader, arrays in our layout."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from ldm_jax import diffusion, models, weights

ERRORS: list[tuple[str, float, float]] = []  # (what, error, limit), printed by the tests


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
    ERRORS.append((what, error, limit))
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


def network(checkpoint: weights.Checkpoint) -> Callable:
    """f(x, t, cond) of the checkpoint's network."""
    fields = dict(checkpoint.description["network"])
    module = {"unet": models.UNet, "dit": models.DiT}[fields.pop("kind")](**fields)
    params = loaded(checkpoint.params["network"])
    apply = jax.jit(lambda params, x, t, cond: module.apply({"params": params}, x, t, cond))
    return lambda x, t, cond=None: apply(params, x, t, cond)


def autoencoder(checkpoint: weights.Checkpoint) -> tuple[Callable, Callable, Callable]:
    """encode(x), decode(z), and decode of already quantized latents."""
    fields = dict(checkpoint.description["first_stage"])
    fields = {name: value for name, value in fields.items() if name not in ("kind", "path")}
    module = models.Autoencoder(**fields | {"n_embed": fields["n_embed"] or None})
    params = loaded(checkpoint.params["first_stage"])
    encode = jax.jit(lambda params, x: module.apply({"params": params}, x, method="encode"))
    decode = jax.jit(lambda params, z: module.apply({"params": params}, z, method="decode"))
    plain = jax.jit(lambda params, z: module.apply({"params": params}, z, quantize=False, method="decode"))
    return lambda x: encode(params, x), lambda z: decode(params, z), lambda z: plain(params, z)


def text_encoder(checkpoint: weights.Checkpoint) -> Callable:
    """ids -> TextFeatures."""
    fields = dict(checkpoint.description["conditioner"])
    module = models.CLIPText(**{name: fields[name] for name in fields if name in models.CLIPText.__dataclass_fields__})
    params = loaded(checkpoint.params["conditioner"])
    apply = jax.jit(lambda params, ids: module.apply({"params": params}, ids))
    return lambda ids: apply(params, ids)


def schedule(checkpoint: weights.Checkpoint) -> diffusion.schedules.Discrete:
    fields = checkpoint.description["diffusion"]
    made = diffusion.make_schedule(
        fields["schedule"], start=fields["linear_start"], end=fields["linear_end"], size=fields["timesteps"]
    )
    return diffusion.schedules.zero_terminal_snr(made) if fields.get("zero_terminal_snr") else made


def denoiser(net: Callable, kind: str, cond: dict | None, null: dict | None, scale: float) -> diffusion.Denoiser:
    if null is None:
        return diffusion.make_denoiser(lambda x, t: net(x, t, cond), kind)
    return diffusion.classifier_free(diffusion.together(net, kind, [cond, null]), scale)


def run(denoise: diffusion.Denoiser, name: str, x: np.ndarray, grid: diffusion.Level, noise=None, **options) -> Iterator:
    """Final latents and the latents after every step."""

    def go(x, noise):
        sampler = diffusion.make_sampler(name, **options)
        return diffusion.sample(denoise, sampler, x, grid, noise, record=diffusion.trajectory)

    return jax.jit(go)(jnp.asarray(x), None if noise is None else jnp.asarray(noise))
