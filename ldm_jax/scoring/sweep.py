"""Many ways of drawing from one model, measured one after the other: straight into features, resumable.

    OUT/parts/SETTING/    features of what is drawn so far, in parts; it goes when the setting is measured
    OUT/SETTING.png       the first pictures
    OUT/results.json      every setting that is measured, with all that is needed to repeat it

The same call goes on where an earlier one stopped. What was drawn by another model, seed or network is refused.
"""

import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from ldm_jax import build, evaluation
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
    """The features of all pictures of a setting; the first of them, uint8 [n, H, W, 3]; seconds that drawing took."""

    features: FeatureSet
    shown: np.ndarray
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
      keep: how many pictures are kept.
      pictures: a folder that every picture is written to as NUMBER.png besides.

    Raises:
      ValueError: `out` holds parts of something else.
    """
    distributed.on_first("evaluation", lambda: _open(out, identity))
    parts, shown = _stored(out) if jax.process_index() == 0 else ([], {})
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
                if pictures is not None or (batch.rows >= 0).any() and batch.rows[batch.rows >= 0].min() < keep:
                    _take(batch, keep, new, pictures, drawer)
                if sum(map(len, fresh)) >= PART or time.monotonic() - written > SECONDS:
                    store()
                    written = time.monotonic()
        finally:
            store()
    images = np.stack([shown[i] for i in sorted(shown)]) if shown else np.zeros((0, 1, 1, 3), np.uint8)
    all_ = evaluation.join(parts) if jax.process_index() == 0 else evaluation.join(fresh or [_nothing()])
    return Drawn(all_, images, time.monotonic() - began)


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


def _stored(out: Path) -> tuple[list[FeatureSet], dict[int, np.ndarray]]:
    parts, shown = [], {}
    for path in sorted(out.glob("*[0-9].npz")):
        parts.append(evaluation.load_features(path))
    for path in out.glob("*.shown.npz"):
        if not path.with_name(path.name.replace(".shown", "")).is_file():
            path.unlink()  # of a process that was killed between the two: drawn again
            continue
        with np.load(path) as found:
            shown |= dict(zip(found["rows"].tolist(), found["images"]))
    return parts, shown


def _take(batch: Pictures, keep: int, new: dict[int, np.ndarray], pictures: Path | None, drawer: Drawer) -> None:
    """Keeps the first pictures, and writes all where that is asked for."""
    images = np.asarray(sharding.replicate(drawer.mesh, batch.images))
    images = evaluation.as_uint8(build.make_medium(drawer.spec.config).shown(images))
    if jax.process_index():
        return
    for number, image in zip(batch.rows.tolist(), images):
        if 0 <= number < keep:
            new[number] = image
        if pictures is not None and number >= 0:
            pictures.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(pictures / f"{number:06d}.png")


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
    more: Callable[[Setting, Drawn], Mapping[str, Any]] = lambda setting, drawn: {},
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measures every setting; returns what OUT/results.json holds (in the first process).

    Args:
      about: what is to be in results.json beside the results: "identity" (model, seed: what must be equal to go on), versions.
      more: (setting, drawn) -> what a setting's result holds besides, such as "values".
    """
    identity = {**about["identity"], "features": dict(features.about), "num": num}
    path, results = out / "results.json", {**about, "features": {"kind": features.kind, **features.about},
                                           "reference": dict(reference.about), "results": []}  # fmt: skip
    known = {}
    if jax.process_index() == 0 and path.is_file():
        before = read_json(path, f"Remove {path}: what it holds is measured again.")
        if before.get("identity") == about["identity"] and before.get("reference") == results["reference"]:
            known = {result["setting"]: result for result in before["results"] if result.get("num") == num
                     and before["features"] == results["features"]}  # fmt: skip
    for setting in settings:
        if distributed.agreed(setting.name in known):
            results["results"] += [known[setting.name]] if known else []
            say(f"{setting.name}: measured before")
            continue
        parts = out / "parts" / setting.name
        folder = out / "pictures" / setting.name if pictures else None
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
        extra = dict(more(setting, found))
        results["results"].append({
            "setting": setting.name, **setting._asdict(), "num": num, "seconds": round(found.seconds, 2),
            "values": {**measured.values, **extra.pop("values", {})},
            "intervals": {name: list(each) for name, each in measured.intervals.items()},
            "notes": [*notes, *measured.notes], **extra,
        })  # fmt: skip
        if len(found.shown):
            grid = image_grid(found.shown[:SHOWN].astype(np.float32) / 127.5 - 1)
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
