"""One training per working directory."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from ldm_jax.training import lock

HERE = socket.gethostname()


def write(folder, **owner):
    mine = {"process": os.getpid(), "host": HERE, "since": "2024-01-01 00:00:00", "started": lock._started(os.getpid())}
    (folder / lock.NAME).write_text(json.dumps({**mine, **owner}))


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_is_refused_by_name_and_the_lock_goes_at_the_end(tmp_path):
    folder = tmp_path / "runs" / "x"
    with lock.hold(folder):
        with pytest.raises(ValueError, match=rf"runs/x is in use by process {os.getpid()} on {HERE} since \d{{4}}-"):
            with lock.hold(folder):
                pass
        assert (folder / lock.NAME).is_file()  # the refused one took nothing away
    assert os.listdir(folder) == []
    with pytest.raises(KeyError), lock.hold(folder):
        raise KeyError
    assert os.listdir(folder) == []


def test_another_process_is_refused_while_it_lives_and_passed_over_when_killed(tmp_path):
    code = (
        "import sys, time\nfrom ldm_jax.training import lock\n"
        "with lock.hold(sys.argv[1]):\n    print(1, flush=True)\n    time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(ValueError, match=f"in use by process {process.pid} on"), lock.hold(tmp_path):
        pass
    process.kill()  # a zombie is dead too
    while lock._started(process.pid) and not lock._started(process.pid).endswith("dead"):
        time.sleep(0.01)
    with lock.hold(tmp_path):
        pass
    process.wait()
    process.stdout.close()


def test_locks_of_the_dead_are_passed_over(tmp_path):
    write(tmp_path, process=dead_process())
    with lock.hold(tmp_path):
        pass
    write(tmp_path, started="another boot 1")  # the number was given to a later process: this one
    with lock.hold(tmp_path):
        pass
    for broken in ("", "{", "[]", "{}"):
        (tmp_path / lock.NAME).write_text(broken)
        with lock.hold(tmp_path):
            pass


def test_a_lock_of_another_host_counts_while_it_is_touched(tmp_path):
    write(tmp_path, host="elsewhere", process=1)
    with pytest.raises(ValueError, match="in use by process 1 on elsewhere"), lock.hold(tmp_path):
        pass
    long_ago = time.time() - lock.STALE - 1
    os.utime(tmp_path / lock.NAME, (long_ago, long_ago))
    with lock.hold(tmp_path):
        pass


def test_a_lock_of_another_container_counts_while_its_file_is_locked(tmp_path):
    """Two of one host name, each with process numbers of its own: the other's number is nobody's here, or somebody else's."""
    if lock._space() is None or lock.fcntl is None:
        pytest.skip("no spaces of process numbers here")
    with lock.hold(tmp_path):
        write(tmp_path, process=dead_process(), space="pid:[1]")  # into the file that is locked
        with pytest.raises(ValueError, match="is in use by process"), lock.hold(tmp_path):
            pass
    with lock.hold(tmp_path):  # killed
        pass
    write(tmp_path, process=os.getpid(), space="pid:[1]")
    with lock.hold(tmp_path):
        pass
    found = json.loads(json.dumps(lock.owner())) | {"process": dead_process(), "space": "pid:[1]"}
    assert lock.is_alive(found, lambda: 1.0) and not lock.is_alive(found, lambda: lock.STALE + 1)  # in a bucket


def test_the_lock_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    with lock.hold(tmp_path):
        os.utime(tmp_path / lock.NAME, (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / lock.NAME).stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_of_many_at_once_one_wins(tmp_path):
    write(tmp_path, process=dead_process())
    won, start, leave = [], threading.Barrier(8), threading.Event()

    def attempt():
        start.wait()
        try:
            with lock.hold(tmp_path):
                won.append(1)
                leave.wait(10)
        except ValueError:
            pass

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert len(won) == 1
    leave.set()
    for thread in threads:
        thread.join()


def test_what_the_killed_left_half_way_goes_and_nothing_else(tmp_path):
    dead, alive = dead_process(), os.getpid()
    left = [f".{lock.NAME}.{HERE}.{dead}.1", f"{lock.NAME}.{dead}.7.stale"]
    kept = [f".{lock.NAME}.{host}.1" for host in (f"{HERE}.{alive}", f"elsewhere.{dead}", f"{HERE}.x")] + [f"{lock.NAME}.mine"]
    for name in (*left, *kept):
        (tmp_path / name).write_text("{")
    with lock.hold(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {lock.NAME, *kept}
    assert {path.name for path in tmp_path.iterdir()} == {*kept}
