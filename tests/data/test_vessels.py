"""Volumes of spheres and tubes, and what is read from them."""

import numpy as np
import pytest

from ldm_jax.data.source import MissingSplit
from ldm_jax.data.vessels import CLASSES, Vessels, check_all, draw_volume, read_volumes

SIZE = (32, 32, 32)


def test_every_volume_is_read_back():
    rows = [draw_volume(0, i, 0, SIZE) for i in range(24)]
    volumes = np.stack([volume for volume, _ in rows])[..., None] / np.float32(127.5) - 1
    labels = [label for _, label in rows]
    assert set(labels) == {0, 1}
    assert all(each.all() for each in check_all(read_volumes(volumes), labels).values())
    assert not check_all(read_volumes(volumes), [1 - label for label in labels])["kind"].any()
    assert not check_all(read_volumes(np.full_like(volumes[:1], -0.6)), labels[:1])["count"][0]


def test_the_source():
    source = Vessels("train[:50%]", None, (16, 20, 24), (8, 2))
    assert len(source) == 4 and source.info.class_names == CLASSES and source[0]["volume"].shape == (16, 20, 24)
    np.testing.assert_array_equal(source[3]["volume"], Vessels("train", None, (16, 20, 24), (8, 2))[3]["volume"])
    assert source.stamp() != Vessels("train", None, (16, 20, 24), (8, 2)).stamp()
    with pytest.raises(MissingSplit, match="no split 'test'"):
        Vessels("test", None, SIZE, (8, 2))
    with pytest.raises(ValueError, match="at least 16 along each axis"):
        Vessels("train", None, (8, 32, 32), (8, 2))
