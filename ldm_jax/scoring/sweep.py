"""Many ways of drawing from one model, measured one after the other: straight into features, resumable.

    OUT/parts/SETTING/    features of what is drawn so far, in parts; it goes when the setting is measured
    OUT/SETTING.png       some of the pictures, of all their conditions
    OUT/results.json      every setting that is measured, with all that is needed to repeat it

The same call goes on where an earlier one stopped, and one with other settings adds them to what is there. What was drawn by
another model, seed or network is refused.
"""

import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm_jax import build, evaluation
from ldm_jax.data.source import spread_rows
from ldm_jax.evaluation import FeatureSet
from ldm_jax.primitives.files import read_json, write_json
from ldm_jax.scoring.drawing import Drawer
from ldm_jax.scoring.features import Features
from ldm_jax.scoring.looking import Pictures, features_of
from ldm_jax.scoring.measures import measure
from ldm_jax.scoring.reference import Reference
from ldm_jax.training import distributed, sharding
from ldm_jax.training.metrics import image_grid
from ldm_jax.workdir import flatten

SHOWN = 64  # pictures of a setting's grid
PART = 1024  # pictures after which features are written
SECONDS = 120.0  # or so long


class Setting(NamedTuple):
    """One way of drawing."""

    sampler: str
    steps: int
    guidance_scale: float

    @property
    def name(self) -> str:
        """For folders and legends: dpmpp_2m-20-g3."""
        return f"{self.sampler}-{self.steps}-g{self.guidance_scale:g}"


class Drawn(NamedTuple):
    """The features of all pictures of a setting; some pictures spread over them, uint8 [n, H, W, 3], and their numbers, int64
    [n], which rise; seconds that drawing took."""

    features: FeatureSet
    shown: np.ndarray
    numbers: np.ndarray
    seconds: float


def settings_of(
    config: Mapping[str, Any], samplers: Sequence[str], steps: Sequence[int], scales: Sequence[float]
) -> list[Setting]:
    """All combinations; the config's own where nothing is given."""
    own = config["sampling"]
    chosen = (samplers or [own["sampler"]], steps or [own["steps"]], scales or [own["guidance_scale"]])
    return [Setting(name, int(count), float(scale)) for name, count, scale in itertools.product(*chosen)]


def way_of_drawing(config: Mapping[str, Any]) -> dict[str, Any]:
    """What drawing depends on besides weights and `Setting`: the grid, where it ends, the scheduler of a model's folder."""
    of_a_setting = ("sampler", "steps", "guidance_scale")
    rest = {name: value for name, value in config["sampling"].items() if name not in of_a_setting}
    return build.with_lists({**rest, "scheduler": config["scheduler"]} if "scheduler" in config else rest)


@contextlib.contextmanager
def progress(total: int, what: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields `report(count)`: a bar on a terminal, elsewhere a line about every minute; of process 0."""
    if jax.process_index():
        yield lambda count: None
    elif sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=what, unit="picture", dynamic_ncols=True) as bar:
            yield lambda count: bar.update(count) and None
    else:
        state = {"done": done, "said": time.monotonic()}

        def report(count: int) -> None:
            state["done"] += count
            if time.monotonic() - state["said"] > 60:
                state["said"] = time.monotonic()
                print(f"{what}: {state['done']} of {total}", flush=True)

        yield report


def draw(
    drawer: Drawer,
    features: Features,
    setting: Setting,
    num: int,
    *,
    out: Path,
    identity: Mapping[str, Any],
    batch_size: int = 64,
    keep: int = 64,
    pictures: Path | None = None,
) -> Drawn:
    """Draws pictures 0 to num - 1 and looks at them, going on from the parts in `out`.

    Args:
      identity: what must be equal for parts to be gone on from.
      keep: how many pictures are kept, spread over all: conditions often stand in the order of their classes.
      pictures: a folder that every picture is written to as NUMBER.png besides.

    Raises:
      ValueError: `out` holds parts of something else.
    """
    distributed.on_first("evaluation", lambda: _open(out, identity))
    kept = frozenset(spread_rows(num, min(keep, num)).tolist())
    parts, shown = _stored(out, kept, pictures) if jax.process_index() == 0 else ([], {})
    there = np.zeros(num, bool)
    for part in parts:
        there[part.rows] = True
    there = np.asarray(distributed.gathered(there[None]))[0]  # the first process knows
    missing, run = np.flatnonzero(~there), features.on(drawer.mesh)
    options = {"sampler": setting.sampler, "steps": setting.steps, "guidance_scale": setting.guidance_scale}
    began, written, fresh, new = time.monotonic(), time.monotonic(), [], {}

    def store() -> None:
        if not fresh or jax.process_index():
            return
        joined = evaluation.join(fresh)
        if new:
            np.savez(out / f"{joined.rows[0]:09d}.shown.npz", rows=np.array(list(new)), images=np.stack(list(new.values())))
        joined.save(out / f"{joined.rows[0]:09d}.npz")
        parts.append(joined)
        fresh.clear(), shown.update(new), new.clear()

    with progress(num, f"drawing {setting.name}", int(there.sum())) as report:
        try:
            for batch in drawer.batches(missing, batch_size, options):
                fresh.append(features_of(run, batch, report))
                if pictures is not None or not kept.isdisjoint(batch.rows.tolist()):
                    _take(batch, kept, new, pictures, drawer)
                if sum(map(len, fresh)) >= PART or time.monotonic() - written > SECONDS:
                    store()
                    written = time.monotonic()
        finally:
            store()
    numbers = np.array(sorted(kept & shown.keys()), np.int64)
    images = np.stack([shown[i] for i in numbers.tolist()]) if len(numbers) else np.zeros((0, 1, 1, 3), np.uint8)
    all_ = evaluation.join(parts) if jax.process_index() == 0 else evaluation.join(fresh or [_nothing()])
    return Drawn(all_, images, numbers, time.monotonic() - began)


def _nothing() -> FeatureSet:
    return evaluation.feature_set(np.zeros(1, int), {"features": np.zeros((1, 1))})


def _open(out: Path, identity: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "identity.json"
    if path.is_file():
        found, identity = flatten(read_json(path, f"Remove {out}: it is drawn again.")), flatten(identity)
        differ = [name for name in {*found, *identity} if found.get(name) != identity.get(name)]
        if differ:
            name = sorted(differ)[0]
            raise ValueError(
                f"{out} holds pictures of another evaluation ({name}: {found.get(name)!r} there, {identity.get(name)!r} now): "
                "choose another --out, or remove it"
            )
    else:
        write_json(path, dict(identity))


def _stored(out: Path, kept: Set[int], pictures: Path | None) -> tuple[list[FeatureSet], dict[int, np.ndarray]]:
    """The parts that are whole, and the pictures kept of them. A part goes, and is drawn again, if a call that kept other
    pictures or wrote none drew it."""
    parts, shown = [], {}
    for path in out.glob("*.shown.npz"):
        if not path.with_name(path.name.replace(".shown", "")).is_file():
            path.unlink()  # of a process that was killed between the two: drawn again
            continue
        with np.load(path) as found:
            shown |= dict(zip(found["rows"].tolist(), found["images"]))
    for path in sorted(out.glob("*[0-9].npz")):
        part = evaluation.load_features(path)
        rows = set(part.rows.tolist())
        if rows & kept <= shown.keys() and _all_written(pictures, rows):
            parts.append(part)
        else:
            path.unlink()
            path.with_name(f"{path.stem}.shown.npz").unlink(missing_ok=True)
            shown = {row: image for row, image in shown.items() if row not in rows}
    return parts, shown


def _all_written(pictures: Path | None, numbers: Iterable[int]) -> bool:
    """Whether the files of these pictures are there; where none are written, yes."""
    return pictures is None or all(_file(pictures, number).is_file() for number in numbers)


def _file(pictures: Path, number: int) -> Path:
    return pictures / f"{number:06d}.png"


def _take(batch: Pictures, kept: Set[int], new: dict[int, np.ndarray], pictures: Path | None, drawer: Drawer) -> None:
    """Keeps the pictures `kept`, and writes all where that is asked for."""
    images = np.asarray(sharding.replicate(drawer.mesh, batch.images))
    images = evaluation.as_uint8(build.make_medium(drawer.spec.config).shown(images))
    if jax.process_index():
        return
    for number, image in zip(batch.rows.tolist(), images):
        if number in kept:
            new[number] = image
        if pictures is not None and number >= 0:
            pictures.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(_file(pictures, number))


def measured_before(out: Path, about: Mapping[str, Any], num: int) -> dict[str, Any]:
    """What OUT/results.json holds if it is of the same model, data and network, its "results" those of so many pictures; {} if
    not, and in all processes but the first."""
    path = out / "results.json"
    if jax.process_index() or not path.is_file():
        return {}
    found = read_json(path, f"Remove {path}: what it holds is measured again.")
    if any(found.get(name) != about[name] for name in ("identity", "reference", "features")):
        return {}
    return {**found, "results": [result for result in found["results"] if result.get("num") == num]}


def sweep(
    drawer: Drawer,
    features: Features,
    reference: Reference,
    settings: Sequence[Setting],
    num: int,
    *,
    out: Path,
    about: Mapping[str, Any],
    batch_size: int = 64,
    resamples: int = 10,
    keep: int = 64,
    pictures: bool = False,
    more: Callable[[Setting, Drawn], Mapping[str, float]] | None = None,
    prefix: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures every setting; returns what OUT/results.json holds (in the first process): what an earlier call measured, too.

    A setting is measured before if it has as many resamples as are asked for, and the values of `more` and all pictures where
    these are.

    Args:
      about: what is to be in results.json beside the results: "identity" (model, seed: what must be equal to go on), versions.
      more: (setting, drawn) -> further values, whose names begin with `prefix`.
    """
    identity = {**about["identity"], "features": dict(features.about), "num": num}
    path, results = out / "results.json", {**about, "features": {"kind": features.kind, **features.about},
                                           "reference": dict(reference.about), "results": []}  # fmt: skip
    before = measured_before(out, results, num)
    results |= {name: before[name] for name in ("reconstructions", "likelihood") if name in before}
    known = {result["setting"]: result for result in before.get("results", ())}
    results["results"] = list(known.values())

    def is_known(setting: Setting, folder: Path | None) -> bool:
        result = known.get(setting.name)
        if result is None or result.get("resamples") != resamples:
            return False
        drawn = folder is None or result.get("pictures", False) and _all_written(folder, range(num))
        return drawn and (more is None or any(name.startswith(prefix) for name in result["values"]))

    for setting in settings:
        folder = out / "pictures" / setting.name if pictures else None
        if distributed.agreed(is_known(setting, folder)):
            say(f"{setting.name}: measured before")
            continue
        parts = out / "parts" / setting.name
        found = draw(drawer, features, setting, num, out=parts, identity={**identity, **setting._asdict()},
                     batch_size=batch_size, keep=keep, pictures=folder)  # fmt: skip
        if jax.process_index():
            continue
        labels = drawer.conditions.labels()
        names = drawer.conditions.source.info.class_names
        notes = evaluation.odd_in(found.shown) if len(found.shown) else []
        texts = drawer.conditions.texts() if features.words else None
        measured = measure(found.features, reference, features, resamples=resamples, labels=labels, class_names=names,
                           texts=texts)  # fmt: skip
        earlier = known.get(setting.name, {"values": {}})
        extra = {} if more is None else more(setting, found)
        known[setting.name] = {
            "setting": setting.name, **setting._asdict(), "num": num, "seconds": round(found.seconds, 2),
            "resamples": resamples, "pictures": pictures or earlier.get("pictures", False),
            "values": {**earlier["values"], **measured.values, **extra},
            "intervals": {name: list(each) for name, each in measured.intervals.items()},
            "notes": [*notes, *measured.notes],
        }  # fmt: skip
        results["results"] = list(known.values())
        if len(found.shown):
            some = spread_rows(len(found.shown), min(SHOWN, len(found.shown)))
            grid = image_grid(found.shown[some].astype(np.float32) / 127.5 - 1)
            Image.fromarray(grid).save(out / f"{setting.name}.png")
        write_json(path, results)
        shutil.rmtree(parts, ignore_errors=True)
        main = features.name("frechet")
        say(f"{setting.name}: {main} {measured.values[main]:.4g} of {num} pictures in {found.seconds:.0f} s")
    if jax.process_index() == 0:
        write_json(path, results)
        with contextlib.suppress(OSError):
            (out / "parts").rmdir()
    return results
