"""Means of blocks, unit vectors, and rows that don't depend on their neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.primitives.arrays import block_mean, row_normal, unit
from ldm_jax.primitives.choices import choose, did_you_mean


@pytest.mark.parametrize("spatial", [(7,), (4, 6), (5, 4, 6)])
def test_block_means_of_any_rank(spatial):
    x = np.random.default_rng(0).normal(size=(2, *spatial, 3))
    found = block_mean(x)
    assert found.shape == (2, *(side // 2 for side in spatial), 3)
    first = x[(slice(None), *(slice(0, 2) for _ in spatial))].mean(tuple(range(1, 1 + len(spatial))))
    np.testing.assert_allclose(found[(slice(None), *(0 for _ in spatial))], first, rtol=1e-6)


def test_unit_vectors():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_rows_are_the_same_whichever_are_drawn_together():
    key = jax.random.key(3)
    together = row_normal(key, jnp.arange(6), (2, 2))
    apart = jnp.concatenate([row_normal(key, jnp.asarray(rows), (2, 2)) for rows in ([0, 1], [2, 3, 4], [5])])
    assert jnp.array_equal(together, apart)
    assert len(np.unique(together)) == together.size


def test_choices_name_what_is_near():
    assert did_you_mean("ddmi", ("ddim", "heun")) == " Did you mean 'ddim'?"
    assert did_you_mean("zzz", ("ddim", "heun")) == ""
    with pytest.raises(ValueError, match=r"sampler='heum' is not known. Did you mean 'heun'\? There are: 'ddim', 'heun'."):
        choose({"ddim": 1, "heun": 2}, "heum", "config.sampler")
