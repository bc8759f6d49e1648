"""What a condition is: from columns of the data, or a user's words, to the network's `cond`.

    columns of a batch --from_batch-->  inputs  --apply(params, .)-->  cond = {"context": ...}
    what a user typed  -----parse----->

`inputs` are small arrays (token ids, class numbers); the conditioner tau_theta of the paper's equation 3 is `apply`.
`null` is one empty input: what training puts in place of a dropped condition, and guidance steers away from.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """Functions of one kind of condition.

    columns: what it reads of the data set; tokenize: what turns a caption into a row of tokens, if it reads captions;
    init(key): the conditioner's parameters; apply(params, inputs) -> cond; null: inputs with leading axis 1;
    from_batch(batch) -> inputs; parse(what a user gave, one a picture) -> inputs; takes: what a user may give, in words.
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

    def nulls(self, n: int) -> PyTree:
        """n empty inputs. ValueError where the empty one is not known: for prompts, without a tokenizer."""
        if self.null is None and self.kind != "none":
            raise ValueError(f"the empty condition is not known, give `negative`: this model takes {self.takes}")
        return jax.tree.map(lambda x: np.repeat(x, n, axis=0), self.null)


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
        ("label",),
        init,
        apply,
        np.full(1, null_label, np.int32),
        lambda batch: batch["label"],
        lambda values: np.asarray([class_number(value, names) for value in values], np.int32),
        "a class: " + (", ".join(names) if len(names) <= 20 else f"a name or a number from 0 to {len(names) - 1}"),
    )


def by_array(
    kind: str,
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], dict[str, jax.Array]],
    shape: jax.ShapeDtypeStruct,
) -> Conditioning:
    """Arrays as the conditioner takes them: images, maps, layouts, vectors. The empty condition is all zeros."""

    def parse(values):
        raise ValueError(f"this model's condition ({kind}) is given as one array, {takes}")

    takes = f"{shape.dtype.name} [B, {', '.join(map(str, shape.shape[1:]))}]"
    return Conditioning(kind, (), init, apply, np.zeros(shape.shape, shape.dtype), lambda batch: None, parse, takes)


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
        ("caption",),
        init,
        apply,
        tokenize("")[None],
        lambda batch: batch["tokens"],
        lambda prompts: np.stack([tokenizer.encode_one(prompt, length, strict=True) for prompt in prompts]),
        f"a prompt of at most {length - 2} words or word pieces",
        tokenize,
    )
