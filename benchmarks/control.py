"""How well a ControlNet steers a model of `shapes`: pictures are drawn from the edges of held-out pictures, and read back.

    python benchmarks/control.py --workdir runs/edges --picture docs/finetuning_control.png

Prompts and scenes come from a stream that nothing is learnt from. Every line of the table is a way of drawing, all from the
same noise, and has

    edges         F1 of the drawn pictures' edges and those that were shown, an edge being found within one pixel
    other edges   the same against the next picture's edges: what a picture that was not steered gets by chance
    colour, shape, both
                  the share of pictures with what the prompt says
    shown shape   the share with the shape of the picture whose edges were shown

"contradicted" draws with the next scene's prompt that has another shape and another colour. The line "real" is of the
pictures themselves, "first stage" of the pictures encoded and decoded, which is the most that can be hoped for.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

import ldm_jax
from ldm_jax import build
from ldm_jax.data import shapes
from ldm_jax.data.control_pictures import COLUMN, PICTURES, edges
from ldm_jax.training.metrics import image_grid

_AROUND = np.ones((3, 3), bool)  # within one pixel


def edge_f1(drawn: np.ndarray, shown: np.ndarray) -> float:
    """Mean F1 of two stacks of edges [n, H, W] (bool), an edge being found within one pixel; 0 where either has none."""
    scores = []
    for one, other in zip(drawn, shown, strict=True):
        precision, recall = (
            (a & ndimage.binary_dilation(b, _AROUND)).sum() / max(a.sum(), 1) for a, b in ((one, other), (other, one))
        )
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return float(np.mean(scores))


def lines(images: np.ndarray) -> np.ndarray:
    """Where pictures [n, H, W, 3] in [-1, 1] have edges: bool [n, H, W]."""
    return np.stack([edges(image)[..., 0] > 0 for image in images])


def contradicting(scenes: Sequence[shapes.Scene]) -> list[int]:
    """For every scene the next one of another shape and another colour."""

    def other(i: int) -> int:
        for step in range(1, len(scenes)):
            a, b = scenes[i].things[0], scenes[(i + step) % len(scenes)].things[0]
            if a.shape != b.shape and a.colour != b.colour:
                return (i + step) % len(scenes)
        raise ValueError(f"{len(scenes)} scenes are too few to contradict one another: --count 48 has every kind")

    return [other(i) for i in range(len(scenes))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="of the ControlNet's training")
    parser.add_argument("--count", type=int, default=96, help="pictures of every line")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5])
    parser.add_argument("--guidance", type=float, help="default: as the model's config says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="a PNG of what was shown and what was drawn")
    options = parser.parse_args()
    if options.picture and options.picture.exists():
        raise SystemExit(f"{options.picture} exists; choose another name")

    ldm = ldm_jax.load(options.workdir)
    config, control = ldm.config, ldm.config["diffusion_train"]["control"]["picture"]
    if config["data"]["source"] != "shapes" or control in ("", COLUMN):
        raise SystemExit(
            f"{options.workdir}: data {config['data']['source']!r}, control.picture={control!r}; this reads shapes "
            f"and shows {sorted(PICTURES)}"
        )
    drawn_for = shapes.prompts(options.count, 1, config["seed"], build.make_mix(config))
    prompts, scenes = [text for text, _ in drawn_for], [scene for _, scene in drawn_for]
    real = shapes.render_all(scenes, config["data"]["image_size"])[0].astype(np.float32) / 127.5 - 1
    shown, wanted = np.stack([PICTURES[control](image) for image in real]), lines(real)
    others = contradicting(scenes)

    def draw(texts: Sequence[str], scale: float) -> np.ndarray:
        pictures, size = [], options.batch_size
        for start in range(0, options.count, size):
            rows = np.minimum(np.arange(start, start + size), options.count - 1)  # one compilation
            cond = ldm.embed(ldm.params, [texts[i] for i in rows]) | ldm.control(shown[rows], scale)
            key = jax.random.fold_in(jax.random.key(options.seed), start)
            images = ldm.sample(ldm.params, key, cond, guidance_scale=options.guidance)
            pictures.append(np.clip(np.asarray(images), -1, 1)[: options.count - start])
        return np.concatenate(pictures)

    def report(name: str, images: np.ndarray, said: Sequence[shapes.Scene]) -> None:
        found, seen = lines(images), shapes.read_all(images)
        prompt, picture = shapes.compare_all(seen, said), shapes.compare_all(seen, scenes)
        shares = [prompt["colour"], prompt["shape"], prompt["bound"], picture["shape"]]
        values = [edge_f1(found, wanted), edge_f1(found, np.roll(wanted, -1, 0)), *(float(np.mean(each)) for each in shares)]
        print(f"{name:20}" + "".join(f"{value:13.3f}" for value in values), flush=True)

    header = ("edges", "other edges", "colour", "shape", "both", "shown shape")
    print(f"{options.count} pictures" + " " * 9 + "".join(f"{name:>13}" for name in header))
    decoded = np.clip(np.asarray(ldm.decode(ldm.params, ldm.encode(ldm.params, real))), -1, 1)
    report("real", real, scenes)
    report("first stage", decoded, scenes)
    rows = [shown]
    for scale in options.scales:
        rows.append(draw(prompts, scale))
        report(f"scale {scale:g}", rows[-1], scenes)
    swapped, said = [prompts[i] for i in others], [scenes[i] for i in others]
    for scale in options.scales:
        images = draw(swapped, scale)
        report(f"contradicted, {scale:g}", images, said)
        if scale == 1:
            rows.append(images)
    if options.picture:
        grid = image_grid(np.concatenate([row[:12] for row in rows]), 12)
        Image.fromarray(grid).resize((3 * grid.shape[1], 3 * grid.shape[0]), Image.NEAREST).save(options.picture)
        for number in range(min(12, options.count)):
            print(f"column {number + 1}: {prompts[number]!r}; contradicted by {swapped[number]!r}")


if __name__ == "__main__":
    main()
