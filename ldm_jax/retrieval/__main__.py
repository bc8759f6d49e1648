"""python -m ldm_jax.retrieval"""

from ldm_jax.cli.commands import retrieval

if __name__ == "__main__":
    retrieval()
