"""A condition beside which a ControlNet (Zhang et al. 2023) is shown a picture of the size to draw."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.condition import Condition
from ldm_jax.data.control_pictures import COLUMN, PICTURES

PyTree = Any
NAMES = (COLUMN, *PICTURES)  # where such pictures come from: the data set, or the training pictures by a function


def controlled(kind: type[Condition], picture: str) -> type[Condition]:
    """`kind`, in training with a picture besides: inputs are {"told": those of `kind`, "hint": float32 [B, H, W, 3]}, from -1
    to 1, and cond has "hint" in [0, 1] and "hint_scale" 1 [B] besides. What a user gives is what `kind` takes; the picture
    joins its cond. It is not dropped with the rest. `picture`: one of NAMES."""

    class Controlled(kind):
        def __init__(self, section, setting):
            super().__init__(section, setting)
            self.inner = kind(section, setting)
            if picture == COLUMN:
                self.columns = (*self.inner.columns, COLUMN)

        @property
        def inputs(self):
            return {"told": self.inner.inputs, "hint": jax.ShapeDtypeStruct((1, *self.setting.image_size, 3), np.float32)}

        def init(self, key):
            return self.inner.init(key)

        def apply(self, params, inputs):
            told, hint = parted(inputs)
            cond = self.inner.apply(params, told)
            if hint is None:
                return cond
            return dict(cond or {}) | {"hint": (hint + 1) / 2, "hint_scale": jnp.ones(len(hint), jnp.float32)}

        def encoded(self, inputs, encode):
            told, hint = parted(inputs)
            told = self.inner.encoded(told, encode)
            return told if hint is None else {"told": told, "hint": hint}

        def check_inputs(self, inputs):
            told, hint = parted(inputs)
            if told is not None:
                self.inner.check_inputs(told)

        def dropped(self, inputs, null):
            told, hint = parted(inputs)
            told = self.inner.dropped(told, parted(null)[0])
            return told if hint is None else {"told": told, "hint": hint}

        def from_batch(self, batch):
            return {"told": self.inner.from_batch(batch), "hint": batch[COLUMN]}

        def task(self):
            own = self.inner.task()
            return own if picture == COLUMN else functools.partial(_with_picture, own, picture)

        def as_pictures(self, batch, rows):
            return batch[COLUMN]

    return Controlled


def parted(inputs: PyTree) -> tuple[PyTree, Any]:
    """What the condition itself is told, and the picture, None where there is none."""
    if isinstance(inputs, Mapping) and set(inputs) == {"told", "hint"}:
        return inputs["told"], inputs["hint"]
    return inputs, None


def _with_picture(task: Callable | None, picture: str, example: dict, rng: Any) -> dict:
    return ({} if task is None else task(example, rng)) | {COLUMN: PICTURES[picture](example["image"])}
