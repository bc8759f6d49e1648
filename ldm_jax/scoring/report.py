"""What was measured, for people: a Markdown table, curves, and one HTML file that opens without a network.

    OUT/results.md, OUT/report.html, OUT/*.svg, of OUT/*.png that are there
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm_jax.primitives.files import write_text
from ldm_jax.scoring.curves import chart
from ldm_jax.scoring.measures import as_table
from ldm_jax.training.metrics import image_grid

STYLE = """:root{color-scheme:light dark;--ink:#222;--page:#fff;--line:#ccc;--quiet:#f4f4f4;--note:#fff6d6}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--page:#181818;--line:#444;--quiet:#262626;--note:#40371a}}
body{font:15px/1.5 sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:var(--ink);background:var(--page)}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid var(--line);padding:.25em .6em;
text-align:right}td:first-child,th:first-child{text-align:left}th,pre{background:var(--quiet)}figure{margin:1em 0}
svg{max-width:100%;height:auto}img{max-width:100%;image-rendering:pixelated;border:1px solid var(--line)}pre{padding:1em;
overflow-x:auto;font-size:12px}.note{background:var(--note);padding:.3em .7em;margin:.3em 0}"""
RECONSTRUCTIONS = "reconstructions.png"
FEW = 6  # settings that are columns
SHORT = {"guidance_scale": "guidance"}


def columns_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all measures, in the order in which they came."""
    return list(dict.fromkeys(name for result in results for name in result["values"]))


def rows_of(results: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row a setting, numbers with their intervals (plus or minus 1.96 standard errors), and the columns; of few settings a
    row a measure."""
    fields = [name for name in ("setting", "sampler", "steps", "guidance_scale") if any(name in r for r in results)]
    fields = [name for name in fields if name != "setting" or "sampler" not in fields]
    names = columns_of(results)
    rows = []
    for result in results:
        row = {SHORT.get(name, name): result.get(name) for name in fields}
        for name in names:
            value = result["values"].get(name)
            error = result.get("intervals", {}).get(name)
            row[name] = value if error is None or value is None else f"{value:.4g} ± {1.96 * error[0]:.2g}"
        rows.append(row)
    if len(results) <= FEW:
        labels = [result["setting"] for result in results]
        turned = [{"measure": name} | {s: row[name] for s, row in zip(labels, rows)} for name in names]
        return turned, ["measure", *labels]
    return rows, [*(SHORT.get(name, name) for name in fields), *names]


def curves_of(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """SVG charts by name: distance over guidance and over steps, precision over recall; where there are two points or more."""
    charts = {}
    names = columns_of(results)
    distances = [name for name in names if name.rsplit("/", 1)[-1] in ("fid", "frechet_distance", "kid", "kernel_distance")]
    for axis, other in (("guidance_scale", "steps"), ("steps", "guidance_scale")):
        if len({result.get(axis) for result in results}) < 2:
            continue
        for name in distances:
            lines: dict[str, list[tuple[float, float]]] = {}
            for result in sorted(results, key=lambda r: r[axis]):
                lines.setdefault(f"{result['sampler']}, {SHORT.get(other, other)} {result[other]:g}", []).append(
                    (float(result[axis]), result["values"][name])
                )
            title = f"{name} over {SHORT.get(axis, axis)}"
            charts[title] = chart(lines, axis.replace("_", " "), name, title)
    precision = next((name for name in names if name.endswith("/precision")), None)
    if precision and len(results) > 1:
        recall = precision.replace("precision", "recall")
        lines = {}
        for result in sorted(results, key=lambda r: (r["steps"], r["guidance_scale"])):
            point = result["values"][recall], result["values"][precision]
            lines.setdefault(f"{result['sampler']}, steps {result['steps']}", []).append(point)
        charts["precision over recall"] = chart(lines, "recall", "precision", "precision over recall, along guidance")
    return charts


def notes_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every warning once, with the settings that it is of unless it is of all."""
    found: dict[str, list[str]] = {}
    for result in results:
        for note in result.get("notes", ()):
            found.setdefault(note, []).append(result["setting"])
    return [note if len(where) == len(results) else f"{note} ({', '.join(where)})" for note, where in found.items()]


def write(out: Path, found: Mapping[str, Any], pictures: Mapping[str, np.ndarray] | None = None, title: str = "") -> Path:
    """Writes everything but results.json; returns the report's path.

    Args:
      found: what results.json holds.
      pictures: heading -> uint8 [n, k, H, W, 3], rows of k pictures side by side.
    """
    results = found["results"]
    rows, columns = rows_of(results)
    notes, charts = notes_of(results), curves_of(results)
    title = title or "Evaluation"
    about = {name: value for name, value in found.items() if name not in ("results", "config")}
    text = [f"# {title}", "", as_table(rows, columns), ""]
    text += [f"- {note}" for note in notes] + ([""] if notes else [])
    besides = {f"{name.capitalize()} of {found[name]['pictures']} held-out pictures": [found[name]["values"]]
               for name in ("reconstructions", "likelihood") if name in found}  # fmt: skip
    for heading, values in besides.items():
        text += [f"## {heading}", "", as_table(values, [*values[0]]), ""]
    names = {name: f"{name.replace('/', '-').replace(' ', '_')}.svg" for name in charts}
    text += [f"![{name}]({names[name]})" for name in charts]
    text += ["", "Values are followed by ± 1.96 standard errors. To repeat it:", "", "```"]
    text += [found["versions"]["command"], "```", "", "```json", json.dumps(about, indent=2, ensure_ascii=False), "```", ""]
    write_text(out / "results.md", "\n".join(text))
    for name, svg in charts.items():
        write_text(out / names[name], svg)
    body = [f"<h1>{escape(title)}</h1>", _html_table(rows, columns)]
    body += [f'<p class="note">{escape(note)}</p>' for note in notes]
    body += [f"<figure>{svg}</figure>" for svg in charts.values()]
    for heading, values in besides.items():
        body += [f"<h2>{heading}</h2>", _html_table(values, [*values[0]])]
    if "reconstructions" in found and (out / RECONSTRUCTIONS).is_file():
        said = "Held-out pictures and their reconstructions"
        body.append(f"<h3>{said}</h3>{_image((out / RECONSTRUCTIONS).read_bytes(), said)}")
    for result in results:
        grid = out / f"{result['setting']}.png"
        if grid.is_file():
            body.append(f"<h2>Samples: {escape(result['setting'])}</h2>{_image(grid.read_bytes(), result['setting'])}")
        beside = out / f"{result['setting']}.neighbours.png"
        if beside.is_file():
            said = "Sample, training picture nearest in pixels, nearest in features"
            body.append(f"<h3>{said}</h3>{_image(beside.read_bytes(), said)}")
    for heading, rows_of_pictures in (pictures or {}).items():
        body.append(f"<h2>{escape(heading)}</h2>{_image(_png(grid_of(rows_of_pictures)), heading)}")
    body.append(f"<h2>To repeat it</h2><pre>{escape(found['versions']['command'])}</pre>")
    body.append(f"<pre>{escape(json.dumps(about, indent=2, ensure_ascii=False))}</pre>")
    if "config" in found:
        body.append(f"<h2>Config</h2><pre>{escape(json.dumps(found['config'], indent=2, ensure_ascii=False))}</pre>")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def grid_of(rows: np.ndarray) -> np.ndarray:
    """One picture of uint8 [n, k, H, W, 3], the k of a row side by side, up to twelve pictures across."""
    count, across, *shape = rows.shape
    flat = rows.reshape(count * across, *shape).astype(np.float32) / 127.5 - 1
    return image_grid(flat, columns=across * max(1, 12 // across))


def save_rows(path: Path, rows: np.ndarray) -> None:
    """`grid_of` as a PNG."""
    path.write_bytes(_png(grid_of(rows)))


def _html_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    def cell(value: Any) -> str:
        return escape(f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value))

    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = "".join("<tr>" + "".join(f"<td>{cell(row.get(name))}</td>" for name in columns) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _image(png: bytes, name: str) -> str:
    return f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
