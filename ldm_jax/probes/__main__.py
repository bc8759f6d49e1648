"""python -m ldm_jax.probes"""

from ldm_jax.cli.commands import probes

if __name__ == "__main__":
    probes()
