"""What looks at a diffusion model while it trains: one file each, with its own interval.

loss        of held-out images                            config.log.validation_every
samples     a grid of pictures for held-out conditions    config.log.images_every
distance    of drawn pictures from the training pictures  config.evaluation.evaluators.NAME.every, type "distance"
prompts     how many of them show what was asked for      config.evaluation.evaluators.NAME.every, type "prompts"
sentences   what drawn sentences are worth                config.evaluation.evaluators.NAME.every, type "sentences"

`config.evaluation.evaluators` maps names to settings: `type` (without one, the name itself), `every`, and what the type has in
FIELDS. They are made when they are first due; their numbers are called NAME/NUMBER. A type is a module with FIELDS, `check`,
`gives` and `make`; see `distance`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ldm_jax.experiment.evaluators import distance, prompts, sentences
from ldm_jax.experiment.evaluators.loss import make_loss
from ldm_jax.experiment.evaluators.model import Model
from ldm_jax.experiment.evaluators.samples import make_samples
from ldm_jax.experiment.stage import BEST
from ldm_jax.primitives.choices import check_choice
from ldm_jax.training.loop import Hook, Report
from ldm_jax.training.state import TrainState

__all__ = ["TYPES", "Model", "check", "hooks", "settings"]

TYPES = {"distance": distance, "prompts": prompts, "sentences": sentences}


def settings(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """config.evaluation.evaluators that are on, every field filled in: name -> {"type", "every", ...}.

    Raises:
      ValueError: an unknown type or field, or a number that can't be meant; by its whole name.
    """
    found = {}
    for name, section in config["evaluation"].get("evaluators", {}).items():
        place = f"config.evaluation.evaluators.{name}"
        if not name.isidentifier():
            raise ValueError(f"{place}: a name is of letters, digits and _")
        if not isinstance(section, Mapping):
            raise ValueError(f"{place}={section!r}: must be its settings, such as every=1000")
        module = TYPES[check_choice(section.get("type", name), TYPES, f"{place}.type")]
        known = {"type": name, "every": 0, **module.FIELDS}
        for field, value in section.items():
            check_choice(field, known, f"a field of {place}")
            if isinstance(known[field], int) and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"{place}.{field}={value}: must be a whole number of at least 0")
        full = {**known, **section}
        module.check(full, config, place)
        if full["every"]:
            found[name] = full
    return found


def check(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError or FileNotFoundError where an evaluator needs what isn't there, or where the number that is to judge the
    diffusion model is one that nothing gives; before anything is trained."""
    train = config["diffusion_train"]
    names = ["validation/loss"] if config["log"]["validation_every"] else []
    for name, section in settings(config).items():
        names += [f"{name}/{each}" for each in TYPES[section["type"]].gives(section, config, workdir)]
    by = train.get("best", BEST["diffusion"])
    if by not in names and (by != BEST["diffusion"] or train.get("patience", 0)):
        there = ", ".join(names) or "none"
        raise ValueError(f"config.diffusion_train.best={by!r}: nothing that is on gives it; there are {there}")
    if by not in names and "evaluation" in config["stages"] and config["evaluation"].get("which") == "best":
        raise ValueError(f"config.evaluation.which='best': nothing that is on gives {by}, by which it would be known")


def hooks(model: Model) -> list[Hook]:
    """All that are on, for `training.loop.train`."""
    log = model.experiment.config["log"]
    own = (log["validation_every"], make_loss), (log["images_every"], make_samples)
    made = [Hook(every, make(model)) for every, make in own if every]
    for name, section in settings(model.experiment.config).items():
        run = lazily(TYPES[section["type"]].make, model, section)
        made.append(Hook(section["every"], named(name, run)))
    return made


def lazily(make: Callable[..., Callable[[TrainState], Report]], *args: Any) -> Callable[[TrainState], Report]:
    """make(*args), at the first call."""
    made: list[Callable[[TrainState], Report]] = []

    def run(state: TrainState) -> Report:
        if not made:
            made.append(make(*args))
        return made[0](state)

    return run


def named(name: str, run: Callable[[TrainState], Report]) -> Callable[[TrainState], Report]:
    """`run`, its numbers and pictures under NAME/."""

    def renamed(state: TrainState) -> Report:
        found = run(state)
        return Report(
            {f"{name}/{each}": value for each, value in found.scalars.items()},
            {f"{name}_{each}": picture for each, picture in found.images.items()},
            frozenset(f"{name}/{each}" for each in found.higher),
        )

    return renamed
