"""A convolution's derivatives on a CPU, which are products of our own, beside those of XLA's convolution."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.models import convolution as module
from ldm_jax.models.convolution import by_blocks, convolution
from ldm_jax.models.layers import _is_product

CASES = {  # space, window, strides, padding
    "a signal": ((9,), (5,), 1, (2, 2)),
    "a signal, strided": ((9,), (4,), 2, (1, 1)),
    "a picture": ((6, 5), (3, 3), 1, (1, 1)),
    "halved past one side": ((6, 8), (3, 3), 2, ((0, 1), (0, 1))),
    "a phase of an enlarged one": ((6, 5), (2, 2), 1, ((1, 0), (0, 1))),
    "one axis strided": ((5, 6), (1, 3), (1, 2), ((0, 0), (1, 1))),
    "no padding": ((5, 6), (3, 2), 1, "VALID"),
    "strings": ((5, 6), (3, 3), 2, "SAME"),
    "a window that sees nothing but padding": ((3, 4), (3, 3), 1, ((4, 3), (0, 5))),
}


def reference(x, kernel, strides, padding):
    names = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}[x.ndim - 2]
    strides = (strides,) * (x.ndim - 2) if isinstance(strides, int) else strides
    if not isinstance(padding, str) and isinstance(padding[0], int):
        padding = (padding,) * (x.ndim - 2)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=names)


@pytest.fixture(params=[(0, 2**21), (0, 0)], ids=["caches", "no caches"])
def products(request, monkeypatch):
    """Every convolution's derivatives are products; windows are moved after them, or along one axis alone."""
    monkeypatch.setattr(module, "likely_platform", lambda: "cpu")
    monkeypatch.setattr(module, "PRODUCT", request.param[0])
    monkeypatch.setattr(module, "CACHE", request.param[1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [(3, 5), (8, 2)])
def test_derivatives_are_those_of_xlas_convolution(products, case, channels):
    space, window, strides, padding = CASES[case]
    rng = np.random.default_rng(0)
    x, dx = rng.standard_normal((2, 2, *space, channels[0]), np.float32)
    kernel, dkernel = rng.standard_normal((2, *window, *channels), np.float32)

    def both(function):
        def derivatives(x, kernel, dx, dkernel):
            y, tangent = jax.jvp(lambda x, kernel: function(x, kernel, strides, padding), (x, kernel), (dx, dkernel))
            by_x = jax.jvp(lambda x: function(x, kernel, strides, padding), (x,), (dx,))[1]
            loss = lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel, strides, padding)))  # noqa: E731
            second = jax.grad(lambda x: jnp.sum(jnp.square(jax.grad(loss, 1)(x, kernel))))(x)
            return y, tangent, by_x, jax.grad(loss, (0, 1))(x, kernel), jax.grad(loss, 1)(x, kernel), second

        return jax.jit(derivatives)(x, kernel, dx, dkernel)

    for ours, theirs in zip(jax.tree.leaves(both(convolution)), jax.tree.leaves(both(reference)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def names(function, *arguments):
    """Of the operations that a function is made of, those within others included."""

    def within(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from within(inner)

    return list(within(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_only_what_is_asked_for_is_multiplied(products):
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    loss = lambda x, kernel: jnp.sum(convolution(x, kernel, 1, (1, 1)) ** 2)  # noqa: E731
    assert names(jax.grad(loss, (0, 1)), x, kernel).count("dot_general") == 2
    for one in (0, 1):
        made = names(jax.grad(loss, one), x, kernel)
        assert (made.count("dot_general"), made.count("conv_general_dilated")) == (1, 1)


@pytest.mark.parametrize("strides", [1, 2])
def test_eight_devices_multiply_as_one(products, strides):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((8, 6, 6, 3), np.float32), rng.standard_normal((3, 3, 3, 4), np.float32)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows, columns = (NamedSharding(mesh, P(*spec)) for spec in ((("data", "fsdp"),), (None, None, None, "fsdp")))
    gradients = jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolution(x, kernel, strides, (1, 1)))), (0, 1)))
    wanted = gradients(x, kernel)
    for one, other in zip(gradients(jax.device_put(x, rows), jax.device_put(kernel, columns)), wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_rematerialization_keeps_convolutions(products):
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    block = jax.checkpoint(lambda x: jnp.sin(convolution(jnp.sin(x), kernel, 1, (1, 1))), policy=_is_product)
    made = names(jax.grad(lambda x: jnp.sum(block(block(x)))), x)
    assert made.count("conv_general_dilated") == 2


@pytest.mark.parametrize(("platform", "side", "convolutions"), [("cpu", 64, 1), ("cpu", 4, 3), ("gpu", 64, 3), ("tpu", 64, 3)])
def test_large_convolutions_of_cpus_alone_are_differentiated_so(monkeypatch, platform, side, convolutions):
    monkeypatch.setattr(module, "likely_platform", lambda: platform)
    x, kernel = jnp.ones((1, side, side, 64)), jnp.ones((3, 3, 64, 64))
    made = names(jax.grad(lambda x, kernel: jnp.sum(convolution(x, kernel, 1, (1, 1)) ** 2), (0, 1)), x, kernel)
    assert made.count("conv_general_dilated") == convolutions


@pytest.mark.parametrize("space", [(6, 8), (7, 5), (1, 4), (3, 3)])
@pytest.mark.parametrize("pairs", [((1, 1), (1, 1)), ((2, 1), (0, 2)), ((1, 3), (1, 1))])
def test_blocks_of_pixels_are_those_of_a_convolution(space, pairs):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *space, 5), np.float32), rng.standard_normal((3, 3, 5, 4), np.float32)
    found = jax.jit(by_blocks, static_argnums=2)(x, kernel, pairs)
    np.testing.assert_allclose(found, reference(x, kernel, 1, pairs), atol=2e-5)


LARGE = (1, 16, 32, 256), (3, 3, 256, 256)


@pytest.mark.parametrize(("platform", "options", "products"), [
    ("cpu", {}, 16),
    ("cpu", {"strides": 2}, 0),
    ("cpu", {"padding": ((-1, 1), (1, 1))}, 0),
    ("cpu", {"padding": ((1, 1), (0, 0)), "x": (1, 256, 2, 256)}, 0),  # no window fits
    ("cpu", {"dtype": jnp.bfloat16}, 0),
    ("cpu", {"x": (1, 16, 31, 256)}, 0),
    ("cpu", {"kernel": (3, 3, 256, 255)}, 0),
    ("cpu", {"kernel": (3, 1, 256, 256)}, 0),
    ("gpu", {}, 0),
    ("tpu", {}, 0),
])  # fmt: skip
def test_large_windows_of_three_are_done_by_blocks_on_a_cpu(monkeypatch, platform, options, products):
    monkeypatch.setattr(module, "likely_platform", lambda: platform)
    dtype = options.get("dtype", jnp.float32)
    x, kernel = (jax.ShapeDtypeStruct(options.get(name, shape), dtype) for name, shape in zip(("x", "kernel"), LARGE))
    strides, padding = options.get("strides", 1), options.get("padding", (1, 1))
    made = jax.jit(lambda x, kernel: convolution(x, kernel, strides, padding)).lower(x, kernel).as_text()
    assert (made.count("stablehlo.dot_general"), made.count("stablehlo.convolution")) == (products, int(not products))


def test_a_program_for_another_platform_has_whole_convolutions():
    """Though this process has a CPU alone."""
    run = jax.jit(lambda x, kernel: convolution(x, kernel, 1, (1, 1)))
    made = jax.export.export(run, platforms=["tpu"])(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in LARGE))
    assert "stablehlo.dot_general" not in made.mlir_module() and "stablehlo.convolution" in made.mlir_module()


@pytest.mark.parametrize("devices", [1, 8])
def test_a_picture_is_the_same_by_blocks_with_a_gradient_and_on_many_devices(monkeypatch, devices):
    monkeypatch.setattr(module, "likely_platform", lambda: "cpu")
    monkeypatch.setattr(module, "BLOCKS", (0, 0))
    monkeypatch.setattr(module, "PRODUCT", 0)
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((8, 5, 6, 3), np.float32), rng.standard_normal((3, 3, 3, 4), np.float32)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    run = lambda x, kernel: convolution(x, kernel, 1, (1, 1))  # noqa: E731
    wanted = reference(x, kernel, 1, (1, 1))
    np.testing.assert_allclose(jax.jit(run)(placed, kernel), wanted, atol=2e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(run, (0, None)))(placed[:, None], kernel)[:, 0], wanted, atol=2e-5)
    y, pull = jax.vjp(run, placed, kernel)
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    theirs = jax.vjp(lambda x, kernel: reference(x, kernel, 1, (1, 1)), x, kernel)[1](wanted)
    for one, other in zip(pull(wanted), theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
