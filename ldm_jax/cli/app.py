"""A page to play with a model: ldm-app --workdir runs/shapes"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ldm_jax.primitives.console import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Shows the page until Ctrl-C or SIGTERM. ValueError or OSError for what can't work."""
    parser = Parser(prog="ldm-app", description="A page to play with a model, in a browser on this machine.")
    parser.add_argument("--workdir", default="runs/shapes", help="a working directory of train.py, or a checkpoint")
    parser.add_argument("--which", default="last", help="of a working directory's checkpoints: last, best, or a step")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at; others than 127.0.0.1 let others in")
    parser.add_argument("--port", type=int, default=7860, help="0: any that is free")
    flag = parser.parse_args(arguments)
    if not 0 <= flag.port < 2**16:
        raise ValueError(f"--port={flag.port}: must be a whole number from 0 to 65535")
    if importlib.util.find_spec("nicegui") is None:
        raise ValueError('the page needs NiceGUI: pip install "ldm_jax[app]"')
    # Imported here, so that --help and a typo in a flag answer at once.
    from absl import logging

    from ldm_jax import api
    from ldm_jax.app.pictures import Studio
    from ldm_jax.app.server import listen, serve
    from ldm_jax.workdir import use_compilation_cache

    logging.set_verbosity(logging.WARNING)
    place = listen(flag.host, flag.port)
    use_compilation_cache()
    ldm = api.load_whole(flag.workdir, which=int(flag.which) if flag.which.isdecimal() else flag.which)
    print(ldm.describe(), flush=True)
    serve(Studio(ldm), Path(flag.workdir), place)
    return 0
