"""A name out of a table, or an error that says what is near."""

import dataclasses
import difflib
import unicodedata
from collections.abc import Iterable, Mapping
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
