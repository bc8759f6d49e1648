"""A recipe from a table: how much of `shapes` is learnt in equal time, where one thing is done otherwise.

    python train.py                                                    # the first stage, which all share
    python -m benchmarks.recipe --out runs/recipe                      # every variant below with seed 0
    python -m benchmarks.recipe --out runs/recipe --seeds 1 2 --only base both
    python -m benchmarks.recipe --cost batch_16 adamw                  # how many updates take the time of base's

A run is `train.py` with the flags of a variant, in a folder of its own; what is there is not trained again. The table has the
held-out prompts that are right, and the median time of an update. Trainings are short, two fifths of the default's: what
helps in the first minutes needn't help in the end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax

from benchmarks.training_step import parts
from ldm_jax.cli import configs
from ldm_jax.cli.overrides import overridden

UPDATES = 700
NOISE, WORDS = {"diffusion.scale": 0.4}, {"conditioner.token_std": 0.3}
FLOW = {"diffusion.schedule": "flow", "diffusion.prediction": "flow"}
PUBLISHED = {"diffusion.scale": 1.0, "conditioner.token_std": 0.02}  # the cosine's noise and the reference's words
# name -> updates, about as many as fit into base's time, and what is otherwise than PUBLISHED
VARIANTS: dict[str, tuple[int, dict[str, object]]] = {
    "base": (UPDATES, {}),
    "default": (UPDATES, {"diffusion.scale": 0.6} | WORDS),
    "words": (UPDATES, WORDS),
    "noise": (UPDATES, NOISE),
    "both": (UPDATES, NOISE | WORDS),
    "both_more_noise": (UPDATES, WORDS | {"diffusion.scale": 0.25}),
    "both_most_noise": (UPDATES, WORDS | {"diffusion.scale": 0.15}),
    "both_muon_double": (UPDATES, NOISE | WORDS | {"diffusion_train.learning_rate": 1e-2}),
    "both_batch_16": (1250, NOISE | WORDS | {"diffusion_train.batch_size": 16}),
    "both_batch_8": (2000, NOISE | WORDS | {"diffusion_train.batch_size": 8}),
    "batch_16": (1250, {"diffusion_train.batch_size": 16}),
    "muon_half": (UPDATES, {"diffusion_train.learning_rate": 2.5e-3}),
    "adamw": (UPDATES, {"diffusion_train.optimizer": "adamw", "diffusion_train.learning_rate": 1e-3}),
    "adamw_triple": (UPDATES, {"diffusion_train.optimizer": "adamw", "diffusion_train.learning_rate": 3e-3}),
    "eps": (UPDATES, {"diffusion.prediction": "eps"}),
    "x0": (UPDATES, {"diffusion.prediction": "x0"}),
    "flow": (UPDATES, FLOW),
    "flow_logit_normal": (UPDATES, FLOW | {"diffusion.time_sampling": "logit_normal"}),
    "min_snr": (UPDATES, {"diffusion.weighting": "min_snr"}),
    "sigmoid": (UPDATES, {"diffusion.weighting": "sigmoid"}),
    "importance": (UPDATES, {"diffusion.time_sampling": "importance"}),
    "means": (UPDATES, {"latents.posterior": "mode"}),
}


def flags(name: str, config: str) -> list[str]:
    sections = configs.load(*configs.find(config))
    kept = {field: value for field, value in PUBLISHED.items() if (at := field.split("."))[1] in sections[at[0]]}
    return [f"--config.{field}={value}" for field, value in (kept | VARIANTS[name][1]).items()]


def train(name: str, seed: int, folder: Path, first_stage: str, config: str) -> None:
    """Trains a variant, unless its results are there."""
    if results_of(folder):
        return
    command = [sys.executable, "train.py", f"--config={config}", f"--workdir={folder}", f"--config.seed={seed}"]
    command += [f"--config.first_stage.path={first_stage}", f"--config.diffusion_train.steps={VARIANTS[name][0]}"]
    command += ["--config.stages=('latents','diffusion','evaluation')", "--config.log.images_every=0", *flags(name, config)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.log", "w") as log:
        if code := subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{name}, seed {seed}: train.py ended with {code}; see {log.name}")


def results_of(folder: Path) -> dict[str, float]:
    """What its evaluation says; {} before that."""
    found = sorted(folder.glob("evaluation/*/results.json"))
    return json.loads(found[-1].read_text()) if found else {}


def step_ms(folder: Path) -> float:
    """The median over the training's own medians."""
    lines = [json.loads(line) for line in (folder / "diffusion" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["step_ms_p50"] for line in lines if "step_ms_p50" in line)


def table(out: Path, names: list[str]) -> str:
    rows = ["| variant | updates | ms an update | one object: right, by seed | two objects |", "|---|---|---|---|---|"]
    for name in names:
        folders = [folder for folder in sorted(out.glob(f"{name}-*")) if folder.is_dir() and results_of(folder)]
        if folders:
            found = [results_of(folder) for folder in folders]
            one, two = (", ".join(f"{each[f'{n}_objects/bound']:.1%}" for each in found) for n in (1, 2))
            time_of = statistics.median(step_ms(folder) for folder in folders)
            rows.append(f"| {name} | {VARIANTS[name][0]} | {time_of:.0f} | {one} | {two} |")
    return "\n".join(rows)


def costs(names: list[str], config: str, rounds: int = 5) -> dict[str, float]:
    """The time of an update of each variant, in base's: in turns, in this process."""
    runs: dict[str, tuple] = {}
    for name in ("base", *names):
        changed = overridden(configs.load(*configs.find(config)), flags(name, config))
        function, arguments = parts(changed.to_dict(), "diffusion")["step"]
        runs[name] = jax.jit(function).lower(*arguments).compile(), arguments
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):  # the first warms up
        for name, (step, arguments) in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    return {name: median[name] / median["base"] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--config", default="shapes")
    parser.add_argument("--first_stage", default="runs/shapes", help="a workdir with a trained one")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cost", nargs="+", choices=VARIANTS, metavar="VARIANT", help="only time an update of these")
    args = parser.parse_args()
    if args.cost:
        for name, ratio in costs(args.cost, args.config).items():
            print(f"{name}: {ratio:.2f} of base's update; {10 * round(UPDATES / ratio / 10)} updates in its time")
    else:
        for seed in args.seeds:
            for name in args.only:
                train(name, seed, args.out / f"{name}-{seed}", args.first_stage, args.config)
        print(table(args.out, list(VARIANTS)))


if __name__ == "__main__":
    main()
