"""python -m ldm_jax.evaluation"""

from ldm_jax.cli.commands import evaluate

if __name__ == "__main__":
    evaluate()
