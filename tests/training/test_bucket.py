"""Working directories in buckets: a file system that holds whole files, and a server that speaks as Google Cloud Storage."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax.data.latent_cache import latent_cache
from ldm_jax.data.transform import Transform
from ldm_jax.training import bucket, distributed, lock
from ldm_jax.training.bucket import Copy, is_address, name_of, opened, stage_folder
from ldm_jax.training.checkpoint import Checkpoints, load_averaged, load_part, steps_in, verify
from tests.data.test_latent_cache import MARK, encode, source, together  # noqa: F401
from tests.test_processes import finish, losses, start
from tests.test_train import ROOT, command, environment, run, trained  # noqa: F401
from tests.training.buckets import served
from tests.training.test_checkpoint import ONE, equal, state_at, target_on


@pytest.fixture(scope="module")
def cloud():
    """A server of gs://bucket, one for all: clients read once where it is. Its store, and the variables that say so."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gs:// needs gcsfs")
    with served() as (store, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import fsspec

        for scheme in ("gcs", "gs"):  # as FSSPEC_GCS says it to processes that begin now
            patch.setitem(fsspec.config.conf, scheme, json.loads(variables["FSSPEC_GCS"]))
        yield store, variables


@pytest.fixture(params=["file", "gs"])
def place(request, tmp_path, monkeypatch):
    """An address; its files, name -> bytes; the variables with which other programs reach it."""
    copies = {"LDM_JAX_COPIES": str(tmp_path / "copies")}
    monkeypatch.setenv(*next(iter(copies.items())))
    root = tmp_path / "mount" / "run"
    if request.param == "file":

        def files():
            return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}

        return SimpleNamespace(address=f"file://{root}", files=files, env=copies)
    store, variables = request.getfixturevalue("cloud")
    store.files.clear()

    def stored():
        return {name.removeprefix("run/"): data for name, (_, _, data) in store.files.items()}

    return SimpleNamespace(address="gs://bucket/run", files=stored, env=copies | variables)


def elsewhere(place):
    """A copy as another host has it."""
    before = os.environ["LDM_JAX_COPIES"]
    os.environ["LDM_JAX_COPIES"] = before + "-elsewhere"
    try:
        return Copy(place.address)
    finally:
        os.environ["LDM_JAX_COPIES"] = before


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("gs://bucket/run", "gs:/bucket/run", "file:///mnt/run", "file:/mnt/run"):
        assert is_address(address), address
    for path in ("runs/shapes", "/gs/run", "gs:", "s3://bucket/run", "gs://", "file://", "https://example.org/x"):
        assert not is_address(path), path
    (tmp_path / "gs:" / "bucket").mkdir(parents=True)
    assert not is_address("gs:/bucket")  # a folder of that name
    assert name_of(tmp_path) == str(tmp_path) and stage_folder(tmp_path, "diffusion") == tmp_path / "diffusion" / "checkpoints"


def test_what_changes_here_goes_there_and_back(place):
    here, there = Copy(place.address), elsewhere(place)
    assert name_of(here.local) == place.address and name_of(there.local) == place.address
    (here.local / "a").mkdir()
    for name, text in {"config.json": "1", "a/b.txt": "2", "é ß.txt": "3", "empty": ""}.items():
        (here.local / name).write_text(text)
    for name in (".config.json.123.tmp", "training.lock", ".latents.incomplete/rows-00000-of-00001"):
        (here.local / name).parent.mkdir(exist_ok=True)
        (here.local / name).write_text("not whole")
    here.push()
    assert place.files() == {"config.json": b"1", "a/b.txt": b"2", "é ß.txt": b"3", "empty": b""}
    there.pull()
    assert (there.local / "a/b.txt").read_text() == "2" and (there.local / "é ß.txt").read_text() == "3"
    # a file changes, one goes, one is new
    (there.local / "a/b.txt").write_text("two")
    (there.local / "empty").unlink()
    (there.local / "new").write_text("4")
    there.push()
    assert place.files() == {"config.json": b"1", "a/b.txt": b"two", "é ß.txt": b"3", "new": b"4"}
    (here.local / "config.json").write_text("later here, and not there")
    here.pull()
    assert (here.local / "a/b.txt").read_text() == "two" and (here.local / "new").read_text() == "4"
    assert not (here.local / "empty").exists() and (here.local / "config.json").read_text() == "later here, and not there"
    # changed on both sides: the bucket's
    (there.local / "new").write_text("there")
    there.push()
    (here.local / "new").write_text("here")
    again = Copy(place.address)  # another process on this host knows what was equal
    again.pull()
    again.push()
    assert (again.local / "new").read_text() == "there"
    assert place.files()["new"] == b"there" and place.files()["config.json"] == b"later here, and not there"


def test_nothing_is_copied_twice(place, monkeypatch):
    copy = Copy(place.address)
    (copy.local / "a").write_text("1")
    copy.push()
    copied = []
    for name in ("put_file", "get_file"):
        monkeypatch.setattr(copy.files, name, lambda *args, name=name: copied.append(name))
    copy.push()
    copy.pull()
    assert copied == []


def test_one_training_holds_a_bucket(place, monkeypatch):
    with opened(place.address) as workdir:
        assert name_of(workdir) == place.address and "training.lock" in place.files()
        (workdir / "config.json").write_text("{}")
        with pytest.raises(ValueError, match=f"{place.address} is in use by process {os.getpid()} on {socket.gethostname()}"):
            with opened(place.address):
                pass
    assert set(place.files()) == {"config.json"}
    # a dead process's lock is passed over: of this host at once, of another when nobody has touched it for a while
    copy = Copy(place.address)
    for host, dead in ((socket.gethostname(), True), ("elsewhere", False)):
        copy.take({"process": 2**22 + 1, "host": host, "since": "then", "started": None})
        if not dead:
            with pytest.raises(ValueError, match="on elsewhere since then"), opened(place.address):
                pass
            monkeypatch.setattr(lock, "STALE", -10.0)
        with opened(place.address):
            pass
    assert set(place.files()) == {"config.json"}


def test_other_things_than_a_working_directory_are_left_alone(place):
    copy = Copy(place.address)
    (copy.local / "photos").mkdir()
    for i in range(3):
        (copy.local / "photos" / f"{i}.png").write_bytes(b"png")
    copy.push()
    shutil.rmtree(copy.local)
    before = place.files()
    with pytest.raises(ValueError, match=f"{place.address} holds photos and is no working directory of ours"):
        with opened(place.address):
            pass
    assert place.files() == before and not (copy.local / "photos").exists()


def test_a_reader_has_a_copy_of_its_own(place):
    with opened(place.address) as workdir:
        (workdir / "config.json").write_text("{}")
        (workdir / "latents").mkdir()
        (workdir / "latents" / "meta.json").write_text("{}")
        Copy(place.address).push()
        read = bucket.fetched(place.address)
        assert read != workdir and name_of(read) == place.address and (read / "config.json").read_text() == "{}"
        assert not (read / "latents").exists()


def test_what_fails_is_one_line_and_what_was_written_is_there(place):
    with pytest.raises(RuntimeError, match="on the way"), opened(place.address) as workdir:
        (workdir / "metrics.jsonl").write_text("1\n")
        raise RuntimeError("on the way")
    assert place.files() == {"metrics.jsonl": b"1\n"}
    copy = Copy(place.address)

    def fail(*_, **__):
        raise OSError("no route\nto host")

    copy.files = SimpleNamespace(find=fail, ls=fail)
    with pytest.raises(OSError, match=r"can't be read \(OSError: no route\)$"):
        copy.pull()
    with pytest.raises(FileNotFoundError, match="holds no working directory"):
        ldm_jax.load(place.address)


def test_what_cannot_be_listed_is_not_taken_for_removed(tmp_path, monkeypatch):
    """A folder of a mount that fails, and one whose files are renamed while it is looked at."""
    monkeypatch.setenv("LDM_JAX_COPIES", str(tmp_path / "copies"))
    copy = Copy(f"file://{tmp_path}/mount/run")
    for name in ("config.json", "latents/meta.json", "diffusion/metrics.jsonl"):
        (copy.local / name).parent.mkdir(exist_ok=True)
        (copy.local / name).write_text(name)
    copy.push()
    listed, failing = copy.files.ls, [OSError("stale handle"), *[FileNotFoundError("x.1.pushed")] * 2]

    def ls(folder, **kwargs):
        if folder.endswith("latents") and failing:
            raise failing.pop(0)
        return listed(folder, **kwargs)

    monkeypatch.setattr(copy.files, "ls", ls)
    with pytest.raises(OSError, match="can't be read .*stale handle"):
        copy.pull()
    copy.pull()
    assert not failing and (copy.local / "latents/meta.json").read_text() == "latents/meta.json"


def test_a_working_directory_that_is_gone_is_not_begun_anew(place):
    """As where a disk is not mounted."""
    with opened(place.address) as workdir:
        (workdir / "config.json").write_text("{}")
    copy = Copy(place.address)
    copy._erase("config.json")
    with pytest.raises(ValueError, match="holds none now: is it mounted\\? .*remove its copy"), opened(place.address):
        pass
    assert place.files() == {} and (workdir / "config.json").is_file()
    shutil.rmtree(workdir)
    with opened(place.address):
        pass


class Copies:
    """The copies of threads that stand for processes; those of all but the first pull late."""

    def __init__(self, address):
        self.of = [Copy(address, f"process-{index}") for index in range(2)]

    @property
    def own(self):
        return self.of[jax.process_index()]

    def push(self):
        self.own.push()

    def pull(self):
        time.sleep(0.5 * jax.process_index())
        self.own.pull()


def test_latents_of_processes_with_disks_of_their_own(tmp_path, monkeypatch, source):  # noqa: F811
    """One that pulls late finds what all had when they waited for one another, not what the quick have made of it since; and
    what a stopped run left on one of the disks is no cache that is being written."""
    monkeypatch.setenv("LDM_JAX_COPIES", str(tmp_path / "copies"))
    gate, copies, index = threading.Barrier(2), Copies(f"file://{tmp_path}/mount/run"), threading.local()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index.value)
    monkeypatch.setattr(distributed.multihost_utils, "sync_global_devices", lambda name: gate.wait(20))

    def work(number, barrier):
        index.value = number
        made = []

        def counted(images):
            made.append(1)
            return encode(images)

        args = {"process_index": number, "process_count": 2, "barrier": distributed.barrier, "own_disks": True}
        latent_cache(copies.own.local / "latents", source, Transform(16), counted, MARK, batch_size=4, **args)
        return len(made)

    left = copies.of[1].local / ".latents.incomplete"
    for expected in (2, 0):
        left.mkdir()
        (left / "rows-00001-of-00002").write_bytes(b"of a run that was stopped")
        with distributed.shares(copies):
            try:
                assert together(2, work) == [expected] * 2
            finally:
                gate.reset()
        for copy in copies.of:
            assert {path.name for path in copy.local.glob("latents/rows-*")} == {f"rows-0000{i}-of-00002" for i in range(2)}


def test_checkpoints_lie_in_the_bucket(place):
    copy = Copy(place.address)
    folder = stage_folder(copy.local, "diffusion")
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, score in zip(range(1, 5), (3.0, 1.0, 2.0, 5.0)):
            checkpoints.save(step, state_at(step), score)
    assert steps_in(folder) == [2, 3, 4] and not (copy.local / "diffusion").exists()
    names = place.files()
    assert names and all(name.startswith("diffusion/checkpoints/") for name in names)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.best == (2, 1.0) and verify(folder) is None
        assert equal(checkpoints.restore(target_on(ONE)), state_at(4))
    assert equal(load_averaged(folder), state_at(4).ema) and equal(load_part(folder, "params", "best"), state_at(2).params)
    assert place.files() == names  # reading writes nothing
    copy.pull()
    assert not (copy.local / "diffusion").exists()  # and copies none of it


def test_damage_and_half_a_checkpoint_in_a_bucket(place):
    folder = stage_folder(Copy(place.address).local, "first_stage")
    with Checkpoints(folder, keep=None) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_at(step))
    (folder / "2" / "params" / "_METADATA").write_text("{")
    if isinstance(folder, os.PathLike) and not str(folder).startswith("gs:"):
        (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    else:
        (folder / "3" / "commit_success.txt").unlink()
    assert steps_in(folder) == [1, 2]
    with Checkpoints(folder, keep=None) as checkpoints:
        with pytest.warns(UserWarning, match="IS DAMAGED"):
            assert equal(checkpoints.restore(target_on(ONE)), state_at(1))
        checkpoints.save(3, state_at(3), wait=True)
        assert equal(checkpoints.restore(target_on(ONE)), state_at(3))
    assert steps_in(folder) == [1, 3]
    assert any(name.startswith("first_stage/damaged/2/params/") for name in place.files())


@pytest.mark.slow
def test_a_training_goes_on_from_another_host(place, environment, trained, tmp_path):  # noqa: F811
    env = {**environment, **place.env}
    process = subprocess.Popen(
        command(place.address), env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if line.startswith("diffusion 10/20"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait() == 75, rest
    assert f"--workdir {place.address}" in rest and "training.lock" not in place.files()
    shutil.rmtree(tmp_path / "copies")
    done = run(command(place.address), env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "first_stage: already trained" in done.stdout and "diffusion: going on from step" in done.stdout
    workdir = Copy(place.address).local
    for stage in ("first_stage", "diffusion"):
        whole, resumed = load_averaged(trained[0] / stage / "checkpoints"), load_averaged(stage_folder(workdir, stage))
        jax.tree.map(np.testing.assert_array_equal, whole, resumed)
        assert max(losses(workdir, stage)) == max(losses(trained[0], stage))
    for name in ("config.json", "tokenizer.json", "latents.json", "latents/meta.json", "evaluation/0000/results.json"):
        assert name in place.files(), name
    before = place.files()
    shutil.rmtree(tmp_path / "copies")
    arguments = [sys.executable, str(ROOT / "sample.py"), "--workdir", place.address, "--prompt", "a red circle", "--num", "2"]
    drawn = run([*arguments, "--out", str(tmp_path / "drawn")], env)
    assert drawn.returncode == 0, drawn.stderr[-3000:]
    own = [*arguments[:3], str(trained[0]), *arguments[4:], "--out", str(tmp_path / "own")]
    assert run(own, env).returncode == 0
    for name in ("0000.png", "0001.png"):
        there, here = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("drawn", "own"))
        assert there.std() > 1
        np.testing.assert_array_equal(there, here)
    assert place.files() == before


@pytest.mark.slow
def test_processes_with_disks_of_their_own_train_as_one(environment, tmp_path):  # noqa: F811
    env = {**environment, "LDM_JAX_COPIES": str(tmp_path / "copies")}
    finish(start(tmp_path / "alone", 1, env, 2))
    finish(start(f"file://{tmp_path}/bucket/run", 2, env, 2))
    for index in range(2):
        workdir = tmp_path / "copies" / "train" / "file" / str(tmp_path).strip("/") / "bucket" / "run" / f"process-{index}"
        for name in ("config.json", "tokenizer.json", "latents.json", "latents/meta.json", "latents/rows-00001-of-00002"):
            assert (workdir / name).is_file(), (index, name)
        for stage in ("first_stage", "diffusion"):
            if index == 0:
                whole, shared = losses(tmp_path / "alone", stage), losses(workdir, stage)
                assert whole.keys() == shared.keys()
                for step in whole:
                    assert abs(whole[step] - shared[step]) <= 1e-5 * max(abs(whole[step]), 1)
    assert not [name for name in os.listdir(tmp_path / "bucket" / "run") if "incomplete" in name or "lock" in name]


def test_the_background_takes_what_is_new_and_says_that_it_lives(place, monkeypatch):
    monkeypatch.setattr(bucket, "EVERY", 0.05)
    with opened(place.address) as workdir:
        began = time.time()
        (workdir / "metrics.jsonl").write_text("1\n")
        time.sleep(2)
        deadline = time.monotonic() + 20
        while place.files().get("metrics.jsonl") != b"1\n" or Copy(place.address)._age() > time.time() - began - 1:
            assert time.monotonic() < deadline  # a lock that nobody touches is as old as the block
            time.sleep(0.05)
