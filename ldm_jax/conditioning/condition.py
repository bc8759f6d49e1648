"""What a condition has to say of itself. `Condition` itself is the kind "none": no condition at all.

    columns of a batch --from_batch-->  inputs  --apply(params, .)-->  cond = {"context": ..., "concat": ..., "label": ...}
    what a user gave   -----parse----->

`inputs` are arrays (token ids, class numbers, a low-resolution picture); the conditioner tau_theta of the paper's equation 3 is
`apply`. `null` is one empty input: what training puts in place of a dropped condition, and guidance steers away from.
"""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import models
from ldm_jax.primitives.arrays import extremes
from ldm_jax.primitives.choices import construct

PyTree = Any
NOT_OF_MODULES = (
    "kind", "tokenizer", "new_words", "null_probability", "null_label", "layer", "pad_token_id", "path", "class_names",
)  # fmt: skip
# Names of `LatentDiffusion`'s methods that make pictures.
ABILITIES = ("sample", "panorama", "image_to_image", "inpaint", "outpaint", "edit", "variation", "interpolate")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a condition is told of the rest of the model and of the data.

    image_size    spatial shape in pixels, of training
    factor        how many times smaller latents are along each axis
    channels      of the latents
    network       config.network: what the network can be told
    dtype         of the conditioner's arithmetic
    data_path     config.data.path
    class_names   of the data set, for classes and layouts; of several conditions at once, {part: names}
    tokenizer     has encode_one(text, length, strict); without it a model of text takes token numbers only
    """

    image_size: tuple[int, ...]
    factor: int
    channels: int
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: Any = jnp.float32
    data_path: str = ""
    class_names: Sequence[str] | Mapping[str, Sequence[str] | None] | None = None
    tokenizer: Any = None


class Condition:
    """The functions of one kind of condition. A new kind is a subclass with some of these replaced, named in `KINDS`.

    Class attributes:
      columns: what the kind reads of a data set beside the images.
      required: fields of config.conditioner without which it can't be trained.
      flags: of sample.py that tell a model this condition, one of them at a time: {name: (type, help, example)}, type one of
        "text" and "texts" (may be repeated). companions: flags that may be given besides, also of type "integer".
      abilities: methods of `LatentDiffusion` that make sense with it.
      encodes: names in `inputs` (then a dict) of pictures that the first stage turns into scaled latents before `apply`.
      spatial: whether inputs lie on the picture's grid, the same everywhere in the empty one.
      frozen: whether the conditioner is pretrained and not trained here.
      of_pictures: whether conditions are made of the training pictures (or whatever is learnt) themselves.
      of_text: whether it is made of sentences, and for models of text only.
      whole_boxes: whether it wants boxes as fractions of the whole picture, with the crop beside them.
      told_sizes: whether cond's "vector" says how large the picture is, which the empty condition repeats.
      guidance_scale: what models of the world with this condition are usually sampled with.
      image_guidance_scale: the same for the second scale of models that are told a picture and a prompt; None: they have none.
      kept: entries of cond that the empty condition of guidance takes over from the one it stands against.
    """

    kind = "none"
    columns: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    flags: Mapping[str, tuple[str, str, str]] = {}
    companions: Mapping[str, tuple[str, str, str]] = {}
    abilities: tuple[str, ...] = tuple(name for name in ABILITIES if name != "edit")  # which goes from one condition to another
    encodes: tuple[str, ...] = ()
    spatial = False
    frozen = False
    of_pictures = False
    of_text = False
    whole_boxes = False
    told_sizes = False
    guidance_scale = 1.0
    image_guidance_scale: float | None = None
    kept: tuple[str, ...] = ()

    def __init__(self, section: Mapping[str, Any], setting: Setting):
        """`section`: config.conditioner, or as much of it as sampling needs."""
        self.section, self.setting = section, setting

    # The conditioner

    @functools.cached_property
    def module(self) -> Any:
        """The Linen module of the conditioner; None where what is given goes to the network as it is."""
        return None

    @property
    def inputs(self) -> PyTree:
        """Shapes and types of one input, with leading axis 1."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.null)

    def init(self, key: jax.Array) -> PyTree:
        """The conditioner's parameters, {} where it has none."""
        return {} if self.module is None else models.initialize(self.module, key, self.inputs)

    def apply(self, params: PyTree, inputs: PyTree) -> dict[str, jax.Array] | None:
        """inputs -> the network's cond; pictures named in `encodes` are latents by then."""
        return None

    def encoded(self, inputs: PyTree, encode: Callable[[jax.Array], jax.Array]) -> PyTree:
        """`inputs` as `apply` takes them: pictures that `encodes` names become scaled latents, by `encode(images)`, which takes
        the posterior's mean."""
        if not self.encodes:
            return inputs
        return {name: encode(value) if name in self.encodes else value for name, value in inputs.items()}

    @property
    def network_classes(self) -> int:
        """How many classes or levels the network itself must have a table for (config.network.num_classes), 0 for none."""
        return 0

    # The empty condition

    @functools.cached_property
    def null(self) -> PyTree:
        """The empty input, leaves with leading axis 1; None where there is none, or it is not known."""
        return None

    def nulls(self, n: int, size: Sequence[int] | None = None, like: PyTree = None) -> PyTree:
        """n empty inputs, for pictures of `size` pixels where that matters; `like`: the cond that they stand against.

        Raises ValueError where the empty one is not known: for prompts, without a tokenizer."""
        if self.null is None and self.kind != "none":
            raise ValueError(f"the empty condition is not known, give `negative`: this model takes {self.takes}")

        def repeat(x: np.ndarray) -> np.ndarray:
            full = self.setting.image_size
            if self.spatial and size and x.ndim > 1:
                axes = range(len(full))
                one = x[(slice(None), *(slice(0, 1) for _ in axes))]
                x = np.broadcast_to(one, (1, *(x.shape[1 + i] * size[i] // full[i] for i in axes), *x.shape[1 + len(full) :]))
            return np.repeat(x, n, axis=0)

        return jax.tree.map(repeat, self.null)

    def dropped(self, inputs: PyTree, null: PyTree) -> PyTree:
        """What training puts in place of `inputs` that are dropped: `null`, but for what guidance keeps too (`kept`)."""
        return inputs if self.kept else null

    def led_by(self, inputs: PyTree) -> PyTree:
        """For each leaf of `inputs`, which guidance scale it is led by: 0, or 1 for the second one. Training drops those of
        either without the other's."""
        return jax.tree.map(lambda _: int(self.image_guidance_scale is not None), inputs)

    # Where inputs come from

    @property
    def takes(self) -> str:
        """What a user may give, in words."""
        return "nothing"

    def parse(self, values: Sequence[Any]) -> PyTree:
        """What a user gave, one entry a picture -> inputs. ValueError that says what is wrong with it."""
        raise ValueError("this model is unconditional: it takes no prompt and no label")

    def told(self, value: Any, size: Sequence[int], negative: Any = None) -> Any:
        """What a user gave for one picture, with its size in pixels where the model is told that. With a `negative`, that in
        place of what the picture is to show: what guidance steers away from."""
        return value if negative is None else negative

    def check_inputs(self, inputs: PyTree) -> None:
        """ValueError for arrays that a user gave as `inputs` and that `apply` would read wrongly. Traced ones pass unseen."""
        if self.kind == "none":
            self.parse([inputs])

    def from_batch(self, batch: Mapping[str, np.ndarray]) -> PyTree:
        """A batch of training examples -> inputs."""
        return None

    @property
    def inpainting_part(self) -> str | None:
        """Of models that are told a picture and its mask: the part of a combination that they are, "" for the whole."""
        return None

    @property
    def tokenize(self) -> Callable[[str], np.ndarray] | None:
        """What turns a caption into a row of tokens, for kinds that read captions."""
        return None

    def task(self) -> Callable | None:
        """What this condition adds to a training example: (example, rng) -> columns that `from_batch` reads."""
        return None

    # Training

    @classmethod
    def check_fields(cls, section: Mapping[str, Any]) -> None:
        """ValueError where config.conditioner lacks what training needs."""
        if missing := [name for name in cls.required if name not in section]:
            raise ValueError(f"config.conditioner lacks {', '.join(missing)}, which training kind={cls.kind!r} needs")

    def check(self) -> None:
        """ValueError where config.conditioner has what can't be trained; before any data are read."""
        self.task()

    def check_files(self, folder: Path) -> None:
        """FileNotFoundError or ValueError for files that config.conditioner names and training can't read, before the working
        directory `folder` is begun."""

    def learn(self, source: Any, folder: Path) -> None:
        """Writes into the working directory what is learnt from the training set before a model: tokenizer, class names."""

    @classmethod
    def recall(cls, section: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        """Fields of `Setting` that `learn` wrote, or that the section names: class_names, tokenizer."""
        return {}

    # How it is shown

    def in_words(self, row: Mapping[str, Any], info: Any) -> str:
        """The condition of one row of a data set."""
        return ""

    def as_pictures(self, batch: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
        """Conditions that are pictures, or lie on one, as [N, H, W, 3] in [-1, 1]; None for the others."""
        return None

    def told_as(self, row: Mapping[str, Any], info: Any, batch: Mapping[str, np.ndarray], folder: Path) -> str:
        """Flags of sample.py that say the condition of one row of a data set, `batch` being what is made of it alone; the files
        that they name are written into `folder`. ValueError for a row that the model could not be told."""
        flag = next((name for name in ("prompt", "label", "infill") if name in self.flags), None)
        if flag is None:
            return ""
        said = self.in_words(row, info)
        self.parse([said])
        return f"--{flag} {shlex.quote(said)}"

    def check_flags(self, given: Mapping[str, Any]) -> None:
        """ValueError where flags of sample.py lack something."""

    def beside(self, given: Mapping[str, Any]) -> Any:
        """Of a part of a combination: what its companions say, the same for every condition; None if they say nothing."""
        return None

    def read(self, given: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
        """What the flags of sample.py say -> (what `parse` takes, its description), an entry a condition."""
        return [], []


def module_of(cls: type, section: Mapping[str, Any], **extra: Any) -> Any:
    """The Linen module of config.conditioner, other fields left out. ValueError that names a field it doesn't have."""
    fields = {name: value for name, value in section.items() if name not in NOT_OF_MODULES}
    return construct(cls, fields | extra, "config.conditioner")


def check_numbers(numbers: Any, shape: Sequence[str | int], most: int, what: str, least: int = 0) -> None:
    """ValueError unless these are whole numbers from `least` to `most` - 1 of this shape, in which names stand for any length:
    tables are looked up by them, and give others an arbitrary row or none."""
    there = np.shape(numbers)
    fits = len(there) == len(shape) and all(isinstance(n, str) or n == side for n, side in zip(shape, there))
    if not fits or not hasattr(numbers, "dtype") or not jnp.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"{what} are int32 [{', '.join(map(str, shape))}], these are {in_short(numbers)}")
    found = extremes(numbers) if np.size(numbers) else None
    if found is not None and not (found[0] >= least and found[1] < most):
        raise ValueError(f"{what} from {found[0]} to {found[1]}: they are numbered {least} to {most - 1}")


def check_entries(inputs: Any, *names: str) -> None:
    """ValueError unless these are a dict of arrays of these names, and of no other."""
    if not isinstance(inputs, Mapping) or {*inputs} != {*names}:
        there = f"a dict of {', '.join(inputs)}" if isinstance(inputs, Mapping) else in_short(inputs)
        raise ValueError(f"this model's conditions are a dict of {', '.join(names)}, as arrays; this is {there}")


def in_short(array: Any) -> str:
    """Type and shape of an array; of what is none, its type."""
    return f"{array.dtype.name} {list(array.shape)}" if hasattr(array, "dtype") else f"a {type(array).__name__}"


def alike(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array of all; ValueError if their shapes differ."""
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"inputs of shapes {sorted(map(list, shapes))}: those drawn together must be of one size")
    return np.stack(arrays)
