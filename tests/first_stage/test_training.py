"""First stages in training: one joint step, on one device or eight, resumed exactly, and what breaks it."""

import functools
import importlib.util
import json
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import api, build, experiment
from ldm_jax.build.autoencoder import make_latent_terms
from ldm_jax.experiment import first_stage as stage
from ldm_jax.first_stage import codebook
from ldm_jax.first_stage.learning import make_features
from ldm_jax.training import sharding
from ldm_jax.training.checkpoint import Checkpoints, load_averaged
from ldm_jax.training.state import Gradient, Step, accumulated

ROOT = Path(__file__).resolve().parents[2]
VQ = {
    "first_stage.kind": "vq",
    "first_stage.double_z": False,
    "first_stage.n_embed": 32,
    "first_stage_loss.reduction": "mean",
}
EMA = {"first_stage_loss.codebook": "ema", "first_stage_loss.codebook_kmeans": 2, "first_stage_loss.codebook_restart": 0.05}
ADVERSARIAL = {
    "first_stage_loss.disc_weight": 0.5,
    "first_stage_loss.disc_ndf": 8,
    "first_stage_loss.disc_layers": 2,
}
GAN = ADVERSARIAL | {
    "first_stage_loss.perceptual_weight": 0.1,
    "first_stage_loss.perceptual_path": "random",
    "first_stage_loss.perceptual_widths": (8, 8, 8, 8, 8),
}
KINDS = {"vq": VQ, "ema": EMA, "gan": GAN, "noise": {"first_stage_loss.latent_noise": 0.5}}


def tiny(**overrides):
    spec = importlib.util.spec_from_file_location("shapes_config", ROOT / "configs" / "shapes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict({
        "stages": ("first_stage",),
        "data.examples": (64, 16),
        "first_stage.ch": 8,
        "first_stage.ch_mult": (1, 1),
        "first_stage_train.optimizer": "adamw",
        "first_stage_train.steps": 4,
        "first_stage_train.warmup_steps": 1,
        "checkpoint.every": 2,
        "checkpoint.keep": 3,
        "log.every": 1,
        "log.validation_every": 4,
        "log.validation_images": 8,
    } | overrides)  # fmt: skip
    return config.to_dict()


def constants(config):
    section = config["first_stage_loss"]
    return {"perceptual": stage.load_perceptual(section)} if section["perceptual_weight"] else {}


def images(n=8, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (n, 32, 32, 3)), jnp.float32)


@functools.cache
def machine(names: tuple, devices: int):
    """state, step and training of a tiny config on so many devices."""
    config = tiny(**{k: v for name in names for k, v in KINDS[name].items()})
    training = build.make_first_stage_program(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    compiled = sharding.compile_step(mesh, training.step, training.shapes, constants(config))
    return lambda: sharding.init_sharded(mesh, training.init_state, 0), compiled, lambda x: sharding.to_device(mesh, x)


def run(names, devices, batches):
    start, step, put = machine(names, devices)
    state, told = start(), []
    for x in batches:
        state, metrics = step(state, put({"image": np.asarray(x)}), jax.random.key(3))
        told.append(jax.device_get(metrics))
    return jax.device_get(state), told


@pytest.mark.slow
@pytest.mark.parametrize("names", [("gan",), ("vq", "ema", "gan"), ("noise",)])
def test_eight_devices_give_the_losses_of_one(names):
    """Batch statistics of the discriminator, counts of codes and their restarts are those of the whole batch."""
    batches = [images(seed=i) for i in range(3)]
    (_, one), (_, eight) = run(names, 1, batches), run(names, 8, batches)
    ratios = ("grad_norm", "d_weight")  # of gradients, in which more cancels
    for updates, (a, b) in enumerate(zip(one, eight)):
        assert a.keys() == b.keys()
        for name in a:  # Adam's first updates divide by the gradient's own size, which lets rounding grow
            rtol = 1e-3 if name in ratios else 1e-4 if updates else 1e-5
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-6, err_msg=f"{name} after {updates} updates")


def test_a_broken_batch_changes_nothing_and_is_counted():
    start, step, put = machine(("vq", "ema", "gan"), 1)
    before = jax.device_get(start())
    state, told = run(("vq", "ema", "gan"), 1, [images().at[0, 0, 0, 0].set(jnp.nan)])
    assert told[0]["skipped"] == 1 and int(state.step) == 1
    for part in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(before, part))
    # the next good one moves every part
    state, told = run(("vq", "ema", "gan"), 1, [images().at[0].set(jnp.nan), images()])
    assert told[1]["skipped"] == 0
    for part in ("autoencoder", "discriminator", "codebook"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params[part], before.params[part])
        assert max(jax.tree.leaves(moved)) > 0, part


@pytest.mark.parametrize("x", [jnp.zeros((8, 32, 32, 3)), -jnp.ones((8, 32, 32, 3))], ids=["grey", "black"])
def test_constant_images_give_finite_steps(x):
    _, told = run(("vq", "ema", "gan"), 1, [x, x, x])
    assert all(np.isfinite(value).all() for metrics in told for value in metrics.values())
    assert told[-1]["skipped"] == 0


@pytest.mark.slow
def test_a_batch_of_one_and_more_codes_than_latents_in_it():
    config = tiny(**VQ | EMA | ADVERSARIAL | {"first_stage_loss.codebook_kmeans": 0, "first_stage.n_embed": 1024})
    training = build.make_first_stage_program(config)
    step = jax.jit(training.step)
    state = jax.jit(training.init_state)(jax.random.key(0))
    for i in range(2):
        state, metrics = step(state, {"image": images(1, i)}, jax.random.key(0), constants(config))
    assert int(metrics["skipped"]) == 0 and np.isfinite(float(metrics["loss"]))
    with pytest.raises(ValueError, match="as many latents as codes: 512 for 1024"):
        kmeans = build.make_first_stage_program(tiny(**VQ | EMA | {"first_stage.n_embed": 1024}))
        kmeans.prepare(state.params, [images(1), images(1)], jax.random.key(0))


@pytest.mark.slow
def test_the_adversarial_term_waits_for_its_step():
    config = tiny(**ADVERSARIAL, **{"first_stage_loss.disc_start": 1})
    training = build.make_first_stage_program(config)
    step = jax.jit(training.step)
    first = jax.jit(training.init_state)(jax.random.key(0))
    second, metrics = step(first, {"image": images()}, jax.random.key(0), constants(config))
    assert metrics["disc_factor"] == 0 and metrics["d_weight"] > 0
    jax.tree.map(np.testing.assert_array_equal, first.params["discriminator"], second.params["discriminator"])
    third, metrics = step(second, {"image": images()}, jax.random.key(0), constants(config))
    assert metrics["disc_factor"] == 1
    kernels = [state.params["discriminator"]["main_0"]["kernel"] for state in (second, third)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0


@pytest.mark.slow
def test_resumed_training_is_bit_exact_in_every_part(tmp_path, monkeypatch):
    # features for the reconstruction FID that are quicker to have than Inception's
    monkeypatch.setattr(stage, "read_inception", lambda path: lambda images: images.mean((1, 2)))
    config = tiny(**VQ, **EMA, **GAN, **{"first_stage_train.ema_decay": 0.9})
    experiment.run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "first_stage" / "checkpoints" / "4")
    experiment.run(config, tmp_path / "resumed")

    training = build.make_first_stage_program(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    target = jax.eval_shape(lambda: sharding.init_sharded(mesh, training.init_state, 0))

    def state(workdir):
        with Checkpoints(tmp_path / workdir / "first_stage" / "checkpoints") as checkpoints:
            return checkpoints.restore(target)

    whole, resumed = state("whole"), state("resumed")
    assert int(whole.step) == 4 and {"autoencoder", "discriminator", "codebook"} == set(whole.params)
    assert set(whole.ema) == {"autoencoder"} and set(whole.opt_state) == {"autoencoder", "discriminator"}
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    statistics = json.loads((tmp_path / "whole" / "first_stage" / "latents.json").read_text())
    assert statistics["step"] == 4 and len(statistics["std"]) == config["first_stage"]["embed_dim"]
    assert len(statistics["spectrum"]["power"]) == 9
    lines = [json.loads(line) for line in (tmp_path / "whole" / "first_stage" / "metrics.jsonl").read_text().splitlines()]
    (found,) = [line for line in lines if "validation/psnr" in line]
    assert {f"validation/{name}" for name in ("psnr", "ssim", "lpips", "rfid", "codes_used", "perplexity")} <= set(found)
    assert found["validation/rfid"] > 0


@pytest.mark.slow
def test_the_decoder_alone_is_tuned_from_trained_weights(tmp_path):
    experiment.run(tiny(), tmp_path / "kl")
    tuned = tiny(**{
        "first_stage_train.start_from": str(tmp_path / "kl"),
        "first_stage_train.frozen": ("encoder", "quant_conv"),
        "first_stage_train.weight_decay": 0.1,
    })  # fmt: skip
    experiment.run(tuned, tmp_path / "tuned")
    before, after = (load_averaged(tmp_path / name / "first_stage" / "checkpoints")["autoencoder"] for name in ("kl", "tuned"))
    for part in ("encoder", "quant_conv"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert np.abs(before["decoder"]["conv_in"]["kernel"] - after["decoder"]["conv_in"]["kernel"]).max() > 0
    assert set(api.load_first_stage(tuned, tmp_path / "tuned")) == set(after)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_codes_that_are_trained_already_are_kept(kind, unit):
    """Neither clusters nor the averages of random codes take their place; the moving averages start at them."""
    loss = EMA | {"first_stage_loss.codebook": kind, "first_stage_loss.codebook_restart": 0.0}
    training = build.make_first_stage_program(tiny(**VQ | loss | {"first_stage.unit_codes": unit}))
    params = training.init(jax.random.key(0))
    trained = 3 * jax.random.normal(jax.random.key(1), params["autoencoder"]["quantize"]["embedding"]["embedding"].shape)
    own = {**params["autoencoder"], "quantize": {"embedding": {"embedding": trained}}}
    found = training.prepare({**params, "autoencoder": own}, [images(4)], jax.random.key(2), trained=True)
    np.testing.assert_array_equal(found["autoencoder"]["quantize"]["embedding"]["embedding"], trained)
    assert ("codebook" in found) == (kind == "ema")
    if kind == "ema":
        expected = trained / jnp.linalg.norm(trained, axis=-1, keepdims=True) if unit else trained
        np.testing.assert_allclose(codebook.centres(found["codebook"]), expected, rtol=1e-5)


def test_a_training_from_trained_weights_begins_with_their_codes(monkeypatch):
    config = tiny(**VQ | EMA | {"first_stage_train.start_from": "elsewhere"})
    training = build.make_first_stage_program(config)
    trained = training.init(jax.random.key(1))["autoencoder"]
    monkeypatch.setattr(api, "load_first_stage", lambda config, workdir, path: {"elsewhere": trained}[path])
    monkeypatch.setattr(stage.unsaid, "of_first_stage", lambda path, workdir, field: {"elsewhere": config}[path])
    begun = []
    run = types.SimpleNamespace(config=config, workdir=None, train=lambda *arguments: begun.append(arguments))
    stage.train_first_stage(run)
    params = begun[0][-1](training.init(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, params["autoencoder"], trained)
    np.testing.assert_array_equal(params["codebook"]["sum"], trained["quantize"]["embedding"]["embedding"])


def test_noise_on_latents_is_the_decoders_alone():
    """The latents' own terms stay as they are; about half of the pictures come out otherwise."""
    config = tiny()
    module = build.make_first_stage(config).module
    params = {"autoencoder": build.make_first_stage_program(config).init(jax.random.key(0))["autoencoder"]}
    step = Step(jnp.int32(0), {}, jnp.arange(64), 64)
    told = []
    for noise in (0.0, 0.5):
        terms = make_latent_terms(config["first_stage_loss"] | {"latent_noise": noise}, module)
        features = make_features(module, terms, None, True)
        told.append(jax.jit(features)(params, images(64), jax.random.key(0), step))
    (h, penalty, (metrics, _)), (noised, same, (others, _)) = told
    np.testing.assert_allclose(penalty, same, rtol=1e-6)
    np.testing.assert_allclose(metrics["kl"], others["kl"], rtol=1e-6)
    apart = np.abs(h - noised).max((1, 2, 3)) > 1e-3 * np.abs(h).max()
    assert 20 < apart.sum() < 44


def test_moving_averages_of_a_batch_in_parts_are_those_of_the_whole():
    """Counts and sums, not a fourth of them."""
    config = tiny(**VQ | EMA | {"first_stage_loss.codebook_restart": 0.0})
    training, module = build.make_first_stage_program(config), build.make_first_stage(config).module
    features = make_features(module, make_latent_terms(config["first_stage_loss"], module), None, False)
    params = training.init(jax.random.key(0))

    def grad_fn(params, batch, key, step):
        assigned = features(params, batch["image"], key, step)[2][1]
        return Gradient(jnp.zeros(()), {}, {}, assigned)

    def after(parts):
        def look(params, x):
            step = Step(jnp.int32(0), {}, jnp.arange(8), 8)
            return accumulated(grad_fn, parts)(params, {"image": x}, jax.random.key(0), step).assigned["codebook"]

        return jax.jit(look)(params, images(8))

    whole, four = after(1), after(4)
    assert float(whole["count"].sum()) == pytest.approx(0.99 * 32 + 0.01 * 8 * 16 * 16, rel=1e-5)
    for name in whole:
        np.testing.assert_allclose(four[name], whole[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"first_stage_loss.perceptual_weight": 1.0}, "perceptual_path=''.*vgg16.*perceptual_weight=0"),
        ({"first_stage_loss.pixel": "l3"}, "pixel='l3'"),
        ({"first_stage_loss.reduction": "average"}, "reduction='average'"),
        ({"first_stage_loss.disc_weight": -1.0}, "config.first_stage_loss.disc_weight=-1.0: must be at least 0"),
        ({"first_stage_loss.codebook": "ema"}, "no learnt codebook"),
        ({**VQ, "first_stage_loss.codebook": "emma"}, "Did you mean 'ema'"),
        ({**VQ, "first_stage_loss.codebook_restart": 0.1}, "codebook='ema'"),
        ({**VQ, "first_stage_loss.latent_noise": 0.5}, "latent_noise=0.5: .*kind='kl'"),
        ({"first_stage_loss.latent_noise": -0.5}, "first_stage_loss.latent_noise"),
        ({**VQ, "first_stage.n_embed": 0}, "codebook"),
        ({**VQ, "first_stage.fsq_levels": (4, 4)}, "fsq_levels"),
        ({"first_stage_train.frozen": ("decodr",)}, "decodr"),
        ({**VQ, **EMA, "first_stage_train.frozen": ("quantize",)}, "'quantize' can't be"),
        ({**VQ, **EMA, "first_stage_train.accumulate": 2}, "codebook_restart=0.05 .*accumulate=2 .*codebook_restart=0 or acc"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(overrides, message):
    with pytest.raises(ValueError, match=message):
        build.check(tiny(**overrides))
