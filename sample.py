"""Draws pictures: python sample.py --workdir runs/shapes --prompt "a red circle" --prompt "a blue star" --num 8

What is drawn follows from what is given; docs/editing.md shows every mode. Without anything, it says what the model can do.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

from ldm_jax.cli.sample import all_flags, choose_mode, draw, usage
from ldm_jax.primitives.console import as_typed, ends_in_one_line, print_anything

DEFINE = {
    "text": flags.DEFINE_string,
    "texts": flags.DEFINE_multi_string,
    "list": flags.DEFINE_list,
    "number": flags.DEFINE_float,
    "integer": flags.DEFINE_integer,
    "switch": flags.DEFINE_bool,
}
flags.DEFINE_string("workdir", "runs/shapes", "A working directory of train.py, or a checkpoint (folder or file).")
flags.DEFINE_string("which", "last", "Of a working directory's checkpoints: last, best (lowest validation loss), or a step.")
flags.DEFINE_float("ema_width", None, "Of a training with diffusion_train.post_hoc: the average's relative width, up to 0.28.")
flags.DEFINE_string("like_png", None, "A PNG that sample.py wrote: draws it again; flags beside it stand above its own.")
flags.DEFINE_string("out", None, "Where to: a new folder; default WORKDIR/samples/N, or samples/N beside a checkpoint file.")
for name, (of_type, default, text) in all_flags().items():
    DEFINE[of_type](name, default, text)


def main(_):
    logging.set_verbosity(logging.WARNING)  # or jax says which backends this machine lacks
    print_anything()
    with ends_in_one_line():
        draw_pictures()


def draw_pictures():
    """What the flags ask for."""
    from ldm_jax import api
    from ldm_jax.cli.records import records, repeated, told
    from ldm_jax.workdir import make_samples_folder, save_film, save_pictures, use_compilation_cache

    use_compilation_cache()
    flag = flags.FLAGS
    given = {name: as_typed(flag[name].value) for name in all_flags()}
    which = int(flag.which) if flag.which.isdigit() else flag.which
    ldm = api.load_whole(flag.workdir, which=which, ema_width=flag.ema_width)
    print(ldm.describe(), flush=True)
    if flag.like_png:
        present = [name for name in given if flag[name].present]
        given, warning = repeated(ldm, flag.like_png, given, present)
        print(f"as {flag.like_png}: {told(given)}", flush=True)
        if warning:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    try:
        choose_mode(ldm, given)
    except ValueError:
        print(usage(ldm))
        raise
    folder = make_samples_folder(Path(flag.workdir), flag.out)
    drawn = draw(ldm, given)
    texts = records(ldm, given, drawn)
    grid = save_pictures(folder, "grid", drawn.images, drawn.words, columns=drawn.columns, singly=True, texts=texts)
    if drawn.film:
        print(f"film: {save_film(folder, drawn.images)}")
    print(f"{len(drawn.images)} pictures in {folder}; all together: {grid}")


if __name__ == "__main__":
    app.run(main)
