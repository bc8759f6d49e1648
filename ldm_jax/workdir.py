"""The working directory of an experiment: whose it is, what ran in it, and where pictures go in it."""

import contextlib
import importlib.metadata
import itertools
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm_jax.primitives.files import folder_place, leftovers, of_this_machine, read_json, write_json, write_text

# What may differ between runs in one working directory, because it doesn't change what is learnt.
FREE_SECTIONS = ("log", "checkpoint", "mesh", "evaluation", "sampling")
DRAWN = re.compile(r"(grid|film|sentences|\d{4,})\.\w+")  # names of files that drawing writes into a folder
# Fields of a config that are paths.
PATHS = (
    "first_stage.path", "first_stage_train.start_from", "diffusion_train.start_from", "conditioner.path",
    "conditioner.tokenizer", "conditioner.database", "data.path", "data.palette", "evaluation.inception_path",
    "first_stage_loss.perceptual_path", "first_stage_loss.perceptual_linear_path",
)  # fmt: skip
FREE_FIELDS = (
    "compiler", "stages", "data.workers", "data.in_memory", "first_stage_train.best", "first_stage_train.patience",
    "diffusion_train.best", "diffusion_train.patience", "diffusion_train.accumulate", *PATHS,
    *(f"{network}.{how}" for network in ("first_stage", "network") for how in ("remat", "scan_blocks", "attention")),
)  # fmt: skip
BY_STEPS = ("consistency",)  # objectives whose grid is laid over all steps of the training
NO_LORA = {"rank": 0, "alpha": 0.0, "targets": ["to_q", "to_k", "to_v", "to_out_0"]}
NO_WORD = {"word": "", "initial": "", "vectors": 1}
NO_DREAMBOOTH = {"prior_weight": 0.0, "class_prompt": "", "class_pictures": 200}
NO_CONTROL = {"picture": "", "hint_channels": []}
# Fields that configs of earlier versions lack, and the values that change nothing.
SINCE = {
    "data": {"medium": "image", "captions": [], "conditioning_column": "", "augment": 0.0},
    "first_stage_loss": {"latent_noise": 0.0},
    "first_stage_train": {"accumulate": 1, "mu_dtype": "float32"},
    "diffusion_train": {"accumulate": 1, "mu_dtype": "float32", "post_hoc": [], "lora": NO_LORA,
                        "textual_inversion": NO_WORD, "control": NO_CONTROL, "dreambooth": NO_DREAMBOOTH},
    "latents": {"standardise": False, "posterior": "sample"},
    "conditioner": {"new_words": [], "stem": "patches", "token_std": 0.02, "position_std": 0.02, "conv_kernel": 0},
    "network": {"second_time": False, "guidance_dim": 0, "context_waves": 0},
    "diffusion": {
        "offset_noise": 0.0, "input_perturbation": 0.0, "learned_variance": False, "elbo_weight": 0.0, "objective": "diffusion",
        "options": {}, "scale": 1.0, "zero_terminal_snr": False,
    },
}


def is_path(name: str) -> bool:
    """Whether the field of this whole name is a path: one of `PATHS`, also of a part of combined conditions."""
    return re.sub(r"^conditioner\.parts\.[^.]+\.", "conditioner.", name) in PATHS


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def check_workdir(config: Mapping[str, Any], workdir: Path) -> None:
    """ValueError if the directory holds another experiment, with the difference, or something else altogether.

    More steps than it was trained for are no difference where the learning rate is constant and the objective has no grid over
    all of them: training goes on."""
    from ldm_jax.training import bucket, lock  # imported here: commands look for a place before jax is there

    path = workdir / "config.json"
    if not path.is_file():
        # of a training killed before anything was written
        ours = lock.NAME, f".{lock.NAME}.", ".config.json.", bucket.MARK
        if (workdir / "versions.json").is_file() or any((workdir / stage / "checkpoints").is_dir() for stage in bucket.STAGES):
            raise ValueError(
                f"{bucket.name_of(workdir)} has lost its config.json, or was copied without it: bring that back, or choose "
                "another --workdir"
            )
        if workdir.is_dir() and not all(entry.name.startswith(ours) for entry in workdir.iterdir()):
            raise ValueError(f"{workdir} is not empty and not a working directory of ours; choose another --workdir")
        return
    found = read_json(path, f"Restore it, or remove {workdir} and train again.")
    then, now = flatten(with_defaults(found, config)), flatten(config)
    free = {name for name in {*then, *now} if _is_free(name)}
    grid = now.get("diffusion.objective") in BY_STEPS and now.get("diffusion_train.decay") == "constant"
    for stage in ("first_stage_train", "diffusion_train"):
        steps, by_steps = f"{stage}.steps", grid and stage == "diffusion_train"
        if not by_steps and now.get(f"{stage}.decay") == "constant" and now.get(steps, 0) >= then.get(steps, 0):
            free.add(steps)
    lines = [
        f"  {name}: {then.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now"
        for name in sorted({*then, *now} - free)
        if then.get(name) != now.get(name)
    ]
    if lines:
        hint = ""
        if any(".steps:" in line for line in lines):
            what = "grid that is laid over all steps" if grid else "learning rate that falls to zero at the last step"
            hint = (
                f"\nA {what} can't go on: start from its weights in another --workdir, "
                f"--config.diffusion_train.start_from={bucket.name_of(workdir)}."
            )
        raise ValueError(
            f"{bucket.name_of(workdir)} holds another experiment; choose another --workdir, or go on with its config:\n"
            + "\n".join(lines)
            + hint
        )


def _is_free(name: str) -> bool:
    return name.split(".")[0] in FREE_SECTIONS or name in FREE_FIELDS or is_path(name)


def with_defaults(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A config as written by an earlier version, with the fields that have come since: of the values that change nothing."""
    sections = {}
    for name, value in now.items():
        if isinstance(value, Mapping) and isinstance(then.get(name), Mapping):
            since = {field: off for field, off in SINCE.get(name, {}).items() if field in value}
            sections[name] = {**since, **then[name]}
    return {**then, **sections}


def open_workdir(config: Mapping[str, Any], workdir: Path, script: str = "") -> None:
    """Writes config.json, its paths absolute, and, if there is a `script`, the text of a file that gives it, config.py;
    appends to versions.json what runs now. The caller holds the directory (`lock.hold`): what killed processes left
    half-written goes."""
    workdir.mkdir(parents=True, exist_ok=True)
    for path in leftovers(workdir):
        path.unlink(missing_ok=True)
    path, now = workdir / "config.json", versions()
    stored = absolute(config)
    if not path.is_file() or read_json(path) != stored:
        write_json(path, stored)
    if script and not (workdir / "config.py").exists():
        write_text(workdir / "config.py", script)
    path = workdir / "versions.json"
    try:
        found = read_json(path, expect=(dict, list)) if path.is_file() else []
        runs = found if isinstance(found, list) else found["runs"]  # the first working directories held the list alone
    except (ValueError, KeyError):  # for the record only
        os.replace(path, path.with_suffix(".damaged"))
        runs = []
    write_json(path, {"runs": [*runs, now]})


def absolute(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the paths that it names absolute, where they exist: it is read again from elsewhere."""

    def of(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [of(each) for each in value]
        return str(Path(value).absolute()) if isinstance(value, str) and value and Path(value).exists() else value

    def within(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: within(value, f"{prefix}{name}.") if isinstance(value, Mapping) else
            of(value) if is_path(f"{prefix}{name}") else value
            for name, value in section.items()
        }  # fmt: skip

    return within(config, "")


def versions() -> dict[str, str]:
    """Python, packages, devices, git revision and command line of this process; "unknown" what can't be known here."""
    import jax

    import ldm_jax

    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command_line(),
        "git": _revision(),
        "python": platform.python_version(),
        "ldm_jax": ldm_jax.__version__,  # a clone that is run where it lies has no metadata
        **{name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _revision() -> str:
    ask = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git in a small container
        return "unknown"
    return done.stdout.strip() or "unknown"


def command_line() -> str:
    """What was typed; of `python -m ldm_jax.ROOM`, that."""
    first = Path(sys.argv[0])
    if first.name == "__main__.py" and first.parent.parent == Path(__file__).parent:
        return shlex.join(["python", "-m", f"ldm_jax.{first.parent.name}", *sys.argv[1:]])
    return shlex.join(sys.argv)


def beside(command: str) -> str:
    """How to start another command as this process was started: "python sample.py", or "ldm-sample"."""
    script = Path(sys.argv[0]).with_name(f"{command}.py")
    return shlex.join(["python", str(script)]) if Path(sys.argv[0]).suffix == ".py" and script.is_file() else f"ldm-{command}"


def summary(workdir: Path, told: str = "") -> str:
    """Where everything is, and commands that run as they stand. `told`: what sample.py is told to draw from the model."""
    from ldm_jax.training.bucket import name_of, stage_folder  # here, as above

    places = {
        "pictures": workdir / "evaluation",
        "curves": f"tensorboard --logdir {shlex.quote(str(workdir))}, or {workdir}/*/metrics.jsonl",
        "weights": stage_folder(workdir, "diffusion"),
        "draw more": f"{beside('sample')} --workdir {shlex.quote(name_of(workdir))}{' ' * bool(told)}{told}",
    }
    if not places["weights"].is_dir():  # a first stage alone
        places = {
            "pictures": workdir / "first_stage" / "images",
            "curves": places["curves"],
            "weights": stage_folder(workdir, "first_stage"),
        }
    elif not places["pictures"].is_dir():  # an evaluation that isn't among the stages
        places["pictures"] = workdir / "diffusion" / "images"
    if not places["pictures"].is_dir():
        del places["pictures"]
    return "\n".join(["Results:", *(f"  {name:10} {place}" for name, place in places.items())])


def free_folder(parent: Path) -> Path:
    """parent/0000, or the first number that is free."""
    return next(folder for i in itertools.count() if not (folder := parent / f"{i:04d}").exists())


def check_samples_folder(model: Path, out: str | None) -> None:
    """OSError where `make_samples_folder` could make none; nothing is made."""
    if out:
        _check_free(folder_place(out, "--out"))
        return
    failures = []
    for folder in _places(model):
        try:
            folder_place(folder, "--out")
            return
        except OSError as error:
            failures.append(error)
    raise failures[-1]


def make_samples_folder(model: Path, out: str | None) -> Path:
    """A new folder for pictures, made now, before anything is drawn: `out`, or samples/N in a working directory, beside a
    checkpoint's file, or here where that can't be written. FileExistsError if `out` holds pictures already."""
    if out:
        folder = folder_place(out, "--out")
        _check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    for parent in _places(model):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            return _new_folder(parent)
        except OSError as error:
            failure = error
    raise failure


def _check_free(folder: Path) -> None:
    """FileExistsError where there is a file of a name that drawing gives, in whatever format: the user's own would be lost, or
    stand among pictures that it says nothing of."""
    taken = sorted(filter(DRAWN.fullmatch, os.listdir(folder))) if folder.is_dir() else []
    if taken:
        raise FileExistsError(f"{folder} holds pictures; choose another --out ({taken[0]} is there)")


def _new_folder(parent: Path) -> Path:
    """parent/0000, or the first number that is free, made at once: another command may be making one, too."""
    for i in itertools.count():
        with contextlib.suppress(FileExistsError):
            (folder := parent / f"{i:04d}").mkdir()
            return folder
    raise AssertionError("there is no end of numbers")


@contextlib.contextmanager
def samples_folder(model: Path, out: str | None) -> Iterator[Path]:
    """The folder of `make_samples_folder`. When what is done with it fails or is interrupted, what was made for it and is
    still empty is removed."""
    places = [of_this_machine(out, "--out")] if out else [*_places(model)]
    there = {path for place in places for path in (place, *place.parents) if path.exists()}
    folder = make_samples_folder(model, out)
    try:
        yield folder
    except BaseException:
        for path in (folder, *folder.parents):
            with contextlib.suppress(OSError):
                if path not in there and not any(path.iterdir()):
                    path.rmdir()
        raise


def _places(model: Path) -> tuple[Path, Path]:
    """Where samples of a model go, the first that can be written."""
    here = Path("samples")
    return (model / "samples" if model.is_dir() else model.with_name("samples") if model.is_file() else here), here


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk: $JAX_COMPILATION_CACHE_DIR, or ~/.cache/ldm_jax/xla. All but what compiles in a tenth
    of a second, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says otherwise."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "ldm_jax" / "xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
