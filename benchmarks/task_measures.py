"""Does a trained model obey its condition? Draws held-out conditions, and reads the pictures beside what drawing without the
condition, or a simple method, gives.

    python benchmarks/task_measures.py --workdir runs/flowers64 --probe runs/flowers_probe --picture docs/class.png

What is measured follows from the model's kind: classes by a classifier, label maps by a segmenter, captions of photos by a
contrastive probe (`python -m ldm_jax.probes train`); captions, layouts and neighbours of `shapes` by its reader, which needs
no probe; super-resolution and inpainting against the pictures themselves. Everything is a function of --seed.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import ldm_jax
from ldm_jax import build, evaluation, models, probes, retrieval
from ldm_jax.conditioning import KINDS
from ldm_jax.data import degradation, label_maps, masks, shapes
from ldm_jax.data.source import Spread
from ldm_jax.data.transform import Transform
from ldm_jax.first_stage.losses import psnr
from ldm_jax.retrieval.database import Database, load_database, search
from ldm_jax.training.metrics import image_grid

Found = tuple[dict[str, dict[str, float]], list[np.ndarray], int]  # numbers by what was looked at; pictures; columns of a grid


class Model:
    """A trained model, and held-out rows of the data it was trained on."""

    def __init__(self, workdir: str, count: int, seed: int, batch_size: int):
        self.ldm = ldm_jax.load(workdir)
        self.config, self.kind = self.ldm.config, self.ldm.config["conditioner"]["kind"]
        self.count, self.seed, self.batch_size = count, seed, batch_size
        columns = KINDS[self.kind].columns or (("caption",) if self.config["data"]["source"] == "shapes" else ())
        self.source = build.make_source(self.config, "validation", columns)
        self.rows = Spread(self.source, count)
        transform = build.make_transform(self.config)
        self.examples = [transform(self.rows[i]) for i in range(len(self.rows))]
        self.images = np.stack([example["image"] for example in self.examples])

    def draw(self, values: Sequence[Any] | None, part: int = 0) -> np.ndarray:
        """A picture for each value; without values, `count` pictures drawn under the empty condition. `part`: others."""
        count, pictures = len(values) if values is not None else self.count, []
        key = jax.random.key(self.seed + part)
        params = self.ldm.params
        for start in range(0, count, self.batch_size):
            rows = np.minimum(np.arange(start, start + self.batch_size), count - 1)
            cond = self.ldm.null(params, len(rows)) if values is None else self.ldm.embed(params, [values[i] for i in rows])
            drawn = self.ldm.sample(
                params, jax.random.fold_in(key, start), cond, guidance_scale=1.0 if values is None else None
            )
            pictures.append(np.clip(np.asarray(drawn), -1, 1)[: count - start])
        return np.concatenate(pictures)


def classes(model: Model, probe: probes.Probe) -> Found:
    """How often a classifier, trained on the real pictures, finds the class that was asked for."""
    n = probe.options["n_classes"]
    labels = np.arange(model.count) % n
    drawn, free = model.draw([int(label) for label in labels]), model.draw(None)

    def right(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {"accuracy": float((probe(images).argmax(-1) == labels).mean())}

    real = probes.measure(probe, model.source)
    numbers = {"real": real, "drawn": right(drawn, labels), "drawn without the class": right(free, labels)}
    return numbers, list(drawn[: 8 * n].reshape(-1, n, *drawn.shape[1:]).swapaxes(0, 1).reshape(-1, *drawn.shape[1:])), 8


def label_maps_of(model: Model, probe: probes.Probe) -> Found:
    """Agreement of a segmenter, trained on the real pairs, with the maps that were asked for."""
    maps = np.stack([example["label_map"] for example in model.examples])
    drawn, n = model.draw(list(maps)), probe.options["n_classes"]

    def agreement(images: np.ndarray, maps: np.ndarray) -> dict[str, float]:
        confusion = evaluation.confusion_matrix(maps, probe(images), n)
        return {"mean_iou": evaluation.mean_iou(confusion), "pixel_accuracy": evaluation.pixel_accuracy(confusion)}

    other = np.roll(maps, len(maps) // 2, axis=0)
    numbers = {"real": agreement(model.images, maps), "drawn": agreement(drawn, maps)}
    numbers["drawn, against other maps"] = agreement(drawn, other)
    palette = label_maps.bit_palette(int(maps.max()) + 1)
    colours = label_maps.to_colours(maps, palette).astype(np.float32) / 127.5 - 1
    return numbers, _side_by_side(colours, drawn, model.images), 12


def layouts(model: Model, probe: None) -> Found:
    """Boxes of `shapes` read back: found if their intersection over union is at least a half."""
    values = [
        [{"label": int(label), "box": [float(x) for x in box]} for box, label in zip(row["boxes"], row["box_labels"])]
        for row in (model.rows[i] for i in range(len(model.rows)))
    ]
    drawn, free = model.draw(values), model.draw(None)

    def obeyed(images: np.ndarray) -> dict[str, float]:
        overlap, hit, right, counts = [], [], [], []
        for found, asked in zip(shapes.read_all(images), values):
            for thing in asked:
                best = max(found, key=lambda f, box=thing["box"]: box_iou(f.box, box), default=None)
                overlap.append(box_iou(best.box, thing["box"]) if best else 0.0)
                hit.append(overlap[-1] >= 0.5)
                right.append(hit[-1] and best.shape == thing["label"])
            counts.append(len(found) == len(asked))
        names = ("iou", "box found", "box and shape", "count")
        return dict(zip(names, (float(np.mean(x)) for x in (overlap, hit, right, counts))))

    numbers = {"real": obeyed(model.images), "drawn": obeyed(drawn), "drawn without the layout": obeyed(free)}
    return numbers, _side_by_side(drawn, model.images), 8


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of boxes (x0, y0, x1, y1)."""
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    both = sides[0] * sides[1]
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def super_resolution(model: Model, probe: probes.Probe | None) -> Found:
    """Nearness to the original, also of both shrunk (for bicubic models, to what was given); the share of fine detail; with
    a classifier, the Frechet distance of its features to those of the originals. Beside bicubic enlargement, what the first
    stage alone loses, the mean of four drawings, and drawings for other pictures."""
    scale, (height, width) = model.ldm.condition.scale, model.images.shape[1:3]
    kind, rng = model.config["conditioner"].get("degradation", "bicubic"), np.random.default_rng(model.seed)
    low = np.stack([degradation.degrade(image, scale, kind, rng) for image in model.images])  # as in training
    shrunk = np.stack([degradation.degrade(image, scale) for image in model.images])
    draws = [model.draw(list(low), part) for part in range(4)]
    bicubic = np.stack([np.clip(degradation.resize(image, height, width), -1, 1) for image in low])
    candidates = {"drawn": draws[0], "mean of four drawings": np.mean(draws, axis=0), "bicubic": bicubic}
    candidates |= {"first stage alone": reconstructed(model), "drawn for another picture": np.roll(draws[0], 1, axis=0)}
    numbers = {}
    for name, images in candidates.items():
        again = np.stack([degradation.degrade(image, scale) for image in images])
        found = nearness(images, model.images)
        found["psnr of the picture shrunk again"] = float(np.mean(psnr(again, shrunk)))
        found["fine detail"] = fine_detail(images) / fine_detail(model.images)
        if probe is not None:
            found["frechet distance"] = evaluation.frechet_distance(probe.features(images), probe.features(model.images))
        numbers[name] = found
    return numbers, _side_by_side(bicubic, draws[0], model.images), 12


def fine_detail(images: np.ndarray) -> float:
    """The power beyond an eighth of a cycle a pixel, which a picture of a quarter of the size can't hold."""
    frequencies, power = evaluation.power_spectrum(images)
    return float((power * frequencies)[frequencies > 1 / 8].sum())  # a ring's area grows with its radius


def reconstructed(model: Model) -> np.ndarray:
    ldm = model.ldm
    there_and_back = jax.jit(lambda params, x: jnp.clip(ldm.decode(params, ldm.encode(params, x)), -1, 1))
    return probes.in_parts(lambda images: there_and_back(ldm.params, images), model.images)


def nearness(images: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    pairs = np.stack([images, truth], axis=1)
    found = probes.in_parts(_nearness, pairs)
    return dict(zip(("psnr", "ssim", "distance of untrained VGG features"), (float(x) for x in found.mean(0))))


@jax.jit
def _nearness(pairs: jax.Array) -> jax.Array:
    x, y = pairs[:, 0], pairs[:, 1]
    network = models.LPIPS()
    params = models.initialize(network, jax.random.key(0), x[:1], y[:1])
    return jnp.stack([psnr(x, y), evaluation.ssim(x, y), network.apply({"params": params}, x, y)], axis=-1)


def inpainting(model: Model, probe: probes.Probe | None) -> Found:
    """Known pixels must come back as they are; painted ones are compared with what was there, beside filling with the mean;
    with a classifier, also by the Frechet distance of its features."""
    rng = np.random.default_rng(model.seed)
    size = model.images.shape[1:3]
    holes = np.stack([masks.random_mask(*size, rng) for _ in model.images])
    ldm, painted = model.ldm, []
    for start in range(0, len(holes), model.batch_size):
        rows = np.minimum(np.arange(start, start + model.batch_size), len(holes) - 1)
        key = jax.random.fold_in(jax.random.key(model.seed), start)
        painted.append(np.asarray(ldm.inpaint(ldm.params, key, model.images[rows], holes[rows]))[: len(holes) - start])
    drawn, known = np.concatenate(painted), 1 - holes
    mean = (known * model.images).sum((1, 2), keepdims=True) / known.sum((1, 2), keepdims=True)
    filled = np.where(holes > 0, mean, model.images).astype(np.float32)

    def inside(images: np.ndarray) -> dict[str, float]:
        error = (holes * np.square(images - model.images)).sum((1, 2, 3)) / (3 * holes.sum((1, 2, 3)))
        found = {"psnr inside": float((10 * np.log10(4 / error)).mean()), **nearness(images, model.images)}
        if probe is not None:
            found["frechet distance"] = evaluation.frechet_distance(probe.features(images), probe.features(model.images))
        return found

    numbers = {"drawn": inside(np.clip(drawn, -1, 1)), "filled with the mean": inside(filled)}
    numbers["drawn"]["largest change of a known pixel"] = float(np.abs(known * (drawn - model.images)).max())
    return numbers, _side_by_side(np.where(holes > 0, 0, model.images), drawn, model.images), 12


def captions(model: Model, probe: probes.Probe | None) -> Found:
    """`shapes`: whether shape, colour and place are as told. Other pictures: how often, of all captions, the picture's own is
    the nearest, and among the nearest ten, in the eyes of a contrastive probe."""
    if model.config["data"]["source"] == "shapes":
        numbers, pictures = {}, []
        for objects in (1, 2):
            asked = shapes.prompts(model.count, objects, model.seed, build.make_mix(model.config))
            inputs = [text for text, _ in asked]
            for name, images in (("drawn", model.draw(inputs)), ("drawn without the prompt", model.draw(None))):
                right = shapes.check_all(images, [scene for _, scene in asked])
                numbers[f"{name}, {objects} object{'s' * (objects > 1)}"] = {k: float(np.mean(v)) for k, v in right.items()}
                pictures += list(images[:16]) if name == "drawn" else []
        return numbers, pictures, 8
    said = [row["caption"] if isinstance(row["caption"], str) else row["caption"][0] for row in _all(model.rows)]
    tokens = np.stack([model.ldm.condition.tokenize(text) for text in said])
    texts = probe.words(said)

    def recall(images: np.ndarray) -> dict[str, float]:
        products = probe(images) @ texts.T
        rank = (products > np.diag(products)[:, None]).sum(1)
        return {"recall at 1": float((rank < 1).mean()), "recall at 10": float((rank < 10).mean())}

    drawn = _draw_tokens(model, tokens)
    numbers = {"real": recall(model.images), "drawn": recall(drawn), "drawn without the prompt": recall(model.draw(None))}
    return numbers, _side_by_side(drawn, model.images), 8


def _draw_tokens(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Held-out captions may hold words that no training caption had, which prompts may not."""
    ldm, drawn = model.ldm, []
    for start in range(0, len(tokens), model.batch_size):
        rows = np.minimum(np.arange(start, start + model.batch_size), len(tokens) - 1)
        key = jax.random.fold_in(jax.random.key(model.seed), start)
        images = ldm.sample(ldm.params, key, ldm.embed(ldm.params, tokens[rows]))
        drawn.append(np.clip(np.asarray(images), -1, 1)[: len(tokens) - start])
    return np.concatenate(drawn)


def neighbours(model: Model, probe: None) -> Found:
    """`shapes`: how often a drawn picture has a colour, a shape, or both, that one of its neighbours has; and the same with a
    data base of nothing but cold colours, asked with the same held-out pictures, which swaps the colours."""
    section = model.config["conditioner"]
    k, database = section["neighbours"], load_database(section["database"])
    queries = retrieval.embedder_of(database)(model.images)
    training = build.make_source(model.config, "train", ("caption",))
    cold = [i for i in range(database.members) if any(f" {c} " in training[i]["caption"] for c in COLD)]
    cold = [i for i in cold if not any(f" {c} " in training[i]["caption"] for c in WARM)]
    other = Database(tuple(database.names[i] for i in cold), np.asarray(database.vectors)[cold], len(cold))
    transform, numbers, shown = Transform(model.images.shape[1:3]), {}, [model.images]
    free = model.draw(None)
    for name, base, rows_of in (("", database, list(range(database.members))), (", cold data base", other, cold)):
        rows, _ = search(base, queries, k)
        near = np.stack([[transform(training[rows_of[j]])["image"] for j in row] for row in rows])
        drawn = model.draw([np.asarray(base.vectors[row]) for row in rows])
        numbers[f"drawn{name}"] = alike(drawn, near)
        numbers[f"drawn without neighbours{name}"] = alike(free, near)
        numbers[f"the picture itself{name}"] = alike(model.images, near)
        shown += [near[:, 0], near[:, 1], drawn]
    return numbers, _side_by_side(*shown, count=8), len(shown)


COLD, WARM = ("green", "cyan", "blue", "purple"), ("red", "orange", "yellow", "pink")


def alike(images: np.ndarray, near: np.ndarray) -> dict[str, float]:
    """Of pictures [N, H, W, 3] and their neighbours [N, k, H, W, 3], by their largest objects."""
    looks, k = _largest(images), near.shape[1]
    theirs = _largest(near.reshape(-1, *near.shape[2:]))
    same: dict[str, list[bool]] = {"colour": [], "shape": [], "both": [], "cold": []}
    for i, own in enumerate(looks):
        group = theirs[i * k : (i + 1) * k]
        same["colour"].append(own.colour in [other.colour for other in group])
        same["shape"].append(own.shape in [other.shape for other in group])
        same["both"].append((own.colour, own.shape) in [(other.colour, other.shape) for other in group])
        same["cold"].append(own.colour is not None and shapes.COLOUR_NAMES[own.colour] in COLD)
    return {name: float(np.mean(right)) for name, right in same.items()}


def _largest(images: np.ndarray) -> list[shapes.Found]:
    """The largest object of each picture; one that is like nothing where there is none."""
    nothing = shapes.Found(-1, None, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0, 0.0), 0.0)
    return [found[0] if found else nothing for found in shapes.read_all(images)]


MEASURES: dict[str, Callable[[Model, Any], Found]] = {
    "class": classes,
    "label": classes,
    "semantic": label_maps_of,
    "layout": layouts,
    "superres": super_resolution,
    "inpaint": inpainting,
    "text": captions,
    "retrieval": neighbours,
}


def _all(rows: Any) -> list[dict]:
    return [rows[i] for i in range(len(rows))]


def _side_by_side(*pictures: np.ndarray, count: int = 16) -> list[np.ndarray]:
    """Some of every kind, spread over all, in turn."""
    rows = np.linspace(0, len(pictures[0]) - 1, count).astype(int)
    return list(np.stack([some[rows] for some in pictures], axis=1).reshape(-1, *pictures[0].shape[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--probe", help="the folder of a probe, for classes, label maps and captions of photos")
    parser.add_argument("--count", type=int, default=200, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--picture", type=Path, help="a PNG to write")
    chosen = parser.parse_args()
    model = Model(chosen.workdir, chosen.count, chosen.seed, chosen.batch_size)
    if model.kind not in MEASURES:
        parser.error(f"{chosen.workdir} is of kind {model.kind!r}: there is no condition to obey")
    numbers, pictures, columns = MEASURES[model.kind](model, probes.load(chosen.probe) if chosen.probe else None)
    said = {name: getattr(chosen, name) for name in ("workdir", "probe", "count", "seed")} | {"kind": model.kind}
    said |= {"sampling": dict(model.config["sampling"]), "numbers": numbers}
    for name, found in numbers.items():
        print(f"{name:34s}" + "  ".join(f"{what} {value:.4g}" for what, value in found.items()))
    if chosen.out:
        chosen.out.write_text(json.dumps(said, indent=2))
    if chosen.picture:
        shown = np.stack(pictures)
        larger = max(1, 64 // shown.shape[1])
        Image.fromarray(image_grid(shown.repeat(larger, 1).repeat(larger, 2), columns)).save(chosen.picture)


if __name__ == "__main__":
    main()
