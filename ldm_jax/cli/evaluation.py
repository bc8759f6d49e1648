"""python -m ldm_jax.evaluation: what a model's pictures are worth, or those of a folder or an array.

    --workdir runs/flowers --num 1000 --guidance_scale 1,2,3          a model; combinations of samplers, steps and scales
    --samples pictures/ --reference photos/ --features inception:F    two folders, arrays (.npz, .npy) or statistics (.npz)

The same command goes on where it was stopped. OUT holds results.json, results.md and report.html.
"""

import argparse
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from ldm_jax.cli.data import data_of
from ldm_jax.primitives.console import Parser, called, print_anything
from ldm_jax.primitives.files import HUB, existing, folder_place, is_address
from ldm_jax.scoring.request import RESIZE, SPLITS, Request
from ldm_jax.workdir import use_compilation_cache


def parser() -> Parser:
    """All flags."""
    own = Request()
    made = Parser(
        prog=called("python -m ldm_jax.evaluation"),
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=Path, help="a working directory of train.py, or a checkpoint (then with --data)")
    what.add_argument("--samples", type=Path, help="pictures to measure: a folder, or an array (.npz, .npy)")
    files = "a file of statistics (ours, ADM's, pytorch-fid's, clean-fid's)"
    made.add_argument("--reference", default=None, help=f"{' or '.join(SPLITS)} of the data (default {own.reference}), or "
                      f"{files}; with --samples also a folder or an array")  # fmt: skip
    made.add_argument("--features", default=own.features, help="inception:FILE, clip:FOLDER, dinov2:FILE, classifier[:PROBE], "
                      "contrastive[:PROBE] or auto")  # fmt: skip
    made.add_argument("--resize", choices=RESIZE, default=own.resize, help="how pictures are brought to Inception's size")
    made.add_argument("--num", type=int, default=own.num, help=f"pictures of every setting (default {own.num})")
    made.add_argument("--sampler", default="", help="one or more, by commas; default: the config's")
    made.add_argument("--steps", default="", help="one or more, by commas; default: the config's")
    made.add_argument("--guidance_scale", default="", help="one or more, by commas; default: the config's")
    made.add_argument("--seed", type=int, default=own.seed)
    made.add_argument("--which", default="last", help="of a working directory's checkpoints: last, best, or a step")
    made.add_argument("--ema_width", type=float, default=None, help="of a training with diffusion_train.post_hoc")
    made.add_argument("--data", default="", help="a folder of images or a working directory, in place of the model's own data")
    made.add_argument("--conditions", choices=SPLITS, default=own.conditions, help="whose conditions are drawn")
    made.add_argument("--reference_num", type=int, default=own.reference_num, help="real pictures at most")
    made.add_argument("--size", type=int, default=0, help="with --samples: the side that pictures of folders are brought to")
    made.add_argument("--batch_size", type=int, default=own.batch_size)
    made.add_argument("--resamples", type=int, default=own.resamples, help="of the bootstrap; 0: no intervals")
    made.add_argument("--memorisation", action="store_true", help="compare with the nearest training pictures")
    made.add_argument("--reconstructions", action="store_true", help="measure the first stage as well")
    made.add_argument("--likelihood", type=int, default=0, metavar="N", help="bits per dimension of N held-out pictures")
    made.add_argument("--save_pictures", action="store_true", help="write every picture to OUT/pictures")
    made.add_argument("--out", type=Path, default=None, help="default: a folder of its own in WORKDIR/evaluation")
    made.add_argument("--coordinator", default=None, help="host:port of process 0, where clusters don't say it")
    made.add_argument("--num_processes", type=int, default=None)
    made.add_argument("--process_id", type=int, default=None)
    return made


def numbers(text: str, of: type, flag: str) -> tuple[Any, ...]:
    """ "1,1.5,2" -> (1.0, 1.5, 2.0). ValueError names the flag."""
    try:
        return tuple(of(each) for each in text.split(",") if each.strip())
    except ValueError:
        raise ValueError(f"--{flag} {text!r}: {'whole ' if of is int else ''}numbers, separated by commas") from None


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status. ValueError or OSError for what can't work."""
    print_anything()
    chosen = parser().parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # where TFDS and Orbax report their routine
    request = Request(
        num=chosen.num,
        samplers=tuple(name.strip() for name in chosen.sampler.split(",") if name.strip()),
        steps=numbers(chosen.steps, int, "steps"),
        guidance_scales=numbers(chosen.guidance_scale, float, "guidance_scale"),
        features=chosen.features,
        resize=chosen.resize,
        reference=chosen.reference or "train",
        reference_num=chosen.reference_num,
        conditions=chosen.conditions,
        batch_size=chosen.batch_size,
        seed=chosen.seed,
        resamples=chosen.resamples,
        memorisation=chosen.memorisation,
        reconstructions=chosen.reconstructions,
        likelihood=chosen.likelihood,
        pictures=chosen.save_pictures,
        size=chosen.size,
    )
    request.check()
    folder_place(chosen.out or beside(chosen), "--out")
    if not str(chosen.samples or chosen.workdir).startswith(HUB) and not is_address(chosen.samples or chosen.workdir):
        existing(chosen.samples or chosen.workdir)
    # Imported here, and below, so that --help and what is mistyped answer at once.
    import jax

    from ldm_jax import scoring
    from ldm_jax.training import distributed

    use_compilation_cache()
    distributed.initialize(chosen.coordinator, chosen.num_processes, chosen.process_id)
    with distributed.ends_together():
        results, out = (of_pictures if chosen.samples else of_model)(chosen, request)
    if jax.process_index() == 0:
        print(scoring.in_words(results))
        for note in sorted({note for result in results["results"] for note in result["notes"]}):
            print(f"note: {note}")
        print(f"{out}: results.json, results.md, report.html")
    return 0


def beside(chosen: argparse.Namespace) -> Path:
    """Where results go unless --out says it: in the working directory, or beside the file or pictures."""
    if chosen.samples:
        path = os.path.normpath(chosen.samples)
        return Path(f"{os.path.abspath(path) if Path(path).name in ('', '..') else path}-evaluation")
    path = Path(chosen.workdir)
    return path / "evaluation" if path.is_dir() else path.with_name("evaluation") if path.is_file() else Path("evaluation")


def of_model(chosen: argparse.Namespace, request: Request) -> tuple[dict[str, Any], Path]:
    """Measures the model of --workdir; results and where they are."""
    from ldm_jax import api, scoring
    from ldm_jax.scoring.sweep import way_of_drawing
    from ldm_jax.training.bucket import fetched, name_of, stage_folder
    from ldm_jax.training.checkpoint import best_in, steps_in

    which = int(chosen.which) if chosen.which.isdecimal() else chosen.which
    ldm = api.load_whole(chosen.workdir, which=which, ema_width=chosen.ema_width)
    config = data_config(chosen, ldm)
    place = beside(chosen)
    try:
        folder_place(place, "--workdir")
    except OSError:  # references and probes are kept beside the results then
        place = chosen.out
    workdir = fetched(chosen.workdir) if is_address(chosen.workdir) else chosen.workdir.absolute()
    checkpoints = stage_folder(workdir, "diffusion")
    model = {"model": name_of(workdir), "which": which, "ema_width": chosen.ema_width}
    if checkpoints.is_dir():
        best = best_in(checkpoints)
        model["step"] = which if isinstance(which, int) else best[0] if which == "best" and best else steps_in(checkpoints)[-1]
    said = json.dumps([model, [str(each) for each in (request.num, request.features, request.resize, request.reference,
                                                     request.reference_num, request.conditions, request.seed)],
                       way_of_drawing(ldm.config)])  # fmt: skip
    kind = request.features.partition(":")[0]
    out = chosen.out or place / f"{kind}-{request.num}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return scoring.evaluate(ldm, request, out, config=config, folder=place, model=model), out


def data_config(chosen: argparse.Namespace, ldm: Any) -> dict[str, Any]:
    """The config of the data that references and conditions of a `LatentDiffusion` come from. ValueError where nothing says
    which."""
    from ldm_jax import build

    own = build.with_lists(ldm.config)
    if not chosen.data:
        if "source" not in own["data"]:
            raise ValueError(f"{chosen.workdir} doesn't say what it was trained on: name a folder of images, --data FOLDER")
        return own
    found = data_of(chosen.data)
    if not found["data"].get("image_size") or "crop" not in found["data"]:
        fitting = {"image_size": own["data"]["image_size"], "crop": "center", "flip": False, "on_error": "raise"}
        found = {**found, "data": {**found["data"], **fitting}}
    return {**own, "data": found["data"]}


def of_pictures(chosen: argparse.Namespace, request: Request) -> tuple[dict[str, Any], Path]:
    """Measures the pictures of --samples; results and where they are."""
    if not chosen.reference:
        raise ValueError("--samples without --reference: name the real pictures, a folder, an array or a file of statistics")
    for flag in ("sampler", "steps", "guidance_scale", "memorisation", "reconstructions", "likelihood", "save_pictures"):
        if getattr(chosen, flag):
            raise ValueError(f"--{flag} is of drawing from a model, --workdir; --samples are there already")
    usual = parser().get_default
    for flag in ("num", "reference_num", "seed", "which", "ema_width", "conditions"):
        if getattr(chosen, flag) != usual(flag):
            raise ValueError(f"--{flag} is of a model, --workdir; of --samples and their reference all pictures are measured")
    from ldm_jax import scoring

    said = str([os.path.abspath(chosen.reference), request.features, request.resize, request.size, chosen.data])
    kind = request.features.partition(":")[0]
    out = chosen.out or beside(chosen) / f"{kind}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    config = None
    if Path(chosen.data or chosen.reference).is_dir():
        config = data_of(chosen.data or chosen.reference)
        config["data"].setdefault("flip", False)
    return scoring.compare(chosen.samples, chosen.reference, request, out, config=config), out

