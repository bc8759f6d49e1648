"""A model's functions over a mesh of eight devices: automatic axes, explicit ones (JAX's default), parameters on one device.
Everywhere the numbers of one device, split as what was given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax import diffusion
from tests.tiny import model

KEY = jax.random.key(0)
PICTURES = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)).astype(np.float32)
HOLE = np.zeros((8, 8, 8), np.float32)
HOLE[:, 2:5] = 1
LATENTS = np.random.default_rng(1).standard_normal((8, 4, 4, 4)).astype(np.float32)
ASK = {"steps": 2, "guidance_scale": 2.0}
CALLS = {  # of a model, parameters, a key, conditions, and pictures, masks and latents as they are given
    "sample": lambda m, p, k, c, a: m.sample(p, k, c, **ASK),
    "sample, a key each": lambda m, p, k, c, a: m.sample(p, a["keys"], c, sampler="euler_ancestral", **ASK),
    "image_to_image": lambda m, p, k, c, a: m.image_to_image(p, k, a["pictures"], c, strength=0.5, **ASK),
    "inpaint": lambda m, p, k, c, a: m.inpaint(p, k, a["pictures"], a["hole"], c, **ASK),
    "variation": lambda m, p, k, c, a: m.variation(p, a["keys"], c, **ASK),
    "panorama": lambda m, p, k, c, a: m.panorama(p, k, c, size=(8, 16), **ASK),
    "invert": lambda m, p, k, c, a: m.invert(p, a["pictures"], c, steps=2),
    "encode": lambda m, p, k, c, a: m.encode(p, a["pictures"], k),
    "decode": lambda m, p, k, c, a: m.decode(p, a["latents"]),
    "apply": lambda m, p, k, c, a: m.apply(p, a["latents"], a["times"], c),
    "noise": lambda m, p, k, c, a: m.noise(a["keys"], 8),
    "denoiser": lambda m, p, k, c, a: m.denoiser(p, c, 2.0)(a["latents"], m.specification.recipe().grid(3)[1]).x0,
}
UNTRACED = ("sample, a key each", "variation", "panorama", "invert", "encode", "decode")  # but for slow tests: much like others


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


def given(split):
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(8))
    arrays = {"pictures": PICTURES, "hole": HOLE, "latents": LATENTS, "times": np.full(8, 500.0, np.float32), "keys": keys}
    return jax.tree.map(split, arrays)


def placed(mesh, spec):
    return lambda x: jax.device_put(x, NamedSharding(mesh, spec))


@pytest.mark.parametrize(
    "name, kind, trace",
    [("sample", AxisType.Auto, False), ("encode", AxisType.Auto, False)]
    + [(name, AxisType.Explicit, False) for name in CALLS]
    + [pytest.param(name, AxisType.Explicit, True, marks=pytest.mark.slow if name in UNTRACED else ()) for name in CALLS],
)
def test_split_over_a_mesh_as_on_one_device(name, kind, trace):
    ldm, call, mesh = model("text"), CALLS[name], mesh_of(kind)
    cond = ldm.embed(ldm.params, ["a red circle", "a blue star"] * 4)
    expected = call(ldm, ldm.params, KEY, cond, given(jnp.asarray))

    def several(params, cond, arrays):
        return call(ldm, params, KEY, cond, arrays)

    rows = placed(mesh, P("data"))
    arguments = jax.tree.map(placed(mesh, P()), ldm.params), jax.tree.map(rows, cond), given(rows)
    found = (jax.jit(several) if trace else several)(*arguments)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    if kind == AxisType.Explicit:
        assert jax.typeof(found).sharding == NamedSharding(mesh.abstract_mesh, P("data", *(None,) * (found.ndim - 1)))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parameters_stay_where_they_were_loaded(kind):
    ldm, rows = model("text"), placed(mesh_of(kind), P("data"))
    cond = ldm.embed(ldm.params, ["a red circle"] * 8)
    found = ldm.sample(ldm.params, KEY, jax.tree.map(rows, cond), **ASK)
    np.testing.assert_allclose(found, ldm.sample(ldm.params, KEY, cond, **ASK), atol=3e-5)


def test_under_an_ambient_mesh_with_explicit_axes():
    ldm = model("text")
    cond = ldm.embed(ldm.params, ["a red circle"] * 8)
    expected = ldm.sample(ldm.params, KEY, cond, **ASK)
    gradient = jax.jit(jax.grad(lambda p: ldm.apply(p, LATENTS, np.full(8, 500.0), cond).std()))(ldm.params)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        here = ldm.embed(ldm.params, ["a red circle"] * 8)
        split = jax.tree.map(placed(mesh, P("data")), cond)
        np.testing.assert_allclose(ldm.sample(ldm.params, KEY, here, **ASK), expected, atol=3e-5)
        found = jax.jit(lambda params, cond: ldm.sample(params, KEY, cond, **ASK))(ldm.params, split)
        np.testing.assert_allclose(found, expected, atol=3e-5)
        latents = placed(mesh, P("data"))(LATENTS)
        loss = jax.jit(jax.grad(lambda p, x, c: ldm.apply(p, x, np.full(8, 500.0), c).std()))
        found = loss(jax.tree.map(placed(mesh, P()), ldm.params), latents, split)
        assert jax.sharding.get_abstract_mesh() == mesh.abstract_mesh
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, gradient)


def test_a_sampler_of_ones_own_on_explicit_axes():
    ldm, mesh = model("text"), mesh_of(AxisType.Explicit)
    cond, levels = ldm.embed(ldm.params, ["a red circle"] * 8), ldm.specification.recipe().grid(3)

    def draw(params, x, cond):
        return diffusion.sample(ldm.denoiser(params, cond, 2.0), diffusion.make_sampler("ddim"), x, levels, KEY)

    split = jax.tree.map(placed(mesh, P("data")), (LATENTS, cond))
    found = jax.jit(draw)(jax.tree.map(placed(mesh, P()), ldm.params), *split)
    np.testing.assert_allclose(found, draw(ldm.params, LATENTS, cond), atol=3e-5)


def test_numbers_on_one_device_are_looked_at_within_jit():
    ldm, mesh = model("text"), mesh_of(AxisType.Explicit)
    rows, cond = placed(mesh, P("data")), ldm.embed(ldm.params, ["a red circle"] * 8)
    half, scale, levels = jnp.float32(0.5), jnp.float32(2), jax.tree.map(jnp.asarray, ldm.specification.recipe().grid(2))

    def draw(pictures, cond):
        return ldm.image_to_image(ldm.params, KEY, pictures, cond, strength=half, guidance_scale=scale, grid=levels)

    expected = ldm.image_to_image(ldm.params, KEY, PICTURES, cond, strength=0.5, **ASK)
    split = rows(PICTURES), jax.tree.map(rows, cond)
    np.testing.assert_allclose(jax.jit(draw)(*split), expected, atol=3e-5)
    with jax.set_mesh(mesh):  # JAX asks for it where no argument lies on the mesh
        np.testing.assert_allclose(jax.jit(lambda: draw(*split))(), expected, atol=3e-5)


def test_the_same_refusals_on_explicit_axes():
    ldm, mesh = model("text"), mesh_of(AxisType.Explicit)
    rows = placed(mesh, P("data"))
    with pytest.raises(ValueError, match=r"bring it to \[-1, 1\]"):
        ldm.encode(ldm.params, rows(PICTURES * 3))
    with pytest.raises(ValueError, match="for 8 pictures"):
        cond = jax.tree.map(rows, ldm.embed(ldm.params, ["a red circle"] * 8))
        ldm.sample(ldm.params, KEY, cond, guidance_scale=np.ones(3))


@pytest.mark.parametrize("name", ["sample", "inpaint", "invert", "encode", "apply"])
@pytest.mark.parametrize("habit", [lambda: jax.numpy_rank_promotion("raise"), lambda: jax.transfer_guard("disallow")])
def test_what_a_caller_forbids_its_own_code_is_not_forbidden_here(name, habit):
    ldm = model("text")
    arrays = {"pictures": PICTURES, "hole": HOLE, "latents": LATENTS, "times": np.full(8, 500.0, np.float32)}
    cond = ldm.embed(ldm.params, ["a red circle", "a blue star"] * 4)
    expected = CALLS[name](ldm, ldm.params, KEY, cond, arrays)
    with habit():
        found = CALLS[name](ldm, ldm.params, KEY, cond, arrays)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
