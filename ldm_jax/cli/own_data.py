"""train.py --data=FOLDER: looks into the folder, decides, measures this machine, says what it chose."""

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ldm_jax.cli import configs
from ldm_jax.cli.overrides import field_of, overridden
from ldm_jax.primitives.console import as_typed_again
from ldm_jax.primitives.files import folder_place, of_this_machine, read_json

FILE = "config.py"


def config_for(flag: flags.FlagValues, overrides: Sequence[str], began: float) -> tuple[dict[str, Any], Path, str]:
    """The config, the working directory, and the text of the config's file. `began`: the monotonic clock when the command
    was started, from which --minutes count. ValueError or FileNotFoundError for what can't work."""
    if flag["config"].present:
        raise ValueError(f"--data decides the config: leave --config out, or say --config.data.path={flag.data}")
    alone = "--data measures one machine: write the config with one process, and train with --config on several"
    if flag.num_processes is not None or flag.process_id is not None or flag.coordinator:
        raise ValueError(alone)
    if not 0 < flag.minutes < 10**6:
        raise ValueError(f"--minutes={flag.minutes:g}: how long all may take, above 0")
    if flag.size < 0 or flag.size % 8:
        raise ValueError(f"--size={flag.size}: a multiple of 8 pixels")
    path = of_this_machine(flag.data, "--data")
    if path.is_file():
        raise ValueError(f"--data={flag.data} is a file: give the folder that holds the pictures; unpack an archive first")
    if not path.is_dir():
        raise FileNotFoundError(f"--data={flag.data}: there is no such folder")
    from ldm_jax.training import distributed  # here: it brings jax, which what is mistyped need not wait for

    if distributed.is_one_of_several():
        raise ValueError(alone)
    if flag.workdir and (Path(flag.workdir) / "config.json").is_file():
        return begun(flag, overrides, Path(flag.workdir))
    if flag.workdir:
        folder_place(flag.workdir, "--workdir")
    print(f"{path}: looking", flush=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # where TFDS reports its routine
    import jax

    from ldm_jax import build, own_data
    from ldm_jax.data.survey import survey
    from ldm_jax.workdir import check_workdir, use_compilation_cache

    base = configs.load(configs.find(configs.DEFAULT)[0])
    given = _data_given(base.to_dict(), overrides)
    names = {column: given[f"{column}_column"] for column in ("image", "caption", "label") if given.get(f"{column}_column")}
    splits = given.get("train_split", ""), given.get("validation_split", "")
    found = survey(path, not flag.unconditional, names, splits)
    _check_splits(splits, found.splits)
    decision = own_data.decide(found, machine(), size=flag.size)
    workdir = Path(flag.workdir or f"runs/{decision.fields['name']}")
    if (workdir / "config.json").is_file():
        return begun(flag, overrides, workdir)
    folder_place(workdir, "--workdir")
    decision.fields["data.path"] = str(Path(found.path).resolve())
    for what, said in decision.reasons:
        print(f"  {what:10} {said}", flush=True)
    chosen = own_data.apply(base.to_dict(), decision.fields)
    chosen = _overridden(chosen, overrides)
    named = {f"{stage}_train.steps" for stage in ("first_stage", "diffusion")}
    if named & {field_of(each) for each in overrides}:
        raise ValueError("--data finds the steps for --minutes: change the config that it writes, and train with --config=FILE")
    build.check(chosen)
    check_workdir(build.with_lists(chosen), workdir)
    use_compilation_cache()
    print("  measuring  a few steps of both stages on empty pictures", flush=True)
    costs = tuple(own_data.measure(chosen, stage) for stage in ("first_stage", "diffusion"))
    spent = time.monotonic() - began
    plan = own_data.budget(60 * flag.minutes - spent, costs, found, chosen)
    said = own_data.in_words(60 * flag.minutes, spent, costs, plan)
    print(f"  {'time':10} {said}", flush=True)
    chosen = _overridden(own_data.with_steps(chosen, plan.steps), overrides)
    build.check(chosen)
    text = own_data.script(base.to_dict(), chosen, _about(flag, workdir, decision, said, jax.devices()[0].device_kind))
    print(_body(text))
    print(f"the same, as a config: {workdir / FILE}; again, from nothing: --config={workdir / FILE} --workdir=NEW", flush=True)
    return chosen, workdir, text


def _data_given(base: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The fields of config.data that the command line sets."""
    ours = [each for each in overrides if field_of(each).startswith("data.")]
    data = _overridden(base, ours)["data"]
    return {name: data[name] for name in (field_of(each).removeprefix("data.") for each in ours)}


def _check_splits(given: tuple[str, str], found: tuple[str, str]) -> None:
    """ValueError where one split is given, and the other, which is decided, may have pictures of it."""
    from ldm_jax.data.source import canonical_split, parse_split

    train, validation = given
    if (train and not found[1]) or (validation and not train and canonical_split(parse_split(validation)[0]) == "train"):
        one, other = ("train", "validation") if train else ("validation", "train")
        said = f"--config.data.{one}_split={train or validation}"
        raise ValueError(f"{said}: give --config.data.{other}_split, too, or pictures that are held out would be trained on")


def begun(flag: flags.FlagValues, overrides: Sequence[str], workdir: Path) -> tuple[dict[str, Any], Path, str]:
    """The config of a working directory that a command before has begun. ValueError if that was for another folder or time."""
    config = read_json(workdir / "config.json", f"Restore it, or remove {workdir} and train again.")
    path, theirs = Path(flag.data).expanduser().resolve(), Path(config["data"]["path"] or ".").resolve()
    if theirs not in (path, *path.parents) or config["data"]["source"] == "shapes":
        raise ValueError(f"{workdir} holds a training of {theirs}: choose another --workdir")
    said = (workdir / FILE).read_text(encoding="utf-8") if (workdir / FILE).is_file() else ""
    minutes = re.search(r"([\d.]+) minutes: ", said)
    if flag["minutes"].present and minutes and float(minutes[1]) != flag.minutes:
        raise ValueError(f"{workdir} was planned for {minutes[1]} minutes: choose another --workdir, or leave --minutes out")
    if flag.unconditional and config["conditioner"]["kind"] != "none" or flag.size not in (0, config["data"]["image_size"]):
        raise ValueError(f"{workdir} holds a training with other flags: choose another --workdir")
    print(f"{config['name']}: going on with what was decided before, {workdir / FILE}", flush=True)
    return _overridden(_with_tuples(config), overrides), workdir, said


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_tuples(each) for name, each in value.items()}
    return tuple(value) if isinstance(value, list) else value


def machine() -> Any:
    """This one."""
    import os

    import jax

    from ldm_jax.own_data import Machine

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30
    return Machine(jax.default_backend() != "cpu", jax.device_count(), memory)


def without_condition(config: Any) -> Any:
    """The ConfigDict, unconditional. ValueError for a config without a diffusion model."""
    from ml_collections import ConfigDict

    from ldm_jax.own_data import unconditional

    if "network" not in config:
        raise ValueError(f"--unconditional: {config.name} trains a first stage alone, which has no condition")
    return ConfigDict(unconditional(config.to_dict()))


def _overridden(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    from ml_collections import ConfigDict

    return overridden(ConfigDict(config), overrides).to_dict()


def _about(flag: flags.FlagValues, workdir: Path, decision: Any, said: str, device: str) -> str:
    reasons = "\n".join(f"    {what:10} {text}" for what, text in (*decision.reasons, ("time", said), ("on", device)))
    return f"Chosen for the pictures in {flag.data}.\n\n    {as_typed_again()}\n\n{reasons}"


def _body(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line.startswith("    config."))
