"""Several processes as one run, on loopback: both stages, validation, evaluation, SIGTERM, going on with another number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ldm_jax.data.source import Info
from ldm_jax.experiment import together
from ldm_jax.training import distributed, lock, sharding
from ldm_jax.training.checkpoint import load_averaged
from tests.test_train import ROOT, TINY, command, environment, losses, trained  # noqa: F401  (fixtures among them)

# losses that don't depend on how many processes there are, so that all that differs is the order of sums
SHORT = {**TINY, "first_stage_train.steps": 6, "diffusion_train.steps": 6, "log.every": 1, "log.validation_every": 3,
         "checkpoint.every": 3, "log.images_every": 6}  # fmt: skip


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(workdir, count, env, devices, **overrides):
    """So many processes, of `devices` devices together."""
    address, found = f"127.0.0.1:{port()}", []
    for index in range(count):
        flags = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"] if count > 1 else []
        of_each = {**env, "JAX_NUM_CPU_DEVICES": str(devices // count)}
        found.append(
            subprocess.Popen(
                command(workdir, **{**SHORT, **overrides}) + flags, env=of_each, cwd=ROOT, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        )
    return found


def finish(processes, status=0, seconds=500):
    try:
        said = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [status] * len(processes), said[0][-3000:]
    return said


def same(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for step in one:
        assert abs(one[step] - other[step]) <= tolerance * max(abs(one[step]), 1), (step, one[step], other[step])


def close(one, other):
    """By the whole array: where a gradient is all but nothing, rounding decides which way Adam steps."""
    assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other) + 2e-4 * np.sqrt(np.size(other))


@pytest.mark.slow
def test_two_and_four_processes_train_as_one(environment, tmp_path):  # noqa: F811
    for count in (1, 2, 4):
        said = finish(start(tmp_path / str(count), count, environment, 4))
        assert f"process 0 of {count}" in said[0] or count == 1
        assert all("Traceback" not in text for text in said)
        assert (tmp_path / str(count) / "evaluation" / "0000" / "results.json").is_file()
    for stage in ("first_stage", "diffusion"):
        whole = losses(tmp_path / "1", stage)
        assert len(whole) == 6
        for count in (2, 4):
            # the latents come of first stages that agree to rounding: 1.04e-5 was seen
            same(whole, losses(tmp_path / str(count), stage), 1e-5 if stage == "first_stage" else 3e-5)
            params = (load_averaged(tmp_path / name / stage / "checkpoints") for name in ("1", str(count)))
            jax.tree.map(close, *params)


@pytest.mark.slow
def test_sigterm_stops_all_at_one_step_and_another_number_goes_on(environment, tmp_path):  # noqa: F811
    longer = {"diffusion_train.steps": 400, "diffusion_train.decay": "constant"}
    workdir = tmp_path / "stopped"
    processes = start(workdir, 2, environment, 4, **longer)
    log = workdir / "diffusion" / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (log.is_file() and log.read_text().count("train/loss") > 3):
        assert all(process.poll() is None for process in processes), [p.communicate()[0][-2000:] for p in processes]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, status=75)
    steps = {text.split("stopped at step ")[1].split(";")[0] for text in said}
    assert len(steps) == 1, said
    (step,) = steps
    assert (workdir / "diffusion" / "checkpoints" / step).is_dir()
    ends = {"diffusion_train.steps": int(step) + 4, "diffusion_train.decay": "constant"}
    config = json.loads((workdir / "config.json").read_text())
    config["diffusion_train"]["steps"] = int(step)
    del config["sha256"]
    (workdir / "config.json").write_text(json.dumps(config))
    said = finish(start(workdir, 4, environment, 4, **ends))
    assert f"diffusion: going on from step {step}" in said[0]
    assert max(losses(workdir, "diffusion")) == int(step) + 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"diffusion_train.lora.rank": 2, "diffusion_train.accumulate": 2},
        {
            "diffusion_train.dreambooth.prior_weight": 1.0, "diffusion_train.dreambooth.class_prompt": "a red circle",
            "diffusion_train.dreambooth.class_pictures": 10,
        },
    ],
    ids=["all weights", "low rank", "with pictures of the class"],
)  # fmt: skip
def test_two_processes_go_on_from_a_trained_model_as_one(trained, environment, tmp_path, change):  # noqa: F811
    """Words that the model has not met, weights that are split, pictures on the way."""
    model = trained[0]
    onward = {
        "stages": "('latents','diffusion')", "first_stage.path": model, "diffusion_train.start_from": model, "mesh.fsdp": 2,
        "data.examples": "(32,16)", "log.images_every": 3, **change,
    }  # fmt: skip
    if "diffusion_train.lora.rank" in change:
        # a network that is only adapted knows no other words, and its change has one average
        onward |= {"diffusion_train.post_hoc": "()", "checkpoint.snapshots": 0}
        onward["conditioner.tokenizer"] = model / "tokenizer.json"
    for count in (1, 2):
        said = finish(start(tmp_path / str(count), count, environment, 4, **onward))
        assert all("Traceback" not in text for text in said)
        assert (tmp_path / str(count) / "diffusion" / "images" / "samples_0000003.png").is_file()
    same(*(losses(tmp_path / str(count), "diffusion") for count in (1, 2)))


@pytest.mark.slow
def test_kernels_that_are_split_over_processes_learn_as_one(environment, tmp_path):  # noqa: F811
    short = {"first_stage_train.steps": 3, "diffusion_train.steps": 3, "log.images_every": 0, "mesh.tensor": 4}
    for count in (1, 2):
        said = finish(start(tmp_path / str(count), count, environment, 4, **short))
        assert all("Traceback" not in text for text in said)
    for stage in ("first_stage", "diffusion"):
        same(*(losses(tmp_path / str(count), stage) for count in (1, 2)))
        judged = "validation/loss" if stage == "diffusion" else "validation/psnr"
        same(*(losses(tmp_path / str(count), stage, judged) for count in (1, 2)))


def measure(out, workdir, count, env, *flags):
    """What so many processes of two devices together measure of a model."""
    address = f"127.0.0.1:{port()}"
    arguments = [sys.executable, "-m", "ldm_jax.evaluation", "--workdir", str(workdir), "--out", str(out), *flags]
    processes = [
        subprocess.Popen(
            arguments + [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"] * (count > 1),
            env={**env, "JAX_NUM_CPU_DEVICES": str(2 // count)}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]  # fmt: skip
    said = finish(processes)
    assert all("Traceback" not in text for text in said)
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_two_processes_measure_as_one(trained, environment, tmp_path):  # noqa: F811
    flags = ["--num=30", "--batch_size=8", "--features=contrastive", "--resamples=20", "--memorisation", "--reconstructions"]
    alone, together = (measure(tmp_path / str(count), trained[0], count, environment, *flags) for count in (1, 2))
    (one,), (two,) = alone["results"], together["results"]
    assert len(one["values"]) > 8 and one["intervals"] and one["values"].keys() == two["values"].keys()
    for part in ("values", "intervals"):
        for name, value in one[part].items():
            np.testing.assert_allclose(two[part][name], value, rtol=1e-9, atol=1e-12, err_msg=name)


FAILING = """
import sys
from ldm_jax.training import distributed
distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with distributed.ends_together(seconds=2.0):
    if sys.argv[3] == "both" or sys.argv[2] == sys.argv[3]:
        raise ValueError("no room left")
    distributed.barrier("that the other never reaches")
"""


@pytest.mark.parametrize("who", ["0", pytest.param("1", marks=pytest.mark.slow), "both"])
def test_one_that_fails_alone_ends_all(environment, who):  # noqa: F811
    address = f"127.0.0.1:{port()}"
    processes = [
        subprocess.Popen([sys.executable, "-c", FAILING, address, str(index), who], env=environment, cwd=ROOT,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for index in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode for process in processes), said
    for index in range(2):
        assert ("ValueError: no room left" in said[index]) == (who in ("both", str(index)))
        assert (f"process {index} of 2 fails, the others don't: ValueError" in said[index]) == (who == str(index))


@pytest.mark.parametrize(
    "arguments, variables, message",
    [
        ({}, {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:12"}, "without --num_processes"),
        ({"coordinator": "here", "num_processes": 2, "process_id": 0}, {}, "host:port"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, {}, "numbered from 0"),
        ({}, {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "whole numbers"),
    ],
)
def test_what_contradicts_itself_is_named(arguments, variables, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(**arguments, environment=variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},  # a job's script, outside of srun
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},  # one host
    ],
)
def test_a_process_of_its_own_asks_nobody(variables):
    assert distributed.initialize(environment=variables) == "1 process"


def test_an_error_of_the_first_process_is_an_error():
    def fail():
        raise ValueError("no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        distributed.on_first("data", fail)


def test_an_error_without_words_reaches_the_others_too(monkeypatch):
    """They went on, and waited for the first for good."""
    said = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", lambda x: said.append(bytes(x)) or x)

    def fail():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        distributed.on_first("data", fail)
    assert said[0].startswith(b"TimeoutError")


def told(monkeypatch, *others):
    """From now on this process is the first of several, which say so."""
    monkeypatch.setattr(jax, "process_count", lambda: 1 + len(others))
    monkeypatch.setattr(distributed, "texts", lambda own: [own, *(other(own) for other in others)])


def test_processes_of_other_configs_are_refused_with_the_difference(monkeypatch):
    """They trained something of both, or waited for one another."""
    config = {"seed": 0, "first_stage": {"path": "", "ch": 8}, "data": {"path": "/a", "workers": 2}}

    def another(**fields):
        return lambda own: json.dumps({**json.loads(own), **fields})

    told(monkeypatch, another())
    together.check_config(config)
    seen = json.loads(distributed.texts(json.dumps({"x": 1}))[0])
    assert seen == {"x": 1}
    for fields, line in (
        ({"first_stage.ch": 16}, "first_stage.ch: 8 in process 0, 16 there"),
        ({"first_stage.path": True}, "first_stage.path: False in process 0, True there"),
        ({"more": 1}, "more: 'absent' in process 0, 1 there"),
    ):
        told(monkeypatch, another(), another(**fields))
        with pytest.raises(ValueError, match=f"process 2 of 3 has another config.*\n  {line}$"):
            together.check_config(config)
    flat = []
    monkeypatch.setattr(distributed, "texts", lambda own: flat.append(json.loads(own)) or [own, own])
    for path, workers in (("/a", 2), ("/b", 8)):  # where a host has its data, and how many read them, is its own business
        together.check_config(config | {"data": {"path": path, "workers": workers}})
    assert flat[0] == flat[1]


def test_processes_that_see_other_folders_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(together, "PATIENCE", 0.0)
    with lock.hold(tmp_path):
        told(monkeypatch, lambda own: own)
        together.check_place(tmp_path)
        told(monkeypatch, lambda own: "no")
        with pytest.raises(ValueError, match="process 1 of 2 doesn't see what process 0 writes into .*one folder that all"):
            together.check_place(tmp_path)
    told(monkeypatch)
    monkeypatch.setattr(distributed, "_shared", [object()])
    together.check_place(tmp_path / "copies of a bucket")


def test_processes_of_other_data_or_weights_are_refused(monkeypatch):
    rows = [{"name": f"here/{i}", "caption": str(i)} for i in range(250)]

    def source(rows):
        found = Rows(rows)
        found.info = Info("here", ("caption",))
        return found

    class Rows(list):
        pass

    class Several:
        is_multi_process = True

    said = []
    told(monkeypatch, lambda own: said.append(own) or own)
    for found in (rows, rows[:-1], [*rows[:-1], {**rows[-1], "caption": "other"}]):
        together.check_source(source(found), "train")
    for numbers in ([1.0, 2.0], [1.0, 3.0]):
        sharding.check_weights(Several, {"kernel": np.float32(numbers), "bias": np.float32(0)}, "the model")
    assert len({*said}) == 5
    told(monkeypatch, lambda own: said[0])
    together.check_source(source(rows), "train")
    with pytest.raises(ValueError, match="process 1 of 2, unlike process 0: it has other data of the split train"):
        together.check_source(source(rows[1:]), "train")


def test_one_that_cannot_say_why_it_fails_ends_all_the_same(monkeypatch):
    """As where standard error goes to a disk that is full."""
    left = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_all_end", lambda seconds: False)
    monkeypatch.setattr(os, "_exit", left.append)

    class Full:
        def write(self, text):
            raise OSError("no space left on device")

    with pytest.raises(OSError), monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Full())
        with distributed.ends_together():
            raise ValueError("no room left")
    assert left == [1]


SHARING = """
import sys
import jax, numpy as np
from ldm_jax.data.pipeline import batches, eval_batches
from ldm_jax.data.source import Info
from ldm_jax.training import distributed, sharding
distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))

class Source(list):
    info = Info("numbers", ("number",))

def to_example(row, rng):
    return {"number": np.float32(row["number"])}

rows = Source({"number": i} for i in range(10))
plain = sharding.make_mesh()
interleaved = jax.sharding.Mesh(plain.devices[[0, 3, 4, 1, 2, 5]], plain.axis_names, axis_types=plain.axis_types)
for axes in ((-1, 1, 1), (2, 3, 1), (1, 3, 2), (2, 1, 3), (1, 1, 6), "interleaved, as a TPU's"):
    mesh = interleaved if isinstance(axes, str) else sharding.make_mesh(*axes)
    own = sharding.local_rows(mesh, 12)
    (batch,) = eval_batches(rows, to_example, 12, rows=own)
    number = sharding.to_device(mesh, batch["number"])
    assert np.asarray(sharding.replicate(mesh, number)).tolist() == [*range(10), 9, 9], axes
    for shard in number.addressable_shards:
        assert (np.asarray(shard.data) == np.minimum(np.arange(12)[shard.index], 9)).all(), axes
    assert sharding.whole(mesh, batch["mask"]).tolist() == [True] * 10 + [False] * 2, axes
    assert sharding.check_batch_size(12, mesh) == len(own)
    drawn = [next(batches(rows, to_example, 12, 0, rows=part))["number"] for part in (own, None)]
    assert (drawn[0] == drawn[1][own]).all(), axes
"""


def test_processes_that_hold_the_same_rows_load_the_same(environment):  # noqa: F811
    """As where kernels are split over the devices of both: each row is in a batch once, and its copies are alike."""
    address = f"127.0.0.1:{port()}"
    processes = [
        subprocess.Popen([sys.executable, "-c", SHARING, address, str(index)], env={**environment, "JAX_NUM_CPU_DEVICES": "3"},
                         cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for index in range(2)
    ]  # fmt: skip
    finish(processes, seconds=120)


OWN_VIEW = """
import sys, warnings
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from ldm_jax.training import distributed, sharding
from ldm_jax.training.checkpoint import Checkpoints, load_part
from ldm_jax.training.state import TrainState
distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
folder, damage = Path(sys.argv[3]), sys.argv[4]
split = jax.sharding.NamedSharding(sharding.make_mesh(1, 2), jax.sharding.PartitionSpec("fsdp"))

def state(step):
    kernel = np.full((64, 8), step, np.float32)
    params = {"net": {"kernel": jax.make_array_from_callback((64, 8), split, lambda at: kernel[at])}}
    whole = jax.sharding.NamedSharding(split.mesh, jax.sharding.PartitionSpec())
    number, none = (jax.make_array_from_callback((), whole, lambda at, n=n: np.int32(n)) for n in (step, 0))
    return TrainState(number, params, {}, params, none)

with Checkpoints(folder / "shared") as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state(step), wait=True)
if jax.process_index() == 0:
    import shutil
    shutil.copytree(folder / "shared", folder / "other")
    bad = folder / "other" / "2"
    if damage == "gone":
        shutil.rmtree(bad)
    elif damage == "description":
        (bad / "_CHECKPOINT_METADATA").write_text("{")
    else:
        for file in bad.glob("params/**/d/*"):
            file.write_bytes(bytes(file.stat().st_size))
distributed.barrier("damaged")
view = folder / ("other" if jax.process_index() else "shared")
with Checkpoints(view) as checkpoints, warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    wrong = checkpoints.verify()
    found = checkpoints.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(2)))
print("verified:", wrong)
warned = sum("DAMAGED" in str(each.message) for each in said)
print("restored:", int(found.step), float(found.params["net"]["kernel"].sum()), warned)
if jax.process_index():  # which may read what the others don't
    load_part(folder / "shared", "params", 1)
with Checkpoints(folder / "shared") as checkpoints:
    checkpoints.save(3, state(3), wait=True)
    print("verified:", checkpoints.verify(3))
"""


@pytest.mark.parametrize("damage", ["description", "array", "gone"])
def test_a_checkpoint_that_one_process_alone_finds_damaged_is_used_by_none(environment, tmp_path, damage):  # noqa: F811
    address = f"127.0.0.1:{port()}"
    processes = [
        subprocess.Popen([sys.executable, "-c", OWN_VIEW, address, str(index), str(tmp_path), damage],
                         env={**environment, "JAX_NUM_CPU_DEVICES": "1"}, cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for index in range(2)
    ]  # fmt: skip
    for text in finish(processes, seconds=100):
        assert "restored: 1 512.0 1" in text and "verified: None" in text, text[-3000:]
    assert (tmp_path / "damaged" / "2").is_dir()


MANY_ARRAYS = """
import sys
import jax, numpy as np
from ldm_jax.training import distributed, sharding
from ldm_jax.training.checkpoint import checksums
distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mesh = sharding.make_mesh(4, 1, 2)
axes = [jax.sharding.PartitionSpec(*axis) for axis in (("tensor",), (None, "tensor"), ())]
tree, expected = {}, {}
for i in range(200):
    x = np.full((8, 2 + 2 * (i % 40)), i, np.float32)
    at = jax.sharding.NamedSharding(mesh, axes[i % 3])
    tree[f"{i:03}"] = jax.make_array_from_callback(x.shape, at, lambda part, x=x: x[part])
    factor = np.arange(x.size, dtype=np.uint32) * np.uint32(2654435761) | np.uint32(1)
    expected[f"{i:03}"] = int(np.sum(x.reshape(-1).view(np.uint32) * factor, dtype=np.uint32))
assert checksums(tree) == expected
"""


def test_checksums_of_many_split_arrays_end(environment):  # noqa: F811
    """Processes of several virtual devices each, whose programs wait for one another."""
    address = f"127.0.0.1:{port()}"
    processes = [
        subprocess.Popen([sys.executable, "-c", MANY_ARRAYS, address, str(index)],
                         env={**environment, "JAX_NUM_CPU_DEVICES": "4"}, cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for index in range(2)
    ]  # fmt: skip
    finish(processes, seconds=120)


STOPPING = """
import sys, time
from ldm_jax.primitives.console import ends_in_one_line
from ldm_jax.training import distributed
index = int(sys.argv[2])
done = 0
with ends_in_one_line():
    distributed.initialize(sys.argv[1], 2, index)
    with distributed.ends_together():
        with distributed.held("training"):
            distributed.stop_point()
        distributed.on_first("work of the first alone", distributed.stop_point)
        for _ in range(3 * index):  # one that has asked more often than the other
            distributed.stop_point()
        distributed.ask_alike()
        try:
            print("ready", flush=True)
            while True:
                time.sleep(0.1)
                distributed.barrier("a batch")
                distributed.stop_point()
                done += 1
        finally:
            time.sleep(0 if index else 12)  # longer than the others wait for one that fails
            print("stored", done, flush=True)
"""


@pytest.mark.parametrize("who, number", [
    ((1,), signal.SIGTERM),
    pytest.param((0,), signal.SIGINT, marks=pytest.mark.slow),
    pytest.param((0, 1), signal.SIGTERM, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_signal_to_one_of_several_stops_all(environment, who, number):  # noqa: F811
    """Between the same two batches, in order: a SIGTERM was swallowed outside of training."""
    address = f"127.0.0.1:{port()}"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under `nohup ... &`, and by children then
    processes = [
        subprocess.Popen([sys.executable, "-c", STOPPING, address, str(index)], env=environment, cwd=ROOT,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            assert "ready\n" in iter(process.stdout.readline, "")
        time.sleep(0.5)
        for index in who:
            processes[index].send_signal(number)
        said = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, error) in zip(processes, said):
        assert process.returncode == 130 and error.splitlines()[-1] == "stopped" and "Traceback" not in error, said
    counts = {out.splitlines()[-1] for out, _ in said}
    assert len(counts) == 1 and counts.pop().startswith("stored "), said


@pytest.mark.slow
def test_an_evaluation_that_was_stopped_goes_on(trained, environment, tmp_path):  # noqa: F811
    """With what was drawn, and by another number of processes, to the numbers of one that was left alone."""
    out, flags = tmp_path / "stopped", ["--num=400", "--batch_size=2", "--features=contrastive", "--resamples=20"]
    whole = measure(tmp_path / "whole", trained[0], 1, environment, *flags)
    address = f"127.0.0.1:{port()}"
    processes = [
        subprocess.Popen([sys.executable, "-m", "ldm_jax.evaluation", "--workdir", str(trained[0]), "--out", str(out), *flags,
                          f"--coordinator={address}", "--num_processes=2", f"--process_id={index}"],
                         env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]  # fmt: skip
    while not list(out.glob("parts/*/identity.json")):
        assert all(process.poll() is None for process in processes), [process.communicate()[1][-2000:] for process in processes]
        time.sleep(0.1)
    time.sleep(1.0)
    processes[1].send_signal(signal.SIGTERM)
    said = finish(processes, status=130, seconds=60)
    assert all("Traceback" not in text for text in said)
    parts = [np.load(path)["rows"] for path in out.glob("parts/*/*[0-9].npz")]
    assert 0 < sum(map(len, parts)) < 400
    resumed = measure(out, trained[0], 1, environment, *flags)
    for name, value in whole["results"][0]["values"].items():
        np.testing.assert_allclose(resumed["results"][0]["values"][name], value, rtol=1e-6, err_msg=name)
