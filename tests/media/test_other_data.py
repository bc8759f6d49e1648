"""The medium that docs/other_data.md makes: its code, taken from the page, trains and draws."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax import build, media
from ldm_jax.build.check import check
from ldm_jax.data import fingerprint, latent_cache, source
from ldm_jax.data.pipeline import batches
from ldm_jax.own_data.decision import unconditional
from tests.test_films import TINY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "other_data.md"


@pytest.fixture
def config(monkeypatch, tmp_path):
    """The page's config, tiny, over a folder of twelve series of 40 moments; its medium is known."""
    names = {"__name__": "series_of_the_page"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, PAGE.name, "exec"), names)
    monkeypatch.setitem(media.MEDIA, "series", names["Series"])
    for module, name in ((source, "DATA"), (source, "COLUMNS"), (latent_cache, "DATA"), (fingerprint, "FILES")):
        monkeypatch.setattr(module, name, ("series", *getattr(module, name)))
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(12):
        phase = rng.uniform(0, 6, 2) + np.arange(40)[:, None] / 3
        np.savetxt(tmp_path / "data" / f"{i}.csv", np.sin(phase), delimiter=",")
    made = names["get_config"]()
    kept = ("first_stage", "network", "log", "checkpoint")
    tiny = {name: value for name, value in TINY.items() if name.split(".")[0] in kept}
    tiny |= {"data.path": str(tmp_path / "data"), "data.image_size": (32,), "first_stage_train.steps": 4}
    tiny |= {"data.train_split": "train[:8]", "data.validation_split": "train[8:]"}
    tiny |= {"diffusion_train.steps": 4, "sampling.steps": 2, "evaluation.batch_size": 4, "latents.scale_batches": 1}
    tiny |= {f"{name}_train.batch_size": 8 for name in ("first_stage", "diffusion")}
    tiny |= {f"{name}_train.warmup_steps": 1 for name in ("first_stage", "diffusion")}
    with made.ignore_type():
        made.update_from_flattened_dict(tiny)
    return build.with_lists(unconditional(made.to_dict()))


def test_its_rows_become_arrays_and_files(config, tmp_path):
    check(config)
    rows = build.make_source(config, "train", ())
    assert source.describe(rows).startswith("8 series")
    transform = build.make_transform(config)
    batch = next(batches(rows, transform, 4, seed=0))["image"]
    assert batch.shape == (4, 32, 2) and np.abs(batch).max() <= 1
    medium = build.make_medium(config)
    assert medium.shown(batch).shape == (4, 16, 32, 3)
    medium.save(tmp_path / "out", "grid", batch, ["it"] * 4, singly=True)
    again = medium.read(tmp_path / "out" / "0000.csv")
    np.testing.assert_allclose(again, batch[0], atol=1e-5)
    everything = {**config, "data": {**config["data"], "train_split": "train"}}
    before = fingerprint.contents(build.make_source(everything, "train", ()))
    (tmp_path / "data" / "0.csv").write_text("1,2\n")
    assert fingerprint.contents(build.make_source(everything, "train", ())) != before
    with pytest.raises(ValueError, match="0.csv.* outside"):
        [transform(row) for row in build.make_source(everything, "train", ())]


@pytest.mark.slow
def test_it_trains_and_draws(config, tmp_path):
    from ldm_jax.experiment import run

    run(config, tmp_path / "run")
    ldm = ldm_jax.load(tmp_path / "run")
    drawn = np.asarray(ldm.sample(ldm.params, jax.random.key(0), num=2))
    assert drawn.shape == (2, 32, 2) and np.isfinite(drawn).all()
