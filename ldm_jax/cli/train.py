"""Trains a latent diffusion model, both stages.

    train.py                                         the default: coloured shapes from captions, into runs/shapes
    train.py --data=FOLDER [--minutes=30]            pictures of your own: looks, decides, says what it chose
    train.py --config=flowers64 --config.data.path=FOLDER --config.diffusion_train.steps=4000
    train.py --help=diffusion_train                  the fields of a group, and what they mean

The same command resumes. It ends with status 0 when all is trained, 75 when it was stopped and can go on, 1 when it can't work.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from ldm_jax.cli import configs
from ldm_jax.cli.overrides import overridden
from ldm_jax.primitives import huge_pages
from ldm_jax.primitives.choices import did_you_mean
from ldm_jax.primitives.console import (
    as_typed_again,
    called,
    check_filled,
    flag_error,
    print_anything,
    quiet,
    stop_on_sigterm,
    with_home,
)

INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again
_CONFIG_FIELD = re.compile(r"--?(no)?config\.[\w.]+")


def own_flags() -> flags.FlagValues:
    """All flags but those of the config's fields."""
    found = flags.FlagValues()
    common = {"flag_values": found}
    flags.DEFINE_string("config", configs.DEFAULT, "The experiment: a file, or one of the names below.", **common)
    flags.DEFINE_string("workdir", "", "Where everything goes; default runs/NAME, NAME being the config's.", **common)
    flags.DEFINE_string("data", "", "A folder of pictures, or what TFDS prepared: finds a config for it.", **common)
    flags.DEFINE_float("minutes", 30.0, "With --data: how long all may take on this machine.", **common)
    flags.DEFINE_integer("size", 0, "With --data: the side of the pictures; default: what fits.", **common)
    flags.DEFINE_bool("unconditional", False, "Leaves captions and classes aside.", **common)
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where clusters don't say it.", **common)
    flags.DEFINE_integer("num_processes", None, "How many processes train together.", **common)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", **common)
    found.set_gnu_getopt(True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Exits with a status and, where it isn't 0, one line."""
    print_anything()
    stop_on_sigterm()
    quiet()
    program, arguments = arguments is None, with_home(sys.argv if arguments is None else arguments)
    try:
        if helped := asked_for_help(arguments):
            return print(helped_with(helped, arguments))
        run(arguments, program)
    except KeyboardInterrupt as interruption:
        said = str(interruption) or "stopped; what was saved before is there"
        with contextlib.suppress(OSError):  # the terminal is gone, too
            print(f"{said}. To go on: {as_typed_again()}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}")


def run(arguments: list[str], program: bool = False) -> None:
    """What the flags ask for; `program`: whether the process is there for nothing else. KeyboardInterrupt when it was stopped,
    ValueError or OSError for what can't work."""
    began = time.monotonic()
    flag, overrides = parse(arguments)
    check_filled(flag, ("config", "workdir", "data"))
    if program:
        huge_pages.ask()
    if flag.data:
        from ldm_jax.cli import own_data

        return train(flag, *own_data.config_for(flag, overrides, began))
    for name in ("minutes", "size"):
        if flag[name].present:
            raise ValueError(f"--{name} goes with --data=FOLDER")
    config = overridden(configs.load(*configs.find(flag.config)), overrides)
    if flag.unconditional:
        from ldm_jax.cli import own_data

        config = own_data.without_condition(config)
    config = config.to_dict()
    workdir = Path(flag.workdir or f"runs/{config['name']}")
    print(f"{config['name']}: {', '.join(config['stages'])}, in {flag.workdir or workdir}", flush=True)
    train(flag, config, workdir)


def train(flag: flags.FlagValues, config: dict[str, Any], workdir: Path, script: str = "") -> None:
    """The run. `script`: the text of a config file that gives `config`, to be kept in the working directory."""
    # Imported here, so that --help and a typo in a flag answer at once.
    logging.set_verbosity(logging.WARNING)  # or jax says which backends this machine lacks
    from ldm_jax import experiment
    from ldm_jax.training import bucket, distributed
    from ldm_jax.training.loop import Interrupted
    from ldm_jax.workdir import use_compilation_cache

    use_compilation_cache()
    try:
        found = distributed.initialize(flag.coordinator, flag.num_processes, flag.process_id)
        if found != "1 process":
            print(found, flush=True)
        with distributed.ends_together((Interrupted,)):  # all stop at the same step
            with bucket.opened(workdir) as place:
                experiment.run(config, place, script)
    except Interrupted as interruption:
        raise KeyboardInterrupt(str(interruption)) from None


def asked_for_help(arguments: Sequence[str]) -> str:
    """ "all", or the group of fields that --help names; "" where there is no --help."""
    for i, argument in enumerate(arguments[1:], 1):
        if match := re.fullmatch(r"--?h(?:elp(?:full|short)?)?(?:=(.*))?", argument):
            follows = arguments[i + 1] if i + 1 < len(arguments) else "-"
            return match[1] or ("all" if follows.startswith("-") else follows)
    return ""


def helped_with(group: str, arguments: Sequence[str]) -> str:
    """The text of --help, or of --help=GROUP for the config that is named beside it."""
    if group == "all":
        own = own_flags()
        about = "\n".join(f"  --{name:14} {own[name].help}" for name in own)
        default = configs.load(configs.find(configs.DEFAULT)[0])
        groups = ", ".join(["config", *(name for name, value in default.items() if hasattr(value, "keys"))])
        return (
            f"{__doc__.replace('train.py', called('train.py'))}\nFlags:\n{about}\n\n"
            f"Any field of a config can be overridden, --config.GROUP.FIELD=VALUE. --help=GROUP shows them: {groups}\n\n"
            f"Configs (--config=NAME):\n{configs.listing()}"
        )
    chosen = next((a.split("=", 1)[1] for a in tidy(arguments) if re.match(r"--?config=", a)), configs.DEFAULT)
    path, argument = configs.find(chosen)
    return configs.fields(configs.load(path, argument), group, path)


def parse(arguments: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags, and what overrides the config's fields. ValueError, in one line, for what is neither."""
    own = own_flags()
    try:
        left = own(tidy(arguments), known_only=True)[1:]
    except flags.Error as error:
        raise ValueError(flag_error(error)) from None
    for argument in left:
        if not argument.startswith("-"):
            known = argument in configs.named() or argument.endswith(".py")
            meant = "config" if known else "data" if Path(argument).is_dir() else ""
            near = f" (--{meant}={argument}?)" if meant else ""
            raise ValueError(f"{argument!r}: flags begin with --{near}; --help shows them")
        if not _CONFIG_FIELD.match(argument):
            name = argument.lstrip("-").split("=")[0]
            raise ValueError(f"{argument.split('=')[0]} is no flag.{did_you_mean(name, list(own))} --help shows them")
    return own, left


def tidy(arguments: Sequence[str]) -> list[str]:
    """The command line with a flag's value behind it joined to it, and the last of a field's values alone: ml_collections would
    join those of a tuple."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch(r"--?config(\.[\w.]+)?", joined[-1]) and not re.match(r"--?[a-z]", argument):
            joined[-1] += f"={argument}"  # --config.FIELD VALUE
        else:
            joined.append(argument)
    fields = [re.match(r"--?(config\.[\w.]+)", argument) for argument in joined]
    last = {field[1]: place for place, field in enumerate(fields) if field}
    return [argument for i, argument in enumerate(joined) if not fields[i] or last[fields[i][1]] == i]
