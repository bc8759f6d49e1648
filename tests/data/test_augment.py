"""Pictures turned, stretched and moved, and networks that are told."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_jax import build, models
from ldm_jax.data import augment
from ldm_jax.data.transform import Transform
from ldm_jax.training.state import Step
from tests import tiny

SIDE = 32


def picture(seed=0):
    """Smooth, so that the filter's share is small."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def numbers(**given):
    places = {"size": 0, "cosine": 1, "sine": 2, "along_x": 3, "along_y": 4, "right": 5, "down": 6}
    found = np.zeros(augment.NUMBERS, np.float32)
    for name, value in given.items():
        found[places[name]] = value
    return found


def test_nothing_done_is_the_picture():
    image = picture()
    assert augment.apply(image, numbers()) is image
    np.testing.assert_array_equal(augment.matrix(numbers(), SIDE), np.eye(3))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_go_clockwise(quarters):
    image, angle = picture(), quarters * np.pi / 2
    turned = augment.apply(image, numbers(cosine=np.cos(angle) - 1, sine=np.sin(angle)))
    np.testing.assert_allclose(turned, np.rot90(image, -quarters), atol=1)


def test_whole_pixels_of_the_way_and_the_mirror_image_beyond_the_edge():
    image, pixels = picture(), 3
    moved = augment.apply(image, numbers(right=pixels / SIDE / augment.WAY, down=-pixels / SIDE / augment.WAY))
    np.testing.assert_allclose(moved[:-pixels, pixels:], image[pixels:, :-pixels], atol=1)
    np.testing.assert_allclose(moved[:-pixels, 0], image[pixels:, pixels], atol=1)  # as far beyond the edge as within
    far = augment.apply(image, numbers(size=-3, right=3, along_x=3, cosine=-1, sine=1))
    assert far.shape == image.shape and (far.reshape(-1, 3).max(1) > 0).all()  # no corner is left empty


@pytest.mark.parametrize("given, wide, high", [
    ({"size": 5}, 16, 16), ({"size": -5}, 4, 4), ({"along_x": 5}, 16, 4), ({"along_y": -5}, 4, 16),
])  # fmt: skip
def test_sizes_and_stretches(given, wide, high):
    """Five deviations of 0.2: twice. Near the edges mirror images may be seen."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[12:20, 12:20] = 255
    seen = augment.apply(image, numbers(**given))[6:-6, 6:-6, 0] > 127
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (wide, high)
    assert rows.mean() == columns.mean() == (SIDE - 1) / 2 - 6


def test_how_often_each_is_changed():
    drawn = np.stack([augment.draw(np.random.default_rng(i), 0.25) for i in range(4000)])
    for columns in ((0,), (1, 2), (3, 4), (5, 6)):
        assert abs((drawn[:, columns] != 0).any(1).mean() - 0.25) < 0.03  # four standard errors
    both = (drawn[:, 0] != 0) & (drawn[:, 5] != 0)
    assert abs(both.mean() - 0.25**2) < 0.016
    np.testing.assert_allclose((drawn[:, 1] + 1) ** 2 + drawn[:, 2] ** 2, 1, atol=1e-6)
    assert 0.9 < drawn[drawn[:, 0] != 0, 0].std() < 1.05


def test_a_transform_tells_what_it_did():
    image, file = picture(), io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    row = {"image": file.getvalue(), "label": 1}
    transform = Transform(SIDE, augment=0.5)
    still = transform(row)
    np.testing.assert_array_equal(still["image"], Transform.scaled(image))
    np.testing.assert_array_equal(still["augment"], np.zeros(augment.NUMBERS))
    for seed in range(8):
        seen = transform(row, np.random.default_rng(seed))
        np.testing.assert_array_equal(seen["image"], Transform.scaled(augment.apply(image, seen["augment"])))
    assert "augment" not in Transform(SIDE)(row, np.random.default_rng(0))


def test_networks_are_told_by_a_layer_that_is_zero_at_first_and_only_where_they_are_told():
    dit = models.DiT(depth=1, hidden_size=8, num_heads=2, input_size=4, num_classes=None, learn_sigma=False)
    unet = models.UNet(4, 4, 8, 1, (), channel_mult=(1,), norm_num_groups=4, num_head_channels=8)
    x, t = jnp.ones((2, 4, 4, 4)), jnp.ones(2)
    told = {"augment": jnp.ones((2, augment.NUMBERS))}
    for network in (dit, unet):
        params = network.init(jax.random.key(0), x, t, told)["params"]
        assert not params[models.AUGMENT_EMBEDDING]["kernel"].any()
        params = jax.tree.map(lambda leaf: leaf + 0.1, params)
        alone = {name: part for name, part in params.items() if name != models.AUGMENT_EMBEDDING}
        plain = network.apply({"params": alone}, x, t)
        zeros = {"augment": jnp.zeros((2, augment.NUMBERS))}
        np.testing.assert_array_equal(network.apply({"params": params}, x, t, zeros), plain)
        assert not np.allclose(network.apply({"params": params}, x, t, told), plain)
    with pytest.raises(ValueError, match="shared_embedder=True"):
        dit.clone(shared_embedder=False).init(jax.random.key(0), x, t, told)


def test_a_network_learns_to_be_told():
    """The layer that tells gets a gradient, of both halves of a batch alike; and none of its columns that are all zeros."""
    base = tiny.CONFIG | {"data": {"image_size": 8, "augment": 0.5}, "stages": ["diffusion"], "latents": {"cache": False}}
    network = base["network"] | {"use_spatial_transformer": False, "context_dim": None}
    train = {"steps": 1, "batch_size": 4, "optimizer": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "decay": "constant",
             "clip_norm": 0.0, "ema_decay": 0.0, "weight_decay": 0.0, "b1": 0.9, "b2": 0.99}  # fmt: skip
    config = base | {"network": network, "conditioner": {"kind": "none"}, "diffusion_train": train}
    program = build.make_diffusion_program(config)
    assert program.batch["augment"].shape == (4, augment.NUMBERS)
    rng = np.random.default_rng(0)

    def drawn(shapes):
        return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype) / 4, shapes)

    params, constants, batch = map(drawn, (jax.eval_shape(program.init, jax.random.key(0)), program.constants, program.batch))
    batch["augment"] = batch["augment"].at[:, 3:].set(0)
    step = Step(jnp.zeros((), jnp.int32), {}, jnp.arange(4), 4)
    gradient = jax.jit(jax.grad(lambda p: program.loss({**constants, **p}, batch, jax.random.key(0), step)[0]))(params)
    kernel = np.asarray(gradient["network"][models.AUGMENT_EMBEDDING]["kernel"])
    assert (np.abs(kernel[:3]).max(1) > 0).all() and not kernel[3:].any()
