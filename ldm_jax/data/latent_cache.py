"""Latents computed once: the first stage's posterior moments of a whole source, in array_record, read as a source.

A cache is a folder with `rows.array_record` and `meta.json`. The metadata hold what the latents depend on - the
caller's fingerprint of the first stage, the source, the geometry - and opening it for anything else is refused. It is
written beside its place and renamed when complete, so a cache that exists is whole.

Moments are stored in float16 unless asked otherwise. Rounding is 2^-11 of a value, 66 dB below the latent, far less than
the noise of any training step, and a range of 65504 no sane latent reaches (checked); bfloat16 would be eight times
coarser for a range that is not needed.

A record is a JSON header, its length in four bytes before it, then the arrays it lists, one after the other.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from ldm_jax.data.source import Info, Source, check_on_error
from ldm_jax.data.transform import Transform

_log = logging.getLogger(__name__)
FORMAT = 1
DTYPES = ("float16", "float32")


class LatentCache:
    """Rows of a cache, with `moments` [h, w, 2C] (and `mirrored`, those of the flipped image) in place of `image`; made
    by `open_latent_cache`."""

    def __init__(self, path: Path, meta: Mapping[str, Any]):
        info = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["info"].items()}
        self.info = Info(**info)
        self._rows = grain.sources.ArrayRecordDataSource([str(path / "rows.array_record")])
        if len(self._rows) != meta["count"]:
            raise ValueError(f"{path} is damaged: {len(self._rows)} rows instead of {meta['count']}; delete it")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _unpack(self._rows[index])


def latent_cache(
    path: str | Path,
    source: Source,
    transform: Transform,
    encode: Callable[[np.ndarray], Any],
    fingerprint: Mapping[str, Any],
    *,
    batch_size: int = 64,
    dtype: str = "float16",
    on_error: str = "raise",
    report: Callable[[int, int], None] | None = None,
) -> LatentCache:
    """The cache at `path`, written now unless it is there already.

    transform    gives the geometry (centre crop: a cache holds one view); with `flip` mirrored copies are stored too
    encode       float32 [batch_size, H, W, 3] in [-1, 1] -> moments [batch_size, h, w, 2C]
    fingerprint  what the moments depend on beside source and geometry, such as {"first_stage": hash_arrays(...)}
    on_error     "raise", or "skip": unreadable images are logged and left out
    report       called with (rows done, rows in all) after every batch
    Raises ValueError if the cache at `path` was made from something else, or if moments are not finite.
    """
    check_on_error(on_error)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose {' or '.join(DTYPES)}")
    if transform.crop != "center":
        raise ValueError(f"a latent cache holds one view of every image: crop={transform.crop!r} must be 'center'")
    path = Path(path)
    bound = _bound(source, transform, dtype, fingerprint)
    if path.exists():
        return open_latent_cache(path, bound)
    temporary = path.with_name(f".{path.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was stopped
    temporary.mkdir(parents=True)
    writer = ArrayRecordWriter(str(temporary / "rows.array_record"), "group_size:1")
    count = 0
    for numbers, rows in _decoded(source, transform, batch_size, on_error):
        if rows:
            images = np.stack([row.pop("image") for row in rows]).astype(np.float32) / np.float32(127.5) - np.float32(1)
            images = np.concatenate([images, np.repeat(images[-1:], batch_size - len(rows), 0)])  # one shape: one compilation
            views = {"moments": images} | ({"mirrored": images[:, :, ::-1]} if transform.flip else {})
            views = {name: _checked(np.asarray(encode(view))[: len(rows)], dtype, rows) for name, view in views.items()}
            for i, row in enumerate(rows):
                writer.write(_pack(row | {name: view[i] for name, view in views.items()}))
            count += len(rows)
        if report is not None:
            report(numbers.stop, len(source))
    writer.close()
    if not count:
        raise ValueError(f"{source.info.name}: no readable image to make a latent cache of")
    info = source.info
    columns = ("moments", *(c for c in info.columns if c != "image"))
    kept = {"name": info.name, "columns": columns, "class_names": info.class_names, "box_names": info.box_names}
    (temporary / "meta.json").write_text(json.dumps({"count": count, "info": kept, "bound": bound}, indent=2))
    os.replace(temporary, path)
    return open_latent_cache(path, bound)


def open_latent_cache(path: str | Path, bound: Mapping[str, Any]) -> LatentCache:
    """The cache at `path`; ValueError with the differences if it is not bound to `bound`."""
    path = Path(path)
    if not (path / "meta.json").is_file():
        raise ValueError(f"{path} is not a latent cache; delete it or choose another place")
    meta = json.loads((path / "meta.json").read_text())
    made, wanted = meta["bound"], json.loads(json.dumps(bound))
    differ = [k for k in sorted({*made, *wanted}) if made.get(k) != wanted.get(k)]
    if differ:
        said = "; ".join(f"{k} was {made.get(k)!r}, is {wanted.get(k)!r}" for k in differ)
        raise ValueError(f"the latent cache {path} was made from something else: {said}. Delete it or choose another place")
    return LatentCache(path, meta)


def hash_arrays(named: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 of named arrays (a first stage's parameters, flattened), by name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(named, key=lambda pair: pair[0]):
        array = np.asarray(array)
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _bound(source: Source, transform: Transform, dtype: str, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "source": source.info.name,
        "rows": len(source),
        "columns": source.info.columns,
        "size": transform.shape,
        "flip": transform.flip,
        "dtype": dtype,
        **({"whole_boxes": True} if transform.whole_boxes else {}),
        **({"palette": transform.palette} if transform.palette else {}),
        **fingerprint,
    }


def _decoded(
    source: Source, transform: Transform, batch_size: int, on_error: str
) -> Iterator[tuple[range, list[dict[str, Any]]]]:
    """Row numbers and what could be read of them, batch by batch; the next batch is decoded while one is in use."""

    def read(number: int) -> dict[str, Any] | None:
        try:
            return transform.view(source[number])
        except (ValueError, FileNotFoundError) as error:
            if on_error == "raise":
                raise
            _log.warning("left out: %s", error)
            return None

    parts = [range(i, min(i + batch_size, len(source))) for i in range(0, len(source), batch_size)]
    with ThreadPoolExecutor() as pool:
        coming = pool.map(read, parts[0])
        for part, after in itertools.zip_longest(parts, parts[1:]):
            rows = [row for row in coming if row is not None]
            coming = pool.map(read, after or ())
            yield part, rows


def _checked(moments: np.ndarray, dtype: str, rows: list[dict[str, Any]]) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = moments.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(stored).all(tuple(range(1, stored.ndim))))
    if len(bad):
        raise ValueError(f"the moments of {rows[bad[0]]['name']} are not finite in {dtype} (up to {np.abs(moments).max():.3g})")
    return stored


def _pack(row: Mapping[str, Any]) -> bytes:
    arrays = {name: np.ascontiguousarray(v) for name, v in row.items() if isinstance(v, np.ndarray)}
    plain = {name: v for name, v in row.items() if name not in arrays}
    header = json.dumps({"plain": plain, "arrays": [(name, a.dtype.str, a.shape) for name, a in arrays.items()]}).encode()
    return b"".join([len(header).to_bytes(4, "little"), header, *(a.tobytes() for a in arrays.values())])


def _unpack(record: bytes) -> dict[str, Any]:
    start = 4 + int.from_bytes(record[:4], "little")
    header = json.loads(record[4:start])
    row = {name: tuple(v) if isinstance(v, list) else v for name, v in header["plain"].items()}
    for name, dtype, shape in header["arrays"]:
        count = int(np.prod(shape))
        row[name] = np.frombuffer(record, dtype, count, start).reshape(shape)
        start += count * np.dtype(dtype).itemsize
    return row
