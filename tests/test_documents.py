"""Code in documents runs as it stands, block after block."""

import re
from pathlib import Path

import numpy as np
import pytest

import ldm_jax
from tests.weights import cases

DOCS = Path(__file__).parent.parent / "docs"


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parity
@pytest.mark.slow
def test_from_diffusers(fixtures_dir):
    found = [path for path in cases.folders(fixtures_dir, "E", "model_index.json") if (path / "text_encoder").is_dir()]
    if not found:
        pytest.skip(f"no pipeline with a text encoder in {fixtures_dir}")
    height, width = ldm_jax.load(found[0]).specification.image_size
    mask = np.zeros((height, width), np.float32)
    mask[: height // 2] = 1
    given = {"folder": str(found[0]), "mask": mask}
    given["photo"] = np.random.default_rng(0).uniform(-1, 1, (height, width, 3)).astype(np.float32)
    names = dict(given)
    for block in blocks(DOCS / "from_diffusers.md"):
        exec(compile(block, "docs/from_diffusers.md", "exec"), names)
    assert len(blocks(DOCS / "from_diffusers.md")) >= 5
    for name in ("images", "same", "changed", "painted", "quick"):
        assert names[name].shape == (2, height, width, 3) and np.isfinite(names[name]).all()
    assert names["again"].config["scheduler"] == names["ldm"].config["scheduler"]


def test_every_name_of_a_sampler_in_it_is_one():
    from ldm_jax import diffusion
    from ldm_jax.weights.scheduler_names import NAMES

    text = (DOCS / "from_diffusers.md").read_text(encoding="utf-8")
    table = text[text.index("| `sampler=` |") : text.index("Settings beyond")]
    named = set(re.findall(r'"(\w+)"', table)) - {"_karras"}
    assert named and named <= {*diffusion.SAMPLERS, *NAMES}
