"""What a config costs: by the rules, by the compiler of this machine's devices, and by a TPU's where it is installed."""

import importlib
import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ldm_jax import plan
from ldm_jax.cli.plan import main
from ldm_jax.plan import program
from tests import tiny

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "--set=network.model_channels=32",
    "--set=network.channel_mult=1",
    "--set=network.num_res_blocks=1",
    "--set=network.attention_resolutions=()",
    "--set=first_stage.ch=8",
    "--set=conditioner.n_layer=1",
    "--set=diffusion_train.batch_size=16",
    "--set=diffusion_train.optimizer=sgd",
]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install ".[tpu-plan]"')


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config().to_dict()


PAPER = [name for name in sorted(path.stem for path in CONFIGS.glob("*.py")) if config_of(name)["dtype"] == "bfloat16"]


def planned(capsys, *arguments):
    assert main(["--config=shapes", "--json", *SMALL, *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_collectives_are_read_from_a_program():
    text = """
%all-reduce-scatter.3 (input: bf16[1280,320], second: f32[8]) -> (bf16[320,320], f32[8]) {
  %all-reduce.4 = (bf16[1280,320]{1,0}, f32[8]{0}) all-reduce(%input, %second), to_apply=%add
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %all-gather.1 = bf16[64,128]{1,0:T(8,128)} all-gather(%p), dimensions={0}
  %all-gather-start.2 = (f32[4], f32[16]) all-gather-start(%p), dimensions={0}
  %all-gather-done.2 = f32[16] all-gather-done(%all-gather-start.2)
  %all-reduce.9 = (f32[10], f32[]) all-reduce(%p, %p), to_apply=%add
  %fusion = (bf16[320,320], f32[8]) fusion(%p), calls=%all-reduce-scatter.3
}
"""
    assert program.collectives(text) == {
        "reduce-scatter": (1, 320 * 320 * 2 + 32.0),
        "all-gather": (2, 64 * 128 * 2 + 64.0),
        "all-reduce": (1, 44.0),
    }


def test_what_a_chip_holds_follows_the_rules():
    tree = {
        "big": {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32)},
        "to_q": {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.bfloat16)},
        "small": {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)},  # too small to be worth splitting
        "key": jax.eval_shape(lambda: jax.random.key(0)),
    }
    whole, half = 256 * 512 * 4, 256 * 512 * 2
    assert program.held(dict(data=4, fsdp=1, tensor=1), tree) == whole + half + 64 * 64 * 4 + 8
    assert program.held(dict(data=1, fsdp=4, tensor=2), tree) == whole / 4 + half / 8 + 64 * 64 * 4 + 8


def test_a_mesh_makes_up_its_topology():
    assert program.mesh_of({"data": -1, "fsdp": 4}, 16) == {"data": 4, "fsdp": 4, "tensor": 1}
    with pytest.raises(ValueError, match="15 chips; the topology has 16"):
        program.mesh_of({"data": 5, "fsdp": 3}, 16)


def test_a_step_is_compiled_for_the_devices_of_this_machine(capsys):
    alone, split = planned(capsys, "--topology=cpu:8", "--mesh=data=8", "--mesh=data=2,fsdp=4")
    for row in (alone, split):  # arguments: the state as the rules place it, a device's rows, frozen networks as far as used
        state = row["params"] + row["optimizer"]
        assert state < row["arguments"] < state + row["fixed"] + 16 / 8 * 32 * 32 * 3 * 4 + 10_000
    assert split["arguments"] < alone["arguments"]
    assert "all-gather" not in alone["collectives"] and "all-gather" in split["collectives"]
    # a ring's gradient: every parameter once, in float32
    assert alone["collectives"]["all-reduce"][1] == pytest.approx(alone["parameters"] * 4, rel=0.1)


def test_what_a_loop_does_counts_as_often_as_it_is_done():
    def looped(x):
        return jax.lax.scan(lambda carry, _: (jax.checkpoint(jnp.dot)(carry, x), None), x, None, length=9)[0] @ x

    assert program.passes(looped, jnp.ones((8, 8))) == 5  # ten products, two of them in its text
    assert program.passes(jnp.sum, jnp.ones(8)) == 1
    config = {**tiny.model("text").config, "name": "tiny"}
    few, many = (
        program.compile_sampling({**config, "sampling": {**config["sampling"], "steps": steps}}, "cpu:1", 2).flops
        for steps in (2, 10)
    )
    assert 3 < many / few < 5.1  # the decoder runs once


@pytest.mark.slow
def test_a_step_in_parts_has_the_products_of_the_whole_batch(capsys):
    whole, parts = (planned(capsys, "--topology=cpu:1", f"--set=diffusion_train.accumulate={n}")[0] for n in (1, 4))
    assert parts["flops"] == pytest.approx(whole["flops"], rel=0.1)


def test_by_the_rules_alone_and_in_words(capsys):
    assert main(["--config=shapes", *SMALL, "--mesh=data=1"]) == 0
    said = capsys.readouterr().out
    assert "batch 16 on 1 x a chip, rules alone" in said and "roofline" not in said


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--config=shaeps"], "nor a config of this name. Did you mean 'shapes'"),
        (["--config=shapes", "--topology=v9:2x2"], "topology"),
        (["--config=shapes", "--topology=v5e:2by2"], "write a chip and a shape"),
        (["--config=shapes", "--topology=cpu:99", "--batch-size=99"], "CPU devices"),
        (["--config=shapes", "--topology=cpu:8", "--mesh=data=3"], "3 chips; the topology has 8"),
        (["--config=shapes", "--topology=cpu:8", "--mesh=date=3"], "date"),
        (["--config=shapes", "--topology=cpu:8", "--mesh=fsdp=-1"], "not data and fsdp; say data=1 besides"),
        (["--config=shapes", "--topology=cpu:8", "--batch-size=12"], "--batch-size=16 is the next one"),
        (["--config=shapes", "--set=network.chanels=3"], "network.chanels: no such field of the config"),
        (["--config=shapes", "--set=network.model_channels=three"], "three"),
    ],
)
def test_refusals_say_what_to_do(arguments, said, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["imagenet_f8", "dit_xl_2", "kl_f8", "vq_f4"])
def test_a_config_of_the_paper_needs_neither_data_nor_weights(name):
    config = config_of(name)
    stage = "diffusion" if "diffusion" in config["stages"] else "first_stage"
    found = plan.compile_training(config, stage, "h100:256", {"data": -1, "fsdp": 16}, 256)
    assert found.parameters > 5e7 and found.peak is None
    # nearly all parameters are split sixteen ways; the discriminator and small arrays are not worth it
    assert found.params < 0.1 * found.parameters * 4 * (2 if config[f"{stage}_train"]["ema_decay"] else 1)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*PAPER} - {"paper"}))
def test_every_config_of_the_paper_compiles_for_16_and_256_chips(name, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    config = config_of(name)
    stage = "diffusion" if "diffusion" in config["stages"] else "first_stage"
    rows, moved = config[f"{stage}_train"]["batch_size"], []
    for topology, chips in (("v5e:4x4", 16), ("v5e:16x16", 256)):
        batch = math.ceil(rows / chips) * chips
        found = plan.compile_training(config, stage, topology, {"data": -1, "fsdp": 16}, batch)
        if not found.fits:
            assert plan.largest_batch(config, stage, topology, {"data": -1, "fsdp": 16}) > 0
        moved.append(sum(size for kind, (_, size) in found.collectives.items()))
    assert moved[1] == pytest.approx(moved[0], rel=0.05)
