"""Invariants: how pictures are split, joined and ordered changes nothing; distances grow with what is wrong with pictures."""

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import evaluation
from ldm_jax.evaluation import frechet
from ldm_jax.first_stage import psnr

RNG = np.random.default_rng(3)


def outputs(count, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(count, 6))
    return {"features": base, "logits": base[:, :4] * 2, "spatial": np.tanh(base @ rng.normal(size=(6, 9)))}


def part(rows, found):
    return evaluation.feature_set(rows, {name: value[rows] for name, value in found.items()})


def everything(found):
    covariance = found.spatial.covariance
    other = np.random.default_rng(9).normal(size=(50, 6)) + 0.5
    return [
        evaluation.frechet_distance(found.features, other),
        evaluation.frechet_of_gaussians(found.spatial.mean, covariance, np.zeros(9), np.eye(9)),
        *evaluation.kernel_distance_of_subsets(found.features, other, 4, 20),
        *evaluation.inception_score(found.logits, 3),
        *evaluation.precision_recall(other, found.features),
    ]


def test_splitting_and_order_change_nothing():
    """One set at once, split as over 8 devices, over two processes that interleave, and in a random order of odd parts."""
    made = outputs(96)
    whole = everything(part(np.arange(96), made))
    order = np.random.default_rng(1).permutation(96)
    splits = {
        "devices": np.split(np.arange(96), 8),
        "processes": [np.arange(96)[i::2] for i in (1, 0)],
        "order": np.split(order, [1, 7, 50]),
    }
    for name, rows in splits.items():
        joined = evaluation.join(part(each, made) for each in rows)
        np.testing.assert_array_equal(joined.rows, np.arange(96), err_msg=name)
        np.testing.assert_allclose(everything(joined), whole, rtol=1e-9, atol=1e-9, err_msg=name)
    nested = evaluation.join([evaluation.join([part(np.arange(60, 96), made), part(np.arange(30), made)]),
                              part(np.arange(30, 60), made)])  # fmt: skip
    np.testing.assert_allclose(everything(nested), whole, rtol=1e-9, atol=1e-9)


def test_a_part_comes_back_from_disk_as_it_was(tmp_path):
    made = part(np.arange(5, 25), outputs(30))
    made.save(tmp_path / "part.npz")
    again = evaluation.load_features(tmp_path / "part.npz")
    for name in ("rows", "features", "logits"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    np.testing.assert_array_equal(again.spatial.scatter, made.spatial.scatter)
    assert again.spatial.count == 20 and [path.name for path in tmp_path.iterdir()] == ["part.npz"]
    (tmp_path / "part.npz").write_bytes((tmp_path / "part.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        evaluation.load_features(tmp_path / "part.npz")


def test_parts_that_do_not_belong_together():
    made = outputs(20)
    with pytest.raises(ValueError, match="picture 3 is in two parts"):
        evaluation.join([part(np.arange(4), made), part(np.arange(3, 9), made)])
    with pytest.raises(ValueError, match="different networks"):
        evaluation.join([part(np.arange(4), made), evaluation.feature_set([7], {"features": made["features"][:1]})])
    with pytest.raises(ValueError, match="no features"):
        evaluation.join([])
    with pytest.raises(ValueError, match="twice"):
        part(np.array([1, 1]), made)
    made["features"][7, 0] = np.nan
    with pytest.raises(ValueError, match="features of 1 of 20 pictures are not finite, first those of picture 7"):
        part(np.arange(20), made)
    with pytest.raises(ValueError, match="a row a picture"):
        evaluation.feature_set([0, 1], {"features": made["features"][:1]})


def photos(count=60, side=16):
    """Smooth pictures in [-1, 1], and features of them: all their low and high frequencies."""
    rng = np.random.default_rng(5)
    waves = np.fft.fft2(rng.normal(size=(count, side, side, 3)), axes=(1, 2))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))[..., None]
    smooth = np.fft.ifft2(waves / (0.05 + frequency), axes=(1, 2)).real
    return np.clip(smooth / np.abs(smooth).max() * 1.5, -1, 1)


def looks(images):
    small = images[:, ::4, ::4].reshape(len(images), -1)
    edges = np.abs(np.diff(images, axis=1)).mean((1, 2)), np.abs(np.diff(images, axis=2)).mean((1, 2))
    return np.concatenate([small, *(10 * e for e in edges)], 1)


def test_the_distance_of_a_set_with_itself_is_nothing_and_grows_with_what_is_wrong():
    real = photos()
    features = looks(real)

    def distance(images):
        return evaluation.frechet_distance(looks(images), features)

    def blurred(images, times):
        for _ in range(times):
            images = (images + np.roll(images, 1, 1) + np.roll(images, 1, 2) + np.roll(images, (1, 1), (1, 2))) / 4
        return images

    noise = np.random.default_rng(6).normal(size=real.shape)
    assert abs(distance(real)) < 1e-9
    for made in (
        [blurred(real, times) for times in (1, 2, 4)],
        [real + s * noise for s in (0.05, 0.1, 0.2)],
        [np.repeat(np.repeat(real[:, :c, :c], 16 // c, 1), 16 // c, 2) for c in (8, 4)],  # crops, magnified
    ):
        found = [distance(images) for images in made]
        assert found[0] > 1e-3 and np.all(np.diff(found) > 0), found


@pytest.mark.parametrize("count", [40, 400])
def test_large_matrices_take_the_short_way_to_the_same_distance(monkeypatch, count):
    """Through eigenvalues and through singular values, of more samples than features and of fewer, and of dead features."""
    a, b = RNG.normal(size=(2, count, 60))
    a, b = np.maximum(a @ np.diag(np.linspace(0.1, 3, 60)), 0), np.maximum(b + 0.2, 0)
    a[:, 3] = b[:, 5] = 0
    moments = [evaluation.moments(x) for x in (a, b)]
    long = evaluation.frechet_from_moments(*moments)
    np.testing.assert_allclose(long, evaluation.frechet_distance(a, b), rtol=1e-6)
    monkeypatch.setattr(frechet, "LARGE", 8)
    np.testing.assert_allclose(evaluation.frechet_from_moments(*moments), long, rtol=1e-7)
    assert abs(evaluation.frechet_from_moments(moments[0], moments[0])) < 1e-6


@pytest.mark.parametrize("count", [8, 25, 300])
def test_many_sets_and_one_reference(count):
    """Of fewer samples than features, of more, of many; whole, and drawn with replacement."""
    there = evaluation.moments(RNG.normal(size=(90, 20)) @ RNG.normal(size=(20, 20)))
    distance = evaluation.frechet_to(there.mean, there.covariance)
    x = np.maximum(RNG.normal(size=(count, 20)), 0)
    for rows in (np.arange(count), RNG.integers(count, size=count)):
        some = evaluation.moments(x[rows])
        expected = evaluation.frechet_of_gaussians(some.mean, some.covariance, there.mean, there.covariance)
        np.testing.assert_allclose(distance(x[rows]), expected, rtol=1e-7)
    with pytest.raises(ValueError, match="not symmetric"):
        evaluation.frechet_to(there.mean, there.covariance + np.triu(np.ones((20, 20)), 1))


def test_gaussians_that_are_none_are_refused():
    mean, covariance = np.zeros(3), np.eye(3)
    assert evaluation.frechet_of_gaussians(mean, covariance, mean + 2, 4 * covariance) == pytest.approx(12 + 3)
    with pytest.raises(ValueError, match="expected"):
        evaluation.frechet_of_gaussians(mean, np.eye(4), mean, covariance)
    with pytest.raises(ValueError, match="not finite"):
        evaluation.frechet_of_gaussians(mean * np.nan, covariance, mean, covariance)
    with pytest.raises(ValueError, match="not symmetric"):
        evaluation.frechet_of_gaussians(mean, covariance + np.triu(np.ones((3, 3)), 1), mean, covariance)


def test_the_distance_at_infinity_has_less_bias():
    """Two draws of one Gaussian: the truth is 0. Of N pictures the distance is above it, of infinitely many about it."""
    mean, covariance = np.zeros(20), np.eye(20)
    plain, infinite = [], []
    for seed in range(8):
        x = np.random.default_rng(seed).normal(size=(200, 20))
        plain.append(evaluation.frechet_of_gaussians(x.mean(0), np.cov(x.T), mean, covariance))
        infinite.append(evaluation.frechet_at_infinity(x, evaluation.frechet_to(mean, covariance), seed=seed))
    assert abs(np.mean(infinite)) < 0.2 * np.mean(plain)
    with pytest.raises(ValueError, match="needs more pictures"):
        evaluation.frechet_at_infinity(x[:2], evaluation.frechet_to(mean, covariance))


def test_the_bootstrap_finds_the_error_of_a_mean():
    x = RNG.normal(size=400) * 3
    found = evaluation.bootstrap(lambda rows: x[rows].mean(), 400, resamples=200)
    assert found.value == pytest.approx(x.mean())
    np.testing.assert_allclose(found.error, x.std() / 20, rtol=0.2)
    np.testing.assert_allclose(found.high - found.low, 2 * 1.96 * found.error, rtol=1e-3)
    with pytest.raises(ValueError, match="at least 2"):
        evaluation.bootstrap(lambda rows: 0.0, 1)


def test_nearest_neighbours_against_all_distances():
    x, y = RNG.normal(size=(30, 4)) + 1e3, RNG.normal(size=(50, 4)) + 1e3  # far from 0, where squares cancel
    all_ = np.sqrt(np.square(x[:, None] - y).sum(-1))
    distances, numbers = evaluation.nearest(x, y, 3)
    np.testing.assert_array_equal(numbers, np.argsort(all_, 1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(all_, 1)[:, :3], rtol=1e-9)
    with pytest.raises(ValueError, match="k=51"):
        evaluation.nearest(x, y, 51)


def test_copies_are_told_from_unseen_pictures():
    train, held_out, fresh = RNG.normal(size=(3, 300, 5))
    honest = evaluation.memorisation(fresh, train, held_out)
    assert abs(honest.closer - 0.5) < 0.08 and honest.copies < 0.05
    assert evaluation.memorisation(held_out, train, held_out).closer == pytest.approx(0.5)
    copied = evaluation.memorisation(train[:100], train, held_out)
    assert copied.closer == 1 and copied.copies == 1
    np.testing.assert_array_equal(copied.neighbours[:, 0], np.arange(100))
    half = evaluation.memorisation(np.concatenate([train[:100], fresh[:100]]), train, held_out)
    assert 0.45 < half.copies < 0.55 and 0.7 < half.closer < 0.8
    assert evaluation.memorisation(fresh + 9, train, held_out).closer < 0.01


def test_held_out_pictures_that_were_trained_on_are_no_measure_of_copies():
    """One in ten of the held-out ones is: the threshold of copies would be nothing, and no copy nearer than that."""
    train, unseen = RNG.normal(size=(200, 8)), RNG.normal(size=(90, 8))
    mixed = np.concatenate([unseen, train[:10] * (1 + 1e-7)])  # features of equal pictures differ by rounding
    copied = evaluation.memorisation(train[50:80] + 1e-9, train, mixed)
    assert copied.closer == copied.copies == 1
    fresh = RNG.normal(size=(200, 8))
    assert evaluation.memorisation(fresh, train, mixed)[:2] == evaluation.memorisation(fresh, train, unseen)[:2]
    with pytest.raises(ValueError, match="all 20 held-out pictures are training pictures"):
        evaluation.memorisation(fresh, train, train[:20])


def test_similarity_at_several_scales_against_the_definition():
    """Three scales written out: contrast and structure at the fine ones, everything at the coarse one."""
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (2, 48, 44, 3)).astype(np.float32)
    y = (0.6 * x + 0.4 * rng.uniform(-1, 1, x.shape)).astype(np.float32)
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    g /= g.sum()

    def window(z):
        for axis in (1, 2):
            z = np.apply_along_axis(lambda v: np.convolve(v, g, "valid"), axis, z)
        return z

    p, q = (np.float64(z + 1) / 2 for z in (x, y))
    powers = np.float64(evaluation.ssim.__globals__["SCALES"][:3])
    powers, expected = powers / powers.sum() * 1.0001, np.ones((2, 3))
    for scale in range(3):
        mp, mq = window(p), window(q)
        vp, vq, c = window(p * p) - mp**2, window(q * q) - mq**2, window(p * q) - mp * mq
        term = (2 * c + 9e-4) / (vp + vq + 9e-4)
        if scale == 2:
            term = term * (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
        expected *= term.mean((1, 2)) ** powers[scale]
        p, q = (z.reshape(2, z.shape[1] // 2, 2, z.shape[2] // 2, 2, 3).mean((2, 4)) if scale < 2 else z for z in (p, q))
    np.testing.assert_allclose(evaluation.ms_ssim(x, y, 3), expected.mean(-1), rtol=1e-4)
    np.testing.assert_allclose(evaluation.ms_ssim(x, x, 3), 1, rtol=1e-5)
    np.testing.assert_allclose(evaluation.ms_ssim(x, y, 1), evaluation.ssim(x, y), rtol=5e-4)  # the powers sum to 1.0001
    with pytest.raises(ValueError, match="at least 176"):
        evaluation.ms_ssim(jnp.zeros((1, 175, 300, 3)), jnp.zeros((1, 175, 300, 3)))


@pytest.mark.parametrize(
    "measure", (evaluation.ssim, lambda x, y: evaluation.ms_ssim(x, y, 1), psnr), ids=("ssim", "ms_ssim", "psnr")
)
def test_pictures_of_8_bits_are_not_taken_for_numbers_from_minus_1_to_1(measure):
    """Signal to noise of any two of them would be 100 dB."""
    x, y = RNG.integers(1, 256, (2, 2, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"uint8.*in \[-1, 1\]"):
        measure(x, y)
    as_floats = (np.float32(z) / 127.5 - 1 for z in (x, y))
    assert float(measure(*as_floats).max()) < 20  # they have nothing in common
    with pytest.raises(ValueError, match=r"2, 16, 16, 3.*2, 16, 16, 1"):
        measure(jnp.zeros((2, 16, 16, 3)), jnp.zeros((2, 16, 16, 1)))


def test_neighbours_of_what_is_not_finite_are_refused():
    features = RNG.normal(size=(20, 4))
    broken = features.copy()
    broken[3] = np.nan
    for pair in ((broken, features), (features, broken)):
        for measure in (evaluation.precision_recall, evaluation.nearest, evaluation.kernel_distance):
            with pytest.raises(ValueError, match="1 of 20 .*not finite"):
                measure(*pair)
        with pytest.raises(ValueError, match="1 of 20 .*not finite"):
            evaluation.memorisation(*pair, features + 1)


def test_pictures_that_can_not_be_measured_and_odd_ones():
    images = RNG.uniform(-1, 1, (4, 6, 5, 3))
    found = evaluation.as_uint8(images)
    assert found.dtype == np.uint8 and np.abs(found / 127.5 - 1 - images).max() <= 0.5 / 127.5 + 1e-6
    np.testing.assert_array_equal(evaluation.as_uint8(found.astype(np.float32) / np.float32(127.5) - 1), found)
    half = jnp.asarray(images, jnp.bfloat16)  # no number type of numpy's own
    assert np.abs(evaluation.as_uint8(half).astype(int) - found).max() <= 1
    with pytest.raises(ValueError, match="are 5 x 6 pixels and should be 6 x 6"):
        evaluation.as_uint8(images, size=(6, 6))
    for broken, said in ((images * np.nan, "not finite"), (images * 2, "expected -1 to 1"), (images[0], "expected"),
                         (images.astype(int), "int64")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            evaluation.as_uint8(broken)
    assert evaluation.odd_in(found) == []
    assert "all 4 pictures are grey" in evaluation.odd_in(np.repeat(found[..., :1], 3, -1))[0]
    said = evaluation.odd_in(found * 0)
    assert [word in text for word, text in zip(("of one colour", "grey", "the same"), said)] == [True] * 3
    assert evaluation.uneven_classes([0, 1, 0, 1], [1, 0]) == []
    assert "class c is 0.0% of what is drawn and 50.0% there" in evaluation.uneven_classes([0, 1, 0], [0, 1, 2, 2], "abc")[0]
