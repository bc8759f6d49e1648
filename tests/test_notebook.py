"""The notebook: it runs from top to bottom on a tiny model, and what is stored in it came from such a run."""

import copy
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

import ldm_jax
from ldm_jax.data import shapes
from ldm_jax.data.tokenizer import train_tokenizer
from tests import tiny

PATH = Path(__file__).resolve().parents[1] / "notebooks" / "tour.ipynb"


def cells() -> list[dict]:
    return [cell for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed(cells) -> str:
    streams = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "stream"]
    return "".join("".join(stream["text"]) for stream in streams)


def test_what_is_stored_came_from_one_run_and_names_no_machine():
    assert PATH.stat().st_size < 1_000_000
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert not re.search(r"/(?:home|root|tmp|work|Users|mnt|opt|usr)/", printed(cells()))
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8


def model():
    """Pictures of 16 x 16, prompts in the words of `shapes`."""
    plain = shapes.Mix(fills=(1, 0, 0))
    captions = [caption for seed in (1, 3) for caption, _ in shapes.prompts(512, seed=seed, mix=plain)]
    tokenizer = train_tokenizer([*captions, "a red circle", "a blue star", "a green square", "a yellow triangle"])
    path = Path(tempfile.mkdtemp()) / "tokenizer.json"
    tokenizer.save(path)
    config = copy.deepcopy(tiny.CONFIG)
    config["data"]["image_size"] = config["first_stage"]["resolution"] = 16
    config["network"]["attention_resolutions"] = []
    config["conditioner"] |= {"max_seq_len": 24, "vocab_size": tokenizer.vocab_size, "tokenizer": str(path)}
    return tiny.random_model(config, tokenizer)


def run(monkeypatch, workdir):
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f'no {name}: pip install -e ".[notebook]"')
    import nbclient
    import nbformat

    monkeypatch.setenv("LDM_WORKDIR", str(workdir))
    monkeypatch.setenv("LDM_STEPS", "20")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(PATH.parents[1]))
    notebook = nbformat.read(PATH, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(PATH.parent)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch, tmp_path):
    ldm_jax.save(model(), tmp_path / "model")
    said = printed(run(monkeypatch, tmp_path / "model"))
    before, after = map(float, re.search(r"loss ([\d.]+) before, ([\d.]+) after 20 steps", said).groups())
    assert after < before
    assert "pictures on each device: [2, 2, 2, 2]" in said
    assert float(re.search(r"from one device: (\S+)", said)[1]) < 1e-2
    assert np.isfinite([float(number) for number in re.findall(r"([-\d.]+) dB", said)]).all()


@pytest.mark.slow
def test_without_a_model_it_says_how_to_train_one(monkeypatch, tmp_path):
    exceptions = pytest.importorskip("nbclient.exceptions", reason='no nbclient: pip install -e ".[notebook]"')
    with pytest.raises(exceptions.CellExecutionError) as raised:
        run(monkeypatch, tmp_path / "none")
    assert raised.value.ename == "FileNotFoundError" and "run `python train.py`" in raised.value.evalue
