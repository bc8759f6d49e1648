"""What a PNG that sample.py wrote says of itself, in two text chunks; and a picture that is repeated from them.

    parameters   as other tools read it: the prompt or class; "Negative prompt: ..."; "Steps: 20, Sampler: dpmpp_2m, ..."
    ldm_jax      JSON of the flags that draw this one picture again: {"version", "model", "weights", "flags"}

Names of files in the flags stand as they were typed. A file is never trusted: its size, its fields and their types are checked.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import ldm_jax
from ldm_jax.api import LatentDiffusion
from ldm_jax.drawing.modes import Drawn, Flags, all_flags, alone, choose_mode, telling_flag, with_defaults
from ldm_jax.pictures import described
from ldm_jax.primitives.flags import EMPTY, FORMATS

CHUNK = "ldm_jax"
LONGEST = 2**18  # characters of JSON: more than a command line's argument can have
FIELDS = {"version": str, "model": str, "weights": str, "flags": dict}
KINDS_OF_VALUE = {
    "text": lambda value: isinstance(value, str),
    "texts": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "list": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "integer": lambda value: type(value) is int,
    "switch": lambda value: type(value) is bool,
}


def records(ldm: LatentDiffusion, flags: Flags, drawn: Drawn) -> list[dict[str, str]]:
    """The text chunks of each picture of `drawn`, which `draw(ldm, flags)` gave."""
    mode, flags = choose_mode(ldm, flags), with_defaults(flags)
    of_model = {"version": ldm_jax.__version__, "model": ldm.config["name"], "weights": fingerprint(ldm)}
    found, size = [], "x".join(map(str, reversed(drawn.images.shape[1:-1])))  # width first
    for i in range(len(drawn.images)):
        index = i if flags["index"] is None else flags["index"]
        one = alone(ldm, flags, index) | how(ldm, flags, mode)
        told = telling_flag(ldm.condition, one)
        said = one[told] if told and mode != "upscale" else []
        lines = [_line(" -> ".join([said] if isinstance(said, str) else said))]
        if one["negative"] is not None:
            lines.append(f"Negative prompt: {_line(one['negative'])}")
        sampler = {"edit": "ddpm"}.get(mode) or one["sampler"] or ldm.config["sampling"]["sampler"]
        sampler = "ddim" if mode == "interpolate" and one["image"] else sampler
        lines.append(
            f"Steps: {one['steps']}, Sampler: {sampler}, CFG scale: {one['guidance_scale']:g}, Seed: {one['seed']}, "
            f"Index: {index}, Size: {size}, Model: {_line(of_model['model'])}, Version: ldm_jax {ldm_jax.__version__}"
        )
        kept = {
            name: value
            for name, value in one.items()
            if name != "num" and value is not None and value != EMPTY.get(all_flags()[name][0])
        }
        found.append({"parameters": "\n".join(lines), CHUNK: json.dumps(of_model | {"flags": kept})})
    return found


def how(ldm: LatentDiffusion, flags: Flags, mode: str) -> dict[str, Any]:
    """The steps and the guidance scale that these flags mean; where nothing is guided, 1."""
    defaults = ldm.config["sampling"]
    off = ldm.condition.kind == "none" or (mode == "interpolate" and flags["image"])
    scale = defaults["guidance_scale"] if flags["guidance_scale"] is None else flags["guidance_scale"]
    steps = defaults["steps"] if flags["steps"] is None else flags["steps"]
    return {"steps": int(steps), "guidance_scale": 1.0 if off else float(scale)}


def _line(text: str) -> str:
    """On one line, and without what a text chunk can't hold: zeros, and halves of letters in names of files."""
    return " ".join(text.replace("\0", " ").splitlines()).encode("utf-8", "replace").decode("utf-8")


def fingerprint(ldm: LatentDiffusion) -> str:
    """16 hexadecimal digits that other weights, or other defaults of sampling, change: SHA-256 of the parameters with one axis
    (biases, scales of norms, which every training moves) and of config.sampling."""
    digest = hashlib.sha256(json.dumps(dict(ldm.config["sampling"]), sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(ldm.params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        if leaf.ndim <= 1:
            digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def read_record(path: str | Path) -> dict[str, Any]:
    """The checked JSON of a picture's `ldm_jax` text; nothing else of the file is used.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no whole picture, has no such text, or one that sample.py of this version didn't write.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; give a PNG that sample.py wrote")
    try:
        with Image.open(path, formats=[kind for kind, _ in FORMATS.values()]) as image:
            text = described(image)
            image.verify()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError):
        raise ValueError(f"{path} is no PNG, WebP or JPEG, or a damaged one: give a picture that sample.py wrote") from None
    if not isinstance(text, str):
        raise ValueError(f"{path} doesn't say how it was drawn: give a PNG that sample.py wrote, and no other program since")
    if len(text) > LONGEST:
        raise ValueError(f"{path} holds {len(text)} characters of flags: at most {LONGEST} are read")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} holds flags that are no JSON: it was changed after sample.py wrote it") from None
    _check(path, record)
    return record


def _check(path: str | Path, record: Any) -> None:
    if not isinstance(record, dict) or any(not isinstance(record.get(name), kind) for name, kind in FIELDS.items()):
        raise ValueError(f"{path} holds JSON without {', '.join(FIELDS)}: it was changed after sample.py wrote it")
    known = {name: kind for name, (kind, _, _) in all_flags().items() if name != "num"}
    for name, value in record["flags"].items():
        if name not in known or not KINDS_OF_VALUE[known[name]](value):
            raise ValueError(f"{path} holds the flag {name!r} with {str(value)[:40]!r}, which this version doesn't take")
    if missing := [name for name in ("seed", "index") if name not in record["flags"]]:
        raise ValueError(f"{path} holds flags without {' and '.join(missing)}: it was changed after sample.py wrote it")


def repeated(
    ldm: LatentDiffusion, path: str | Path, flags: Flags, present: Collection[str]
) -> tuple[dict[str, Any], str | None]:
    """The flags that draw the picture of a PNG again, and a warning in one sentence if this isn't the model that drew it.

    Those of `flags` that are `present`, typed beside the file, stand above its own; another condition takes the place of the
    file's, and a number of pictures without an index takes the place of its index. Errors as `read_record`.
    """
    record = read_record(path)
    typed = {name: flags[name] for name in present if name in all_flags()}
    stored = dict(record["flags"])
    telling = telling_flag(ldm.condition, with_defaults(typed))
    if telling:
        stored.pop(telling_flag(ldm.condition, with_defaults(stored)), None)
    if "num" in typed and "index" not in typed:
        del stored["index"]
    warning = None
    if record["weights"] != fingerprint(ldm):
        there, here = (json.dumps(name[:80]) for name in (record["model"], ldm.config["name"]))
        warning = f"{path} was drawn by {there} with other weights or defaults than this {here}: it will look different"
    return stored | typed, warning


def told(flags: Mapping[str, Any]) -> str:
    """Flags for a terminal: ASCII, without control characters."""
    return json.dumps(dict(flags))
