"""python -m ldm_jax.weights"""

from ldm_jax.cli.commands import weights

if __name__ == "__main__":
    weights()
