"""Pictures changed as a sentence says (InstructPix2Pix, Brooks et al. 2023), on coloured shapes: data, and a measure.

    python benchmarks/instructions.py make edits                        # 4,000 pairs, and 200 to validate on
    python train.py --config=shapes_edits --config.data.path=edits      # goes on from runs/shapes
    python benchmarks/instructions.py measure runs/shapes_edits --picture edits.png

A pair is one thing before and after "make it blue", "turn it into a star", "make it larger" or "make it smaller". Of pictures
that were not trained on, changed by the model:

    asked       how many have what was asked for
    rest        how many have the shape, colour and size that were not spoken of as before
    both        how many have both
    place       the median distance between the thing's middle before and after, in pixels
    background  the median difference between the borders, of the range from black to white
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import ldm_jax
from ldm_jax.data import shapes
from ldm_jax.data.shapes.scene import COLOUR_NAMES, DIAMETERS, SHAPES, Scene
from ldm_jax.training.metrics import image_grid

MIX = shapes.Mix(counts=(1, 0, 0), fills=(1, 0, 0), spread=0.3)  # the default's, one thing
STREAM = 23  # of scenes, apart from those of the default


def edit(index: int, part: int) -> tuple[Scene, str, Scene]:
    """A scene, what is done with it, and what it becomes. `part`: 0 to train on, 1 to validate, 2 to measure."""
    rng = np.random.default_rng([STREAM, part, index])
    before, _ = shapes.draw_scene(0, index, stream=STREAM + part, mix=MIX)
    thing = before.things[0]
    kind = rng.integers(3)
    if kind == 0:
        colour = int(rng.choice([c for c in range(len(COLOUR_NAMES)) if c != thing.colour]))
        changed, said = dataclasses.replace(thing, colour=colour), f"make it {COLOUR_NAMES[colour]}"
    elif kind == 1:
        shape = int(rng.choice([s for s in range(len(SHAPES)) if s != thing.shape]))
        changed, said = dataclasses.replace(thing, shape=shape), f"turn it into a {SHAPES[shape]}"
    else:
        other = 1 - thing.size
        usual = DIAMETERS[1]  # of one thing, by size
        changed = dataclasses.replace(thing, size=other, diameter=thing.diameter * usual[other] / usual[thing.size])
        said = "make it larger" if usual[other] > usual[thing.size] else "make it smaller"
    return before, said, dataclasses.replace(before, things=(changed,))


def make(options: argparse.Namespace) -> None:
    """A folder of pairs. FileExistsError where it is there."""
    options.folder.mkdir(parents=True)
    for part, (split, count) in enumerate((("train", options.pairs), ("validation", options.pairs // 20))):
        lines = []
        for name in ("before", "after"):
            (options.folder / split / name).mkdir(parents=True)
        for index in range(count):
            before, said, after = edit(index, part)
            for name, scene in (("before", before), ("after", after)):
                Image.fromarray(shapes.render(scene, options.size)[0]).save(options.folder / split / name / f"{index}.png")
            row = {"file_name": f"after/{index}.png", "conditioning_file_name": f"before/{index}.png", "caption": said}
            lines.append(json.dumps(row))
        (options.folder / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def border(images: np.ndarray) -> np.ndarray:
    return np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)


def measure(options: argparse.Namespace) -> None:
    ldm, size = ldm_jax.load(options.workdir), options.size
    edits = [edit(index, 2) for index in range(options.count)]
    before = np.stack([shapes.render(scene, size)[0] for scene, _, _ in edits]).astype(np.float32) / 127.5 - 1
    drawn = []
    for start in range(0, len(edits), options.batch_size):
        rows = np.minimum(np.arange(start, start + options.batch_size), len(edits) - 1)  # one compilation
        cond = ldm.embed(ldm.params, [{"prompt": edits[i][1], "picture": before[i]} for i in rows])
        scales = {"guidance_scale": options.guidance_scale, "image_guidance_scale": options.image_guidance_scale}
        images = ldm.sample(ldm.params, jax.random.fold_in(jax.random.key(options.seed), start), cond, **scales)
        drawn.append(np.clip(np.asarray(images), -1, 1)[: len(edits) - start])
    after = np.concatenate(drawn)

    found, was = shapes.read_all(after), shapes.read_all(before)
    right = shapes.compare_all(found, [scene for _, _, scene in edits])
    asked, rest, moved = [], [], []
    for i, (_, said, _) in enumerate(edits):
        about = "colour" if said.split()[-1] in COLOUR_NAMES else "shape" if said.startswith("turn") else "size"
        asked.append(right[about][i])
        rest.append(all(right[name][i] for name in ("count", "shape", "colour", "size") if name != about))
        if found[i] and was[i]:
            moved.append(size * np.hypot(found[i][0].x - was[i][0].x, found[i][0].y - was[i][0].y))
    asked, rest = np.asarray(asked), np.asarray(rest)
    shares = f"asked {asked.mean():.3f}, rest {rest.mean():.3f}, both {(asked & rest).mean():.3f}"
    print(f"{options.workdir}: of {len(edits)} {shares}")
    difference = np.median(np.abs(border(after) - border(before))) / 2
    print(f"  place {np.median(moved):.2f} pixels, background {difference:.4f}")
    if options.picture:
        for i in range(12):
            print(f"  {i}: {edits[i][1]}")
        grid = image_grid(np.concatenate([before[:12], after[:12]]), 12)
        Image.fromarray(grid).resize((3 * grid.shape[1], 3 * grid.shape[0]), Image.NEAREST).save(options.picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("make")
    made.add_argument("folder", type=Path)
    made.add_argument("--pairs", type=int, default=4000)
    measured = commands.add_parser("measure")
    measured.add_argument("workdir")
    measured.add_argument("--count", type=int, default=240)
    measured.add_argument("--batch_size", type=int, default=48)
    measured.add_argument("--guidance_scale", type=float, help="how much the sentence counts")
    measured.add_argument("--image_guidance_scale", type=float, help="how much the picture counts")
    measured.add_argument("--seed", type=int, default=0)
    measured.add_argument("--picture", type=Path, help="a PNG of twelve pictures before and after")
    for command in (made, measured):
        command.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    if options.command == "make":
        return make(options)
    if options.picture and options.picture.exists():
        raise SystemExit(f"{options.picture} exists; choose another name")
    measure(options)


if __name__ == "__main__":
    main()
