"""Draws pictures: python sample.py --workdir runs/shapes --prompt "a red circle" --prompt "a blue star" --num 8

What is drawn follows from what is given; docs/editing.md shows every mode. Without anything, it says what the model can do.
"""

import dataclasses
import os
import sys
from pathlib import Path

from absl import app, flags, logging

flags.DEFINE_string("workdir", "runs/shapes", "A working directory of train.py, or a checkpoint (folder or file).")
flags.DEFINE_multi_string("prompt", [], "What to draw; may be repeated. '(word:1.3)' weighs a part.")
flags.DEFINE_multi_string("label", [], "A class, by name or number; may be repeated.")
flags.DEFINE_multi_string("map", [], "A label map: a PNG of class numbers, or of colours with --palette; may be repeated.")
flags.DEFINE_string("palette", None, "JSON: [[r, g, b], ...] or {name: [r, g, b], ...}, for --map.")
flags.DEFINE_multi_string("layout", [], "JSON: what is where; may be repeated.")
flags.DEFINE_string("database", None, "Where a retrieval model finds its neighbours.")
flags.DEFINE_multi_string("like", [], "A picture: a retrieval model draws from its neighbours; may be repeated.")
flags.DEFINE_integer("neighbours", None, "How many of them; default: as many as in training.", lower_bound=1)
flags.DEFINE_string("negative", None, "What to steer away from: a prompt or a class.")
flags.DEFINE_multi_string("image", [], "A picture to start from. Alone: drawn anew at --strength.")
flags.DEFINE_string("mask", None, "White where --image is to be painted anew; the rest stays, bit for bit.")
flags.DEFINE_list("outpaint", None, "Pixels to add around --image: TOP,BOTTOM,LEFT,RIGHT, or one number.")
flags.DEFINE_string("source", None, "What --image shows, in the words of the condition: edits it through its noise.")
flags.DEFINE_float("strength", None, "How much of --image may change, in (0, 1].")
flags.DEFINE_string("upscale", None, "A small picture, for super-resolution.")
flags.DEFINE_string("size", None, "HEIGHTxWIDTH in pixels; default: the training size.")
flags.DEFINE_bool("tiled", False, "Large canvases in windows of the training size.")
flags.DEFINE_bool("panorama", False, "The same, and the right end continues at the left.")
flags.DEFINE_float("variations", None, "How far from the seed's first picture, in [0, 1].", lower_bound=0, upper_bound=1)
flags.DEFINE_integer("interpolate", None, "Frames between conditions, noises or two pictures.", lower_bound=2)
flags.DEFINE_integer("num", 4, "How many pictures for each condition.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "The same seed draws the same pictures.")
flags.DEFINE_string("sampler", None, "ddim, ddpm, dpmpp_2m, ...; default: the config's.")
flags.DEFINE_integer("steps", None, "Sampling steps; default: the config's.", lower_bound=1)
flags.DEFINE_float("guidance_scale", None, "1 is off; default: the config's.")
flags.DEFINE_string("out", None, "Where to: a new folder; default WORKDIR/samples/N.")


def main(_):
    logging.set_verbosity(logging.WARNING)  # or jax says which backends this machine lacks
    import ldm_jax
    from ldm_jax import modes
    from ldm_jax.workdir import free_folder, save_film, save_pictures, use_compilation_cache

    use_compilation_cache()
    flag = flags.FLAGS
    try:
        ldm = ldm_jax.load(flag.workdir)
        print(ldm.describe())
        asked = modes.Asked(**{field.name: flag[field.name].value for field in dataclasses.fields(modes.Asked)})
        try:
            modes.choose(ldm, asked)
        except ValueError:
            print(modes.usage(ldm))
            raise
        drawn = modes.draw(ldm, asked)
        folder = Path(flag.out) if flag.out else free_folder(Path(flag.workdir) / "samples")
        grid = save_pictures(folder, "grid", drawn.images, drawn.words, columns=drawn.columns, singly=True)
        if drawn.film:
            print(f"film: {save_film(folder, drawn.images)}")
    except (ValueError, OSError) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{len(drawn.images)} pictures in {folder}; all together: {grid}")


if __name__ == "__main__":
    app.run(main)
