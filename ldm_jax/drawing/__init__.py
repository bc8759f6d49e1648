"""From flags to pictures that say how they were drawn: what sample.py and the page do with a model.

    drawn = draw(ldm, {"prompt": ["a red circle"], "num": 4, "seed": 3})
    texts = records(ldm, {"prompt": ["a red circle"], "num": 4, "seed": 3}, drawn)      text chunks, one mapping a picture

`modes` picks the method that is meant, `reading` reads what flags name, `records` writes and reads what a picture says of
itself.
"""

from ldm_jax.drawing.modes import MODES, Drawn, choose_mode, draw, trajectory
from ldm_jax.drawing.records import records

__all__ = ["MODES", "Drawn", "choose_mode", "draw", "records", "trajectory"]
