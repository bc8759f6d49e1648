"""python -m ldm_jax.app"""

from ldm_jax.cli.commands import app

if __name__ == "__main__":
    app()
