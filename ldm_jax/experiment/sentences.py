"""What is seen of a first stage of text while it trains: how well held-out sentences are said again.

token_accuracy   the share of a sentence's places whose likeliest token is the right one, mean over sentences
exact            the share of sentences that are said again word for word
perplexity       exp of the mean of -log p over the places of a sentence, mean over sentences, in the exponent
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import build
from ldm_jax.data.tokenizer import END
from ldm_jax.experiment.stage import Experiment
from ldm_jax.first_stage import latents, sequences
from ldm_jax.training import sharding
from ldm_jax.training.loop import Report
from ldm_jax.training.metrics import image_grid
from ldm_jax.training.state import TrainState

PyTree = Any
HIGHER = frozenset(("validation/token_accuracy", "validation/exact"))
SHOWN = 12  # sentences


def make_validation(experiment: Experiment, batches: Callable, save: Callable) -> Callable[[TrainState], Report]:
    """The hook. `batches()`: "image" over all devices, and this process's "mask"; `save(experiment, step, {"z", "kl"})`: keeps
    what the latents are like."""
    stage = build.make_first_stage(experiment.config)

    @functools.partial(jax.jit, out_shardings=sharding.replicated(experiment.mesh))
    def look(params: PyTree, tokens: jax.Array) -> dict[str, jax.Array]:
        moments = stage.encode(params, tokens)["moments"]
        z = latents.mode(moments)
        scores = stage.decode(params, z)
        found = sequences.measures(scores, tokens[..., 0].astype(jnp.int32), END)
        return found | {"z": z, "kl": latents.kl_per_channel(moments), "pairs": jnp.stack([tokens, stage.drawn(scores)], 1)}

    def validate(state: TrainState) -> Report:
        seen = []
        for batch in batches():
            with jax.set_mesh(experiment.mesh):
                found = jax.device_get(look(state.averaged["autoencoder"], batch["image"]))
            mask = sharding.whole(experiment.mesh, batch["mask"])
            seen.append({name: value[mask] for name, value in found.items()})
        all_ = {name: np.concatenate([part[name] for part in seen]) for name in seen[0]}
        scalars = {f"validation/{name}": float(all_[name].mean()) for name in ("token_accuracy", "exact")}
        scalars["validation/perplexity"] = float(np.exp(all_["nll"].mean()))
        save(experiment, int(state.step), all_)
        pairs = all_["pairs"][:SHOWN].reshape(-1, *all_["pairs"].shape[2:])
        grid = image_grid(experiment.medium.shown(pairs), columns=2)
        lines = experiment.medium.words(pairs)
        text = "\n".join(f"{a}\n{b}\n" for a, b in zip(lines[::2], lines[1::2]))
        return Report(scalars, {"reconstructions": (grid, f"pairs: original, reconstruction\n\n{text}")}, HIGHER)

    return validate
