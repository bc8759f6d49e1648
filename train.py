"""Trains a latent diffusion model, both stages: python train.py --config=shapes --workdir=runs/shapes

Pictures of your own: python train.py --data=FOLDER. `--help` shows all flags and configs; installed, it is `ldm-train`.
"""

from ldm_jax.cli.train import main

if __name__ == "__main__":
    main()
