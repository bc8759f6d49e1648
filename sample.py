"""Draws pictures: python sample.py --workdir runs/shapes --prompt "a red circle" --prompt "a blue star" --num 8"""

import os
import sys
from pathlib import Path

from absl import app, flags, logging

WORKDIR = flags.DEFINE_string("workdir", "runs/shapes", "A working directory of train.py, or a checkpoint (folder or file).")
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; may be repeated.")
LABEL = flags.DEFINE_multi_string("label", [], "A class, by name or number; may be repeated.")
NUM = flags.DEFINE_integer("num", 4, "How many pictures for each prompt or label.", lower_bound=1)
SAMPLER = flags.DEFINE_string("sampler", None, "ddim, ddpm, dpmpp_2m, ...; default: the config's.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; default: the config's.", lower_bound=1)
GUIDANCE = flags.DEFINE_float("guidance_scale", None, "1 is off; default: the config's.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed draws the same pictures.")
OUT = flags.DEFINE_string("out", "", "Where to: a new folder; default WORKDIR/samples/N.")


def main(_):
    logging.set_verbosity(logging.WARNING)  # or jax says which backends this machine lacks
    import jax

    import ldm_jax
    from ldm_jax.workdir import free_folder, save_pictures, use_compilation_cache

    use_compilation_cache()
    try:
        ldm = ldm_jax.load(WORKDIR.value)
        print(ldm.describe())
        if PROMPT.value and LABEL.value:
            raise ValueError("give --prompt or --label, not both")
        asked = [value for value in PROMPT.value or LABEL.value for _ in range(NUM.value)]
        cond = ldm.embed(ldm.params, asked) if asked else None
        images = ldm.sample(
            ldm.params,
            jax.random.key(SEED.value),
            cond,
            num=NUM.value,
            sampler=SAMPLER.value,
            steps=STEPS.value,
            guidance_scale=GUIDANCE.value,
        )
        folder = Path(OUT.value) if OUT.value else free_folder(Path(WORKDIR.value) / "samples")
        grid = save_pictures(folder, "grid", images, asked or [""] * NUM.value, columns=NUM.value, singly=True)
    except (ValueError, OSError) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{len(images)} pictures in {folder}; all together: {grid}")


if __name__ == "__main__":
    app.run(main)
