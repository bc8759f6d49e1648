"""Checkpoints on the command line.

    python -m ldm_jax.weights inspect PATH                            what is in it
    python -m ldm_jax.weights convert IN OUT --format diffusers       CompVis to diffusers, and so on

IN is anything that `ldm_jax.weights.read` takes; OUT is a folder for diffusers, a .ckpt file for compvis (its .yaml is
written beside it), a .safetensors file for params (our own trees).
"""

import sys
from collections import Counter
from pathlib import Path

from ldm_jax.primitives.console import Parser, called, print_anything
from ldm_jax.primitives.files import existing, is_workdir, place


def inspect(path: Path, config: Path | None, ema: bool, prediction: str | None) -> None:
    """Prints what a checkpoint holds."""
    from ldm_jax import weights  # imported here, and below, so that a mistyped flag is refused at once
    from ldm_jax.weights import files, naming

    try:
        checkpoint = weights.read(path, ema=ema, config=config, prediction=prediction)
    except ValueError as error:
        if not path.is_file():
            raise
        print(f"It cannot be read as a model: {error}\n\nIts tensors:")
        return _table(_top(files.tensors(path, [])), ("prefix", "tensors", "numbers", "type"))
    for part, fields in checkpoint.description.items():
        print(f"{part}: " + ", ".join(f"{name} {value}" for name, value in fields.items()))
    rows = []
    for part, tree in checkpoint.params.items():
        found = [leaf for _, leaf in naming.leaves(tree)]
        rows.append((part, len(found), sum(leaf.size for leaf in found), _types(found)))
    print()
    _table(rows, ("part", "tensors", "parameters", "type"))
    for note in checkpoint.notes:
        print(f"- {note}")


def convert(source: Path, target: Path, form: str, config: Path | None, ema: bool, prediction: str | None) -> None:
    """Reads a checkpoint and writes it in another format."""
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise ValueError(f"{target} exists; name a new one, or remove it first")
    suffix = {"compvis": ".ckpt", "params": ".safetensors"}.get(form, "")
    if suffix and target.suffix != suffix:
        raise ValueError(f"{target} should end with {suffix}")
    if form == "compvis" and target.with_suffix(".yaml").exists():
        raise ValueError(f"{target.with_suffix('.yaml')} exists, where the description goes; name another OUT")
    place(target, "OUT")
    from ldm_jax import weights

    checkpoint = weights.read(source, ema=ema, config=config, prediction=prediction)
    if form == "diffusers":
        weights.write_diffusers(target, checkpoint.description, checkpoint.params)
    elif form == "compvis":
        target.parent.mkdir(parents=True, exist_ok=True)
        weights.write_compvis(target, checkpoint.description, checkpoint.params)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        weights.write_params(target, checkpoint.description, checkpoint.params)
    for note in checkpoint.notes:
        print(f"- {note}")
    print(f"{target}: written")


def _top(tensors: dict) -> list[tuple]:
    groups: dict[str, list] = {}
    for name, tensor in tensors.items():
        groups.setdefault(".".join(name.split(".")[:2]) if "." in name else name, []).append(tensor)
    return [(name, len(found), sum(tensor.size for tensor in found), _types(found)) for name, found in groups.items()]


def _types(tensors: list) -> str:
    return ", ".join(name for name, _ in Counter(str(tensor.dtype) for tensor in tensors).most_common())


def _table(rows: list[tuple], head: tuple[str, ...]) -> None:
    cells = [head] + [tuple(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        print(
            "  ".join(cell.rjust(width) if 0 < i < 3 else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    print_anything()
    parser = Parser(prog=called("python -m ldm_jax.weights"), description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("inspect", "convert"):
        command = commands.add_parser(name)
        command.add_argument("path", type=Path)
        if name == "convert":
            command.add_argument("out", type=Path)
            command.add_argument("--format", choices=("compvis", "diffusers", "params"), default="diffusers")
        command.add_argument("--config", type=Path, help="the YAML of a CompVis file, if it is not beside it")
        command.add_argument("--prediction", choices=("eps", "v"), help="of a single file of Stable Diffusion 2")
        which = command.add_mutually_exclusive_group()
        which.add_argument("--ema", dest="ema", action="store_true", default=True, help="the averaged weights (default)")
        which.add_argument("--raw", dest="ema", action="store_false", help="the raw weights")
    options = parser.parse_args(arguments)
    try:
        existing(options.path)
        if is_workdir(options.path):
            raise ValueError(
                f"{options.path} is a working directory of train.py: sample.py --workdir {options.path} says what it can do, "
                "ldm_jax.save(ldm_jax.load(...), FOLDER) writes a checkpoint of it"
            )
        if options.command == "inspect":
            inspect(options.path, options.config, options.ema, options.prediction)
        else:
            convert(options.path, options.out, options.format, options.config, options.ema, options.prediction)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

