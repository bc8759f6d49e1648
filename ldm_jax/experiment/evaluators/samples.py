"""A grid of pictures for held-out conditions, always the same ones from the same noise: only the weights differ."""

from collections.abc import Callable

from ldm_jax.experiment.evaluators.model import Model
from ldm_jax.experiment.pictures import draw, held_out, side_by_side
from ldm_jax.training.loop import Report
from ldm_jax.training.metrics import image_grid
from ldm_jax.training.state import TrainState

COUNT = 16


def make_samples(model: Model) -> Callable[[TrainState], Report]:
    """The hook that draws them."""
    experiment = model.experiment
    shown, batch_size = held_out(experiment, COUNT), experiment.config["evaluation"]["batch_size"]

    def show(state: TrainState) -> Report:
        drawn = draw(model.spec, model.params(state), shown.inputs, len(shown.words), batch_size, experiment.mesh)
        images = experiment.medium.shown(drawn)
        said = experiment.medium.words(drawn)
        lines = shown.words if said is None else [": ".join(filter(None, pair)) for pair in zip(shown.words, said)]
        return Report(images={"samples": (image_grid(*side_by_side(images, shown)), "\n".join(lines))})

    return show
