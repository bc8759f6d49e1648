"""python -m ldm_jax.plan"""

from ldm_jax.cli.commands import plan

if __name__ == "__main__":
    plan()
