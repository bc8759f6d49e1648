"""Objectives of few steps from a config to the step: what the network is told, what a teacher is, what is refused."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes, shapes_few_steps
from ldm_jax import build, second_stage
from ldm_jax.diffusion.few_steps import OBJECTIVES
from ldm_jax.first_stage import FirstStage
from ldm_jax.training.state import Step

SMALL = {
    "data.image_size": 8, "first_stage.resolution": 8, "first_stage.ch": 8, "first_stage.ch_mult": (1, 1),
    "network.model_channels": 8, "network.channel_mult": (1,), "network.attention_resolutions": (),
    "network.num_head_channels": 8, "network.norm_num_groups": 4, "network.context_dim": 8, "conditioner.n_embed": 8,
    "conditioner.n_layer": 1, "diffusion_train.batch_size": 8, "diffusion_train.warmup_steps": 0,
}  # fmt: skip


def config_of(objective, **overrides):
    config = shapes_few_steps.get_config(objective) if objective != "diffusion" else shapes.get_config()
    config.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in overrides.items()})
    return config.to_dict()


# two that need all there is, between them; the others trace as much again
FAST = "mean_flow", "scm_distillation"


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in OBJECTIVES])
def test_a_step_of_every_objective(name):
    """Traced, not compiled: the state comes back as it went, the teacher is no part of it."""
    program = build.make_program(config_of(name), "diffusion")
    shapes_of = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, metrics = jax.eval_shape(program.step, program.shapes, program.batch, key, program.constants)
    assert shapes_of(state) == shapes_of(program.shapes)
    assert {"loss", "loss_simple"} <= set(metrics) and all(value.shape == () for value in metrics.values())
    assert (second_stage.TEACHER in program.constants) == OBJECTIVES[name].teacher
    assert set(state.params) == {"network", "conditioner"} == set(state.ema)
    assert ("step_embed_0" in state.params["network"]) == OBJECTIVES[name].second_time


class Spy:
    """In a network's place: notes what it is called with, answers with x times a parameter."""

    def __init__(self):
        self.calls = []

    def apply(self, variables, x, t, cond, **options):
        self.calls.append({"rows": len(x), "cond": cond["context"], "scale": variables["params"], **options})
        return x * variables["params"]


class Words:
    """In a condition's place: inputs [B] -> context, by a parameter; the empty one is 0."""

    null, image_guidance_scale = np.zeros(1, np.float32), None
    encoded = staticmethod(lambda inputs, encode: inputs)
    dropped = staticmethod(lambda inputs, null: null)
    apply = staticmethod(lambda params, inputs: {"context": inputs * params})


def test_networks_are_told_the_conditions_of_their_own_parameters():
    """Of the average its own conditioner's, of a teacher the teacher's; of the empty condition as many rows as asked for."""
    network, teacher, seen = Spy(), Spy(), {}

    def objective(problem, x0, key, rows, batch_size):
        t = jnp.zeros(8)
        problem.network(problem.params, x0, t, None)
        problem.network(problem.ema, x0[:3], t[:3], t[:3])
        problem.network(problem.params, x0[:2], t[:2], None, without=True)
        problem.teacher(x0, t)
        problem.teacher(x0, t, without=True)
        seen["dropped"] = problem.dropped
        return jnp.zeros(()), {}

    loss = second_stage.make_loss(network, FirstStage(), Words, objective, null_probability=0.5, teacher=teacher)
    params = {"network": 2.0, "conditioner": 10.0, "latents": {"scale": 1.0, "shift": 0.0}}
    params[second_stage.TEACHER] = {"network": 3.0, "conditioner": 100.0}
    batch = {"latents": jnp.ones((8, 2, 2, 4)), "inputs": jnp.arange(1.0, 9.0)}
    step = Step(jnp.zeros((), jnp.int32), {"network": 5.0, "conditioner": 1000.0}, jnp.arange(8), 8)
    loss(params, batch, jax.random.key(0), step)
    dropped = np.asarray(seen["dropped"])
    assert 0 < dropped.sum() < 8
    inputs = np.where(dropped, 0, np.arange(1.0, 9.0))
    plain, averaged, empty = network.calls
    assert (plain["scale"], averaged["scale"], empty["scale"]) == (2.0, 5.0, 2.0)
    np.testing.assert_array_equal(plain["cond"], 10 * inputs)
    np.testing.assert_array_equal(averaged["cond"], 1000 * inputs[:3])
    np.testing.assert_array_equal(empty["cond"], np.zeros(2))
    assert "s" not in plain and "s" in averaged and plain["train"]
    for call, wanted in zip(teacher.calls, (100 * inputs, np.zeros(8))):
        np.testing.assert_array_equal(call["cond"], wanted)
        assert call["scale"] == 3.0 and "train" not in call  # no dropout


@pytest.mark.parametrize(
    ("objective", "overrides", "match"),
    [
        ("mean_flow", {"network__second_time": False}, "second_time=False with config.diffusion.objective='mean_flow'"),
        ("diffusion", {"network__second_time": True}, "second_time=True with config.diffusion.objective='diffusion'"),
        ("diffusion", {"diffusion__objective": "meanflow"}, "Did you mean 'mean_flow'"),
        ("mean_flow", {"conditioner__null_probability": 0.0}, "null_probability above 0"),
        ("mean_flow", {"diffusion__offset_noise": 0.1}, "offset_noise=0.1 has no meaning for objective='mean_flow'"),
        ("scm", {"diffusion__prediction": "x0"}, "averages the velocity"),
        ("progressive", {"diffusion_train__start_from": ""}, "learns from a trained model"),
        ("mean_flow", {"diffusion__options__share": 2.0}, "share=2.0: must lie from 0 to 1"),
        ("shortcut", {"diffusion__options__finest": 3}, "finest=3: must be a power of two"),
        ("shortcut", {"diffusion_train__batch_size": 2}, "share=0.25 of config.diffusion_train.batch_size=2 is not one row"),
        ("mean_flow", {"diffusion__options__share": float("nan")}, "share=nan: must be a finite number"),
        ("scm", {"diffusion__time_sampling": "uniform"}, "times_options.mean: times='uniform' takes no options"),
        ("scm", {"diffusion__options__times_options__std": float("inf")}, "times_options.std=inf: must be a finite number"),
        ("mean_flow", {"diffusion__options__power": float("nan")}, "power=nan"),
        ("consistency", {"sampling__sampler": "flow_map", "diffusion__prediction": "edm"}, "averages of the velocity"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_compiles(objective, overrides, match):
    with pytest.raises(ValueError, match=match):
        build.check(config_of(objective, **overrides))


def test_options_are_those_of_the_objective():
    config = config_of("mean_flow")
    config["diffusion"]["options"]["shares"] = 0.5
    with pytest.raises(ValueError, match=r"config.diffusion.options='shares' is not known. Did you mean 'share'"):
        build.check(config)
    config = config_of("diffusion")
    config["diffusion"]["options"]["share"] = 0.5
    with pytest.raises(ValueError, match=r"config.diffusion.options.share: options are of objectives of few steps"):
        build.check(config)
    config = config_of("mean_flow")
    config["network"]["attention"] = "flash"
    with pytest.raises(ValueError, match="no forward-mode derivative"):
        build.check(config)


def test_configs_without_the_new_fields_are_what_they_were():
    config = config_of("diffusion")
    del config["diffusion"]["objective"], config["diffusion"]["options"], config["network"]["second_time"]
    old, new = (build.make_program(c, "diffusion") for c in (config, config_of("diffusion")))
    assert old.shapes.params.keys() == new.shapes.params.keys()
    assert jax.tree.structure(old.shapes) == jax.tree.structure(new.shapes)
    assert build.few_steps_kind(config) is None
