"""python -m ldm_jax.probes: trains small networks that judge pictures."""

import dataclasses
import logging
import sys
from pathlib import Path

from ldm_jax.cli.data import data_of
from ldm_jax.primitives.console import Parser, check_positive, print_anything
from ldm_jax.primitives.files import existing, folder_place

# What each kind of probe learns from.
COLUMNS = {"classifier": ["label"], "segmenter": ["label_map"], "contrastive": ["caption"]}


def main(arguments: list[str] | None = None) -> int:
    """Trains a probe, measures it on the validation set and writes it; returns the exit status."""
    print_anything()
    parser = Parser(prog="python -m ldm_jax.probes", description="Small networks that probe pictures.")
    command = parser.add_subparsers(dest="command", required=True).add_parser("train")
    command.add_argument("--kind", choices=COLUMNS, required=True)
    command.add_argument("--data", required=True, help="a folder of images, or a working directory, whose data are meant")
    command.add_argument("--folder", type=Path, help="what to read in place of a working directory's data, as these are read")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--size", type=int, help="the side to look at pictures with; by default the working directory's")
    command.add_argument("--columns", nargs="*", help="of the data; by default what the kind needs")
    command.add_argument("--flip", action="store_true", help="mirror half of the pictures, where left and right don't matter")
    command.add_argument("--classes", type=int, help="of a segmenter: label maps' values from here on don't count")
    command.add_argument("--steps", type=int, default=800)
    command.add_argument("--batch-size", type=int, default=32)
    command.add_argument("--learning-rate", type=float, default=4e-3)
    command.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # where TFDS and Orbax report their routine
    columns = COLUMNS[chosen.kind] if chosen.columns is None else chosen.columns
    try:
        folder_place(chosen.out, "--out")
        check_positive(**{name: getattr(chosen, name) for name in ("size", "classes", "steps", "batch_size", "learning_rate")})
        config = data_of(existing(chosen.data))
        # Imported here, so that --help and what is mistyped answer at once.
        from ldm_jax import build, probes

        if chosen.folder:
            splits = {"train_split": "train", "validation_split": "validation"}
            config = {**config, "data": {**config["data"], "source": "folder", "path": str(chosen.folder), **splits}}
        size = chosen.size or config["data"]["image_size"]
        if not size:
            raise ValueError(f"{chosen.data} is a folder of images: say at which --size to look at them")
        sources = [build.make_source(config, split, columns) for split in ("train", "validation")]
        on_error = config["data"].get("on_error", "raise")
        probe = probes.train(
            chosen.kind,
            sources[0],
            size,
            chosen.out,
            transform=build.make_probe_transform(config, "train"),
            on_error=on_error,
            **{name: getattr(chosen, name) for name in ("flip", "steps", "batch_size", "learning_rate", "seed")},
            **({"n_classes": chosen.classes} if chosen.classes else {}),
        )
        measured = probes.measure(probe, sources[1], build.make_probe_transform(config, "validation"), on_error)
        probe = dataclasses.replace(probe, measured=measured)
        probes.write(probe, chosen.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.out}: " + ", ".join(f"{name} {value:.3f}" for name, value in probe.measured.items()) + " on validation")
    return 0
