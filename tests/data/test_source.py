"""Rows that stand for a whole source."""

import numpy as np
import pytest

from ldm_jax.data.source import parse_split, select, spread_rows


@pytest.mark.parametrize("count, num", [(4000, 1000), (4000, 256), (7, 7), (7, 3), (5, 0), (1, 1), (1000, 999)])
def test_each_part_gives_one_row(count, num):
    rows = spread_rows(count, num)
    assert len(rows) == len(set(rows)) == num and (np.diff(rows) > 0).all() and (rows == spread_rows(count, num)).all()
    assert all(i * count // num <= row < (i + 1) * count // num for i, row in enumerate(rows))


@pytest.mark.parametrize("order", ["sorted by class", "classes in turn", "in turn, by eights"])
def test_classes_keep_their_shares(order):
    """Also where every part begins with the same class, which evenly spaced rows would take alone."""
    labels = {"sorted by class": np.repeat(range(4), 1000), "classes in turn": np.arange(4000) % 4,
              "in turn, by eights": np.arange(4000) // 8 % 4}[order]  # fmt: skip
    for num in (1000, 500, 250, 256, 100):
        shares = np.bincount(labels[spread_rows(4000, num)], minlength=4) / num
        assert abs(shares - 0.25).max() < (1 / num if order == "sorted by class" else 4 * (0.25 * 0.75 / num) ** 0.5)


def test_more_than_there_are():
    with pytest.raises(ValueError, match="num=8 rows of 7"):
        spread_rows(7, 8)


@pytest.mark.parametrize(
    "split, said",
    [
        ("train[:200%]", "200% is more than there is"),
        ("train[150%:]", "150% is more than there is"),
        ("train[90%:10%]", "nothing is in it"),
        ("train[50:50]", "nothing is in it"),
        ("train[-5:]", "expected a name"),
        ("train[:0.5]", "expected a name"),
        ("train+test", "expected a name"),
        ("", "expected a name"),
    ],
)
def test_parts_that_no_split_has_are_refused(split, said):
    with pytest.raises(ValueError, match=said):
        parse_split(split)


def test_parts_of_splits():
    assert parse_split("train[:100%]") == ("train", ("", "100%")) and parse_split("val[10:50%]") == ("val", ("10", "50%"))
    assert parse_split("train[:]") == ("train", ("", "")) and parse_split("train") == ("train", None)


def test_rows_alike_in_their_column_are_in_one_part():
    """Such as the captions of one picture."""
    rows = [{"image": f"{i // 3}.jpg", "caption": str(i)} for i in range(60)]
    for end in ("1", "20", "31", "50%", "98%"):
        first, second = (select({"": rows}, part, "image", "here") for part in (f"train[:{end}]", "train[0:]"))
        assert len(first) % 3 == 0 and len(second) == 60
    first, second = (select({"": rows}, part, "image", "here") for part in ("train[:50%]", "train[50%:]"))
    assert len(first) == len(second) == 30 and not {row["image"] for row in first} & {row["image"] for row in second}


def test_names_that_are_no_utf_8_have_their_part():
    rows = [{"image": f"caf\udce9{i}.jpg"} for i in range(10)]
    assert len(select({"": rows}, "train[:50%]", "image", "here")) == 5
