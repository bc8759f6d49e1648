"""Trains a latent diffusion model, both stages: python train.py --config=configs/shapes.py --workdir=runs/shapes

A config of the folder configs may go by its name, --config=shapes. Any field can be overridden:
--config.diffusion_train.steps=4000. The same command resumes. It ends with status 0 when all is trained, 75 when it was stopped
and can go on, 1 when it can't work.
"""

import os
import re
import shlex
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from ldm_jax.primitives.choices import did_you_mean
from ldm_jax.primitives.console import print_anything, stop_on_sigterm

HERE = Path(__file__).resolve().parent
CONFIG = config_flags.DEFINE_config_file("config", str(HERE / "configs" / "shapes.py"), "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "", "Where everything goes; default runs/NAME, NAME being the config's.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where clusters don't say it.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
INTERRUPTED = 75  # EX_TEMPFAIL: start the same command again


def main(_):
    print_anything()
    stop_on_sigterm()
    workdir = Path(WORKDIR.value or f"runs/{CONFIG.value.name}")
    print(f"{CONFIG.value.name}: {', '.join(CONFIG.value.stages)}, in {workdir}", flush=True)
    try:
        train(workdir)
    except KeyboardInterrupt as interruption:
        said = str(interruption) or "stopped; what was saved before is there"
        print(f"{said}. To go on: {shlex.join(['python', *sys.argv])}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}")


def train(workdir: Path):
    """The run. KeyboardInterrupt when it was stopped."""
    # Imported here, so that --help and a typo in a flag answer at once.
    logging.set_verbosity(logging.WARNING)  # or jax says which backends this machine lacks
    from ldm_jax import experiment
    from ldm_jax.training import distributed
    from ldm_jax.training.loop import Interrupted
    from ldm_jax.workdir import use_compilation_cache

    use_compilation_cache()
    config = CONFIG.value.to_dict()
    try:
        found = distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        if found != "1 process":
            print(found, flush=True)
        experiment.run(config, workdir)
    except Interrupted as interruption:
        raise KeyboardInterrupt(str(interruption)) from None


def tidy(arguments: list[str]) -> list[str]:
    """The command line with a config's name as its file, and the last of a field's values alone: ml_collections would join
    those of a tuple."""
    joined = []
    for argument in arguments:
        if joined and re.fullmatch(r"--?config(\.[\w.]+)?", joined[-1]) and not re.match(r"--?[a-z]", argument):
            joined[-1] += f"={argument}"  # --config.FIELD VALUE
        else:
            joined.append(argument)
        if named := re.fullmatch(r"--?config=([^:]+)(:.*)?", joined[-1]):
            joined[-1] = f"--config={config_file(named[1])}{named[2] or ''}"
    fields = [re.match(r"--?(config\.[\w.]+)", argument) for argument in joined]
    last = {field[1]: place for place, field in enumerate(fields) if field}
    return [argument for i, argument in enumerate(joined) if not fields[i] or last[fields[i][1]] == i]


def config_file(name: str) -> str:
    """The file of a config, given by itself or by its name. Exits where there is none."""
    named = {path.stem: str(path) for path in (HERE / "configs").glob("*.py")}
    if name not in named and not Path(name).is_file():
        sys.exit(f"--config={name}: there is no such file, nor a config of this name.{did_you_mean(name, named)}")
    return name if Path(name).is_file() else named[name]


if __name__ == "__main__":
    try:
        app.run(main, tidy(sys.argv))
    except (AttributeError, KeyError) as error:  # a field that the config doesn't have
        sys.exit(f"{sys.argv[0]}: no such field of the config: {str(error).splitlines()[0]}")
