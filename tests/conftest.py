"""What all tests share: eight virtual CPU devices, and where reference outputs and real images are."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / default))
    if not folder.is_dir():
        pytest.skip(f"{variable}: no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Outputs of the reference implementations, one folder a case."""
    return _folder("LDM_FIXTURES", "fixtures")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images: flowers, emoji, street scenes, blood cells, Fashion-MNIST archives."""
    return _folder("LDM_DATA", "data")
