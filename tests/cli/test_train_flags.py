"""Fields of the config as flags."""

import sys

import pytest

from ldm_jax import build
from ldm_jax.cli import configs, train
from ldm_jax.cli.overrides import overridden


@pytest.mark.parametrize(
    "name, flag, value",
    [
        ("shapes", "data.image_size=(32,48)", (32, 48)),
        ("shapes", "data.image_size=[32, 48]", (32, 48)),
        ("shapes", "data.image_size=64", 64),
        ("moving_shapes", "data.image_size=16", 16),
        ("moving_shapes", "data.image_size=(4,16,16)", (4, 16, 16)),
        ("shapes", "first_stage.num_res_blocks=(0,1,1)", (0, 1, 1)),
        ("photos256", "first_stage.num_res_blocks=2", 2),
        ("vessels", "first_stage.kernel_size=3", 3),
    ],
)
def test_one_number_or_several(name, flag, value):
    config = overridden(configs.load(configs.named()[name]), [f"--config.{flag}"])
    *groups, field = flag.partition("=")[0].split(".")
    assert config[groups[0]][field] == value


@pytest.mark.parametrize(
    "flag", ["data.image_size=(32,a)", "data.image_size=wide", "data.image_size=('a',)", "log.every=(1,2)", "seed=(1,)"]
)
def test_what_is_neither_is_refused(flag):
    with pytest.raises(ValueError, match=f"config.{flag.partition('=')[0]}"):
        overridden(configs.load(configs.named()["shapes"]), [f"--config.{flag}"])


@pytest.mark.parametrize(
    "name, flags, field, value",
    [
        ("shapes", ["network.remat=blocks"], "remat", "blocks"),
        ("dit_xl_2", ["network.scan_blocks=True"], "scan_blocks", True),
        ("shapes", ["network.transformer_depth_middle=2"], "transformer_depth_middle", 2),
        ("shapes", ["network.kernel_size=(1,3)"], "kernel_size", (1, 3)),
        ("shapes", ["network.norm_eps=1e-6"], "norm_eps", 1e-6),
        ("sentences", ["first_stage.attention=plain"], "attention", "plain"),
        ("shapes", ["diffusion.weighting=min_snr", "diffusion.min_snr_gamma=3"], "min_snr_gamma", 3.0),
        ("shapes", ["diffusion.sigmoid_bias=-1.5", "diffusion.weighting=sigmoid"], "sigmoid_bias", -1.5),
        ("shapes", ["diffusion.schedule=scaled_linear", "diffusion.linear_end=0.02"], "linear_end", 0.02),
    ],
)
def test_a_field_that_the_config_leaves_out(name, flags, field, value):
    """Networks and processes have more fields than a config states; flags reach them, whatever is chosen beside them."""
    config = overridden(configs.load(configs.named()[name]), [f"--config.{each}" for each in flags])
    found = config[flags[0].partition(".")[0]][field]
    assert found == value and type(found) is type(value)
    build.check(config.to_dict() | {"stages": ()})


@pytest.mark.parametrize(
    "flag, said",
    [
        ("network.rmat=blocks", "Did you mean 'remat'"),
        ("network.colour=red", "config.network has .*scan_blocks"),
        ("network.dtype=float32", "no such field"),
        ("diffusion.min_snr_gamma=3", "no such field"),  # of another weighting
        ("diffusion_train.remat=blocks", "no such field"),
        ("network.remat.what=blocks", "no such field"),
        ("network.norm_eps=small", "norm_eps"),
        ("network.scan_blocks=perhaps", "scan_blocks"),
    ],
)
def test_a_field_that_nothing_has(flag, said):
    with pytest.raises(ValueError, match=said) as error:
        overridden(configs.load(configs.named()["shapes"]), [f"--config.{flag}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "stages", [("diffusion", "first_stage"), ("diffusion", "diffusion"), ("evaluation", "latents", "diffusion")]
)
def test_stages_that_can_not_follow_one_another(stages):
    config = configs.load(configs.named()["shapes"]).to_dict() | {"stages": stages}
    with pytest.raises(ValueError, match=r"config.stages=.*in this order, each once"):
        build.check(config)


@pytest.mark.parametrize(
    "section, name, value", [("data", "examples", (10,)), ("data", "counts", (1, 1)), ("log", "profile", (5,))]
)
def test_too_few_numbers(section, name, value):
    config = configs.load(configs.named()["shapes"]).to_dict()
    config[section][name] = value
    with pytest.raises(ValueError, match=f"config.{section}.{name}=.*: must be [23] numbers"):
        build.check(config)


@pytest.mark.parametrize("name", ["config", "workdir", "data"])
def test_an_empty_flag_is_a_variable_that_was_not_set(name):
    with pytest.raises(ValueError, match=f"--{name}= is empty"):
        train.run(["train.py", f"--{name}="])


def test_a_file_where_a_folder_is_meant(tmp_path):
    (tmp_path / "pictures.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="pictures.zip is a file: give the folder"):
        train.run(["train.py", f"--data={tmp_path / 'pictures.zip'}"])


def test_a_config_imports_a_module_beside_it(tmp_path, monkeypatch):
    (tmp_path / "my_sizes_of_a_test.py").write_text("STEPS = 7\n")
    source = "from configs import shapes\nimport my_sizes_of_a_test\n\ndef get_config():\n"
    source += "    config = shapes.get_config()\n"
    source += "    config.diffusion_train.steps = my_sizes_of_a_test.STEPS\n    return config\n"
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setattr("sys.path", [*sys.path])
    assert configs.load(tmp_path / "mine.py").diffusion_train.steps == 7
