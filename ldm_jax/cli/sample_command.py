"""Draws pictures. What is drawn follows from what is given; without anything, it says what the model can do.

    sample.py --workdir runs/shapes --prompt "a red circle" --prompt "a blue star" --num 8
    sample.py --workdir runs/shapes --prompts FILE --format webp          a prompt a line
    sample.py --workdir runs/shapes --like_png PICTURE                    the same again
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging

from ldm_jax.primitives.choices import check_choice, did_you_mean
from ldm_jax.primitives.console import as_typed, called, check_filled, flag_error, with_home
from ldm_jax.primitives.files import HUB, existing, is_address
from ldm_jax.primitives.flags import FORMATS, MAY_BE_EMPTY, check_numbers, sample_flags
from ldm_jax.workdir import check_samples_folder, samples_folder, use_compilation_cache

DEFINE = {
    "text": flags.DEFINE_string,
    "texts": flags.DEFINE_multi_string,
    "list": flags.DEFINE_list,
    "number": flags.DEFINE_float,
    "integer": flags.DEFINE_integer,
    "switch": flags.DEFINE_bool,
}
# Flags of the command itself, beside those that say what to draw.
COMMAND_FLAGS: dict[str, tuple[str, Any, str]] = {
    "workdir": ("text", "runs/shapes", "A working directory of train.py, or a checkpoint (folder or file)."),
    "which": ("text", "last", "Of a working directory's checkpoints: last, best (lowest validation loss), or a step."),
    "ema_width": ("number", None, "Of a training with diffusion_train.post_hoc: the average's relative width, up to 0.28."),
    "prompts": ("text", None, "A text file with a prompt a line (for a model of classes, a class a line)."),
    "like_png": ("text", None, "A picture that sample.py wrote: draws it again; flags beside it stand above its own."),
    "out": ("text", None, "Where to: a new folder; default WORKDIR/samples/N, or samples/N beside a checkpoint file."),
    "format": ("text", "png", f"Of the files: {', '.join(FORMATS)}. All say how they were drawn; jpg loses a little."),
    "labels": ("switch", True, "Whether the grid says what each picture is."),
}
# What is drawn from, of which there is one: of two the first would be left aside. Of settings the last one counts.
ONCE = "prompts", "like_png", "negative", "picture", "palette", "database", "mask", "outpaint", "source", "upscale"


def own_flags() -> flags.FlagValues:
    """All flags."""
    found = flags.FlagValues()
    for name, (of_type, default, text) in {**COMMAND_FLAGS, **sample_flags()}.items():
        DEFINE[of_type](name, default, text, flag_values=found)
    found.set_gnu_getopt(True)
    return found


def parse(arguments: Sequence[str]) -> flags.FlagValues:
    """The flags. ValueError, in one line, for what is none."""
    found = own_flags()
    try:
        left = found(with_home(arguments), known_only=True)[1:]
    except flags.Error as error:
        raise ValueError(flag_error(error)) from None
    for argument in left:
        name = argument.lstrip("-").split("=")[0]
        if argument.startswith("-"):
            raise ValueError(f"{argument.split('=')[0]} is no flag.{did_you_mean(name, list(found))} --help shows them")
        raise ValueError(f"{argument!r}: flags begin with --, such as --prompt {argument!r}; --help shows them")
    if twice := [name for name in ONCE if found[name].present > 1]:
        raise ValueError(f"--{twice[0]} is there {found[twice[0]].present} times, and there can be one: run sample.py for each")
    return found


def main(arguments: Sequence[str]) -> None:
    """The command. ValueError or OSError for what can't work."""
    own = {**COMMAND_FLAGS, **sample_flags()}
    if any(re.fullmatch(r"--?h(elp(full|short)?)?", each) for each in arguments[1:]):
        about = "\n".join(f"  --{name:{max(map(len, own))}} {text}" for name, (_, _, text) in own.items())
        print(f"{__doc__.replace('sample.py', called('sample.py'))}\nFlags:\n{about}")
        return
    flag = parse(arguments)
    logging.set_verbosity(logging.WARNING)  # or jax says which backends this machine lacks
    check_choice(flag.format, FORMATS, "--format")
    check_filled(flag, [name for name in own if own[name][0] in ("text", "texts", "list") and name not in MAY_BE_EMPTY])
    if flag.out and Path(flag.out).suffix[1:].lower() in FORMATS and not Path(flag.out).is_dir():
        raise ValueError(f"--out={flag.out} is where a folder of pictures goes: leave the suffix out, and say --format=...")
    check_samples_folder(Path(flag.workdir), flag.out)
    check_numbers({name: flag[name].value for name in sample_flags()})
    if not flag.workdir.startswith(HUB) and not is_address(flag.workdir):
        existing(flag.workdir)
    draw(flag)


def draw(flag: flags.FlagValues) -> None:
    """What the flags say, as far as it can be known without a model checked before."""
    # Imported here, so that --help and what is mistyped answer at once.
    from ldm_jax import api, build, drawing
    from ldm_jax.drawing.modes import usage, with_prompts
    from ldm_jax.drawing.records import repeated, told
    from ldm_jax.pictures import save_film
    from ldm_jax.training.bucket import fetched

    use_compilation_cache()
    given = {name: as_typed(flag[name].value) for name in sample_flags()}
    which = int(flag.which) if flag.which.isdecimal() else flag.which
    ldm = api.load_whole(flag.workdir, which=which, ema_width=flag.ema_width)
    print(ldm.describe(), flush=True)
    if flag.prompts:
        given = with_prompts(ldm, given, flag.prompts)
    if flag.like_png:
        present = [name for name in given if flag[name].present or (name == "prompt" and flag.prompts)]
        given, warning = repeated(ldm, flag.like_png, given, present)
        print(f"as {flag.like_png}: {told(given)}", flush=True)
        if warning:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    try:
        mode = drawing.choose_mode(ldm, given)
    except ValueError:
        if not flag.prompts and not any(flag[name].present for name in given):
            print(usage(ldm))
        raise
    if mode == "interpolate" and flag["num"].present and flag.num > 1:
        raise ValueError(f"--num={flag.num} has no meaning for --interpolate, which draws one film")
    with samples_folder(Path(flag.workdir), flag.out) as folder:
        drawn = drawing.draw(ldm, given)
        workdir = fetched(flag.workdir) if is_address(flag.workdir) else Path(flag.workdir)
        texts, medium = drawing.records(ldm, given, drawn), build.make_medium(ldm.config, workdir)
        grid = medium.save(
            folder, "grid", drawn.images, drawn.words, drawn.columns, True, texts, suffix=flag.format, labels=flag.labels
        )
        if drawn.film:
            print(f"film: {save_film(folder, medium.shown(drawn.images))}")
    count = len(drawn.images)
    print(f"{count} {medium.one if count == 1 else medium.many} in {folder}; all together: {grid}")
