"""What a model is told to draw, one file a kind; `KINDS` names them, and a new one is a file and a name there.

kind       a user gives, one a picture                     inputs                                          cond
none       nothing                                         None                                            None
class      a name or a number                              int32 [B]                                       context
label      the same                                        int32 [B]                                       label
text       a prompt                                        int32 [B, L]                                    context
clip_text  the same                                        int32 [B, L]                                    context
sdxl       the same, or a dict of it with sizes            {"tokens": int32 [B, T, L], "sizes", "kept"}    context, vector
sd3        a prompt, or a dict of one for each tower       int32 [B, T, L]                                 context, vector
superres   float [h, w, 3] in [-1, 1]                      float [B, h, w, 3], or with noise levels        concat
                                                           {"low": the same, "level": int32 [B]}           concat, label
inpaint    (float [H, W, 3], mask [H, W]: 1 = paint)       {"masked": [B, H, W, 3], "mask": [B, h, w, 1]}  concat
instruct   float [H, W, 3] in [-1, 1]                      {"picture": [B, H, W, 3], "shown": [B]}         concat
infill     a sentence with holes                           int32 [B, N]                                    context
picture    float [H, W, 3] in [-1, 1], to describe         {"picture": [B, S, S, 3], "shown": [B]}         context
semantic   int [H, W]                                      int32 [B, H, W]                                 concat
layout     [{"label" or "name", "box": [x0, y0, x1, y1]}]  int32 [B, L]                                    context
retrieval  float [k, D]                                    float [B, k, D]                                 context
combined   {part: what it takes}                           {part: its inputs}                              all of the parts'
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.conditioning.classes import Class, Label
from ldm_jax.conditioning.combined import combination
from ldm_jax.conditioning.condition import ABILITIES, Condition, Setting
from ldm_jax.conditioning.control import controlled
from ldm_jax.conditioning.describing import Describing
from ldm_jax.conditioning.infilling import Infilling
from ldm_jax.conditioning.inpainting import Inpainting
from ldm_jax.conditioning.instruct import Instruct
from ldm_jax.conditioning.layouts import Layout
from ldm_jax.conditioning.neighbours import Neighbours
from ldm_jax.conditioning.sd3 import SD3Text
from ldm_jax.conditioning.semantic import SemanticMap
from ldm_jax.conditioning.superres import SuperResolution, space_to_depth
from ldm_jax.conditioning.text import CLIPText, Text
from ldm_jax.conditioning.xl import XLText
from ldm_jax.primitives.choices import choose, class_number

KINDS: dict[str, Any] = {
    kind.kind: kind
    for kind in (
        Condition, Class, Label, Text, CLIPText, XLText, SD3Text, SuperResolution, Inpainting, Instruct, SemanticMap, Layout,
        Neighbours, Infilling, Describing,
    )  # fmt: skip
}
KINDS["combined"] = combination(KINDS)

__all__ = [
    "ABILITIES", "KINDS", "CLIPText", "Class", "Condition", "Describing", "Infilling", "Inpainting", "Instruct", "Label",
    "Layout", "Neighbours", "SD3Text", "SemanticMap", "Setting", "SuperResolution", "Text", "XLText", "class_number",
    "controlled", "kind_of", "make_condition", "space_to_depth",
]  # fmt: skip


def kind_of(section: Mapping[str, Any]) -> type[Condition]:
    """The class of config.conditioner's kind. ValueError that names what there is."""
    return choose(KINDS, section["kind"], "config.conditioner.kind")


def make_condition(section: Mapping[str, Any], setting: Setting) -> Condition:
    """The condition of config.conditioner."""
    return kind_of(section)(section, setting)
