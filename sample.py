"""Draws pictures: python sample.py --workdir runs/shapes --prompt "a red circle" --prompt "a blue star" --num 8

What is drawn follows from what is given; docs/editing.md shows every mode. Without anything, it says what the model can do.
Installed, it is `ldm-sample`.
"""

from ldm_jax.cli.commands import sample

if __name__ == "__main__":
    sample()
