"""Trains a latent diffusion model, both stages: python train.py --config=configs/shapes.py --workdir=runs/shapes

Any field of the config can be overridden: --config.diffusion_train.steps=4000. The same command resumes.
"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

HERE = Path(__file__).resolve().parent
CONFIG = config_flags.DEFINE_config_file("config", str(HERE / "configs" / "shapes.py"), "The experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", "", "Where everything goes; default runs/NAME, NAME being the config's.")


def main(_):
    # Imported here, so that --help and a typo in a flag answer at once.
    logging.set_verbosity(logging.WARNING)  # or jax says which backends this machine lacks
    import jax

    from ldm_jax import experiment
    from ldm_jax.training.loop import Interrupted
    from ldm_jax.workdir import use_compilation_cache

    use_compilation_cache()
    if "JAX_COORDINATOR_ADDRESS" in os.environ or "TPU_WORKER_HOSTNAMES" in os.environ or "SLURM_JOB_ID" in os.environ:
        jax.distributed.initialize()

    config = CONFIG.value.to_dict()
    workdir = Path(WORKDIR.value or f"runs/{config['name']}")
    try:
        experiment.run(config, workdir)
    except Interrupted as interruption:
        sys.exit(f"{interruption}. To go on: {' '.join(['python', *sys.argv])}")
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    app.run(main)
