"""Several conditions at once, such as a prompt and a picture to lay beside the latents (inpainting and instruction models of
Stable Diffusion): what each gives the network is joined."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.conditioning.condition import ABILITIES, Condition, Setting, check_entries
from ldm_jax.conditioning.instruct import Instruct, check_apart

PyTree = Any


def combination(kinds: Mapping[str, type[Condition]]) -> Callable[[Mapping[str, Any], Setting], Condition]:
    """The kind "combined" out of these. config.conditioner.parts names its sections: {"prompt": {"kind": "clip_text", ...},
    "picture": {"kind": "inpaint", ...}}; `combination(KINDS)(section, setting)` is the condition.

    inputs are {part: inputs}; a user gives {part: value} for each picture. Contexts follow one another along the tokens,
    pictures along the channels; at most one part tells a label. Parts are dropped together, for guidance, but for those
    that are kept (`Condition.kept`) and those that have a guidance scale of their own (`Condition.led_by`).
    """

    class Combined(Condition):
        kind = "combined"
        required = ("parts",)

        def __init__(self, section, setting):
            super().__init__(section, setting)
            names = setting.class_names if isinstance(setting.class_names, Mapping) else {}
            self.parts = {
                name: kinds[part["kind"]](part, dataclasses.replace(setting, class_names=names.get(name, setting.class_names)))
                for name, part in section["parts"].items()
            }
            if len(self.parts) < 2:
                raise ValueError(f"config.conditioner.parts={list(self.parts)}: a combination has two parts or more")
            parts = self.parts.values()
            self.columns = tuple(dict.fromkeys(column for part in parts for column in part.columns))
            self.flags = {name: flag for part in parts for name, flag in part.flags.items()}
            self.companions = {name: flag for part in parts for name, flag in part.companions.items()}
            narrow = [part.abilities for part in parts if not {*part.abilities} >= {*ABILITIES}]
            self.abilities = narrow[0] if narrow else ABILITIES
            self.frozen = any(part.frozen for part in parts)
            self.of_pictures = any(part.of_pictures for part in parts)
            self.whole_boxes = any(part.whole_boxes for part in parts)
            self.spatial = any(part.spatial for part in parts)
            self.guidance_scale = max(part.guidance_scale for part in parts)
            seconds = [part.image_guidance_scale for part in parts if part.image_guidance_scale is not None]
            self.image_guidance_scale = seconds[0] if seconds else None
            self.kept = tuple(name for part in parts for name in part.kept)

        @property
        def inputs(self):
            return {name: part.inputs for name, part in self.parts.items()}

        def init(self, key):
            found = {name: part.init(jax.random.fold_in(key, i)) for i, (name, part) in enumerate(self.parts.items())}
            return {name: params for name, params in found.items() if params}

        def apply(self, params, inputs):
            conds = [part.apply(params.get(name, {}), inputs[name]) for name, part in self.parts.items()]
            joined = {}
            for key in {key: None for cond in conds for key in cond}:
                values = [cond[key] for cond in conds if key in cond]
                if key == "label" and len(values) > 1:
                    raise ValueError("config.conditioner.parts: two of them tell the network a label; it has room for one")
                joined[key] = values[0] if len(values) == 1 else jnp.concatenate(values, axis=1 if key == "context" else -1)
            return joined

        @property
        def network_classes(self):
            return max(part.network_classes for part in self.parts.values())

        @functools.cached_property
        def null(self):
            nulls = {name: part.null for name, part in self.parts.items()}
            return None if any(null is None for null in nulls.values()) else nulls

        def nulls(self, n, size=None, like=None):
            return {name: part.nulls(n, size, like if part.told_sizes else None) for name, part in self.parts.items()}

        def dropped(self, inputs, null):
            return {name: part.dropped(inputs[name], null[name]) for name, part in self.parts.items()}

        def led_by(self, inputs):
            return {name: part.led_by(inputs[name]) for name, part in self.parts.items()}

        @property
        def takes(self):
            return "; and ".join(f"{name!r}: {part.takes}" for name, part in self.parts.items())

        def parse(self, values):
            for value in values:
                if not isinstance(value, Mapping) or value.keys() != self.parts.keys():
                    raise ValueError(f"this model takes a dict of {', '.join(self.parts)} for every picture: {self.takes}")
            return {name: part.parse([value[name] for value in values]) for name, part in self.parts.items()}

        def check_inputs(self, inputs):
            check_entries(inputs, *self.parts)
            for name, part in self.parts.items():
                part.check_inputs(inputs[name])

        def told(self, value, size, negative=None):
            """As a dict. `value` may be what the first part with flags takes; a picture to change says the size."""
            if not isinstance(value, Mapping):
                value = {next(name for name, part in self.parts.items() if part.flags): value}
            size = next((v.shape[:-1] for name, v in value.items() if isinstance(self.parts[name], Instruct)), size)
            return value | {
                name: self.parts[name].told(v, size, negative) for name, v in value.items() if self.parts[name].flags
            }

        def from_batch(self, batch):
            return {name: part.from_batch(batch) for name, part in self.parts.items()}

        @property
        def inpainting_part(self):
            return next((name for name, part in self.parts.items() if part.inpainting_part == ""), None)

        @property
        def tokenize(self):
            return next((part.tokenize for part in self.parts.values() if part.tokenize is not None), None)

        @property
        def length(self):
            """Tokens of a prompt, where a part reads one."""
            return next((part.length for part in self.parts.values() if part.tokenize is not None), None)

        def task(self):
            tasks = [task for part in self.parts.values() if (task := part.task()) is not None]
            return functools.partial(_all_of, tasks) if tasks else None

        @classmethod
        def check_fields(cls, section):
            super().check_fields(section)
            for part in section["parts"].values():
                kinds[part["kind"]].check_fields(part)

        def check(self):
            frozen = [name for name, part in self.parts.items() if part.frozen]
            key = jax.random.key(0)
            learnt = [name for name, part in self.parts.items() if not part.frozen and jax.eval_shape(part.init, key)]
            if frozen and learnt:
                raise ValueError(
                    f"config.conditioner.parts: {frozen[0]!r} stays as it is and {learnt[0]!r} is learnt with the network; a "
                    "combination is learnt or stays as a whole: take parts of one sort"
                )
            check_apart(self)
            for part in self.parts.values():
                part.check()

        def check_files(self, folder):
            for part in self.parts.values():
                part.check_files(folder)

        def learn(self, source, folder):
            for part in self.parts.values():
                part.learn(source, folder)

        @classmethod
        def recall(cls, section, folder):
            found = {name: kinds[part["kind"]].recall(part, folder) for name, part in section["parts"].items()}
            names = {name: part.pop("class_names") for name, part in found.items() if "class_names" in part}
            joined = {name: value for part in found.values() for name, value in part.items()}
            return joined | ({"class_names": names} if names else {})

        def in_words(self, row, info):
            return "; ".join(filter(None, (part.in_words(row, info) for part in self.parts.values())))

        def as_pictures(self, batch, rows):
            shown = (part.as_pictures(batch, rows) for part in self.parts.values())
            return next((picture for picture in shown if picture is not None), None)

        def told_as(self, row, info, batch, folder):
            return " ".join(filter(None, (part.told_as(row, info, batch, folder) for part in self.parts.values())))

        def check_flags(self, given):
            for part in self.parts.values():
                part.check_flags(given)

        def read(self, given):
            said = {name for name, value in given.items() if value}
            main, (values, words) = next((n, part.read(given)) for n, part in self.parts.items() if {*part.flags} & said)
            beside = {name: part.beside(given) for name, part in self.parts.items()}
            beside = {name: value for name, value in beside.items() if value is not None}
            return [{main: value} | beside for value in values] if beside else values, words

        def encoded(self, inputs, encode):
            """Each part's pictures as latents."""
            return {name: part.encoded(inputs[name], encode) for name, part in self.parts.items()}

    return Combined


def _all_of(tasks: list[Callable], example: dict, rng: Any) -> dict:
    found = {}
    for task in tasks:
        found |= task(example, rng)
    return found
