"""Latents computed once: the first stage's posterior moments of a whole source, in files of rows, read as a source.

    rows-00000-of-00004    records one after the other, as many files as processes wrote them
    ends-00000-of-00004    where each record ends, uint64
    meta.json              what the latents depend on, how large the files are, and a checksum of all that

Every record carries a checksum, and every byte of the files is covered by one: damage is noticed when a cache is opened (sizes,
ends, meta; of caches up to `verify_bytes` every record) or when a row is read, and is a `Damaged` error that says what to do.
A cache is written beside its place and renamed when complete, so a cache that exists is whole.

It belongs to the caller's fingerprint of the first stage, to the geometry, and to the contents of the source (`fingerprint`).
Opening it costs a look at the size and time of every image file (13 microseconds each, measured); only where these differ from
those at the writing, as in a moved or copied folder, are all files read and compared by content (120 microseconds for one of
9 kB). Reading a row of 16 kB takes 34 microseconds.

Moments are stored in float16 unless asked otherwise. Rounding is 2^-11 of a value, 66 dB below the latent, far less than
the noise of any training step, and a range of 65504 no sane latent reaches (checked); bfloat16 would be eight times
coarser for a range that is not needed.

A record is a CRC-32 of the rest (four bytes), the length of a JSON header (four bytes), the header, and the arrays that it
lists, one after the other.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.data import fingerprint as fingerprints
from ldm_jax.data.source import DATA, DamagedData, Info, Source, check_on_error
from ldm_jax.primitives.files import read_json, write_json, write_text

_log = logging.getLogger(__name__)
FORMAT = 2
DTYPES = ("float16", "float32")
VERIFY_BYTES = 2**30
BEGUN = "begun"  # in a cache that is being written
_WAY_OUT = "Delete it: it will be made again"


class Damaged(DamagedData):
    """A cache, or a row of one, that is not as it was written."""


class LatentCache:
    """Rows of a cache, with `moments` [h, w, 2C] (and `mirrored`, those of the flipped image) in place of what they were made
    of; made by `open_latent_cache`. Reading a damaged row raises `Damaged`."""

    def __init__(self, path: Path, meta: Mapping[str, Any], root: str = ""):
        info = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["info"].items()}
        self._written_at, root = info["name"], root or info["name"]
        self.info = Info(**info | {"name": root})
        self._path, self._shards = path, meta["shards"]
        self._files: dict[str, Any] = {}
        ends = [_read_ends(path, shard) for shard in self._shards]
        self._ends = [np.concatenate([np.zeros(1, np.uint64), end]) for end in ends]
        self._first = np.cumsum([0, *(shard["count"] for shard in self._shards)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            row = _unpack(self._record(index))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise Damaged(f"the latent cache {self._path} is damaged in row {index}: {error}. {_WAY_OUT}") from error
        if self.info.name != self._written_at:  # the source was moved since
            row["name"] = self.info.name + row["name"].removeprefix(self._written_at)
        return row

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return sum(shard["bytes"] for shard in self._shards)

    def verify(self) -> None:
        """Reads every row. Raises `Damaged` for the first that is not as it was written."""
        for index in range(len(self)):
            self[index]

    def _record(self, index: int) -> bytes:
        shard = int(np.searchsorted(self._first, index, "right")) - 1
        start, end = (int(v) for v in self._ends[shard][index - self._first[shard] :][:2])
        name = self._shards[shard]["rows"]
        if name not in self._files:
            self._files[name] = open(self._path / name, "rb", buffering=0)  # one handle a file, closed with the cache
        record = os.pread(self._files[name].fileno(), end - start, start)
        if len(record) < end - start:
            raise ValueError(f"{name} is cut off")
        return record


def latent_cache(
    path: str | Path,
    source: Source,
    transform: Any,
    encode: Callable[[np.ndarray], Any],
    fingerprint: Mapping[str, Any],
    *,
    batch_size: int = 64,
    dtype: str = "float16",
    on_error: str = "raise",
    report: Callable[[int, int], None] | None = None,
    process_index: int = 0,
    process_count: int = 1,
    barrier: Callable[[str], None] = lambda name: None,
    own_disks: bool = False,
    damaged: str = "again",
    verify_bytes: int = VERIFY_BYTES,
) -> LatentCache:
    """The cache at `path`, written now unless it is there already.

    transform      gives the geometry (centre crop: a cache holds one view); with `flip` mirrored copies are stored too
    encode         float32 [batch_size, *transform.array_shape] in [-1, 1] -> moments [batch_size, *space, 2C]. Every process
                   calls it equally often, so it may be a computation over all of them
    fingerprint    what the moments depend on beside source and geometry, such as {"first_stage": hash_arrays(...)}
    on_error       "raise", or "skip": unreadable images are logged and left out
    report         called with (rows done, rows in all) of this process after every batch
    process_index, process_count    each process writes a contiguous share of the rows into a file of its own
    barrier        barrier(name) returns once all processes have called it
    own_disks      each process has its own `path`, and `barrier` brings to it what the others wrote in theirs, but for rows of
                   a cache that isn't whole
    damaged        "again": a damaged cache, or one of an older version, is deleted and made again, which is logged; "raise":
                   `Damaged` is raised
    verify_bytes   caches up to this size are read through when they are opened; larger ones are checked row by row in use
    Raises ValueError if the cache at `path` was made from something else, or if moments are not finite.
    """
    check_on_error(on_error)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: choose {' or '.join(DTYPES)}")
    if damaged not in ("again", "raise"):
        raise ValueError(f"damaged={damaged!r}: choose 'again' or 'raise'")
    if transform.crop != "center":
        raise ValueError(f"a latent cache holds one view of every image: crop={transform.crop!r} must be 'center'")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} of process_count={process_count}")
    path = Path(path)
    bound = _bound(source, transform, dtype, fingerprint)
    temporary = path.with_name(f".{path.name}.incomplete")
    found = None
    if path.exists():
        try:
            found = open_latent_cache(path, bound, source, verify_bytes=verify_bytes if process_index == 0 else 0)
        except Damaged as error:
            if damaged == "raise":
                raise
            _log.warning("%s", error)
    if process_index == 0 or own_disks:
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was stopped; the others' before the first makes its own
    barrier("latent cache: looked at")
    if process_index == 0 and found is None:
        shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()
        write_text(temporary / BEGUN, "")
    barrier("latent cache: prepared")
    if not temporary.is_dir():  # process 0 decides for all
        return found or open_latent_cache(path, bound, source, verify_bytes=0)
    share = -(-len(source) // process_count)
    numbers = range(min(process_index * share, len(source)), min((process_index + 1) * share, len(source)))
    batches = -(-share // batch_size)
    shard = f"{process_index:05}-of-{process_count:05}"
    _write_shard(temporary, shard, source, numbers, batches, transform, encode, batch_size, dtype, on_error, report)
    barrier("latent cache: written")
    parts = [read_json(part) for part in sorted(temporary.glob("part-*.json"))]
    if len(parts) != process_count:
        raise ValueError(
            f"{temporary}: {len(parts)} of {process_count} processes' shares are there; do all see one file system?"
        )
    if not sum(part["shard"]["count"] for part in parts):
        raise ValueError(f"{source.info.name}: no readable image to make a latent cache of")
    barrier("latent cache: counted")
    if process_index == 0:
        info = source.info
        columns = ("moments", *(c for c in info.columns if c not in DATA))
        kept = {"name": info.name, "columns": columns, "class_names": info.class_names, "box_names": info.box_names}
        digests = [fingerprints.names_digest(source), *(int(part["contents"], 16) for part in parts)]
        meta = {"bound": bound, "info": kept, "shards": [part["shard"] for part in parts]}
        meta |= {"contents": fingerprints.total(digests), "stamp": fingerprints.stamp(source)}
        write_text(temporary / "meta.json", json.dumps(meta | {"seal": _seal(meta)}, indent=2))  # ASCII, whatever paths hold
    if process_index == 0 or own_disks:
        for note in (*temporary.glob("part-*.json"), temporary / BEGUN):
            note.unlink()
        os.replace(temporary, path)
    barrier("latent cache: made")
    return open_latent_cache(path, bound, verify_bytes=0)


def open_latent_cache(
    path: str | Path, bound: Mapping[str, Any], source: Source | None = None, verify_bytes: int = VERIFY_BYTES
) -> LatentCache:
    """The cache at `path`. With `source`, its contents are compared too, and rows' names are of where it lies now.

    Raises `Damaged` for a cache that is not as it was written or of an older version, ValueError with the differences for one
    that is not bound to `bound` or was made from other contents.
    """
    path = Path(path)
    meta = _read_meta(path)
    made, wanted = meta["bound"], json.loads(json.dumps(bound))
    differ = [k for k in sorted({*made, *wanted}) if made.get(k) != wanted.get(k)]
    said = [f"{k} was {made.get(k)!r}, is {wanted.get(k)!r}" for k in differ]
    if source is not None and not differ:
        now = fingerprints.stamp(source)
        if (now is None or now != meta["stamp"]) and fingerprints.contents(source) != meta["contents"]:
            said = [f"the images of {source.info.name}, or what is said of them, have changed since"]
    if said:
        raise ValueError(
            f"the latent cache {path} was made from something else: {'; '.join(said)}. Delete it or choose another place"
        )
    cache = LatentCache(path, meta, source.info.name if source is not None else "")
    if cache.size <= verify_bytes:
        cache.verify()
    return cache


def hash_arrays(named: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 of named arrays (a first stage's parameters, flattened), by name, type, shape and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(named, key=lambda pair: pair[0]):
        array = np.asarray(array)
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _bound(source: Source, transform: Any, dtype: str, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rows": len(source),
        "columns": source.info.columns,
        "dtype": dtype,
        **transform.geometry,
        **fingerprint,
    }


def _seal(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _read_meta(path: Path) -> dict[str, Any]:
    if (path / "rows.array_record").exists():
        raise Damaged(f"the latent cache {path} was made by an older version of this library. {_WAY_OUT}")
    if not (path / "meta.json").is_file():
        if path.is_dir() and any(path.glob("rows-*-of-*")):
            raise Damaged(f"the latent cache {path} is damaged: its meta.json is gone. {_WAY_OUT}")
        raise ValueError(f"{path} is not a latent cache; delete it or choose another place")
    try:
        meta = read_json(path / "meta.json", expect=dict)
    except ValueError as error:
        raise Damaged(f"the latent cache {path} is damaged: {error} {_WAY_OUT}") from error
    if meta.pop("seal", None) != _seal(meta):
        raise Damaged(f"the latent cache {path} is damaged: meta.json is not as it was written. {_WAY_OUT}")
    return meta


def _read_ends(path: Path, shard: Mapping[str, Any]) -> np.ndarray:
    """uint64 [rows]: where each record of a file ends."""
    try:
        size, data = (path / shard["rows"]).stat().st_size, (path / shard["ends"]).read_bytes()
    except FileNotFoundError as error:
        raise Damaged(f"the latent cache {path} is damaged: {Path(error.filename).name} is gone. {_WAY_OUT}") from None
    if size != shard["bytes"]:
        raise Damaged(
            f"the latent cache {path} is damaged: {shard['rows']} has {size} bytes instead of {shard['bytes']}. {_WAY_OUT}"
        )
    if len(data) != 8 * shard["count"] or zlib.crc32(data) != shard["ends_crc"]:
        raise Damaged(f"the latent cache {path} is damaged: {shard['ends']} is not as it was written. {_WAY_OUT}")
    return np.frombuffer(data, "<u8")


def _write_shard(
    folder: Path,
    shard: str,
    source: Source,
    numbers: range,
    batches: int,
    transform: Any,
    encode: Callable[[np.ndarray], Any],
    batch_size: int,
    dtype: str,
    on_error: str,
    report: Callable[[int, int], None] | None,
) -> None:
    """One process's rows, in `batches` calls of `encode`: a file of records, one of their ends, and a note for process 0."""
    ends, digests = [], []
    with open(folder / f"rows-{shard}", "wb") as file:
        for part, views in _decoded(source, transform, numbers, batches, batch_size, on_error):
            digests += [view.digest for view in views]
            rows = [view.row for view in views if view.row is not None]
            images = np.zeros((batch_size, *transform.array_shape), np.float32)  # one shape: one compilation
            for i, row in enumerate(rows):
                images[i] = transform.scaled(row.pop(transform.column))
            images[len(rows) :] = images[len(rows) - 1] if rows else 0
            encoded = {"moments": encode(images)} | ({"mirrored": encode(images[:, :, ::-1])} if transform.flip else {})
            stored = {name: _checked(np.asarray(some)[: len(rows)], dtype, rows) for name, some in encoded.items()}
            for i, row in enumerate(rows):
                file.write(_pack(row | {name: some[i] for name, some in stored.items()}))
                ends.append(file.tell())
            if report is not None and part:
                report(part.stop - numbers.start, len(numbers))
        file.flush()
        os.fsync(file.fileno())
    data = np.array(ends, "<u8").tobytes()
    with open(folder / f"ends-{shard}", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    files = {"rows": f"rows-{shard}", "ends": f"ends-{shard}"}
    told = files | {"count": len(ends), "bytes": ends[-1] if ends else 0, "ends_crc": zlib.crc32(data)}
    write_json(folder / f"part-{shard}.json", {"shard": told, "contents": fingerprints.total(digests)})


class _View(NamedTuple):
    digest: int
    row: dict[str, Any] | None


def _decoded(
    source: Source, transform: Any, numbers: range, batches: int, batch_size: int, on_error: str
) -> Iterator[tuple[range, list[_View]]]:
    """Row numbers and what could be read of them, batch by batch; the next batch is decoded while one is in use."""

    def read(number: int) -> _View:
        row = source[number]
        digest = fingerprints.digest_row(source, number, row)
        try:
            return _View(digest, transform.view(row))
        except (ValueError, FileNotFoundError) as error:
            if on_error == "raise":
                raise
            _log.warning("left out: %s", error)
            return _View(digest, None)

    parts = [numbers[i * batch_size : (i + 1) * batch_size] for i in range(batches)]
    with ThreadPoolExecutor() as pool:
        coming = pool.map(read, parts[0])
        for part, after in itertools.zip_longest(parts, parts[1:]):
            views = list(coming)
            coming = pool.map(read, after or ())
            yield part, views


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
    rest = b"".join([len(header).to_bytes(4, "little"), header, *(a.tobytes() for a in arrays.values())])
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def _unpack(record: bytes) -> dict[str, Any]:
    if zlib.crc32(record[4:]) != int.from_bytes(record[:4], "little"):
        raise ValueError("its checksum is wrong")
    start = 8 + int.from_bytes(record[4:8], "little")
    header = json.loads(record[8:start])
    row = {name: tuple(v) if isinstance(v, list) else v for name, v in header["plain"].items()}
    for name, dtype, shape in header["arrays"]:
        count = int(np.prod(shape))
        row[name] = np.frombuffer(record, dtype, count, start).reshape(shape)
        start += count * np.dtype(dtype).itemsize
    return row
