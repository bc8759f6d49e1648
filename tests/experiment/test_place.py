"""A working directory that vanishes between two stages, or that another one has taken the place of."""

import numpy as np
import pytest

from ldm_jax.experiment import evaluation, latents
from ldm_jax.experiment.stage import Experiment
from tests.test_habits import config_of


@pytest.mark.parametrize("instead", [False, True])
def test_nothing_is_made_anew_where_a_working_directory_was(tmp_path, monkeypatch, instead):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    disk = tmp_path / "disk"
    disk.mkdir()
    with Experiment(config_of("shapes", **{"data.examples": (16, 8)}), disk / "run") as experiment:
        experiment.check_place()
        disk.rename(tmp_path / "unplugged")
        if instead:
            (disk / "run").mkdir(parents=True)  # as the empty place of a mount
        before = sorted(tmp_path.rglob("*"))
        for begins in (
            lambda: latents.open_cache(experiment, None, {}),
            lambda: experiment.train("first_stage", None, None, None, None),
            lambda: experiment.train("diffusion", None, None, None, None),
            lambda: evaluation.save(experiment, {"validation": (np.zeros((1, 8, 8, 3)), 0, ["a"])}, {}, np.zeros((1, 8, 8, 3))),
        ):
            with pytest.raises(FileNotFoundError, match="is gone, or another is in its place"):
                begins()
        assert sorted(tmp_path.rglob("*")) == before
        if instead:
            (disk / "run").rmdir()
            disk.rmdir()
        (tmp_path / "unplugged").rename(disk)
        experiment.check_place()
