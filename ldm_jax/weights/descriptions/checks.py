"""What a config.json of another program may say."""

from collections.abc import Mapping
from typing import Any


def check_fields(config: Mapping[str, Any], fixed: Mapping[str, tuple], read: set[str], where: str) -> None:
    """ValueError: fields outside `read` must have one of their fixed values, or say nothing (None, False)."""
    wrong = {}
    for name, value in config.items():
        if name.startswith("_") or name in read:
            continue
        if value not in fixed.get(name, (None, False)):
            wrong[name] = value
    if wrong:
        raise ValueError(f"{where}: {wrong} is not supported; it would change what the network computes")
