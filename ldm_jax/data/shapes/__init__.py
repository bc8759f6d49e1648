"""`shapes`, the embedded data set: scenes, their rendering, the exact reader. (`builder` makes TFDS data of them; it takes half
a second to import.)"""

from ldm_jax.data.shapes.reader import Found, check, check_all, compare_all, read_all, read_back
from ldm_jax.data.shapes.render import bounding_box, render, render_all
from ldm_jax.data.shapes.scene import (
    COLOUR_NAMES,
    FILLS,
    SHAPES,
    SIZES,
    Mix,
    Scene,
    Thing,
    draw_scene,
    objects_named,
    prompts,
)

__all__ = [
    "COLOUR_NAMES",
    "FILLS",
    "Found",
    "Mix",
    "SHAPES",
    "SIZES",
    "Scene",
    "Thing",
    "bounding_box",
    "check",
    "check_all",
    "compare_all",
    "draw_scene",
    "objects_named",
    "prompts",
    "read_all",
    "read_back",
    "render",
    "render_all",
]
