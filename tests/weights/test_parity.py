"""Checkpoints of the reference implementations, loaded by our reader, give the reference's numbers."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import weights
from ldm_jax.first_stage.latents import kl_divergence, mode, split_moments

from . import cases

pytestmark = pytest.mark.parity


def conditions(io: dict) -> dict | None:
    cond = {}
    if "encoder_hidden_states" in io:
        cond["context"] = io["encoder_hidden_states"]
    if "class_labels" in io:
        cond["label"] = jnp.asarray(io["class_labels"], jnp.int32)
    return cond or None


def single(root: Path, *names: str) -> list[Path]:
    found = [path for path in cases.folders(root, "E", "case.json") if (path / "config.json").exists()]
    found = [path for path in found if cases.class_name(path) in names]
    if not found:
        pytest.skip(f"no case of {', '.join(names)} in {root}")
    return found


def test_networks_of_diffusers(fixtures_dir, tmp_path):
    for folder in single(fixtures_dir, "UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"):
        case, io = json.loads((folder / "case.json").read_text()), cases.arrays(folder / "io.npz")
        net = cases.Network(weights.read(folder))
        cases.compare(folder.name, net(io["x"], io["t"], conditions(io)), io["out"], cases.limit(case))
        if "eps_variant" in case:
            net = cases.Network(weights.read(cases.scaled(folder, case["eps_variant"], tmp_path / folder.name)))
            ours = net(io["x"], io["t"], conditions(io))
            cases.compare(f"{folder.name} eps", ours, io["eps_variant.out"], cases.limit(case, variant=True))


def check_kl(what: str, checkpoint: weights.Checkpoint, io: dict, limit: float) -> None:
    encode, decode, _ = cases.autoencoder(checkpoint)
    moments = encode(io["x"])
    cases.compare(f"{what} moments", moments, io["moments"], limit)
    cases.compare(f"{what} mode", mode(moments), io["mode"], limit)
    cases.compare(f"{what} std", np.exp(0.5 * split_moments(moments)[1]), io["std"], limit)
    cases.compare(f"{what} kl", kl_divergence(moments), io["kl"], limit)
    cases.compare(f"{what} decode", decode(io["z"]), io["dec_z"], limit)
    cases.compare(f"{what} decode mode", decode(io["mode"]), io["dec_mode"], limit)


def check_kl_variant(what: str, checkpoint: weights.Checkpoint, io: dict, limit: float, prefix: str) -> None:
    encode, decode, _ = cases.autoencoder(checkpoint)
    cases.compare(f"{what} eps moments", encode(io["x"]), io[f"eps_variant.{prefix}moments"], limit)
    cases.compare(f"{what} eps decode", decode(io["z"]), io[f"eps_variant.{prefix}dec_z"], limit)


def test_autoencoders_of_diffusers(fixtures_dir, tmp_path):
    for folder in single(fixtures_dir, "AutoencoderKL"):
        case, io = json.loads((folder / "case.json").read_text()), cases.arrays(folder / "io.npz")
        checkpoint = weights.read(folder)
        check_kl(folder.name, checkpoint, io, cases.limit(case))
        config = json.loads((folder / "config.json").read_text())
        wanted = {"scale": config["scaling_factor"], "shift": config["shift_factor"] or 0.0}
        assert checkpoint.description["latents"] == wanted
        checkpoint = weights.read(cases.scaled(folder, case["eps_variant"], tmp_path / folder.name))
        check_kl_variant(folder.name, checkpoint, io, cases.limit(case, variant=True), "")


def pipelines(root: Path, has: str) -> list[Path]:
    found = [path for path in cases.folders(root, "E", "model_index.json") if (path / has).exists()]
    if not found:
        pytest.skip(f"no pipeline with {has} in {root}")
    return found


def test_parts_of_stable_diffusion(fixtures_dir, tmp_path):
    for folder in pipelines(fixtures_dir, "io_pipeline.npz"):
        case, checkpoint = json.loads((folder / "case.json").read_text()), weights.read(folder)
        io = cases.arrays(folder / "io_unet.npz")
        cases.compare(
            f"{folder.name} unet",
            cases.Network(checkpoint)(io["x"], io["t"], conditions(io)),
            io["out"],
            cases.limit(case, "unet."),
        )
        check_kl(f"{folder.name} vae", checkpoint, cases.arrays(folder / "io_vae.npz"), cases.limit(case, "vae."))

        scaled = cases.scaled(folder / "unet", case["unet.eps_variant"], tmp_path / folder.name / "unet")
        ours = cases.Network(weights.read(scaled))(io["x"], io["t"], conditions(io))
        limit = cases.limit(case, "unet.", variant=True)
        cases.compare(f"{folder.name} unet eps", ours, io["eps_variant.unet.out"], limit)
        scaled = cases.scaled(folder / "vae", case["vae.eps_variant"], tmp_path / folder.name / "vae")
        limit = cases.limit(case, "vae.", variant=True)
        check_kl_variant(folder.name, weights.read(scaled), cases.arrays(folder / "io_vae.npz"), limit, "vae.")

        io = cases.arrays(folder / "io_text_encoder.npz")
        for name in sorted(path.name for path in folder.glob("text_encoder*")):
            features = cases.text_encoder(weights.read(folder / name))(io["ids"])
            for ours, key in ((features.last, "last_hidden_state"), (features.pooled, "pooler_output")):
                cases.compare(f"{folder.name} {name} {key}", ours, io[key], 2e-5)


def test_parts_of_unconditional_pipelines(fixtures_dir, tmp_path):
    for folder in pipelines(fixtures_dir, "io.npz"):
        case, io = json.loads((folder / "case.json").read_text()), cases.arrays(folder / "io.npz")
        checkpoint = weights.read(folder)
        limit = cases.limit(case, "unet.")
        cases.compare(f"{folder.name} unet", cases.Network(checkpoint)(io["unet.x"], io["unet.t"]), io["unet.out"], limit)
        encode, decode, plain = cases.autoencoder(checkpoint)
        limit = cases.limit(case, "vq.")
        cases.compare(f"{folder.name} encode", encode(io["vq.x"]), io["vq.latents"], limit)
        cases.compare(f"{folder.name} decode", decode(io["vq.z"]), io["vq.dec_z"], limit)
        cases.compare(f"{folder.name} decode as is", plain(io["vq.latents"]), io["vq.dec_not_quantized"], limit)

        scaled = cases.scaled(folder / "unet", case["unet.eps_variant"], tmp_path / folder.name / "unet")
        ours, limit = cases.Network(weights.read(scaled))(io["unet.x"], io["unet.t"]), cases.limit(case, "unet.", True)
        cases.compare(f"{folder.name} unet eps", ours, io["eps_variant.unet.out"], limit)
        scaled = cases.scaled(folder / "vqvae", case["vq.eps_variant"], tmp_path / folder.name / "vqvae")
        encode, decode, plain = cases.autoencoder(weights.read(scaled))
        limit = cases.limit(case, "vq.", variant=True)
        cases.compare(f"{folder.name} encode eps", encode(io["vq.x"]), io["eps_variant.vq.latents"], limit)
        ours = plain(io["vq.z"])
        cases.compare(f"{folder.name} decode eps", ours, io["eps_variant.vq.dec_z_not_quantized"], limit)


def compvis(root: Path) -> list[Path]:
    found = cases.folders(root, "D", "config.yaml")
    if not found:
        pytest.skip(f"no CompVis checkpoint in {root}")
    return found


def test_parts_of_compvis(fixtures_dir):
    for folder in compvis(fixtures_dir):
        io, config = cases.arrays(folder / "io.npz"), json.loads((folder / "config.json").read_text())
        for which in ("raw", "ema"):
            checkpoint = weights.read(folder / "model.ckpt", ema=which == "ema")
            assert checkpoint.description["latents"]["scale"] == np.float32(config["scale_factor"])
            ours = cases.Network(checkpoint)(io["x"], io["t"], {"context": io["cond"]})
            cases.compare(f"{folder.name} eps {which}", ours, io[f"eps_{which}"], 2e-5)
        encode, decode, _ = cases.autoencoder(checkpoint)
        latents = encode(io["image"])
        if checkpoint.description["first_stage"]["kind"] == "kl":
            latents = mode(latents)
        scaled = latents * checkpoint.description["latents"]["scale"]
        cases.compare(f"{folder.name} encode", scaled, io["encode_mode_scaled"], 2e-5)
        ours = decode(io["z_for_decode"] / checkpoint.description["latents"]["scale"])
        cases.compare(f"{folder.name} decode", ours, io["decode"], 2e-5)
