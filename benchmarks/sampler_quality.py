"""Quality against the number of network evaluations, for every sampler, on data whose denoiser is known exactly.

    python benchmarks/sampler_quality.py [--out docs/samplers.png]

The data are eight Gaussians of different widths and weights on a skewed ring in the plane; their exact denoiser stands
in for the network, so what is measured is the sampler alone. Distance: sliced 2-Wasserstein (64 directions) between 8,000
samples and 200,000 true points. The grid is Karras' for all. Prints the table of the docs; the plot needs matplotlib.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ldm_jax.diffusion import Level, Prediction, grids, make_sampler, make_schedule, sample, start
from ldm_jax.diffusion.samplers import churned, ddim

BUDGETS = (5, 10, 20, 40, 80)
COUNT = 8000
FAMILIES = {
    "deterministic, 1 NFE": ("ddim", "plms", "ipndm", "lms", "deis", "dpmpp_2m", "dpmpp_3m", "dpm_solver", "unipc"),
    "deterministic, 2 NFE": ("heun", "dpm2", "dpmpp_2s"),
    "stochastic, 1 NFE": ("ddpm", "consistency", "churned ddim", "dpmpp_2m_sde", "dpmpp_3m_sde"),
    "stochastic, 2 NFE": ("edm", "dpm2_ancestral", "dpmpp_2s_ancestral"),
}
SCHEDULE = make_schedule("scaled_linear")

angles = np.arange(8) * np.pi / 4
CENTERS = jnp.asarray(np.stack([np.cos(angles), 0.6 * np.sin(angles) + 0.3 * np.cos(angles)], 1), jnp.float32)
WIDTHS = jnp.asarray(np.geomspace(0.02, 0.2, 8), jnp.float32)
WEIGHTS = jnp.asarray(np.arange(1, 9) / 36, jnp.float32)


def denoise(x: jax.Array, level: Level) -> Prediction:
    """Posterior mean of the mixture: components reweighted by how well they explain x, each a Gaussian posterior."""
    var = (level.alpha * WIDTHS) ** 2 + level.sigma**2
    offset = x[:, None] - level.alpha * CENTERS
    logits = jnp.log(WEIGHTS) - jnp.log(var) - 0.5 * jnp.sum(offset**2, -1) / var
    p = jax.nn.softmax(logits)[..., None]
    x0 = jnp.sum(p * (CENTERS + (level.alpha * WIDTHS**2 / var)[:, None] * offset), 1)
    return Prediction(x0, jnp.sum(p * level.sigma * offset / var[:, None], 1))


def truth(key: jax.Array, count: int) -> jax.Array:
    which, where = jax.random.split(key)
    k = jax.random.choice(which, 8, (count,), p=WEIGHTS)
    return CENTERS[k] + WIDTHS[k, None] * jax.random.normal(where, (count, 2))


def profile(x: jax.Array) -> np.ndarray:
    """2000 quantiles along each of 64 directions: sliced 2-Wasserstein is the root mean square difference of two of these."""
    turn = np.arange(64) * np.pi / 64
    sliced = np.sort(np.asarray(x) @ np.stack([np.cos(turn), np.sin(turn)]), axis=0)
    return sliced[((np.arange(2000) + 0.5) / 2000 * len(sliced)).astype(int)]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def sampler_of(name: str):
    return churned(ddim(), SCHEDULE, churn=20.0, low=0.05) if name == "churned ddim" else make_sampler(name, SCHEDULE)


def steps_of(name: str, family: str, budget: int) -> int:
    """How many steps fit: the last one of a two-stage solver costs a single evaluation, PLMS' first costs two."""
    return (budget + 1) // 2 if "2 NFE" in family else budget - (name == "plms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=Path(__file__).resolve().parents[1] / "docs" / "samplers.png")
    args = parser.parse_args()
    real = profile(truth(jax.random.key(0), 200_000))
    floor = distance(profile(truth(jax.random.key(1), COUNT)), real)
    print(f"| sampler | NFE per step | {' | '.join(map(str, BUDGETS))} |\n|---|---|{'---|' * len(BUDGETS)}")
    found: dict[str, list[float]] = {}
    for family, names in FAMILIES.items():
        for name in names:
            found[name] = []
            for budget in BUDGETS:
                grid = grids.karras(SCHEDULE, steps_of(name, family, budget))
                x = start(jax.random.key(2), (COUNT, 2), grid)
                out = jax.jit(lambda x, g=grid, n=name: sample(denoise, sampler_of(n), x, g, jax.random.key(3)))(x)
                found[name].append(distance(profile(out), real))
            print(f"| {name} | {2 if '2 NFE' in family else 1} | {' | '.join(f'{d:.4f}' for d in found[name])} |", flush=True)
    print(f"| true samples | | {' | '.join([f'{floor:.4f}'] * len(BUDGETS))} |")
    draw(found, floor, args.out)


def draw(found: dict[str, list[float]], floor: float, out: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("No plot: pip install 'ldm_jax[plot]' for matplotlib.")
        return
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), sharex=True, sharey=True, layout="constrained")
    for ax, (family, names) in zip(axes.flat, FAMILIES.items()):
        for i, name in enumerate(names):
            ax.plot(BUDGETS, found[name], marker="osv^D*XPh"[i % 9], ms=4.5, lw=1.4, color=f"C{i}", label=name)
        ax.axhline(floor, color="0.5", ls=":", lw=1.2)
        ax.text(BUDGETS[-1], floor * 0.97, f"{COUNT} true samples", ha="right", va="top", fontsize=8, color="0.4")
        ax.set(xscale="log", yscale="log", title=f"{family} per step", xticks=BUDGETS, xticklabels=BUDGETS)
        ax.minorticks_off()
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8, ncols=2)
    figure.supxlabel("network evaluations")
    figure.supylabel("sliced Wasserstein distance to the data")
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
