"""Weights & Biases, for those who use it: what `Log` writes goes there as well. Nothing else here needs the package."""

import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.primitives.files import write_text


class WandbRun:
    """One stage as a run of a project, the same run whenever the stage goes on (its id is kept in FOLDER/wandb_id). What the
    service refuses is given up with a warning, and the training goes on."""

    def __init__(self, project: str, folder: Path, stage: str, config: Mapping[str, Any]):
        import wandb

        path = folder / "wandb_id"
        if not path.is_file():
            write_text(path, secrets.token_hex(8))
        self._images, self._folder = wandb.Image, folder
        self._run = wandb.init(
            project=project, dir=str(folder), id=path.read_text(encoding="utf-8").strip(), resume="allow",
            name=f"{folder.parent.name}/{stage}", job_type=stage, config=dict(config),
        )  # fmt: skip

    def add(self, step: int, values: Mapping[str, Any]) -> bool:
        """Numbers, and pictures uint8 [H, W, 3], of one step. Whether they could be given."""
        try:
            self._run.log({name: self._images(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}, step=step)
        except Exception as error:  # a service's failures are of many kinds, and none may end a training
            warnings.warn(f"Weights & Biases, for {self._folder}: {error}; given up", stacklevel=3)
            return False
        return True

    def close(self) -> None:
        """Ends the run."""
        try:
            self._run.finish()
        except Exception as error:
            warnings.warn(f"Weights & Biases, for {self._folder}: {error}", stacklevel=3)
