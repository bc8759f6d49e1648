"""Every small config can work: what can be said of it before any data are read."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from ldm_jax import build, experiment
from ldm_jax.diffusion.few_steps import OBJECTIVES

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = sorted(path.stem for path in CONFIGS.glob("*.py") if "two CPU cores" in path.read_text().split('"""')[1])


def test_the_small_ones_are_found():
    assert {"shapes", "flowers64", "emoji_kl", "fashion_mnist_adm", "layout_shapes"} <= set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_small_configs_build(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    few_steps = {"shapes_few_steps": "shapes_mean_flow"}
    few_steps |= {f"{data}_few_steps": f"{data}_progressive" for data in ("fashion_mnist", "photos64")}
    assert config.name == few_steps.get(name, name)
    if name == "retrieval_small":  # tests/test_retrieval.py makes the data base that it reads
        with pytest.raises(FileNotFoundError, match="holds no data base of neighbours; make one"):
            build.check(config.to_dict())
    else:
        build.check(config.to_dict())


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "paper"))
def test_what_later_stages_need_is_asked_of_every_config(name, tmp_path):
    """Whatever stages it has: nothing is refused but models that don't come with this library."""
    config = importlib.import_module(f"configs.{name}").get_config()
    try:
        experiment.check_places(config.to_dict(), tmp_path / "run")
    except FileNotFoundError as error:
        assert str(error).startswith(f"config.first_stage.path={config.first_stage.path!r} does not exist")
        config.first_stage.path = ""  # what it would be compared with isn't there
    if "diffusion_train" in config:
        config.diffusion_train.start_from = ""
    experiment.check_start(config.to_dict(), tmp_path / "run")


@pytest.mark.parametrize("name", ["shapes_vq", "flowers_kl", "kl_f8"])
def test_a_first_stage_alone_needs_nothing_of_a_second(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    assert config.stages == ("first_stage",) and "diffusion_train" not in config
    if config.first_stage_loss.perceptual_path:
        config.first_stage_loss.perceptual_path, config.first_stage_loss.perceptual_linear_path = "random", ""
    experiment.check(config.to_dict(), tmp_path / "run")


def test_every_objective_of_few_steps_has_its_config():
    module = importlib.import_module("configs.shapes_few_steps")
    assert set(module.OPTIONS) - set(module.BEFORE) == set(OBJECTIVES)
    for name, kind in OBJECTIVES.items():
        config = module.get_config(name)
        assert config.sampling.sampler == kind.sampler and config.network.second_time == kind.second_time
        assert bool(config.diffusion_train.start_from) == kind.teacher
        build.check(config.to_dict())


@pytest.mark.parametrize("data", ["shapes", "fashion_mnist", "photos64"])
def test_every_round_of_progressive_distillation_halves_the_steps_of_the_one_before(data):
    module, base = (importlib.import_module(f"configs.{data}{end}") for end in ("_few_steps", ""))
    for teacher, name in itertools.pairwise(("progressive", "progressive_4", "progressive_2", "progressive_1")):
        config, before = module.get_config(name), module.get_config(teacher)
        assert f"runs/{before.name}" == config.diffusion_train.start_from == f"runs/{data}_{teacher}"
        assert 2 * config.sampling.steps == before.sampling.steps == before.diffusion.options.student_steps
        assert config.diffusion.options.student_steps == config.sampling.steps
        assert config.sampling.guidance_scale == config.diffusion.options.guidance_scale == 1  # led in the first round
        build.check(config.to_dict())
    other = base.get_config()
    other.first_stage.path = "runs/elsewhere"  # a teacher that trained none of its own
    few_steps = importlib.import_module("configs.shapes_few_steps").few_steps
    assert few_steps(other, "progressive").first_stage.path == "runs/elsewhere"
    first = module.get_config("progressive").diffusion.options
    assert first.guidance_scale == base.get_config().sampling.guidance_scale


@pytest.mark.parametrize("name", SMALL)
def test_who_takes_the_default_s_first_stage_describes_it(name):
    """Or the checkpoint in runs/shapes would be refused. Films add axes to it."""
    stage = importlib.import_module(f"configs.{name}").get_config().first_stage
    if stage.get("path") == "runs/shapes":
        own = importlib.import_module("configs.shapes").get_config().first_stage
        assert all(stage[field] == own[field] for field in own if field != "path")


@pytest.mark.parametrize("schedule", ["flow", "scaled_linear", "edm"])
def test_a_schedule_without_a_scale_stands_beside_1_and_no_other(schedule):
    config = importlib.import_module("configs.shapes").get_config()
    config.diffusion.schedule, config.diffusion.scale = schedule, 0.4
    with pytest.raises(ValueError, match=r"set config\.diffusion\.scale=1"):
        build.make_schedule(config.to_dict())
    config.diffusion.scale = 1.0
    assert build.make_schedule(config.to_dict()) is not None


def test_a_config_may_end_its_table_at_pure_noise():
    """Lin et al. 2023, algorithm 1, on betas whose square roots are linear; a model that came so is trained so."""
    config = importlib.import_module("configs.stable_diffusion_1").get_config()
    assert build.further_fields(config.to_dict())["diffusion.zero_terminal_snr"] is False
    config.diffusion.zero_terminal_snr = True
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    wanted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    found = build.make_schedule(config.to_dict())(np.arange(1000.0))
    np.testing.assert_allclose(found.alpha, wanted, atol=1e-12)
    assert found.alpha[-1] == 0 and build.make_recipe(config.to_dict(), grid="leading").schedule(999.0).alpha == 0
    config.diffusion.schedule, config.diffusion.prediction = "flow", "flow"
    for name in ("linear_start", "linear_end", "timesteps"):
        del config.diffusion[name]
    assert "diffusion.zero_terminal_snr" not in build.further_fields(config.to_dict())
    with pytest.raises(ValueError, match="zero_terminal_snr=True rescales a table of betas, and schedule 'flow' is continuous"):
        build.make_schedule(config.to_dict())
