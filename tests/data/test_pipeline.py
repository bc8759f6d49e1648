"""The pipeline is a function of seed and step."""

import logging
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.folder import folder
from ldm_jax.data.pipeline import batches, eval_batches, in_memory
from ldm_jax.data.source import Info
from ldm_jax.data.transform import Transform


@dataclass
class Numbers:
    """Rows that hold their number; those in `bad` cannot be read."""

    count: int
    bad: tuple[int, ...] = ()

    @property
    def info(self):
        return Info("numbers", ("label",))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"label": index, "bad": index in self.bad, "name": f"number {index}"}


def noisy(row, rng):
    if row["bad"]:
        raise ValueError(f"{row['name']} cannot be read")
    return {"label": np.int32(row["label"]), "noise": np.float64(0 if rng is None else rng.random())}


def take(count, *args, **kwargs):
    iterator = batches(*args, **kwargs)
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken


def same(a, b):
    return len(a) == len(b) and all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b))


@pytest.fixture(scope="module")
def reference():
    return take(12, Numbers(23), noisy, 4, seed=5)


def test_deterministic_and_seeded(reference):
    assert same(reference, take(12, Numbers(23), noisy, 4, seed=5))
    assert not same(reference, take(12, Numbers(23), noisy, 4, seed=6))


def test_every_epoch_holds_every_row_in_a_new_order(reference):
    labels = np.concatenate([b["label"] for b in reference])
    epochs = labels[:23], labels[23:46]
    assert all(sorted(e) == list(range(23)) for e in epochs) and list(epochs[0]) != list(epochs[1])
    assert len({n for b in reference for n in b["noise"]}) == 48


def test_resume_by_step_alone(reference):
    for step in (1, 5, 7):
        assert same(reference[step:], take(12 - step, Numbers(23), noisy, 4, seed=5, start_step=step))


def share(batch_size, index, count):
    """Contiguous rows of a batch."""
    return np.split(np.arange(batch_size), count)[index]


def joined(shares):
    """The processes' shares of every batch, one after the other."""
    return [{k: np.concatenate([part[k] for part in parts]) for k in parts[0]} for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_processes_hold_contiguous_rows_of_the_global_batch(reference, count, start):
    shares = [
        take(12 - start, Numbers(23), noisy, 4, seed=5, rows=share(4, i, count), start_step=start, threads=i + 1)
        for i in range(count)
    ]
    assert all(len(batch["label"]) == 4 // count for share in shares for batch in share)
    assert same(joined(shares), reference[start:])


def test_processes_with_workers_hold_the_same_rows(reference):
    shares = [
        take(4, Numbers(23), noisy, 4, seed=5, rows=share(4, i, 2), start_step=3, workers=1 + i) for i in range(2)
    ]
    assert same(joined(shares), reference[3:7])


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_need_not_be_contiguous(reference, workers):
    """As on a TPU's mesh, whose hosts lie in rows and columns."""
    found = take(4, Numbers(23), noisy, 4, seed=5, rows=[0, 3], start_step=3, workers=workers)
    assert same(found, [{name: part[np.array([0, 3])] for name, part in batch.items()} for batch in reference[3:7]])
    whole = list(eval_batches(Numbers(9), noisy, 4))
    for batch, part in zip(whole, eval_batches(Numbers(9), noisy, 4, rows=[1, 2]), strict=True):
        assert same([part], [{name: each[1:3] for name, each in batch.items()}])


def test_a_process_loads_only_its_own_rows():
    seen = []

    def note(row, rng):
        seen.append(row["label"])
        return noisy(row, rng)

    list(eval_batches(Numbers(16), note, 8, rows=share(8, 1, 4)))
    assert seen == [2, 3, 10, 11]
    seen.clear()
    mine = take(2, Numbers(64), note, 8, seed=0, rows=share(8, 3, 4), prefetch=1)
    loaded = set(seen)
    others = [b["label"] for i in range(3) for b in take(2, Numbers(64), noisy, 8, seed=0, rows=share(8, i, 4))]
    assert {int(v) for b in mine for v in b["label"]} <= loaded and not loaded & set(np.concatenate(others).tolist())


def test_threads_change_nothing(reference):
    for threads, prefetch in ((4, 8), (2, 1)):
        assert same(reference, take(12, Numbers(23), noisy, 4, seed=5, threads=threads, prefetch=prefetch))


def test_workers_change_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
    args = folder(tmp_path), Transform(16, crop="random", flip=True), 4
    threads = take(6, *args, seed=1)
    assert same(threads, take(6, *args, seed=1, workers=2))
    assert same(threads[3:], take(3, *args, seed=1, workers=1, start_step=3))
    kept = in_memory(args[0], args[1].fit)
    assert same(threads, take(6, kept, *args[1:], seed=1)) and kept.skipped == 0


def test_unreadable_rows(caplog):
    bad = Numbers(10, bad=(3, 4))
    with pytest.raises(ValueError, match="number [34] cannot be read"):
        take(3, bad, noisy, 4, seed=0)
    with caplog.at_level(logging.WARNING):
        iterator = batches(bad, noisy, 5, seed=0, on_error="skip")
        epoch = [next(iterator) for _ in range(2)]
    labels = sorted(np.concatenate([b["label"] for b in epoch]))
    assert labels == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]  # the next readable one stands in
    assert iterator.skipped == 2 + 1 and "number 3 cannot be read" in caplog.text
    assert all("skipped" not in b for b in epoch)
    assert same(epoch, take(2, bad, noisy, 5, seed=0, on_error="skip"))
    with pytest.raises(ValueError, match="unreadable images in a row"):
        take(1, Numbers(3, bad=(0, 1, 2)), noisy, 1, seed=0, on_error="skip")


def test_corrupt_image_is_named(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.jpg")
    whole = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(whole[: len(whole) // 2])
    source, transform = folder(tmp_path), Transform(8)
    for failing in (
        lambda: take(2, source, transform, 4, seed=0),
        lambda: list(eval_batches(source, transform, 4)),
        lambda: in_memory(source, transform.fit),
    ):
        with pytest.raises(ValueError, match=r"2\.jpg cannot be read"):
            failing()
    kept = in_memory(source, transform.fit, on_error="skip")
    assert len(kept) == 3 and kept.skipped == 1
    (batch,) = eval_batches(source, transform, 4, on_error="skip")
    assert np.array_equal(batch["image"][2], batch["image"][3]) and batch["row"].tolist() == [0, 1, 3, 3]


@pytest.mark.parametrize("rows", [1, 9, 10, 12])
def test_eval_batches_give_every_row_once(rows):
    whole = list(eval_batches(Numbers(rows), noisy, 4))
    assert np.concatenate([b["label"][b["mask"]] for b in whole]).tolist() == list(range(rows))
    for count in (2, 4):
        shares = [list(eval_batches(Numbers(rows), noisy, 4, rows=share(4, i, count))) for i in range(count)]
        assert all(len(b["label"]) == 4 // count for share in shares for b in share)
        assert same(joined(shares), whole)


def test_the_last_batch_is_filled_up():
    last = list(eval_batches(Numbers(10), noisy, 4))[-1]
    assert last["label"].tolist() == [8, 9, 9, 9] and last["mask"].tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rows": [2, 4]}, r"rows=\[2, 4\]: must be some of the 4 rows"),
        ({"rows": []}, r"rows=\[\]: must be some of the 4 rows"),
        ({"start_step": -1}, "start_step=-1"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"source": Numbers(0)}, "numbers: the source is empty"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(ValueError, match=words):
        batches(**{"source": Numbers(8), "transform": noisy, "batch_size": 4, "seed": 0, **change})
