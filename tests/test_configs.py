"""Every small config can work: what can be said of it before any data are read."""

import importlib
from pathlib import Path

import pytest

from ldm_jax import build

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = sorted(path.stem for path in CONFIGS.glob("*.py") if "two CPU cores" in path.read_text().split('"""')[1])


def test_the_small_ones_are_found():
    assert {"shapes", "flowers64", "emoji_kl", "fashion_mnist_adm", "layout_shapes"} <= set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_small_configs_build(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.name == name
    if name == "retrieval_small":  # tests/test_retrieval.py makes the data base that it reads
        with pytest.raises(FileNotFoundError, match="holds no data base of neighbours; make one"):
            build.check(config.to_dict())
    else:
        build.check(config.to_dict())
