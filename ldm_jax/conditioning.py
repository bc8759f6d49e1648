"""What a condition is: from columns of the data, or a user's words, to the network's `cond`.

    columns of a batch --from_batch-->  inputs  --apply(params, .)-->  cond = {"context": ...}
    what a user typed  -----parse----->

`inputs` are arrays (token ids, class numbers, a low-resolution picture); the conditioner tau_theta of the paper's equation 3
is `apply`. `null` is one empty input: what training puts in place of a dropped condition, and guidance steers away from.

    kind      a user gives, one a picture                    inputs                                         cond
    class     a name or a number                             int32 [B]                                      context
    label     the same                                       int32 [B]                                      label
    text      a prompt                                       int32 [B, L]                                   context
    superres  float [h, w, 3] in [-1, 1]                     float [B, h, w, 3], or with noise levels       concat
                                                             {"low": the same, "level": int32 [B]}          concat, label
    inpaint   (float [H, W, 3], mask [H, W]: 1 = paint)      {"masked": [B, H, W, 3], "mask": [B, lh, lw, 1]}  concat
    semantic  int [H, W]                                     int32 [B, H, W]                                concat
    layout    [{"label" or "name", "box": [x0, y0, x1, y1]}]   int32 [B, L]                                 context
    retrieval float [k, D]                                   float [B, k, D]                                context
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

PyTree = Any
# What each kind reads of a data set beside the images, which super-resolution and inpainting make their own conditions of.
COLUMNS = {
    "class": ("label",),
    "label": ("label",),
    "text": ("caption",),
    "clip_text": ("caption",),
    "semantic": ("label_map",),
    "layout": ("boxes", "box_labels"),
}


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """Functions of one kind of condition.

    columns: what it reads of the data set; tokenize: what turns a caption into a row of tokens, if it reads captions;
    init(key): the conditioner's parameters; apply(params, inputs) -> cond; null: inputs with leading axis 1;
    from_batch(batch) -> inputs; parse(what a user gave, one a picture) -> inputs; takes: what a user may give, in words;
    encodes: names in `inputs` (then a dict) of pictures that the first stage turns into scaled latents before `apply`, see
    `encoded`; side: where inputs lie on the picture's grid, the side in pixels of the picture that `null` is for, else 0.
    """

    kind: str
    columns: tuple[str, ...]
    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, PyTree], dict[str, jax.Array] | None]
    null: PyTree
    from_batch: Callable[[Mapping[str, np.ndarray]], PyTree]
    parse: Callable[[Sequence[Any]], PyTree]
    takes: str
    tokenize: Callable[[str], np.ndarray] | None = None
    encodes: tuple[str, ...] = ()
    side: int = 0

    def nulls(self, n: int, size: tuple[int, int] | None = None) -> PyTree:
        """n empty inputs, for pictures of `size` pixels (height, width) where that matters. ValueError where the empty one is
        not known: for prompts, without a tokenizer."""
        if self.null is None and self.kind != "none":
            raise ValueError(f"the empty condition is not known, give `negative`: this model takes {self.takes}")

        def repeat(x: np.ndarray) -> np.ndarray:
            if self.side and size and x.ndim > 1:  # the same everywhere
                x = np.broadcast_to(x[:, :1, :1], (1, *(x.shape[1 + i] * size[i] // self.side for i in (0, 1)), *x.shape[3:]))
            return np.repeat(x, n, axis=0)

        return jax.tree.map(repeat, self.null)


def encoded(conditioning: Conditioning, inputs: PyTree, encode: Callable[[jax.Array], jax.Array]) -> PyTree:
    """`inputs` as `apply` takes them: pictures that `conditioning.encodes` names become scaled latents, by
    `encode(images [B, H, W, 3])`, which takes the posterior's mean."""
    if not conditioning.encodes:
        return inputs
    return {name: encode(value) if name in conditioning.encodes else value for name, value in inputs.items()}


def unconditional() -> Conditioning:
    """No condition: cond is None."""

    def parse(values):
        raise ValueError("this model is unconditional: it takes no prompt and no label")

    return Conditioning("none", (), lambda key: {}, lambda params, inputs: None, None, lambda batch: None, parse, "nothing")


def by_class(
    kind: str,
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], dict[str, jax.Array]],
    names: Sequence[str],
    null_label: int,
) -> Conditioning:
    """A class, int32 [B]; a user gives its name or its number."""
    names = tuple(names)
    return Conditioning(
        kind,
        COLUMNS[kind],
        init,
        apply,
        np.full(1, null_label, np.int32),
        lambda batch: batch["label"],
        lambda values: np.asarray([class_number(value, names) for value in values], np.int32),
        "a class: " + (", ".join(names) if len(names) <= 20 else f"a name or a number from 0 to {len(names) - 1}"),
    )


def class_number(value: int | str, names: Sequence[str]) -> int:
    """A class by name or by number. ValueError names what there is."""
    text = str(value).strip()
    if text in names:
        return names.index(text)
    if text.isdigit():
        if int(text) < len(names):
            return int(text)
        raise ValueError(f"class {text}: classes are numbered 0 to {len(names) - 1}")
    near = difflib.get_close_matches(text, names, 3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown class {text!r}.{hint} Classes: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}")


def by_text(
    kind: str,
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], dict[str, jax.Array]],
    tokenizer: Any,
    length: int,
) -> Conditioning:
    """A caption as token numbers, int32 [B, length]; the empty caption is the null. Training captions are cut where they are
    too long; a user's prompts are refused then, and where they hold what the model can't know."""
    if tokenizer is None:
        takes = (
            f"tokens as an array, int32 [B, {length}], because no tokenizer was found. For prompts, put its files into the "
            "model's folder, or into a folder `tokenizer` there: tokenizer.json; or vocab.json and merges.txt (CLIP); or "
            "vocab.txt (BERT)"
        )

        def refuse(prompts):
            raise ValueError(f"this model takes {takes}")

        return Conditioning(kind, (), init, apply, None, lambda batch: None, refuse, takes)

    def tokenize(text: str) -> np.ndarray:
        return tokenizer.encode_one(text, length)

    return Conditioning(
        kind,
        COLUMNS["text"],
        init,
        apply,
        tokenize("")[None],
        lambda batch: batch["tokens"],
        lambda prompts: np.stack([tokenizer.encode_one(prompt, length, strict=True) for prompt in prompts]),
        f"a prompt of at most {length - 2} words or word pieces",
        tokenize,
    )


def by_low_image(
    scale: int,
    factor: int,
    side: int,
    levels: int = 0,
    add_noise: Callable[[np.ndarray, int, np.random.Generator], np.ndarray] | None = None,
) -> Conditioning:
    """Super-resolution: a picture `scale` times smaller than the one to draw, laid beside latents that are `factor` times
    smaller. Where it is larger than they, its pixels go into channels; where it is smaller, it is enlarged bicubically.

    With `levels`, noise of one of so many levels was added to it in training and the network is told which; a user's picture
    gets noise of the level that comes with it, as (image, level), or next to none.
    """
    down, up = max(factor // scale, 1), max(scale // factor, 1)
    if down * scale != up * factor:
        raise ValueError(f"scale={scale}: a first stage that shrinks {factor} times takes multiples or fractions of {factor}")

    def apply(params, inputs):
        low = inputs["low"] if levels else inputs
        low = space_to_depth(low, down)
        if up > 1:
            B, H, W, C = low.shape
            low = jax.image.resize(low, (B, up * H, up * W, C), "cubic")
        return {"concat": low} | ({"label": inputs["level"]} if levels else {})

    def together(low, level):
        return {"low": low, "level": level} if levels else low

    def parse(values):
        chosen = [value if isinstance(value, tuple) else (value, 0) for value in values]
        low = alike([picture(image, down) for image, _ in chosen])
        if not levels:
            if any(isinstance(value, tuple) for value in values):
                raise ValueError("(image, level): this model was trained without noise levels, give the image alone")
            return low
        numbers = np.asarray([number for _, number in chosen], np.int32)
        if numbers.min() < 0 or numbers.max() >= levels:
            raise ValueError(f"noise levels {numbers.tolist()}: this model knows 0 to {levels - 1}")
        rng = np.random.default_rng(0)
        return together(np.stack([add_noise(image, number, rng) for image, number in zip(low, numbers)]), numbers)

    null = together(np.zeros((1, side // scale, side // scale, 3), np.float32), np.zeros(1, np.int32))
    return Conditioning(
        "superres",
        (),
        lambda key: {},
        apply,
        null,
        lambda batch: together(batch["low"], batch["level"] if levels else None),
        parse,
        f"a picture to enlarge {scale} times, float [h, w, 3] in [-1, 1]"
        + (f", or with a noise level from 0 to {levels - 1}" if levels else ""),
        side=side,
    )


def by_mask(factor: int, side: int) -> Conditioning:
    """Inpainting: the latents of the picture without its holes, and the mask at their size.

    As the reference, holes are cut in [0, 1], so that they are -1, and the mask shrinks by its top left pixels, in [-1, 1].
    """

    def inputs(image, mask):
        """image [B, H, W, 3] in [-1, 1], mask [B, H, W, 1] of 0 and 1."""
        return {"masked": (1 - mask) * (image + 1) - 1, "mask": 2 * mask[:, ::factor, ::factor] - 1}

    def apply(params, inputs):
        return {"concat": jax.numpy.concatenate([inputs["masked"], inputs["mask"]], axis=-1)}

    def parse(values):
        images, masks = [], []
        for value in values:
            if not isinstance(value, tuple) or len(value) != 2:
                raise ValueError("this model takes (image, mask), one such pair a picture")
            images.append(picture(value[0], factor))
            masks.append(hole(value[1], images[-1].shape[:2]))
        return inputs(alike(images), np.stack(masks))

    image = np.zeros((1, side, side, 3), np.float32)
    return Conditioning(
        "inpaint",
        (),
        lambda key: {},
        apply,
        inputs(image, np.ones((1, side, side, 1), np.float32)),
        lambda batch: inputs(batch["image"], batch["hole"]),
        parse,
        "a picture, float [H, W, 3] in [-1, 1], and a mask [H, W] that is 1 where to paint",
        encodes=("masked",),
        side=side,
    )


def by_map(
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], dict[str, jax.Array]],
    n_classes: int,
    side: int,
    multiple: int,
) -> Conditioning:
    """Semantic synthesis: a class for every pixel, int32 [B, H, W]; -1 is none. `apply` makes it one-hot."""

    def parse(values):
        maps = []
        for value in values:
            value = np.asarray(value)
            if value.ndim != 2 or not np.issubdtype(value.dtype, np.integer):
                raise ValueError(f"a label map is int [H, W], this is {value.dtype.name} {list(value.shape)}")
            if value.min() < -1 or value.max() >= n_classes:
                worst = value.max() if value.max() >= n_classes else value.min()
                raise ValueError(f"label map with class {worst}: this model knows 0 to {n_classes - 1}, and -1 for none")
            check_size(value.shape, multiple)
            maps.append(value.astype(np.int32))
        return alike(maps)

    return Conditioning(
        "semantic",
        COLUMNS["semantic"],
        init,
        apply,
        np.full((1, side, side), -1, np.int32),
        lambda batch: batch["label_map"],
        parse,
        f"a label map, int [H, W] with classes 0 to {n_classes - 1}",
        side=side,
    )


def by_layout(
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], dict[str, jax.Array]],
    encode: Callable[[Any], np.ndarray],
    objects: int,
    names: Sequence[str] | None,
) -> Conditioning:
    """What is where, as tokens int32 [B, L]; `encode`: a user's list of objects -> int32 [L]."""
    known = f", classes: {', '.join(names)}" if names and len(names) <= 20 else ""
    return Conditioning(
        "layout",
        COLUMNS["layout"],
        init,
        apply,
        encode([])[None],
        lambda batch: batch["layout"],
        lambda values: np.stack([encode(value) for value in values]),
        f'a layout of at most {objects} objects, [{{"name" or "label", "box": [x0, y0, x1, y1]}}]{known}',
    )


def by_neighbours(count: int, width: int) -> Conditioning:
    """Retrieval: vectors of neighbours in a data base, float32 [B, k, width], k being `count` in training. No neighbour, for
    guidance, is zeros."""

    def parse(values):
        vectors = [np.asarray(value, np.float32) for value in values]
        for value in vectors:
            if value.ndim != 2 or value.shape[1] != width or not len(value):
                raise ValueError(f"neighbours of shape {list(value.shape)}: this model takes [k, {width}], k at least 1")
        return alike(vectors)

    return Conditioning(
        "retrieval",
        (),
        lambda key: {},
        lambda params, inputs: {"context": inputs},
        np.zeros((1, count, width), np.float32),
        lambda batch: batch["neighbours"],
        parse,
        f"vectors of neighbours, float [k, {width}] (trained with k = {count})",
    )


def space_to_depth(x: jax.Array, n: int) -> jax.Array:
    """[B, H, W, C] -> [B, H / n, W / n, n n C]: every n x n pixels become channels, row by row."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // n, n, W // n, n, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H // n, W // n, n * n * C)


def picture(value: Any, multiple: int = 1) -> np.ndarray:
    """A user's picture as float32 [H, W, 3]; ValueError if it is none in [-1, 1], or its sides are no multiples."""
    image = np.asarray(value)
    if image.ndim != 3 or image.shape[2] != 3 or not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"an image is float [H, W, 3] in [-1, 1], this is {image.dtype.name} {list(image.shape)}")
    if not (image.min() >= -1.001 and image.max() <= 1.001):
        raise ValueError(f"an image from {image.min():g} to {image.max():g}: bring it to [-1, 1]; 0..255 by x / 127.5 - 1")
    check_size(image.shape[:2], multiple)
    return image.astype(np.float32)


def hole(value: Any, size: tuple[int, int]) -> np.ndarray:
    """A user's mask as float32 [H, W, 1] of 0 and 1, a half or more being 1. ValueError if it doesn't fit the image."""
    mask = np.asarray(value, np.float32)
    mask = mask[..., None] if mask.ndim == 2 else mask
    if mask.shape != (*size, 1):
        raise ValueError(f"mask of shape {list(mask.shape)} for an image of {size[0]} x {size[1]}: it must be as large")
    if not (mask.min() >= 0 and mask.max() <= 1):
        raise ValueError(f"mask from {mask.min():g} to {mask.max():g}: it must be 0 where to keep, 1 where to paint")
    return (mask >= 0.5).astype(np.float32)


def check_size(size: Sequence[int], multiple: int) -> None:
    if size[0] % multiple or size[1] % multiple or min(size) < multiple:
        raise ValueError(f"size {size[0]} x {size[1]}: both sides must be multiples of {multiple}; crop or pad it")


def alike(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array of all; ValueError if their shapes differ."""
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        raise ValueError(f"inputs of shapes {sorted(map(list, shapes))}: those drawn together must be of one size")
    return np.stack(arrays)
