"""The model in training, as its evaluators see it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ldm_jax import api, build
from ldm_jax.experiment.stage import Experiment
from ldm_jax.training import sharding
from ldm_jax.training.state import TrainState

PyTree = Any
NOT_DRAWN = ("latents", build.TEACHER)  # constants that only the loss takes


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """`spec`: one for the whole run, as compiled functions belong to it. `constants`: what the step takes beside the state: the
    first stage, the latents' scale, a frozen conditioner."""

    experiment: Experiment
    spec: api.Specification
    constants: Mapping[str, PyTree]

    def params(self, state: TrainState) -> PyTree:
        """All that drawing takes, with the averaged weights, on every device."""
        found = {**{name: part for name, part in self.constants.items() if name not in NOT_DRAWN}, **state.averaged}
        found = sharding.replicate(self.experiment.mesh, found)  # constants may be of one device, and both are added up
        return sharding.replicate(self.experiment.mesh, api.adapted(self.experiment.config, found, self.experiment.condition))
