"""Random masks: their areas, their shapes, and that they are functions of the generator."""

import numpy as np
import pytest

from ldm_jax.data import masks


def drawn(kind, count=25, size=(64, 48), area=masks.AREA):
    return [masks.random_mask(*size, np.random.default_rng(seed), (kind,), area)[..., 0] for seed in range(count)]


def edge(mask):
    """How many pairs of neighbours differ, for every painted pixel: thin strokes have many."""
    return (np.abs(np.diff(mask, axis=0)).sum() + np.abs(np.diff(mask, axis=1)).sum()) / mask.sum()


@pytest.mark.parametrize("kind", masks.KINDS)
@pytest.mark.parametrize("size, area", [((64, 48), masks.AREA), ((96, 128), (0.2, 0.3)), ((32, 32), (0.5, 0.8))])
def test_area_is_in_the_range(kind, size, area):
    found = drawn(kind, 25, size, area)
    for mask in found:
        assert mask.shape == size and mask.dtype == np.float32
        assert set(np.unique(mask)) == {0.0, 1.0}
        assert area[0] <= mask.mean() <= area[1]
    means = [mask.mean() for mask in found]
    assert np.ptp(means) > 0.4 * (area[1] - area[0])  # all of the range is used
    assert len({mask.tobytes() for mask in found}) > 20


def test_strokes_differ_in_width():
    thin, medium, thick = (np.mean([edge(mask) for mask in drawn(kind)]) for kind in ("thin", "medium", "thick"))
    assert thin > 1.5 * medium > 1.5 * 1.3 * thick


def test_borders_leave_one_window_and_boxes_leave_the_rest():
    sides = set()
    for mask in drawn("border", 60):
        rows, columns = np.nonzero(mask == 0)
        window = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert window.max() == 0
        sides.add(sum(map(bool, (rows.min() == 0, rows.max() == 63, columns.min() == 0, columns.max() == 47))))
    assert sides == {0, 1, 2, 3}
    for mask in drawn("box"):
        assert len({row.tobytes() for row in mask}) <= 7  # three boxes have six horizontal edges


def test_all_kinds_come_and_repeat_with_the_generator():
    example = {"image": np.zeros((32, 32, 3), np.float32)}
    first, second = (
        [masks.random_hole(example, rng)["hole"] for _ in range(20)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert all(hole.shape == (32, 32, 1) for hole in first)
    np.testing.assert_array_equal(first, second)
    assert np.ptp([edge(hole[..., 0]) for hole in first]) > 0.3


@pytest.mark.parametrize(
    "kinds, area, message",
    [
        (("thin", "square"), masks.AREA, "square.*choose from thin"),
        ((), masks.AREA, "choose from"),
        (masks.KINDS, (0.5, 0.2), "0 < least < most < 1"),
        (masks.KINDS, (0.0, 0.2), "0 < least"),
        (("thick",), (0.001, 0.002), "widen the range"),
    ],
)
def test_refused(kinds, area, message):
    with pytest.raises(ValueError, match=message):
        masks.random_mask(64, 64, np.random.default_rng(0), kinds, area)
