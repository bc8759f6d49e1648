"""What a fine-tuned model of `shapes` learnt, and what it kept.

    python benchmarks/finetuning.py thing PICTURES                    # seven pictures of a thing that `shapes` does not have
    python benchmarks/finetuning.py sky PICTURES                      # 400 pictures of `shapes` before a sky
    python benchmarks/finetuning.py measure runs/shapes runs/zog --prompt "a zog ring" --class_prompt "a green ring"
    python benchmarks/finetuning.py measure runs/shapes runs/sky --picture docs/finetuning_lora.png

The thing is a ring, half red and half blue. Of every model, with the same noise, these are measured:

    thing    of pictures of --prompt: the mean overlap (intersection over union, of red on the left and of blue on the right)
             with the thing drawn where the picture has most of it; and how many have more than half
    class    of pictures of --class_prompt: how many have its shape, how many are the thing (overlap above half)
    kept     of held-out prompts: how many pictures have the shape, the colour and both that they say
    striped  of these pictures, how many of the things that are seen have stripes or dots: a fifth to four fifths of what is
             inside is nearer to the second colour of such a fill than to the first
    sky      of these pictures, how many lie before the sky: the median of their border is within 0.08 of its colour, from
             which the backgrounds of 5,000 scenes of `shapes`, which are grey, are 0.10 away at least
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import ldm_jax
from ldm_jax.data import shapes
from ldm_jax.data.shapes.render import PALETTE, accent, coverage
from ldm_jax.data.shapes.scene import Background, caption
from ldm_jax.training.metrics import image_grid

RED, BLUE = (PALETTE[shapes.COLOUR_NAMES.index(name)] for name in ("red", "blue"))
RING = shapes.SHAPES.index("ring")
DIAMETERS = np.linspace(0.3, 0.7, 9)
SKY, NEAR = (0.75, 0.85, 0.95), 0.08
EASY = {"fills": (1, 0, 0), "spread": 0.3}  # the default's mix


def thing(x: float, y: float, diameter: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The red and the blue half of a ring, opacities [size, size]; lengths are fractions of the side."""
    ring = coverage(*(np.asarray([v]) for v in (RING, x, y, diameter)), size)[0]
    left = (np.arange(size) + 0.5) / size < x
    return ring * left, ring * ~left


def make(folder: Path, size: int) -> None:
    """Seven pictures, on backgrounds as `shapes` has them. FileExistsError where the folder is there."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(7):
        x, y = 0.5 + 0.2 * (rng.random(2) - 0.5)
        grey = rng.uniform(0.05, 0.2) if number % 2 else rng.uniform(0.78, 0.97)
        red, blue = thing(x, y, rng.choice(DIAMETERS[2:7]), size)
        image = (1 - red - blue)[..., None] * grey + red[..., None] * RED + blue[..., None] * BLUE
        Image.fromarray(np.round(255 * image).astype(np.uint8)).save(folder / f"{number}.png")


def make_sky(folder: Path, size: int) -> None:
    """400 pictures of one thing before the sky, of which their captions, as `shapes` has them, say nothing."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(400):
        scene, _ = shapes.draw_scene(0, number, stream=17, mix=shapes.Mix(counts=(1, 0, 0), **EASY))
        scene = dataclasses.replace(scene, background=Background(False, SKY, SKY, 0.0))
        Image.fromarray(shapes.render(scene, size)[0]).save(folder / f"{number}.png")
        said = caption(scene, np.random.default_rng(number))
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": said}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def before_sky(images: np.ndarray) -> float:
    """The share of pictures [n, H, W, 3] in [-1, 1] that lie before the sky."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1) / 2 + 0.5
    return float(np.mean(np.linalg.norm(np.median(border, axis=1) - SKY, axis=-1) < NEAR))


def overlap(image: np.ndarray) -> float:
    """With the thing, where there is most of it; of a picture [H, W, 3] in [-1, 1]."""
    unit, size = (image + 1) / 2, len(image)
    red, blue = (np.linalg.norm(unit - colour, axis=-1) < 0.35 for colour in (RED, BLUE))
    if not (red.any() and blue.any()):
        return 0.0
    rows, columns = np.nonzero(red | blue)
    best = 0.0
    for diameter in DIAMETERS:
        for dx in (-1, 0, 1):
            x, y = (columns.mean() + 0.5 + dx) / size, ((rows.min() + rows.max()) / 2 + 0.5) / size
            halves = [half > 0.5 for half in thing(x, y, diameter, size)]
            shared = sum((a & b).sum() for a, b in zip((red, blue), halves))
            best = max(best, shared / sum((a | b).sum() for a, b in zip((red, blue), halves)))
    return float(best)


def filled(images: np.ndarray) -> float:
    """The share of things seen that are not plain."""
    seen, many = 0, 0
    for image, found in zip((images + 1) / 2, shapes.read_all(images)):
        dark = np.asarray([np.median(image) < 0.5])
        for each in found:
            if each.colour is None or each.shape is None:
                continue
            inside = coverage(*(np.asarray([v]) for v in (each.shape, each.x, each.y, each.diameter)), len(image))[0] > 0.9
            colour = PALETTE[each.colour]
            first, second = (np.linalg.norm(image[inside] - c, axis=-1) for c in (colour, accent(colour[None], dark)[0]))
            seen, many = seen + 1, many + bool(0.2 < (second < first).mean() < 0.8)
    return many / max(seen, 1)


def draw(ldm: ldm_jax.LatentDiffusion, prompts: Sequence[str], seed: int, batch_size: int) -> np.ndarray:
    """A picture of each."""
    pictures = []
    for start in range(0, len(prompts), batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), len(prompts) - 1)  # one compilation
        cond = ldm.embed(ldm.params, [prompts[i] for i in rows])
        drawn = ldm.sample(ldm.params, jax.random.fold_in(jax.random.key(seed), start), cond)
        pictures.append(np.clip(np.asarray(drawn), -1, 1)[: len(prompts) - start])
    return np.concatenate(pictures)


def measure(options: argparse.Namespace) -> None:
    asked, rows = shapes.prompts(options.count, 1, 0, shapes.Mix(**EASY)), []
    prompts, scenes = [text for text, _ in asked], [scene for _, scene in asked]
    for workdir in options.workdirs:
        ldm, said = ldm_jax.load(workdir), []
        images = draw(ldm, prompts, options.seed, options.batch_size)
        right = shapes.check_all(images, scenes)
        said.append("kept: " + ", ".join(f"{name} {right[name].mean():.3f}" for name in ("shape", "colour", "bound")))
        said.append(f"striped or dotted {filled(images):.3f}, before the sky {before_sky(images):.3f}")
        shown = [images[:12]]
        for name, prompt in (("thing", options.prompt), ("class", options.class_prompt)):
            if not prompt:
                continue
            try:
                ldm.condition.parse([prompt])
            except ValueError:  # a word that this model was not taught
                said.append(f"{name}: {prompt!r} has a word that it does not know")
                continue
            images = draw(ldm, [prompt] * options.count, options.seed + 1, options.batch_size)
            same = np.array([overlap(image) for image in images])
            rings = np.mean([any(f.shape == RING for f in found) for found in shapes.read_all(images)])
            said.append(f"{name}: overlap {same.mean():.3f}, above half {np.mean(same > 0.5):.3f}, rings {rings:.3f}")
            shown.append(images[:12])
        print(f"{workdir}\n  " + "\n  ".join(said), flush=True)
        rows += shown
    if options.picture:
        grid = image_grid(np.concatenate(rows), 12)
        Image.fromarray(grid).resize((3 * grid.shape[1], 3 * grid.shape[0]), Image.NEAREST).save(options.picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    makes = {"thing": make, "sky": make_sky}
    for name in makes:
        pictures = commands.add_parser(name)
        pictures.add_argument("folder", type=Path)
        pictures.add_argument("--size", type=int, default=32)
    measured = commands.add_parser("measure")
    measured.add_argument("workdirs", nargs="+")
    measured.add_argument("--prompt", default="", help="of the thing")
    measured.add_argument("--class_prompt", default="")
    measured.add_argument("--count", type=int, default=96, help="pictures of each kind")
    measured.add_argument("--batch_size", type=int, default=32)
    measured.add_argument("--seed", type=int, default=0)
    measured.add_argument("--picture", type=Path, help="a PNG of twelve pictures of each kind")
    options = parser.parse_args()
    if options.command in makes:
        return makes[options.command](options.folder, options.size)
    if options.picture and options.picture.exists():
        raise SystemExit(f"{options.picture} exists; choose another name")
    measure(options)


if __name__ == "__main__":
    main()
