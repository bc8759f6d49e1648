"""Who may know whom, as a literal. A wall may move when there is a reason: change this table and say why."""

import ast
import contextlib
import importlib
import types
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ldm_jax"

# Plain helpers that every room may use: names, arrays, files.
PRIMITIVES = "primitives"
# room -> third-party packages it may import. Rooms know themselves, `primitives`, and no other room.
LEAVES = {
    PRIMITIVES: {"jax", "numpy"},
    "diffusion": {"jax", "numpy", "scipy"},
    "models": {"jax", "numpy", "flax"},
    # wandb only if a config names a project
    "training": {"jax", "numpy", "optax", "orbax", "fsspec", "etils", "tensorboardX", "tqdm", "PIL", "wandb"},
    # faiss and scann only if a user has them and asks for them; soundfile and imageio where they are there
    "data": {
        "numpy", "scipy", "PIL", "grain", "tensorflow_datasets", "tokenizers", "absl", "faiss", "scann", "soundfile", "imageio",
    },
    "evaluation": {"etils", "jax", "numpy"},
    "weights": {"numpy", "ml_dtypes", "msgpack", "yaml"},
}
# What a leaf may know of another. The settings of diffusers' schedulers are files of the world, and what they mean is a recipe.
WALLS_MOVED = {"weights": {"diffusion"}}
# files (or folders) above the rooms -> what they may import of this package
FILES = {
    "__init__": {"api"},
    "first_stage": {"models", "training"},
    "conditioning": {"data", "models", "retrieval"},
    "second_stage": {"conditioning", "diffusion", "first_stage", "training"},
    "probes": {"data", "evaluation", "models", "training"},
    "retrieval": {"data", "models", "probes", "weights"},
    "scoring": {
        "api", "build", "conditioning", "data", "diffusion", "evaluation", "first_stage", "models", "probes", "retrieval",
        "training", "weights", "workdir",
    },
    "build": {"conditioning", "data", "diffusion", "first_stage", "media", "models", "second_stage", "training", "weights"},
    "api": {"build", "conditioning", "data", "diffusion", "first_stage", "models", "training", "weights"},
    "workdir": {"training"},
    "pictures": {"training"},
    "media": {"data", "pictures"},
    "experiment": {
        "api", "build", "conditioning", "data", "evaluation", "first_stage", "models", "pictures", "scoring", "training",
        "weights", "workdir",
    },
    "plan": {"api", "build", "models", "training"},
    # what is there, from `data`; what a step costs here, by the training step itself
    "own_data": {"build", "data", "training"},
    "drawing": {"api", "build", "conditioning", "data", "diffusion", "pictures"},
    "app": {"api", "build", "data", "diffusion", "drawing", "pictures", "scoring", "training"},
    # of training: how processes find one another, and which checkpoints there are
    "cli": {
        "api", "app", "build", "conditioning", "data", "diffusion", "drawing", "experiment", "own_data", "pictures", "plan",
        "probes", "retrieval", "scoring", "training", "weights", "workdir",
    },
}
# python -m ldm_jax.ROOM: a command, which belongs to `cli`.
COMMAND = "__main__.py"
STANDARD = __import__("sys").stdlib_module_names


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth of nesting."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def outside(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - set(STANDARD) - {"ldm_jax"}


def inside(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("ldm_jax.")}


@pytest.mark.parametrize("room", LEAVES)
def test_a_room_imports_only_itself_and_its_packages(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files, f"the room {room} is empty"
    for path in files:
        if path.name == COMMAND and inside(imports(path)) == {"cli"}:
            continue
        assert outside(imports(path)) <= LEAVES[room], path
        assert inside(imports(path)) <= {room, PRIMITIVES} | WALLS_MOVED.get(room, set()), path


def test_every_file_above_the_rooms_is_in_the_table():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {path.stem for path in PACKAGE.glob("*.py")} | folders == set(FILES) | set(LEAVES)


@pytest.mark.parametrize("name", FILES)
def test_files_above_the_rooms(name):
    for path in (PACKAGE / name).rglob("*.py") if (PACKAGE / name).is_dir() else [PACKAGE / f"{name}.py"]:
        if path.name == COMMAND:
            assert inside(imports(path)) == {"cli"}, path
            continue
        assert inside(imports(path)) <= FILES[name] | {name, PRIMITIVES}, path


def test_flax_lives_in_models_and_nothing_private_is_used():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "jax._src" not in text and "pmap" not in text and "flax.training" not in text, path


def test_configs_import_only_ml_collections():
    configs = PACKAGE.parent / "configs"
    for path in configs.rglob("*.py"):
        assert outside(imports(path)) <= {"ml_collections", "configs"}, path


def test_there_are_no_circles_above_the_leaves():
    """Rooms can be entered in one order: each knows only those before it."""
    left, order = {name: set(known) & set(FILES) for name, known in FILES.items()}, []
    while left:
        free = [name for name, known in left.items() if known <= set(order)]
        assert free, f"a circle among {sorted(left)}"
        order += free
        left = {name: known for name, known in left.items() if name not in free}


def test_no_module_is_long_and_every_public_item_says_what_it_is():
    bare = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, f"{path}: more than one thing?"
        tree = ast.parse(text)
        public = (n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_"))
        bare += [f"{path}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]
    assert not bare, bare


def test_entry_points_are_thin():
    for name in ("train.py", "sample.py"):
        assert len((PACKAGE.parent / name).read_text().splitlines()) < 100, name


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_use_what_there_is(path):
    """Names that they take from this package: most of them run for longer than a test may."""
    tree, modules, missing = ast.parse(path.read_text(encoding="utf-8")), {}, []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)):
        for name in node.names if (node.module or "").startswith("ldm_jax") else ():
            with contextlib.suppress(ImportError):  # a module that its room has not imported yet
                importlib.import_module(f"{node.module}.{name.name}")
            taken = getattr(importlib.import_module(node.module), name.name, None)
            if isinstance(taken, types.ModuleType):
                modules[name.asname or name.name] = taken
            missing += [f"{node.module}.{name.name}"] if taken is None else []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
        module = modules.get(node.value.id)
        if module is not None and not hasattr(module, node.attr):
            missing.append(f"{module.__name__}.{node.attr}")
    assert not missing, missing
