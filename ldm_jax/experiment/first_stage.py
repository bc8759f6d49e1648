"""The stage that trains the autoencoder."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build, latents
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Spread
from ldm_jax.experiment.stage import Experiment
from ldm_jax.first_stage import psnr
from ldm_jax.training import sharding
from ldm_jax.training.loop import Hook, Report
from ldm_jax.training.metrics import image_grid
from ldm_jax.training.state import TrainState

PyTree = Any


def train_first_stage(experiment: Experiment) -> None:
    """Trains the autoencoder, unless the config names a trained one or has none."""
    config = experiment.config
    stage = build.make_first_stage(config)
    if stage.module is None or config["first_stage"]["path"]:
        experiment.say(f"first_stage: {config['first_stage']['path'] or 'none, diffusion in pixels'}")
        return
    batch_size = config["first_stage_train"]["batch_size"]

    def make_batches(start: int) -> Iterator[PyTree]:
        transform = build.make_transform(config)
        for batch in experiment.batches(experiment.sources["train"], transform, batch_size, start):
            yield sharding.to_device(experiment.mesh, {"image": batch["image"]})

    @jax.jit
    def reconstruct(params, images):
        encoded = stage.encode(params, images)
        z = latents.mode(encoded["moments"]) if "moments" in encoded else encoded["latents"]
        reconstruction = jnp.clip(stage.decode(params, z), -1, 1)
        return reconstruction, psnr(images, reconstruction)

    def validate(state: TrainState) -> Report:
        values, pairs = [], []
        for images, mask in _validation_images(experiment, batch_size):
            reconstruction, value = jax.device_get(reconstruct(state.averaged, images))
            values.append(value[mask])
            pairs.append(np.stack([images, reconstruction], axis=1)[mask])
        mean = float(np.mean(np.concatenate(values)))
        pairs = np.concatenate(pairs)[:32]
        grid = image_grid(pairs.reshape(-1, *pairs.shape[2:]), columns=8)
        return Report({"validation/psnr": mean}, {"reconstructions": (grid, "pairs: original, reconstruction")}, score=-mean)

    experiment.train(
        "first_stage",
        stage.init,
        build.make_first_stage_loss(config),
        make_batches,
        lambda: [Hook(config["log"]["validation_every"], validate)],
    )


def _validation_images(experiment: Experiment, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """config.log.validation_images of the validation set: images [B, H, W, 3] and which of them count."""
    source = Spread(experiment.sources["validation"], experiment.config["log"]["validation_images"])
    for batch in eval_batches(source, build.make_transform(experiment.config), batch_size):
        yield batch["image"], batch["mask"]
