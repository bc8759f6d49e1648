"""Several processes as one run: how they find one another, and how the first prepares what the others read.

JAX finds the other processes by itself on Cloud TPU pods, under Slurm's `srun`, on GKE and under Open MPI's `mpirun`. Elsewhere
each process is told, by arguments or by the environment variables JAX_COORDINATOR_ADDRESS (host:port of the first process),
JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# Environments that JAX's own detection knows, by variables that only a process of several has.
CLUSTERS = {
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "Slurm": ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_NTASKS"),
    "GKE": ("MEGASCALE_COORDINATOR_ADDRESS",),
    "Cloud TPU": ("TPU_WORKER_HOSTNAMES",),
}


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Joins the other processes, if there are any; before anything else touches a device. Returns a line that says what was
    found.

    Raises:
      ValueError: some of address, number and identity are known and others aren't, or they contradict one another; or the
        others can't be reached.
    """
    environment = os.environ if environment is None else environment
    told = _told(coordinator, num_processes, process_id, environment)
    cluster = None if told else _cluster(environment)
    if not told and cluster is None:
        return "1 process"
    try:
        jax.distributed.initialize(*told) if told else jax.distributed.initialize()
    except Exception as error:  # JAX raises whatever its layers raise
        where = f"{told[1]} processes at {told[0]}" if told else f"a run under {cluster}"
        raise ValueError(f"could not join {where}: {str(error).splitlines()[0][:200]}") from None
    return f"process {jax.process_index()} of {jax.process_count()}" + (f", {cluster}" if cluster else f", {told[0]}")


def is_one_of_several(environment: Mapping[str, str] | None = None) -> bool:
    """Whether `initialize` without arguments would join other processes. Asks nobody and touches no device. ValueError for
    variables that contradict themselves."""
    environment = os.environ if environment is None else environment
    return bool(_told(None, None, None, environment) or _cluster(environment))


def _told(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environment: Mapping[str, str]
) -> tuple[str, int, int] | None:
    """The three things that were given, or None for none of them."""
    given = dict(zip(VARIABLES, (coordinator, num_processes, process_id)))
    found = {name: value if value is not None else environment.get(VARIABLES[name]) for name, value in given.items()}
    known = [name for name, value in found.items() if value not in (None, "")]
    if not known:
        return None
    if len(known) < 3:
        missing = next(name for name in VARIABLES if name not in known)
        raise ValueError(
            f"{' and '.join(f'--{name}={found[name]}' for name in known)} without --{missing}: give all three of coordinator, "
            f"num_processes and process_id, or the variables {', '.join(VARIABLES.values())}, or none"
        )
    try:
        count, index = int(found["num_processes"]), int(found["process_id"])
    except ValueError:
        raise ValueError(
            f"num_processes={found['num_processes']!r}, process_id={found['process_id']!r}: must be whole numbers"
        ) from None
    host, _, port = str(found["coordinator"]).rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator={found['coordinator']!r}: write host:port of process 0, such as 10.0.0.1:1234")
    if not 0 <= index < count:
        raise ValueError(f"process_id={index} of num_processes={count}: processes are numbered from 0")
    return f"{host}:{port}", count, index


def _cluster(environment: Mapping[str, str]) -> str | None:
    """Which cluster this process is one of several of; None for a process of its own, such as one in a Slurm job's script
    outside of `srun`."""
    for name, variables in CLUSTERS.items():
        if not all(environment.get(variable) for variable in variables):
            continue
        size = {"Open MPI": "OMPI_COMM_WORLD_SIZE", "Slurm": "SLURM_NTASKS"}.get(name)
        if size and environment[size] == "1":
            continue
        if name == "Cloud TPU" and len(environment["TPU_WORKER_HOSTNAMES"].split(",")) < 2:
            continue
        return name
    return None


class StoppedTogether(KeyboardInterrupt):
    """All processes raise it, between the same two batches; the first may store for longer than the others."""


@contextlib.contextmanager
def ends_together(orderly: tuple[type[Exception], ...] = (), seconds: float = 10.0) -> Iterator[None]:
    """A program of several processes: what all of them raise, they raise. Where one fails alone, the others would wait for it
    in their next collective, and it for them as it ends: it says so and is gone after `seconds`, and the others find out.
    `orderly`: what never is raised by one alone, and may take some of them longer.

    Ctrl-C and SIGTERM to one of several stop all of them together, where they next come to `stop_point` or a training asks; a
    second Ctrl-C stops that one at once."""
    try:
        with _ctrl_c_as_sigterm():
            yield
    except (StoppedTogether, *orderly):
        raise
    except BaseException as error:
        if jax.process_count() > 1 and not _all_end(seconds):
            try:
                traceback.print_exception(error)
                which = f"process {jax.process_index()} of {jax.process_count()}"
                print(f"{which} fails, the others don't: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                sys.stdout.flush()
            finally:  # where nothing can be printed, as into a file on a disk that is full, too
                os._exit(1)  # sys.exit waits for the others
        raise


def _all_end(seconds: float) -> bool:
    """Whether every process gets here within `seconds`."""
    from orbax.checkpoint import multihost  # here, since only a run of several processes that fails has a use for it

    try:
        multihost.get_jax_distributed_client().wait_at_barrier("ldm_jax ends", int(1000 * seconds))
    except Exception:  # of jax's own, which it doesn't export: too late, or a process is gone
        return False
    return True


@contextlib.contextmanager
def _ctrl_c_as_sigterm() -> Iterator[None]:
    """While the block runs, the first Ctrl-C to one of several processes is SIGTERM, which JAX tells to the others."""
    number = signal.SIGINT
    previous = signal.getsignal(number)

    def pass_on(number: int, frame: Any) -> None:
        signal.signal(number, previous)
        os.kill(os.getpid(), signal.SIGTERM)

    def several(function: Any) -> None:
        joined = jax.distributed.is_initialized() and jax.process_count() > 1  # alone, nothing touches a device before it must
        if joined and previous not in (signal.SIG_IGN, None):
            with contextlib.suppress(ValueError):  # not in the main thread: the caller's business
                signal.signal(number, function)

    several(pass_on)
    try:
        yield
    finally:
        several(previous)


_asked = [0]  # how often `asked_to_stop` was called: as often in all processes
_held: list[str] = []  # why `stop_point` is none


def asked_to_stop() -> bool:
    """Whether one of several processes got SIGTERM: true in all of them at the same call, once. All must call it equally often;
    but within `on_first` it is False, as the first is alone there."""
    if "alone" in _held:
        return False
    _asked[0] += 1
    return multihost_utils.reached_preemption_sync_point(_asked[0])


def ask_alike() -> None:
    """All processes have called `asked_to_stop` equally often from now on, whatever they did before: as the one that did most.
    So a training stops at one step of all."""
    if jax.process_count() > 1 and "alone" not in _held:
        _asked[0] = int(multihost_utils.process_allgather(np.int32(_asked[0])).max())


def stop_point() -> None:
    """Where several processes may stop together, between two batches of theirs: StoppedTogether in all of them when one of
    them was asked to. Nothing in a single process, which is interrupted anywhere, nor while stops are `held`."""
    if jax.process_count() > 1 and not _held and asked_to_stop():
        raise StoppedTogether


@contextlib.contextmanager
def held(reason: str) -> Iterator[None]:
    """While the block runs, `stop_point` is none: as in a training, which asks by itself and saves first."""
    _held.append(reason)
    try:
        yield
    finally:
        _held.remove(reason)


_shared: list[Any] = []  # of `shares`


@contextlib.contextmanager
def shares(copy: Any) -> Iterator[None]:
    """While the block runs, processes have disks of their own, and what one has prepared the others get where they wait for one
    another: each pushes (`copy.push()`), and all pull."""
    _shared.append(copy)
    try:
        yield
    finally:
        _shared.remove(copy)


def own_disks() -> bool:
    """Whether every process has its own copy of the working directory."""
    return bool(_shared) and jax.process_count() > 1


def barrier(name: str) -> None:
    """Returns once all processes have called it."""
    if jax.process_count() > 1:
        for copy in _shared:
            copy.push()
        multihost_utils.sync_global_devices(name)
        _pull(name)


def _pull(name: str) -> None:
    """Where disks are shared: brings what the others pushed. No process goes on before all have it, or what it changes next
    would be gone, or there already, for one that still pulls."""
    for copy in _shared:
        copy.pull()
    if _shared:
        multihost_utils.sync_global_devices(f"{name}: pulled")


def on_first(name: str, prepare: Callable[[], Any]) -> None:
    """Runs `prepare()` in the first process while the others wait. What it raises there, all raise."""
    error = None
    if jax.process_index() == 0:
        try:
            with held("alone"):
                prepare()
            for copy in _shared if jax.process_count() > 1 else ():
                copy.push()
        except (ValueError, OSError) as found:
            if jax.process_count() == 1:
                raise
            error = found
    if jax.process_count() == 1:
        return
    said = np.zeros(2048, np.uint8)
    if error is not None:
        text = np.frombuffer((f"{error}" or type(error).__name__).encode()[: len(said)], np.uint8)
        said[: len(text)] = text
    said = np.asarray(multihost_utils.broadcast_one_to_all(said))
    if error is not None:
        raise error
    if said.any():
        raise ValueError(f"process 0, {name}: {bytes(said[said > 0]).decode(errors='replace')}")
    _pull(name)


def agreed(value: bool) -> bool:
    """What the first process says, in all of them: files may appear for one before another."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def texts(own: str) -> list[str]:
    """What every process says, in all of them, that of process 0 first."""
    if jax.process_count() == 1:
        return [own]
    data = np.frombuffer(json.dumps(own).encode(), np.uint8)  # ASCII, and not empty
    most = int(multihost_utils.process_allgather(np.int32(len(data))).max())
    rows = np.asarray(multihost_utils.process_allgather(np.pad(data, (0, most - len(data)))))
    return [json.loads(bytes(row[row > 0])) for row in rows]


def check_alike(own: str, what: str) -> None:
    """ValueError in all processes, unless `own` is the same in all of them. `what`: the end of a sentence that names it, what
    was found, and what to do."""
    found = texts(own)
    if others := [index for index, each in enumerate(found) if each != found[0]]:
        named = ", ".join(str(index) for index in others[:8]) + (", ..." if len(others) > 8 else "")
        raise ValueError(f"process{'es' * (len(others) > 1)} {named} of {len(found)}, unlike process 0: {what}")


def gathered(rows: np.ndarray) -> np.ndarray:
    """The rows [b, ...] of all processes, those of process 0 first: [B, ...] in every one of them."""
    if jax.process_count() == 1:
        return rows
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))
