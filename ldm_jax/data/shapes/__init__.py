"""`shapes`, the embedded data set: scenes, their rendering, the exact reader and the TFDS builder."""

from ldm_jax.data.shapes.builder import ShapesConfig, prepare
from ldm_jax.data.shapes.reader import Found, check, check_all, read_all, read_back
from ldm_jax.data.shapes.render import bounding_box, render, render_all
from ldm_jax.data.shapes.scene import COLOUR_NAMES, FILLS, SHAPES, SIZES, Mix, Scene, Thing, draw_scene, prompts

__all__ = [
    "COLOUR_NAMES",
    "FILLS",
    "Found",
    "Mix",
    "SHAPES",
    "SIZES",
    "Scene",
    "ShapesConfig",
    "Thing",
    "bounding_box",
    "check",
    "check_all",
    "draw_scene",
    "prepare",
    "prompts",
    "read_all",
    "read_back",
    "render",
    "render_all",
]
