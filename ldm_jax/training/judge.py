"""Which state of a run is the best, and when going on no longer helps.

One number of those that hooks report judges, such as "validation/loss". What it said is kept with every checkpoint, so that a
run that goes on judges as one that was never stopped.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax.training.checkpoint_reader import best_in, judged_of


class Judge:
    """The best value of the number called `by` so far, and how many looks since gave no better one.

    `patience`: after so many of them in a row the run is `tired`; 0: never. Scores are the number itself, or minus it where
    more is better (`higher`), so that the lowest is the best."""

    def __init__(self, by: str = "", patience: int = 0):
        if patience < 0:
            raise ValueError(f"patience={patience}: at least 0, which is never")
        self.by, self.patience = by, patience
        self.best, self.since, self.higher, self.missed = np.inf, 0, False, False

    @property
    def tired(self) -> bool:
        """Whether to stop."""
        return 0 < self.patience <= self.since

    @property
    def record(self) -> dict[str, str | int | bool]:
        """What a checkpoint keeps beside its score."""
        return {"by": self.by, "since": self.since, "higher": self.higher}

    def recall(self, folder: str | Path, step: int) -> None:
        """Takes up where the checkpoint of `step` under `folder` left. What another number judged doesn't count. `missed`:
        whether it was saved as the run was stopped, before the hooks that were due had looked at it."""
        found = judged_of(folder, step)
        self.missed = bool(_of_first([found.get("looked") is False])[0])
        self.higher = found.get("by") == self.by and bool(found.get("higher", False))
        best = best_in(folder, self.by, until=step)
        self.best = _of_first([best[1] if best else np.inf])[0]
        self.since = int(_of_first([found.get("since", 0) if found.get("by") == self.by else 0])[0])

    def look(self, scalars: Mapping[str, float], higher: frozenset[str] = frozenset()) -> tuple[float | None, bool]:
        """(score of this state, whether it is the best so far); (None, False) where nothing judged. All processes call it, and
        are told what process 0 saw.

        Args:
          scalars: all that the hooks of this step found.
          higher: the names of those of which more is better."""
        value = scalars.get(self.by)
        if value is not None:
            self.higher = self.by in higher
        score = np.nan if value is None else -float(value) if self.higher else float(value)
        there, score = _of_first([float(value is not None), score])
        if not there:
            return None, False
        better = bool(np.isfinite(score) and score < self.best)
        self.best, self.since = (score, 0) if better else (self.best, self.since + 1)
        return (score if np.isfinite(score) else None), better

    def in_words(self, step: int) -> str:
        """Why a run stopped at `step`, for the reader."""
        looks = f"{self.since} look{'s' * (self.since > 1)}"
        return f"stopped at step {step}: {looks} without a better {self.by} than {-self.best if self.higher else self.best:.5g}"


def _of_first(values: list[float]) -> list[float]:
    """Process 0's numbers in all processes, to the last bit: one process that goes on is to find its best as it measured it."""
    if jax.process_count() == 1:
        return values
    words = np.float64(values).view(np.uint32)  # of a float64 JAX would keep half
    return np.asarray(multihost_utils.broadcast_one_to_all(words)).view(np.float64).tolist()
