"""A config as a file like those of configs/: the default, and what differs from it."""

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def script(base: Config, config: Config, about: str) -> str:
    """The text of a file whose `get_config()` is `config`. `base`: the config of configs/shapes.py; `about`: its docstring."""
    lines = [line for name in config for line in _lines(name, base.get(name), config[name])]
    about = about.replace("\\", "\\\\").replace('"""', "'''")
    return "\n".join(
        [
            f'"""{about}\n"""',
            "",
            "from ml_collections import ConfigDict",
            "",
            "from configs import shapes",
            "",
            "",
            "def get_config() -> ConfigDict:",
            "    config = shapes.get_config()",
            *(f"    {line}" for line in lines),
            "    return config",
            "",
        ]
    )


def _lines(name: str, old: Any, new: Any) -> list[str]:
    """Assignments that make the group or field `name` of the default the new one."""
    if not isinstance(new, Mapping):
        return [] if old == new and type(old) is type(new) else [f"config.{name} = {new!r}"]
    same = isinstance(old, Mapping) and set(old) == set(new)
    begin = [] if same else [f"config.{name} = ConfigDict()"]
    return begin + [line for field in new for line in _lines(f"{name}.{field}", old[field] if same else None, new[field])]
