"""What all tests share: eight virtual CPU devices, quick compilation, and where reference outputs and real images are."""

import atexit
import functools
import importlib.metadata
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

# Most of the tests' time is compilation: LLVM optimizes little, with jaxlib 0.10 kernels come from the older emitter and in one
# piece, which takes a quarter and a tenth less of it (later versions gain nothing, or may end at a flag that they don't know),
# and all processes and files of a run share what they compiled, the single operations too.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# What tests, the libraries under them and the processes that they start leave in the folder for temporary files goes when the
# run ends; pytest's own folders (tmp_path) stay where they are found.
if "LDM_TESTS_SCRATCH" not in os.environ:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = os.environ["TMPDIR"] = os.environ["LDM_TESTS_SCRATCH"] = tempfile.mkdtemp(prefix="ldm_jax_tests_")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.tempdir, "compiled"))
    atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)

import jax
import pytest

from ldm_jax.training import sharding

jax.config.update("jax_num_cpu_devices", 8)
if not os.environ.get("JAX_PLATFORMS"):  # many processes would each want a GPU or a TPU; tests/test_gpu.py says how to use one
    jax.config.update("jax_platforms", "cpu")

ROOT = Path(__file__).resolve().parents[1]
# Files that take longest, which a run of several processes begins with: else one of them ends it alone.
LONGEST = ("test_train.py", "test_tasks.py", "test_training.py", "test_model.py", "test_editing.py")


def pytest_configure(config):
    """Files are given out in our order, not in that of how many tests they hold."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The longest files first; otherwise as they were."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


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


@pytest.fixture(scope="module", autouse=True)
def _own_programs():
    """Each file's programs go with it: in a process that holds thousands, lowering one takes several times as long."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def one_device():
    """Trainings of the file that asks for it have a mesh of one device, for which a program compiles faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(autouse=True)
def _own_signals():
    """Commands that a test calls in this process take SIGTERM over, and would keep it."""
    handler, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    yield
    signal.signal(signal.SIGTERM, handler)
    sys.unraisablehook = hook
