"""Text in and out of the command line, whatever the locale."""

import os
import sys
from typing import Any


def print_anything() -> None:
    """Makes printing never fail: what the terminal's encoding lacks is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def as_typed(value: Any) -> Any:
    """A text (or a list of them) of the command line as it was typed: UTF-8, also where the locale has no such letters.
    Names of files stay as the operating system gave them."""
    if isinstance(value, (list, tuple)):
        return [as_typed(each) for each in value]
    if not isinstance(value, str) or value.isascii() or os.path.exists(value):
        return value
    return os.fsencode(value).decode("utf-8", "replace")
