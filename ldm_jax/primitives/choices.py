"""A name out of a table, or an error that says what is near."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def did_you_mean(name: Any, known: Iterable[str], most: int = 3, cutoff: float = 0.6) -> str:
    """" Did you mean 'ddim' or 'ddpm'?", with a space before it; "" where nothing is near."""
    near = difflib.get_close_matches(str(name), [str(each) for each in known], most, cutoff)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


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
