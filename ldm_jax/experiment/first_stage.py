"""The stage that trains the autoencoder, and what is seen of it on the way.

At every validation: PSNR, SSIM, LPIPS (where its weights are there) and the reconstruction FID (where Inception's are) of
reconstructions of fixed held-out images, side by side with the originals; how many codes of a codebook are in use; and
`WORKDIR/first_stage/latents.json`: mean, deviation and KL per channel, the scale, and the latents' spectrum.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import api, build, evaluation, models, weights
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Spread
from ldm_jax.experiment import sentences, unsaid
from ldm_jax.experiment.stage import BEST, Experiment
from ldm_jax.first_stage import FirstStageProgram, codebook, latents, psnr, sequences
from ldm_jax.primitives.arrays import key_of
from ldm_jax.primitives.files import write_json
from ldm_jax.training import sharding
from ldm_jax.training.loop import Hook, Report
from ldm_jax.training.metrics import image_grid
from ldm_jax.training.state import TrainState

PyTree = Any
HIGHER = frozenset(f"validation/{name}" for name in ("psnr", "ssim", *codebook.USAGE))  # of which more is better


def check_judge(config: Mapping[str, Any]) -> None:
    """ValueError where the number that is to judge the first stage is one that no validation of it gives."""
    section, loss, kind = config["first_stage_train"], config["first_stage_loss"], config["first_stage"]["kind"]
    size = config["data"]["image_size"]
    names = ["psnr", *(["ssim"] if (size if isinstance(size, int) else min(size)) >= 11 else [])]
    names += ["lpips"] if loss.get("perceptual_weight", 0) > 0 else []
    names += ["rfid"] if config["evaluation"].get("inception_path", "") else []
    names += codebook.USAGE if kind == "vq" else []
    names = sequences.MEASURES if kind == "text" else names
    given = [f"validation/{name}" for name in names] if config["log"]["validation_every"] else []
    by = section.get("best", BEST["first_stage"])
    if by not in given and (by != BEST["first_stage"] or section.get("patience", 0)):
        raise ValueError(f"config.first_stage_train.best={by!r}: nothing gives it; there are {', '.join(given) or 'none'}")


def train_first_stage(experiment: Experiment) -> None:
    """Trains the autoencoder, unless the config names a trained one or has none."""
    config = experiment.config
    stage = build.make_first_stage(config)
    if stage.module is None or config["first_stage"]["path"]:
        experiment.say(f"first_stage: {config['first_stage']['path'] or 'none, diffusion in pixels'}")
        return
    section = config["first_stage_train"]
    program = build.make_first_stage_program(config)
    constants = {"perceptual": load_perceptual(config["first_stage_loss"])} if program.constants else {}

    def make_batches(start: int) -> Iterator[PyTree]:
        transform = experiment.transform()
        for batch in experiment.batches(experiment.sources["train"], transform, section["batch_size"], start):
            yield sharding.to_device(experiment.mesh, {"image": batch["image"]})

    def prepare(params: PyTree) -> PyTree:
        if section["start_from"]:
            own = api.load_first_stage(config, experiment.workdir, path=section["start_from"])
            field = "config.first_stage_train.start_from"
            described = unsaid.of_first_stage(section["start_from"], experiment.workdir, field)
            here, there = unsaid.said(config, described, "first_stage")
            if here:
                was = f"the one to start from, {section['start_from']}, was trained with {', '.join(there)}"
                experiment.say(f"first_stage: {was}; this training has {', '.join(here)}")
            params = {**params, "autoencoder": own}
        images = (batch["image"] for batch in make_batches(0))
        return program.prepare(params, images, key_of(config["seed"]), trained=bool(section["start_from"]))

    experiment.train(
        "first_stage",
        program,
        make_batches,
        lambda: [Hook(config["log"]["validation_every"], make_validation(experiment, program, constants))],
        constants,
        prepare,
    )


def load_perceptual(section: Mapping[str, Any]) -> PyTree:
    """LPIPS's parameters from the files named; "random": an untrained network, always the same."""
    if section["perceptual_path"] == "random":
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        return models.initialize(build.make_perceptual(section), key_of(0), image, image)
    found = weights.read_lpips(section["perceptual_path"], section["perceptual_linear_path"] or None)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), found)


def make_validation(experiment: Experiment, program: FirstStageProgram, constants: PyTree) -> Callable[[TrainState], Report]:
    """The hook that looks at reconstructions of held-out images; every process looks at its share of them."""
    config, stage = experiment.config, build.make_first_stage(experiment.config)
    if config["first_stage"]["kind"] == "text":
        batch_size = config["first_stage_train"]["batch_size"]
        return sentences.make_validation(experiment, lambda: validation_batches(experiment, batch_size), save_statistics)
    module, batch_size = stage.module, config["first_stage_train"]["batch_size"]
    inception = read_inception(config["evaluation"]["inception_path"])

    @functools.partial(jax.jit, out_shardings=sharding.replicated(experiment.mesh))
    def look(params, images):
        encoded = stage.encode(params["autoencoder"], images)
        found = {}
        if "moments" in encoded:
            z = latents.mode(encoded["moments"])
            found["kl"] = latents.kl_per_channel(encoded["moments"])
        else:
            z = encoded["latents"]
            found["indices"] = module.apply({"params": params["autoencoder"]}, z, method="quantize")[1]
        pictures = jnp.clip(stage.decode(params["autoencoder"], z), -1, 1)
        measures = {"psnr": psnr(images, pictures)}
        if min(images.shape[1:-1]) >= 11:
            measures["ssim"] = evaluation.ssim(images, pictures)
        if program.distance is not None:
            measures["lpips"] = program.distance(params, images, pictures)
        if inception is not None:
            found["features"] = jnp.stack([inception(images), inception(pictures)], 1)
        return z, jnp.stack([images, pictures], 1), measures, found

    def validate(state: TrainState) -> Report:
        seen = []
        params = {**sharding.replicate(experiment.mesh, constants), **state.averaged}
        for batch in validation_batches(experiment, batch_size):
            with jax.set_mesh(experiment.mesh):
                z, pairs, measures, found = jax.device_get(look(params, batch["image"]))
            mask = sharding.whole(experiment.mesh, batch["mask"])
            whole = {"z": z, "pairs": pairs, **measures, **found}
            seen.append({name: value[mask] for name, value in whole.items()})
        all_ = {name: np.concatenate([part[name] for part in seen]) for name in seen[0]}
        scalars = {f"validation/{name}": float(np.mean(all_[name])) for name in measures}
        if "indices" in all_:
            used = jax.device_get(codebook.usage(codebook.counts(all_["indices"], module.codes)))
            scalars |= {f"validation/{name}": float(value) for name, value in used.items()}
        if "features" in all_:
            scalars["validation/rfid"] = evaluation.frechet_distance(*np.moveaxis(all_["features"], 1, 0))
        save_statistics(experiment, int(state.step), all_)
        pairs = all_["pairs"][:32]
        grid = image_grid(experiment.medium.shown(pairs.reshape(-1, *pairs.shape[2:])), columns=8)
        return Report(scalars, {"reconstructions": (grid, "pairs: original, reconstruction")}, HIGHER)

    return validate


def save_statistics(experiment: Experiment, step: int, seen: dict[str, np.ndarray]) -> None:
    """What the latents of the validation images are like, beside the checkpoints."""
    if jax.process_index():
        return
    found = latents.measure([seen["z"]])
    frequencies, power = evaluation.power_spectrum(seen["z"])
    statistics = {
        "step": step,
        "count": found.count,
        "mean": found.mean,
        "std": found.std,
        "scale": found.scale,
        "spectrum": {"frequency": np.asarray(frequencies).tolist(), "power": np.asarray(power).tolist()},
    }
    if "kl" in seen:
        statistics["kl_per_channel"] = seen["kl"].mean(0).tolist()
    write_json(experiment.workdir / "first_stage" / "latents.json", statistics)


def read_inception(path: str) -> Callable[[jax.Array], jax.Array] | None:
    """Images [B, H, W, 3] in [-1, 1] -> Inception's features [B, 2048]; None without a file."""
    if not path:
        return None
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), weights.read_inception(path))
    net = models.InceptionV3()
    run = jax.jit(lambda params, images: net.apply({"params": params}, images).features)
    return functools.partial(run, params)


def validation_batches(experiment: Experiment, batch_size: int) -> Iterator[dict[str, Any]]:
    """config.log.validation_images of the validation set: "image" [B, H, W, 3] over all devices, and this process's "mask" of
    those that count."""
    source = Spread(experiment.sources["validation"], experiment.config["log"]["validation_images"])
    rows, on_error = sharding.local_rows(experiment.mesh, batch_size), experiment.config["data"]["on_error"]
    for batch in eval_batches(source, experiment.transform(), batch_size, rows=rows, on_error=on_error):
        yield {"image": sharding.to_device(experiment.mesh, batch["image"]), "mask": batch["mask"]}
