"""Weight files of the networks that judge images find their places."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ldm_jax import models, weights
from ldm_jax.models.discriminator import Discriminator
from ldm_jax.models.inception import InceptionV3
from ldm_jax.models.perceptual import LPIPS
from ldm_jax.weights import features, naming, torch_files

from .test_layouts import array, shapes

WIDTHS = (4, 8, 12, 16, 16)


def vgg() -> dict[str, np.ndarray]:
    """torchvision's VGG16 of other widths."""
    tensors, into = {}, 3
    for width, numbers in zip(WIDTHS, features.SLICES):
        for number in numbers:
            tensors[f"features.{number}.weight"] = np.full((width, into, 3, 3), number, np.float32)
            tensors[f"features.{number}.bias"] = np.full(width, number, np.float32)
            into = width
    return tensors | {"classifier.0.weight": np.zeros((5, 5), np.float32)}


def lins() -> dict[str, np.ndarray]:
    return {f"lin{i}.model.1.weight": np.full((1, width, 1, 1), i, np.float32) for i, width in enumerate(WIDTHS)}


def found(tree: dict) -> dict:
    return {name: leaf.shape for name, leaf in naming.leaves(tree)}


def test_lpips_from_its_two_files_and_from_a_first_stage(tmp_path):
    torch_files.write(tmp_path / "vgg16.pth", vgg())
    torch_files.write(tmp_path / "vgg.pth", lins())
    tree = weights.read_lpips(tmp_path / "vgg16.pth", tmp_path / "vgg.pth")
    assert found(tree) == shapes(models.shapes(LPIPS(WIDTHS), array(1, 32, 32, 3), array(1, 32, 32, 3)))
    assert np.asarray(tree["net"]["slice3_12"]["bias"]).tolist() == [12.0] * 12
    slices = {number: f"net.slice{i + 1}.{number}" for i, numbers in enumerate(features.SLICES) for number in numbers}
    whole = {f"{slices[int(k.split('.')[1])]}.{k.split('.')[2]}": v for k, v in vgg().items() if k.startswith("features")}
    inside = naming.prefixed(
        whole | lins() | {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}, "loss.perceptual_loss."
    )
    torch_files.write(tmp_path / "model.ckpt", {"state_dict": inside | {"encoder.x": np.zeros(1, np.float32)}})
    again = weights.read_lpips(tmp_path / "model.ckpt")
    for (name, a), (other, b) in zip(naming.leaves(tree), naming.leaves(again), strict=True):
        assert name == other and np.array_equal(a, b)
    with pytest.raises(ValueError, match="(?s)vgg16.pth: LPIPS.*5 missing"):
        weights.read_lpips(tmp_path / "vgg16.pth")


@pytest.mark.parametrize("actnorm", [False, True])
def test_discriminator(tmp_path, actnorm):
    module = Discriminator(ndf=8, n_layers=2, use_actnorm=actnorm)
    wanted = shapes(models.shapes(module, array(1, 32, 32, 3)))
    tensors = {}
    for path, shape in wanted.items():
        scope, leaf = path.split("/")
        name = scope.replace("_", ".")
        if leaf == "kernel":
            tensors[f"{name}.weight"] = np.zeros((shape[3], shape[2], *shape[:2]), np.float32)
        elif actnorm and scope in ("main_3", "main_6"):
            tensors[f"{name}.{leaf}"] = np.zeros((1, *shape, 1, 1), np.float32)
        else:
            tensors[f"{name}.{'weight' if leaf == 'scale' else leaf}"] = np.zeros(shape, np.float32)
    extra = {"main.3.initialized": np.uint8(1)} if actnorm else {"main.3.running_mean": np.zeros(16, np.float32)}
    torch_files.write(tmp_path / "a.pth", naming.prefixed(tensors | extra, "loss.discriminator."))
    assert found(weights.read_discriminator(tmp_path / "a.pth")) == wanted


def test_inception(tmp_path):
    wanted = shapes(models.shapes(InceptionV3(), array(1, 64, 64, 3)))
    tensors = {}
    for path, shape in wanted.items():
        *scopes, leaf = path.split("/")
        if leaf == "kernel":
            axes = (shape[1], shape[0]) if scopes == ["fc"] else (shape[-1], shape[-2], *(shape[:-2] or (1, 1)))
            tensors[".".join((*scopes, "weight"))] = np.zeros(axes, np.float16)
        else:
            tensors[".".join((*scopes, "weight" if leaf == "scale" else leaf))] = np.zeros(shape, np.float16)
    tensors["Mixed_6b.branch_pool.bn.num_batches_tracked"] = np.int64(0)
    torch_files.write(tmp_path / "inception.pth", tensors)
    assert found(weights.read_inception(tmp_path / "inception.pth")) == wanted
    del tensors["Mixed_7c.branch3x3_2b.conv.weight"]
    torch_files.write(tmp_path / "inception.pth", tensors)
    with pytest.raises(ValueError, match="1 missing:\n  Mixed_7c.branch3x3_2b.conv.weight"):
        weights.read_inception(tmp_path / "inception.pth")


def test_tiny_decoder(tmp_path):
    wanted = shapes(models.shapes(models.TinyDecoder(8, (1, 1)), array(1, 4, 4, 4)))
    tensors = {}
    for path, shape in wanted.items():
        name = naming_of(path)
        tensors[name] = np.zeros((shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape, np.float32)
    folder = tmp_path / "taesd"
    folder.mkdir()
    save_file(naming.prefixed(tensors, "decoder."), folder / "diffusion_pytorch_model.safetensors")
    torch_files.write(tmp_path / "taesd_decoder.pth", {shifted(name): tensor for name, tensor in tensors.items()})
    for path in (folder, tmp_path / "taesd_decoder.pth"):
        assert found(weights.read_tiny_decoder(path)) == wanted


def naming_of(path: str) -> str:
    """layers_2/conv_0/kernel -> layers.2.conv.0.weight"""
    return path.replace("_", ".").replace("/", ".").replace("kernel", "weight")


def shifted(name: str) -> str:
    number, _, rest = name.removeprefix("layers.").partition(".")
    return f"{int(number) + 1}.{rest}"


@pytest.mark.parity
def test_the_reference_files(fixtures_dir, tmp_path):
    for folder in sorted(fixtures_dir.glob("G*")):
        if not (folder / "weights.safetensors").exists():
            continue
        io, path = np.load(folder / "io.npz"), folder / "weights.safetensors"
        tree = jax.tree.map(np.asarray, weights.read_lpips(path))
        widths = [tree["net"][f"slice{i + 1}_{numbers[-1]}"]["bias"].size for i, numbers in enumerate(features.SLICES)]
        h, x = jnp.asarray(io["h"]).transpose(0, 2, 3, 1), jnp.asarray(io["x"]).transpose(0, 2, 3, 1)
        kernel = jnp.asarray(io["last_layer"]).transpose(2, 3, 1, 0)
        numbers = jax.lax.conv_dimension_numbers(h.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        y = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=numbers) + io["bias"]
        ours = LPIPS(tuple(widths)).apply({"params": tree}, x, y)
        theirs = io["lpips.total"].reshape(-1)
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), folder.name
        raw = load_file(path)
        save_file(
            {k.removeprefix("discriminator."): v for k, v in raw.items() if k.startswith("discriminator.")},
            tmp_path / "d.safetensors",
        )
        one, two = weights.read_discriminator(path), weights.read_discriminator(tmp_path / "d.safetensors")
        assert found(one) == found(two)
    for folder in sorted(fixtures_dir.glob("H2*")):
        keys = json.loads((folder / "config.json").read_text())["state_dict_keys"]
        save_file({name: np.zeros(shape, np.float16) for name, shape in keys.items()}, tmp_path / "inception.safetensors")
        assert found(weights.read_inception(tmp_path / "inception.safetensors"))
