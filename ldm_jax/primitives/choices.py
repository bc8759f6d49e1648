"""A name out of a table, or an error that says what is near."""

import dataclasses
import difflib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def did_you_mean(name: Any, known: Iterable[str], most: int = 3, cutoff: float = 0.6) -> str:
    """ " Did you mean 'ddim' or 'ddpm'?", with a space before it; "" where nothing is near."""
    near = difflib.get_close_matches(str(name), [str(each) for each in known], most, cutoff)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which an accent is the same however a keyboard or a file system spells it."""
    return unicodedata.normalize("NFC", name)


def choose(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`. ValueError, beginning with `what`, that says what is near and what there is."""
    try:
        return table[name]
    except (KeyError, TypeError):  # TypeError: a name that can't be hashed
        raise ValueError(
            f"{what}={name!r} is not known.{did_you_mean(name, table)} There are: {', '.join(map(repr, table))}."
        ) from None


def check_choice(name: str, options: Iterable[str], what: str) -> str:
    """`name`, if it is one of the options. ValueError otherwise, as `choose`."""
    return choose({option: option for option in options}, name, what)


def construct(cls: type, fields: Mapping[str, Any], where: str) -> Any:
    """The dataclass (a Linen module, say) `cls(**fields)`, lists as tuples. ValueError that says which field, `where.FIELD`, it
    doesn't have or lacks."""
    known = {f.name for f in dataclasses.fields(cls)} - {"parent", "name"}
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING} & known
    for name in fields:
        if name not in known:
            raise ValueError(f"{where}.{name}: {cls.__name__} has no such field.{did_you_mean(name, known, 1)}")
    if missing := sorted(required - fields.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})


def class_number(value: int | str, names: Sequence[str]) -> int:
    """A class by name or number; where all names are numbers, text means one of them. ValueError names what there is, also
    for a number that is the name of a class with another."""
    text, forms = composed(str(value).strip()), [composed(name.strip()) for name in names]
    if text in forms:
        found = forms.index(text)
        if not isinstance(value, str) and text.isdecimal() and int(text) != found:
            raise ValueError(
                f"class {text}: {text!r} is the name of class number {found}; give the name as text, or numbers as an array, "
                "int32 [B]"
            )
        return found
    if isinstance(value, str) and text.isdecimal() and all(map(str.isdecimal, forms)):  # "1" is "001", not the second name
        if found := [number for number, name in enumerate(forms) if int(name) == int(text)]:
            return found[0]
    elif text.isdecimal():
        if int(text) < len(names):
            return int(text)
        raise ValueError(f"class {text}: classes are numbered 0 to {len(names) - 1}")
    listed = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
    raise ValueError(f"unknown class {text!r}.{did_you_mean(text, names)} Classes: {listed}")
