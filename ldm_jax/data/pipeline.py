"""The one pipeline: rows, shuffled anew every epoch, transformed, batched, prefetched; a function of seed and step.

    source -> shuffle -> repeat -> transform -> batch -> this process's rows of every batch

Batch number `step` is the same whenever and wherever it is made: after a resume (`start_step`), in threads or in worker
processes. Each of several processes loads the rows of every global batch that its devices hold (`rows`), and no others;
together they are exactly the batch of one process. So the step number is all the state there is.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from ldm_jax.data.source import DamagedData, Info, Source, check_on_error

_log = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
ToExample = Callable[[dict[str, Any], np.random.Generator | None], Batch]
_MOST_IN_A_ROW = 100  # unreadable examples before skipping gives up


class Batches:
    """An endless iterator of batches. `skipped`: how many unreadable examples were replaced in what it gave so far."""

    def __init__(self, batches: Iterator[Batch]):
        self.skipped = 0
        self._batches = batches

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.skipped += int(batch.pop("skipped").sum())
        return batch

    def close(self) -> None:
        """Ends worker processes and threads."""
        if hasattr(self._batches, "close"):
            self._batches.close()


def batches(
    source: Source,
    transform: ToExample,
    batch_size: int,
    seed: int,
    *,
    rows: Sequence[int] | None = None,
    start_step: int = 0,
    on_error: str = "raise",
    workers: int = 0,
    threads: int = 1,
    prefetch: int = 4,
) -> Batches:
    """Training batches from number `start_step` on, without end: dicts of numpy arrays whose leading axis are the `rows` of the
    global batch.

    batch_size  of the global batch
    rows        numbers of those rows that are loaded, in their order (`training.sharding.local_rows`); None: all
    on_error    "raise", or "skip": an unreadable image is replaced by the next readable one of the source, and counted
    workers     processes that decode, for when `threads` are not enough; 0 for none
    prefetch    batches held ready
    Raises ValueError for an empty source, rows that a batch hasn't got, and unreadable images.
    """
    rows = _rows_of(batch_size, rows)
    if start_step < 0:
        raise ValueError(f"start_step={start_step}: a step is at least 0")
    count = len(_not_empty(source))
    import grain  # here: a command that trains nothing need not wait half a second for it

    # An endless repeat() has sys.maxsize elements, which overflows in batches of one.
    examples = grain.MapDataset.range(count).seed(seed).shuffle().repeat(2**50 // count + 1)
    examples = examples.random_map(_Load(source, transform, on_error))
    if len(rows) < batch_size:
        from ldm_jax.data.rows import Rows

        examples = Rows(examples, rows, batch_size)
    stream = examples.batch(len(rows))[start_step:]
    options = grain.ReadOptions(num_threads=max(1, threads), prefetch_buffer_size=prefetch)
    stream = stream.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which exist only after app.run
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch))
    return Batches(iter(stream))


def eval_batches(
    source: Source,
    transform: ToExample,
    batch_size: int,
    *,
    rows: Sequence[int] | None = None,
    on_error: str = "raise",
) -> Iterator[Batch]:
    """Every row once, in order and without randomness: the `rows` of every global batch, as of `batches`. The last batch is
    filled up with copies of the last row; `mask` bool [b] is False there. `row` int64 [b] are the rows' numbers: where
    `on_error` is "skip", the next readable one's in place of an unreadable one's. Every process gets equally many batches."""
    rows = _rows_of(batch_size, rows)
    count = len(_not_empty(source))
    for start in range(0, count, batch_size):
        numbers = start + rows
        examples = [example(source, transform, min(i, count - 1), on_error) for i in numbers.tolist()]
        batch = {name: np.stack([each[name] for each in examples]) for name in examples[0]}
        taken = (np.minimum(numbers, count - 1) + batch.pop("skipped")) % count
        yield batch | {"mask": numbers < count, "row": taken}


def example(source: Source, transform: ToExample, number: int, on_error: str = "raise") -> Batch:
    """One row as `eval_batches` takes it, without randomness, and `skipped`: how many unreadable ones stood before it."""
    return _Load(source, transform, on_error).example(number, None)


def in_memory(source: Source, fit: Callable[[dict[str, Any]], dict[str, Any]], on_error: str = "raise") -> "InMemory":
    """The source with `fit` (such as `transform.fit`) applied to every row once and kept: for small images, whose
    decoding would cost more than the memory. Unreadable images are left out if on_error is "skip"."""
    check_on_error(on_error)
    rows, skipped = [], 0
    for row in _rows(source):
        try:
            rows.append(fit(row))
        except (ValueError, FileNotFoundError) as error:
            if on_error == "raise":
                raise
            skipped += 1
            _log.warning("left out: %s", error)
    return InMemory(source.info, rows, skipped)


class InMemory:
    """Rows held in memory; `skipped`: how many of the source's could not be read."""

    def __init__(self, info: Info, rows: list[dict[str, Any]], skipped: int):
        self.info = info
        self.skipped = skipped
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._rows[index])


def _rows(source: Source) -> Iterator[dict[str, Any]]:
    """All rows in order, many at a time where the source can do that."""
    many = getattr(source, "__getitems__", lambda numbers: [source[i] for i in numbers])
    for start in range(0, len(source), 1024):
        yield from many(range(start, min(start + 1024, len(source))))


class _Load:
    """Row number -> example, with `skipped`: how many unreadable rows stood before the one that was taken."""

    def __init__(self, source: Source, transform: ToExample, on_error: str):
        check_on_error(on_error)
        self._source, self._transform, self._skip = source, transform, on_error == "skip"

    def __call__(self, element: int, rng: np.random.Generator) -> Batch:
        return self.example(int(element), rng)

    def example(self, number: int, rng: np.random.Generator | None) -> Batch:
        for skipped in range(min(_MOST_IN_A_ROW, len(self._source))):
            try:
                example = self._transform(self._source[(number + skipped) % len(self._source)], rng)
                return {**example, "skipped": np.int32(skipped)}
            except (ValueError, FileNotFoundError) as error:
                if not self._skip or isinstance(error, DamagedData):
                    raise
                _log.warning("skipped: %s", error)
        raise ValueError(f"{self._source.info.name}: {skipped + 1} unreadable images in a row from number {number} on")


def _rows_of(batch_size: int, rows: Sequence[int] | None) -> np.ndarray:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if not len(rows) or not 0 <= rows.min() <= rows.max() < batch_size:
        raise ValueError(f"rows={rows.tolist()}: must be some of the {batch_size} rows of a batch, numbered from 0")
    return rows


def _not_empty(source: Source) -> Source:
    if not len(source):
        raise ValueError(f"{source.info.name}: the source is empty")
    return source
