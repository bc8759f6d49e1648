"""Reading checkpoints: what there is, whether it is intact, and one item of it. Nothing here changes anything on disk.

    folder/STEP/{params, ema, opt_state, counters, post_hoc}

`load_averaged` and `load_part` may run beside a training and on a read-only disk. Of several processes each reads for itself,
without waiting for the others.
"""

import contextlib
import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldm_jax.primitives.files import SEAL
from ldm_jax.training import sharding
from ldm_jax.training.ema import reconstruct

PyTree = Any
COMMITTED = "commit_success.txt"  # Orbax's mark
ITEMS = ("params", "ema", "opt_state", "post_hoc")
NESTED = {"params", "ema", "post_hoc", "counters"}  # dicts of dicts; optax's state is made of other things too


_AT_ONCE = 2**20  # words of an array in memory


def _words(x: jax.Array) -> jax.Array:
    """An array's bits as uint32, zero-extended."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    words = _words(x).reshape(-1)
    # An integer sum is exact in any order, so it is the same on any number of devices. The odd factor tells order.
    position = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(2654435761) | jnp.uint32(1)
    return jnp.sum(words * position, dtype=jnp.uint32)


def _checksum_here(x: jax.Array) -> int:
    """`_checksum` of an array in this host's memory, for which nothing need be compiled."""
    x = np.asarray(x).reshape(-1)
    words = x if x.dtype == np.bool_ else x.view(f"uint{8 * x.itemsize}")
    total = np.uint32(0)
    for begin in range(0, words.size, _AT_ONCE):
        part = words[begin : begin + _AT_ONCE].astype(np.uint32)
        position = np.arange(begin, begin + part.size, dtype=np.uint32) * np.uint32(2654435761) | np.uint32(1)
        total = np.sum(part * position, dtype=np.uint32, initial=total)
    return int(total)


def checksums(tree: PyTree) -> dict[str, int]:
    """A 32-bit checksum per array, by path; independent of sharding."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree))
    if jax.default_backend() != "cpu":
        values = jax.device_get([_checksum(x) for x in leaves])
    elif jax.process_count() == 1:
        values = [_checksum_here(x) for x in leaves]
    else:  # one after the other: virtual devices share threads, and many programs that wait for one another may have them all
        values = [jax.device_get(_checksum(x)) for x in leaves]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): int(v) for path, v in zip(paths, values)}


def describe(tree: PyTree) -> dict[str, str]:
    """Type and shape of every array, by path: {"params/net/kernel": "float32[64, 64]"}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{np.dtype(x.dtype).name}{list(x.shape)}"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def compare(found: Mapping[str, str], expected: Mapping[str, str], what: str):
    """ValueError naming the arrays whose name, type or shape differ."""
    if found == expected:
        return
    lines = [f"  {name}: not in the checkpoint" for name in expected if name not in found]
    lines += [f"  {name}: not in the model" for name in found if name not in expected]
    lines += [
        f"  {name}: {found[name]} in the checkpoint, {expected[name]} in the model"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    # the average and the optimizer's moments mirror the parameters, and differ where these do
    lines = [line for line in lines if line.startswith("  params/")] or lines
    more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
    raise ValueError(f"{what} belongs to another model:\n" + "\n".join(lines[:8]) + more)


RECORDED = {"checksums", "arrays", "score", "judged"}  # what is recorded beside the arrays


class Damaged(Exception):
    """What is wrong with a checkpoint, as the end of a sentence."""


def located(folder: Any) -> Any:
    """A folder of checkpoints as an absolute path; one in a bucket (`bucket.stage_folder`) as it is."""
    return Path(folder).absolute() if isinstance(folder, str | Path) else folder


def steps_in(folder: Any) -> list[int]:
    """The steps that have a checkpoint under `folder`, oldest first; [] where there is no folder."""
    try:
        return sorted(int(path.name) for path in located(folder).iterdir() if path.name.isdecimal() and is_whole(path))
    except FileNotFoundError:
        return []


def is_whole(path: Any) -> bool:
    """Whether a step's folder was written to its end. On a disk Orbax renames it then; a bucket can't, and it has a mark."""
    return path.is_dir() and (isinstance(path, Path) or (path / COMMITTED).exists())


def score_of(folder: Any, step: int) -> float | None:
    """The score that the checkpoint of `step` was saved with (lower is better); None without one."""
    meta = _metadata(folder, step)
    try:
        if "score" not in meta:  # versions before this one had Orbax keep it
            meta = json.loads((located(folder) / str(step) / "metrics" / "metrics").read_text(encoding="utf-8"))
        return None if meta["score"] is None else float(meta["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def judged_of(folder: Any, step: int) -> dict[str, Any]:
    """What the checkpoint of `step` says of its judge: "by", the number's name, "since", the looks in a row before it that
    gave no better one, "higher", whether more of it is better, and "looked": False, if a stop kept hooks that were due from
    looking at it; {} for one of an earlier version."""
    found = _metadata(folder, step).get("judged")
    return found if isinstance(found, dict) else {}


def _metadata(folder: Any, step: int) -> dict[str, Any]:
    try:
        path = located(folder) / str(step) / "_CHECKPOINT_METADATA"
        found = json.loads(path.read_text(encoding="utf-8"))["custom_metadata"]
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def best_in(folder: Any, by: str | None = None, until: int | None = None) -> tuple[int, float] | None:
    """Step and score of the checkpoint under `folder` with the lowest score, the newest of equals; None if none has one.

    Scores of different numbers can't be compared: only those count that `by` gave (without it: the number that judged last),
    and those of earlier versions, which don't say. `until`: the last step that counts.
    """
    steps = [step for step in steps_in(folder) if until is None or step <= until]
    scored = [(score, -step) for step in steps if (score := score_of(folder, step)) is not None]
    judges = {step: judged_of(folder, -step).get("by") for _, step in scored}
    if by is None and judges:
        by = judges[min(judges)]
    scored = [each for each in scored if judges[each[1]] in (by, None) or by is None]
    return (-min(scored)[1], min(scored)[0]) if scored else None


def load_averaged(folder: Any, which: str | int = "last", *, mesh: Mesh | None = None) -> PyTree:
    """The parameters to use from a stage's checkpoint: the average where there is one, else params. Arguments and errors as
    `load_part`."""
    return load_part(folder, "averaged", which, mesh=mesh)


def load_part(folder: Any, part: str, which: str | int = "last", *, mesh: Mesh | None = None) -> PyTree:
    """One item of a checkpoint, without a model at hand and without the rest: "params", "ema", "opt_state", "post_hoc", or
    "averaged" (ema, or params where no average is kept).

    `which`: "last", "best" (the lowest score) or a step. Arrays are read onto the default device, but may be used beside ones
    on others, or, with a mesh, split as `placement.spec` says. Nothing on disk is changed, and a training may go on beside it.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: no such step, none with a score, or the checkpoint is damaged; names the older ones that are intact.
    """
    folder = located(folder)
    for attempt in range(5):
        step = _choose(folder, which)
        try:
            found = _load_part(folder / str(step), part, mesh)
            return found if mesh is not None else jax.tree.map(_movable, found)
        except Damaged as damage:
            if attempt < 4 and not (folder / str(step)).is_dir() and not isinstance(which, int):
                continue  # a training went on beside us and no longer keeps it
            intact = [older for older in steps_in(folder) if older < step and not _is_damaged(folder / str(older), part)]
            older = f"Intact older ones: {intact}; which={intact[-1]} loads one." if intact else "No older one is intact."
            raise ValueError(f"checkpoint {folder / str(step)} is damaged: {damage}. {older}") from None


def load_post_hoc(folder: Any, widths: Sequence[float], width: float, which: str | int = "last") -> PyTree:
    """The average of any relative `width` in (0, 0.28], from all snapshots of the averages of `widths` under `folder`, read one
    after the other. `which`: "last", or the step at which it is to end. Errors as `load_part`, and ValueError for a width or a
    step out of range."""
    steps = steps_in(folder)
    if not steps or not widths:
        raise FileNotFoundError(f"{folder} holds no snapshots; they are taken where config.diffusion_train.post_hoc is set")
    if which == "best":
        raise ValueError("which='best' means a checkpoint; an average of another width ends at 'last' or at a step")
    end = steps[-1] if which == "last" else which
    snapshots = (part for step in steps for part in _in_order(load_part(folder, "post_hoc", step), len(widths)))
    places = [(step, each) for step in steps for each in widths]
    return reconstruct(snapshots, [step for step, _ in places], [each for _, each in places], end, width)


def _in_order(parts: Mapping[str, PyTree], count: int) -> list[PyTree]:
    if len(parts) != count:
        raise ValueError(f"a snapshot holds {len(parts)} averages; the config names {count}")
    return [parts[str(i)] for i in range(count)]


def verify(folder: Any, step: int | None = None) -> str | None:
    """What is wrong with the checkpoint of `step` (the newest, without one), every array of it read; None if it is intact.
    Changes nothing on disk. FileNotFoundError if there is none."""
    folder = located(folder)
    path = folder / str(_choose(folder, "last" if step is None else step))
    try:
        _load_items(path, None)
    except Damaged as damage:
        return str(damage)
    return None


def _choose(folder: Path, which: str | int) -> int:
    steps = steps_in(folder)
    if not steps:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    if which == "last":
        return steps[-1]
    if which == "best":
        found = best_in(folder)
        if found is None:
            raise ValueError(f"which='best': no checkpoint under {folder} has a score; which='last' takes the newest")
        return found[0]
    if isinstance(which, bool) or not isinstance(which, int) or which not in steps:
        raise ValueError(f"which={which!r}: {folder} has checkpoints of steps {steps}; give one of them, 'last' or 'best'")
    return which


def _load_part(path: Path, part: str, mesh: Mesh | None) -> PyTree:
    if part not in (*ITEMS, "averaged", "counters"):
        raise ValueError(f"part={part!r}: must be one of averaged, {', '.join(ITEMS)}")
    recorded, _ = recorded_in(path)
    items = {name.split("/")[0] for name in recorded}
    item = ("ema" if "ema" in items else "params") if part == "averaged" else part
    if item not in items:
        raise ValueError(f"checkpoint {path} has no {item}; it has {', '.join(sorted(items))}")
    return _load_items(path, mesh, item)[item]


def _load_items(path: Path, mesh: Mesh | None, only: str = "") -> dict[str, PyTree]:
    """All items of a checkpoint, or one. Raises Damaged."""
    from orbax.checkpoint import v1 as ocp  # here, as in `read`: importing it takes half a second, and errors come before

    with quiet():
        recorded, arrays = recorded_in(path)
        items = {only} if only else {name.split("/")[0] for name in recorded}
        if items <= NESTED:
            with contextlib.suppress(Damaged):  # or it has empty parts, which only Orbax's own description names
                return _checked(read(path, _placed({item: _nested(arrays, item) for item in items}, mesh)), recorded)
        try:  # which takes Orbax seconds
            with _alone():
                described = ocp.checkpointables_metadata(path).metadata
            shapes = {item: described[item] for item in items}
        except Exception as error:
            raise Damaged(f"its description can't be read ({first_line(error)})") from None
        return _checked(read(path, _placed(shapes, mesh)), recorded)


def _checked(loaded: dict[str, PyTree], recorded: Mapping[str, int]) -> dict[str, PyTree]:
    check(loaded, recorded)
    return loaded


def _alone() -> contextlib.AbstractContextManager:
    """While it is entered, Orbax reads for this process without waiting for the others."""
    from orbax.checkpoint import v1 as ocp

    if jax.process_count() == 1:
        return contextlib.nullcontext()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    return ocp.Context(multiprocessing_options=options)


def _placed(shapes: PyTree, mesh: Mesh | None) -> PyTree:
    """ShapeDtypeStructs on the default device, or as the sharding rules split them."""
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda x: here, shapes)
    else:
        shardings = sharding.state_shardings(mesh, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _movable(array: jax.Array) -> jax.Array:
    """Not committed to the device that it was read onto: computed with beside arrays on others, or on a mesh."""
    return jax.device_put(np.asarray(array)) if isinstance(array, jax.Array) else array


def _nested(arrays: Mapping[str, str], item: str) -> PyTree:
    """The nested dicts of `describe`'s lines that belong to an item. Raises Damaged for lines of something else."""
    tree: dict[str, Any] = {}
    for name, words in arrays.items():
        first, *keys = name.split("/")
        if first != item:
            continue
        found = re.fullmatch(r"(\w+)\[([\d, ]*)\]", words)
        if not found:
            raise Damaged(f"its description can't be read ({name}: {words})")
        place = tree
        try:
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = jax.ShapeDtypeStruct([int(n) for n in found[2].split(",") if n], jnp.dtype(found[1]))
        except (TypeError, ValueError, AttributeError):
            raise Damaged(f"its description can't be read ({name}: {words})") from None
    return tree


def _is_damaged(path: Path, part: str) -> bool:
    try:
        _load_part(path, part, None)
    except (Damaged, ValueError):
        return True
    return False


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded beside the arrays, with its own checksum."""
    bare = {name: value for name, value in meta.items() if name != SEAL}
    return {**bare, SEAL: hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


def recorded_in(path: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Checksums and descriptions of a checkpoint's arrays, by path. Raises Damaged."""
    try:
        meta = json.loads((path / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))["custom_metadata"]
        # versions before this one wrote no checksum; a name that nobody wrote may have been that of the checksum
        if meta != sealed(meta) if SEAL in meta else set(meta) - RECORDED:
            raise ValueError("its contents changed on disk")
        if not all((path / item).is_dir() for item in {name.split("/")[0] for name in meta["checksums"]}):
            raise ValueError("an item is missing")
        return meta["checksums"], meta["arrays"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its description can't be read ({first_line(error)})") from None


def read(path: Path, target: dict[str, PyTree]) -> dict[str, PyTree]:
    """The items of `target` (ShapeDtypeStructs with shardings), of which this process reads what its devices hold, whether the
    others can or not. Raises Damaged."""
    from orbax.checkpoint import v1 as ocp

    try:
        with _alone():
            return ocp.load_checkpointables(path, target)
    except Exception as error:
        raise Damaged(f"it can't be read ({first_line(error)})") from None


def check(loaded: dict[str, PyTree], recorded: Mapping[str, int]) -> None:
    """Raises Damaged unless the arrays of `read` have the recorded checksums; all processes call it where they share arrays."""
    wrong = [name for name, value in checksums(loaded).items() if value != recorded.get(name)]
    if wrong:
        raise Damaged(f"the contents of {len(wrong)} arrays changed on disk ({', '.join(wrong[:3])})")


def first_line(error: BaseException) -> str:
    """What an error is at bottom, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0][:400] if str(error) else ''}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax and asyncio from logging whole tracebacks for loads whose failure is handled here."""
    names = ("asyncio", "absl", "root")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sharding info not provided")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
