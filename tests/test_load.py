"""Checkpoints of the world through the public door: `load`, `embed`, `sample`'s parts, `save`. Numbers against the reference
implementations' own; what `tests/weights` compares part by part comes here as a user has it."""

import functools
import json
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import api, build, diffusion, weights
from ldm_jax.api import Specification, pretrained
from ldm_jax.data import checkpoint_tokenizers
from ldm_jax.weights.pipelines import pipeline_of
from tests.tiny import model as tiny_model
from tests.weights import cases

NETWORKS, LATENTS, IMAGES = 2e-5, 1e-4, 1e-3


def needed(found: list[Path], what: str) -> list[Path]:
    if not found:
        pytest.skip(f"no {what}")
    return found


def with_context(context: np.ndarray) -> dict[str, jax.Array]:
    return {"context": jnp.asarray(context)}


def whole(ldm, recipe, steps: int, start: np.ndarray, cond=None, null=None, scale: float = 1.0) -> jax.Array:
    """Final scaled latents of the recipe from this unit noise."""

    @jax.jit
    def go(params, x, cond, null):
        def network(x, t, cond):
            return ldm.apply(params, x, t, cond)

        if null is None:
            denoise = diffusion.make_denoiser(lambda x, t: network(x, t, cond), recipe.prediction, recipe.input_scale)
        else:
            found = diffusion.together(network, recipe.prediction, [cond, null], recipe.input_scale)
            denoise = diffusion.classifier_free(found, scale)
        levels = recipe.grid(steps)
        x = diffusion.start(x, x.shape, levels, recipe.start_scale)
        return diffusion.sample(recipe.wrap(denoise), recipe.sampler(steps), x, levels)

    return go(ldm.params, jnp.asarray(start), cond, null)


@functools.cache
def pipeline(folder: Path):
    return ldm_jax.load(folder)


def pipelines(root: Path, io: str) -> list[Path]:
    found = [path for path in cases.folders(root, "E", "model_index.json") if (path / io).exists()]
    return needed(found, f"pipeline with {io}")


@pytest.mark.parity
@pytest.mark.parametrize("which", ["raw", "ema"])
def test_compvis(fixtures_dir, which):
    for folder in needed(cases.folders(fixtures_dir, "D", "config.yaml"), "CompVis checkpoint"):
        io, config = cases.arrays(folder / "io.npz"), json.loads((folder / "config.json").read_text())
        ldm = ldm_jax.load(folder / "model.ckpt", ema=which == "ema")
        key = next(name[7:] for name in io if name.startswith("uncond_"))
        cond, null = (ldm.embed(ldm.params, jnp.asarray(io[name], jnp.int32)) for name in (key, f"uncond_{key}"))
        cases.compare(f"{folder.name} cond", cond["context"], io["cond"], NETWORKS)
        cases.compare(f"{folder.name} uncond", null["context"], io["uncond"], NETWORKS)
        eps = jax.jit(ldm.apply)(ldm.params, jnp.asarray(io["x"]), jnp.asarray(io["t"]), cond)
        cases.compare(f"{folder.name} eps {which}", eps, io[f"eps_{which}"], NETWORKS)
        cases.compare(
            f"{folder.name} encode", ldm.encode(ldm.params, jnp.asarray(io["image"])), io["encode_mode_scaled"], NETWORKS
        )
        decode = jax.jit(ldm.decode)
        recipe = build.make_recipe(ldm.config)
        steps, scale = config["steps"], config["guidance_scale"]
        assert np.array_equal(recipe.grid(steps).t[:-1], np.sort(io[f"ddim_{which}.timesteps"])[::-1])
        final = whole(ldm, recipe, steps, io["x_T"], cond, null, scale)
        cases.compare(f"{folder.name} ddim_{which}", final, io[f"ddim_{which}.final"], LATENTS)
        cases.compare(f"{folder.name} ddim_{which} image", decode(ldm.params, final), io[f"ddim_{which}.image"], IMAGES)


@pytest.mark.parity
def test_text_pipelines(fixtures_dir):
    """Prompts to pictures, with the scheduler that the folder holds."""
    for folder in pipelines(fixtures_dir, "io_pipeline.npz"):
        ldm, case = pipeline(folder), json.loads((folder / "case.json").read_text())
        io, raw = cases.arrays(folder / "io_pipeline.npz"), np.load(folder / "io_pipeline.npz")
        embed = jax.jit(ldm.embed)
        cond, null = (embed(ldm.params, ldm.condition.parse(case[name])) for name in ("prompts", "negative_prompts"))
        cases.compare(f"{folder.name} prompts", cond["context"], io["prompt_embeds"], NETWORKS)
        cases.compare(f"{folder.name} negative", null["context"], io["negative_prompt_embeds"], NETWORKS)
        net, vae = cases.arrays(folder / "io_unet.npz"), cases.arrays(folder / "io_vae.npz")
        eps = jax.jit(ldm.apply)(ldm.params, net["x"], jnp.asarray(net["t"]), with_context(net["encoder_hidden_states"]))
        cases.compare(f"{folder.name} eps", eps, net["out"], cases.limit(case, "unet."))
        encoded = jax.jit(ldm.encode)(ldm.params, jnp.asarray(vae["x"]))
        cases.compare(f"{folder.name} encode", encoded, vae["mode"] * ldm.specification.scale, cases.limit(case, "vae."))
        decoded = jax.jit(ldm.decode)(ldm.params, jnp.asarray(vae["z"] * ldm.specification.scale))
        cases.compare(f"{folder.name} decode", decoded, vae["dec_z"], cases.limit(case, "vae."))
        used = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        name = next(entry["name"] for entry in case["schedulers"] if entry["scheduler"] == used)
        final = whole(ldm, build.make_recipe(ldm.config), case["steps"], io["latents"], cond, null, case["guidance_scale"])
        cases.compare(f"{folder.name} {name}", final, io[f"{name}.latents"][-1], LATENTS)
        image = np.clip(np.asarray(jax.jit(ldm.decode)(ldm.params, final)) / 2 + 0.5, 0, 1)
        cases.compare(f"{folder.name} {name} image", image, raw[f"{name}.image"], IMAGES)


@pytest.mark.parity
def test_unconditional_pipelines(fixtures_dir):
    for folder in pipelines(fixtures_dir, "io.npz"):
        ldm, case = pipeline(folder), json.loads((folder / "case.json").read_text())
        io, raw = cases.arrays(folder / "io.npz"), np.load(folder / "io.npz")
        eps = jax.jit(ldm.apply)(ldm.params, jnp.asarray(io["unet.x"]), jnp.asarray(io["unet.t"]))
        cases.compare(f"{folder.name} eps", eps, io["unet.out"], cases.limit(case, "unet."))
        final = whole(ldm, build.make_recipe(ldm.config), case["steps"], io["latents"])
        cases.compare(f"{folder.name} ddim", final / ldm.specification.scale, io["ddim.final_latents_unscaled"], LATENTS)
        image = np.clip(np.asarray(jax.jit(ldm.decode)(ldm.params, final)) / 2 + 0.5, 0, 1)
        cases.compare(f"{folder.name} ddim image", image, raw["ddim.image"], IMAGES)


@pytest.mark.parity
def test_token_ids(fixtures_dir, tmp_path):
    """From tokenizer.json, and built from vocab.json and merges.txt."""
    for folder in needed(cases.folders(fixtures_dir, "E", "tokens.json"), "tokens"):
        bare = tmp_path / folder.name
        shutil.copytree(folder / "tokenizer", bare, ignore=shutil.ignore_patterns("tokenizer.json"))
        known = json.loads((folder / "tokens.json").read_text())
        for source in (folder / "tokenizer", bare):
            tokenizer, length = checkpoint_tokenizers.load(source), known["model_max_length"]
            assert (tokenizer.vocab_size, tokenizer.pad) == (known["vocab_size"], known["pad_token_id"])
            for case in known["cases"]:
                assert tokenizer.encode_one(case["text"], length).tolist() == case["ids_padded_truncated"], case["text"]
                assert tokenizer.encode_one(case["text"], len(case["ids"]), strict=True).tolist() == case["ids"]
            with pytest.raises(ValueError, match="1 more than the 3 that fit"):
                tokenizer.encode_one("a a a a", 5, strict=True)


@pytest.mark.parity
def test_malicious_pickles_are_refused(fixtures_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in needed(cases.folders(fixtures_dir, "D", "config.yaml"), "CompVis checkpoint"):
        for path in folder.glob("evil*.ckpt"):
            with pytest.raises(ValueError, match="posix|system|open|builtins"):
                ldm_jax.load(path)
    assert list(tmp_path.iterdir()) == []


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def drawn_by_diffusers(ldm) -> bool:
    """Whether it has a pipeline for the model."""
    size = ldm.first_stage.latent_shape(*ldm.specification.image_size)[:-1]
    try:
        pipeline_of({**ldm.config, "latents": {"scale": 1.0, "shift": 0.0, "size": size}})
    except ValueError:
        return False
    return True


@pytest.mark.parity
def test_saved_and_loaded(fixtures_dir, tmp_path):
    for folder in needed(cases.folders(fixtures_dir, "D", "config.yaml"), "CompVis checkpoint"):
        ldm = ldm_jax.load(folder / "model.ckpt")
        for format, name in (("compvis", "model.ckpt"), ("diffusers", "pipeline")):
            path = tmp_path / folder.name / name
            if format == "diffusers" and not drawn_by_diffusers(ldm):
                continue
            ldm_jax.save(ldm, path, format=format)
            again = ldm_jax.load(path)
            same(again.params, ldm.params)
            assert again.specification.scale == pytest.approx(ldm.specification.scale, rel=1e-7)
            grids = [build.make_recipe(model.config).grid(10) for model in (ldm, again)]
            assert all(np.allclose(getattr(grids[0], f), getattr(grids[1], f), rtol=1e-9) for f in ("t", "alpha", "sigma"))
            with pytest.raises(ValueError, match="exists already"):
                ldm_jax.save(ldm, path, format=format)
    for folder in pipelines(fixtures_dir, "io_pipeline.npz"):
        ldm_jax.save(pipeline(folder), tmp_path / folder.name)
        again = ldm_jax.load(tmp_path / folder.name)
        same(again.params, pipeline(folder).params)
        assert again.config["scheduler"] == pipeline(folder).config["scheduler"]
        assert np.array_equal(again.condition.parse(["a cat"]), pipeline(folder).condition.parse(["a cat"]))


@pytest.mark.parity
def test_without_tokenizer(fixtures_dir, tmp_path):
    for folder in pipelines(fixtures_dir, "io_pipeline.npz"):
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("tokenizer", "io*"))
        ldm = ldm_jax.load(tmp_path / folder.name)
        with pytest.raises(ValueError, match="vocab.json and merges.txt"):
            ldm.embed(ldm.params, ["a cat"])
        with pytest.raises(ValueError, match="`negative`"):
            ldm.null(ldm.params, 1)
        tokens = jnp.asarray(pipeline(folder).condition.parse(["a cat"]))
        assert np.array_equal(
            ldm.embed(ldm.params, tokens)["context"], pipeline(folder).embed(ldm.params, ["a cat"])["context"]
        )


@pytest.mark.parity
def test_part_of_a_model_is_refused(fixtures_dir):
    for folder in pipelines(fixtures_dir, "io_pipeline.npz"):
        with pytest.raises(ValueError, match=f"no first_stage.*It is part of {folder}: give that"):
            ldm_jax.load(folder / "unet")


@pytest.mark.parametrize("dtype", ["fp16", "auto", "int32", float, np.float16, object()])
def test_types_that_parameters_have_not(tmp_path, dtype):
    """Said before anything is read, or fetched."""
    with pytest.raises(ValueError, match="dtype=.*: parameters are 'float32' or 'bfloat16'"):
        ldm_jax.load(tmp_path, dtype=dtype)


@pytest.mark.parity
def test_a_tokenizer_from_the_home_directory(fixtures_dir, tmp_path, monkeypatch):
    folder, *_ = pipelines(fixtures_dir, "tokens.json")
    shutil.copytree(folder / "tokenizer", tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ldm_jax.load(folder, tokenizer="~/mine").config["conditioner"]["tokenizer"] == str(tmp_path / "mine")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ldm_jax.load(tmp_path / "nothing")


@pytest.fixture(scope="module")
def tiny():
    return tiny_model("text")


def test_our_models_as_diffusers_folders(tiny, tmp_path):
    """Scale and shift of the latents go into the first stage: diffusers' pipelines ignore the shift."""
    ldm_jax.save(tiny, tmp_path / "exported")
    again = ldm_jax.load(tmp_path / "exported")
    assert (again.specification.scale, again.specification.shift) == (1.0, 0.0)
    for part in ("network", "conditioner"):
        same(again.params[part], tiny.params[part])
    plain = ldm_jax.LatentDiffusion(Specification(tiny.config, tiny.condition, 0.5, 0.0), tiny.params)
    ldm_jax.save(plain, tmp_path / "plain")
    unchanged = ldm_jax.load(tmp_path / "plain")
    same(unchanged.params, tiny.params)
    assert (unchanged.specification.scale, unchanged.specification.shift) == (0.5, 0.0)
    assert np.array_equal(again.condition.parse(["a blue circle"]), tiny.condition.parse(["a blue circle"]))
    assert (again.config["diffusion"]["schedule"], again.config["diffusion"]["prediction"]) == ("cosine", "v")


def test_latents_standardised_by_channel_are_written_as_the_first_stages_own(tiny, tmp_path):
    """The scales of a channel go into the layers around the latents: the same pictures, other latents."""
    scale, shift = [0.3, 1.7, 2.5, 0.8], [1.0, -0.5, 0.0, 4.0]
    ours = ldm_jax.LatentDiffusion(Specification(tiny.config, tiny.condition, scale, shift), tiny.params)
    ldm_jax.save(ours, tmp_path / "exported")
    again = ldm_jax.load(tmp_path / "exported")
    assert (again.specification.scale, again.specification.shift) == (1.0, 0.0)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    for key in (None, jax.random.key(1)):  # the posterior's mean, and a draw
        np.testing.assert_allclose(again.encode(again.params, images, key), ours.encode(ours.params, images, key), atol=1e-4)
    z = np.random.default_rng(1).standard_normal((2, 4, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(again.decode(again.params, z), ours.decode(ours.params, z), atol=1e-4)


def test_a_first_stage_alone(tiny, tmp_path):
    """Loaded, written and loaded again: the same functions, on latents scaled as the file says."""
    tree = tiny.params["first_stage"]
    weights.write_diffusers(tmp_path / "made", {"first_stage": tiny.config["first_stage"], "latents": {"scale": 0.5}},
                            {"first_stage": tree})
    ae = ldm_jax.load(tmp_path / "made")
    assert isinstance(ae, ldm_jax.Autoencoder) and "(kl)" in ae.describe()
    same(ae.params, {"first_stage": tree})
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    z = ae.encode(ae.params, images)
    np.testing.assert_allclose(z, tiny.first_stage.encode_mean(tree, images) * 0.5, atol=1e-6)
    assert ae.reconstruct(ae.params, images).shape == images.shape
    with pytest.raises(ValueError, match="norm_num_groups"):
        ldm_jax.save(ae, tmp_path / "vae.ckpt", format="compvis")
    ldm_jax.save(ae, tmp_path / "vae")
    again = ldm_jax.load(tmp_path / "vae")
    same(again.params, ae.params)
    np.testing.assert_array_equal(again.encode(again.params, images), z)
    with pytest.raises(ValueError, match="first stage alone"):
        api.load_whole(tmp_path / "vae")


def test_save_refuses(tiny, tmp_path):
    with pytest.raises(ValueError, match="'compvis'"):
        ldm_jax.save(tiny, tmp_path / "x", format="compviz")
    with pytest.raises(ValueError, match="named .ckpt"):
        ldm_jax.save(tiny, tmp_path / "x.pt", format="compvis")
    with pytest.raises(ValueError, match="schedule cosine"):
        ldm_jax.save(tiny, tmp_path / "x.ckpt", format="compvis")
    lost = {**tiny.config, "conditioner": {**tiny.config["conditioner"], "tokenizer": str(tmp_path / "gone.json")}}
    with pytest.raises(ValueError, match="gone.json"):
        pretrained.save(tmp_path / "x", "diffusers", lost, tiny.params, 1.0, 0.0, tiny.condition)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_name_is_fetched_if_the_package_is_there(monkeypatch, fixtures_dir):
    pipelines = [folder for folder in sorted(fixtures_dir.glob("E*")) if (folder / "model_index.json").is_file()]
    if not pipelines:
        pytest.skip(f"{fixtures_dir} holds no pipeline")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        assert set(allow_patterns) <= set(there) and "model_index.json" in allow_patterns
        return str(pipelines[0])

    there = [str(path.relative_to(pipelines[0])) for path in pipelines[0].rglob("*") if path.is_file()]
    hub = types.SimpleNamespace(snapshot_download=snapshot_download, list_repo_files=lambda name: there)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert isinstance(ldm_jax.load("hf:owner/name"), ldm_jax.LatentDiffusion)
    assert asked == ["owner/name"]

    def unreachable(name):
        raise ConnectionError("no network\nand more")

    def cached(name, local_files_only):
        if name != "owner/name":
            raise FileNotFoundError("nothing")
        return str(pipelines[0])

    hub = types.SimpleNamespace(snapshot_download=cached, list_repo_files=unreachable)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert isinstance(ldm_jax.load("hf:owner/name"), ldm_jax.LatentDiffusion)
    with pytest.raises(FileNotFoundError, match=r"can't be asked \(ConnectionError: no network\), and there is no copy"):
        ldm_jax.load("hf:owner/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        ldm_jax.load("hf:owner/name")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ldm_jax.load("/no/such/folder")


def test_a_local_name_asks_no_hub_and_names_what_is_near(monkeypatch, tmp_path):
    def snapshot_download(*arguments, **options):
        raise AssertionError("a hub was asked")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(FileNotFoundError, match=f"does not exist; there are .*{tmp_path.name}/shapes.*hf:"):
        ldm_jax.load(f"{tmp_path.name}/shaeps")
