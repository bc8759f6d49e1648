"""The configs that come along: where they are, what they are for, and what their fields mean.

In the repository they are the folder configs/ beside the package, in an installed wheel ldm_jax/configs. They import each other
as `configs.NAME`; `importable` sees to that from wherever a command is started.
"""

import ast
import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_jax.primitives.choices import did_you_mean

DEFAULT = "shapes"


def folder() -> Path:
    """Where they are."""
    package = Path(__file__).resolve().parents[1]
    return next(place for place in (package / "configs", package.parent / "configs") if (place / f"{DEFAULT}.py").is_file())


def named() -> dict[str, Path]:
    """Every config by its name."""
    return {path.stem: path for path in sorted(folder().glob("*.py")) if path.stem not in ("__init__", "paper")}


def importable() -> None:
    """Makes `from configs import shapes` work in any config, a user's own beside those that come along."""
    places = [str(place) for place in (folder(), Path("configs").resolve()) if place.is_dir()]
    module = types.ModuleType("configs")
    module.__path__ = list(dict.fromkeys(places))
    sys.modules.setdefault("configs", module)


def find(name: str) -> tuple[Path, str]:
    """The file of a config, given by itself or by its name, and what follows a colon, for its get_config. ValueError where
    there is none."""
    if Path(name).is_file():
        return Path(name), ""
    name, _, argument = name.partition(":")
    known = named()
    if not Path(name).is_file() and name not in known:
        near = did_you_mean(name, known)
        raise ValueError(f"--config={name}: there is no such file, nor a config of this name.{near} --help lists them")
    return Path(name) if Path(name).is_file() else known[name], argument


def load(path: Path, argument: str = "") -> Any:
    """The ConfigDict of a file, `get_config()` or `get_config(argument)`. ValueError for a file without that function."""
    importable()
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    if spec is None:
        raise ValueError(f"--config={path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    if (beside := str(path.resolve().parent)) not in sys.path:
        sys.path.append(beside)  # its own modules, as of a script; at the end, where they hide nobody else's
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={path}: it has no get_config()")
    return module.get_config(*([argument] if argument else []))


def about(path: Path) -> str:
    """The first sentence of a config's docstring; its code isn't run."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", text.replace("\n", " "))[0].rstrip(".")


def listing() -> str:
    """A line for each config."""
    known = named()
    width = max(map(len, known))
    return "\n".join(f"  {name:{width}}  {about(path)}" for name, path in known.items())


def comments(section: str, paths: Sequence[Path]) -> dict[str, str]:
    """What the comments of config files say of a section's fields, in the files' order: those behind an assignment, or in lines
    of their own before it. A training section's stand for the other's where it has none."""
    found: dict[str, str] = {}
    sections = [section, *(other for other in ("first_stage_train", "diffusion_train") if section.endswith("_train"))]
    for name in sections:
        for path in paths:
            for field, text in _comments_in(path.read_text(encoding="utf-8"), name).items():
                if not found.get(field) and text != "as above":
                    found[field] = text
    return found


def _comments_in(source: str, section: str) -> dict[str, str]:
    found, above = {}, []
    place = re.escape(f"{section}." if section else "")
    for line in source.splitlines():
        if match := re.match(rf"\s+config\.{place}(\w+) = .*?(?:  # (.*))?$", line):
            text = " ".join([*above, match[2] or ""]).strip()
            found.setdefault(match[1], text)
        above = [*above, line.strip(" #")] if line.strip().startswith("#") else []
    return found


def fields(config: Any, section: str, path: Path) -> str:
    """The fields of a group ("diffusion_train", "diffusion_train.lora") with their values and comments, those of groups in it
    behind them; or of the config itself for section "config". `path` is the config's file. ValueError for a group that the
    config doesn't have."""
    prefix, chosen = "config" if section == "config" else f"config.{section}", config
    for part in [] if section == "config" else section.split("."):
        groups = [name for name, value in chosen.items() if hasattr(value, "keys")]
        if part not in groups:
            near = did_you_mean(part, groups)
            raise ValueError(f"--help={section}: no such group of fields.{near} There are: config, {', '.join(groups)}")
        chosen = chosen[part]
    files = list(dict.fromkeys((named()[DEFAULT], path)))
    lines = _described(chosen, prefix, files, deep=section != "config")
    from ldm_jax import build  # imported here, so that a typo answers at once

    further = [(f"--config.{name}={_shown(value)}", "") for name, value in build.further_fields(config).items()]
    further = [(text, said) for text, said in further if text.startswith(f"--{prefix}.")] if section != "config" else []
    width = min(max((len(text) for text, _ in (*lines, *further)), default=0), 60)
    said = "\n".join(f"  {text:{width}}  {said}".rstrip() for text, said in lines)
    more = "\n".join(f"  {text}" for text, _ in further)
    return f"{said}\n\nFurther fields, which this config leaves as they are:\n{more}" if further else said


def _described(chosen: Any, prefix: str, files: Sequence[Path], deep: bool) -> list[tuple[str, str]]:
    """(--prefix.FIELD=VALUE, comment) of every field, in the order of the files; with `deep`, of the groups in it as well."""
    said = comments(prefix.removeprefix("config").removeprefix("."), files)
    order = list(dict.fromkeys(name for name in (*said, *chosen.keys()) if name in chosen))
    lines = [(f"--{prefix}.{name}={_shown(chosen[name])}", said.get(name, "")) for name in order if not _is_group(chosen[name])]
    for name in order if deep else []:
        if _is_group(chosen[name]):
            lines += _described(chosen[name], f"{prefix}.{name}", files, deep)
    return lines


def _is_group(value: Any) -> bool:
    return hasattr(value, "keys")


def _shown(value: Any) -> str:
    text = repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)
    quoted = shlex.quote(text)
    return f'"{text}"' if quoted != text and not re.search(r'["$`\\!]', text) else quoted
