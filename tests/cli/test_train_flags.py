"""Fields of the config as flags."""

import pytest

from ldm_jax.cli import configs
from ldm_jax.cli.train import overridden


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
