"""Curves and pictures of a working directory, and what a model is. Reads only."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from ldm_jax.api import LatentDiffusion
from ldm_jax.scoring.curves import chart

MOST_POINTS, MOST_BYTES, MOST_PICTURES = 60, 32 * 2**20, 12
STAGES = ("diffusion", "first_stage")
PLACES = ("evaluation/*/*.png", "diffusion/images/*.png", "first_stage/images/*.png", "samples/*/grid.png")


def curves(folder: Path) -> dict[str, dict[str, str]]:
    """{stage: {what is measured: an SVG}}; lines of training and validation of the same name share a chart. Lines of
    metrics.jsonl that are no numbers of a step, as of a run that was killed, are left out."""
    found: dict[str, dict[str, str]] = {}
    for stage in STAGES:
        charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for line in _lines(folder / stage / "metrics.jsonl"):
            for name, value in line.items():
                split, _, what = name.rpartition("/")
                if (split or what == "images_per_second") and _is_number(value):
                    charts.setdefault(what, {}).setdefault(split or what, []).append((line["step"], value))
        drawn = {
            what: chart({name: _thinned(points) for name, points in series.items()}, "step", what, what)
            for what, series in sorted(charts.items(), key=lambda pair: (pair[0] == "images_per_second", pair[0]))
        }
        if drawn:
            found[stage] = drawn
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and _is_number(line.get("step")):
            yield line


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many, evenly, the last among them."""
    stride = max(1, math.ceil(len(points) / MOST_POINTS))
    return points[::-1][::stride][::-1]


def pictures(folder: Path) -> dict[str, bytes]:
    """{path in the working directory: PNG} of grids that the run has drawn, the last few of each place: step_1000 comes after
    step_900."""
    found = {}
    for pattern in PLACES:
        for path in sorted(folder.glob(pattern), key=_in_turn)[-MOST_PICTURES // 3 :]:
            if path.stat().st_size <= MOST_BYTES // 8:
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def _in_turn(path: Path) -> list[Any]:
    """What paths are sorted by: numbers in them as numbers."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def about(ldm: LatentDiffusion) -> dict[str, str]:
    """Lines on a model: what it is, and how many parameters its parts have."""
    first, *others = ldm.describe().splitlines()
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in ldm.params.items()}
    lines = {"model": first} | {"can" if line.startswith("can ") else "how": line.removeprefix("can ") for line in others}
    lines |= {part.replace("_", " "): f"{count:,} parameters" for part, count in counts.items() if count}
    return lines | {"all together": f"{sum(counts.values()):,} parameters"}


def config_text(ldm: LatentDiffusion) -> str:
    """The config as JSON."""

    def plain(value: Any) -> Any:
        return dict(value) if isinstance(value, Mapping) else str(value)

    return json.dumps(dict(ldm.config), indent=2, sort_keys=True, default=plain)
