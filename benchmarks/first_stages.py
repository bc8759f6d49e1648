"""First stages side by side on the same held-out images: pictures, PSNR, SSIM, codes in use, and the spectrum of what is lost.

    python -m benchmarks.first_stages --out docs/first_stages runs/kl=KL-f4 runs/kl_adv="KL-f4, adversarial" ...

Each argument is WORKDIR=TITLE; all were trained on the same kind of data, whose validation split is read from the first one's
config (--data replaces the path). Writes OUT.png (a row of originals, a row for each workdir), OUT_spectrum.png,
OUT_curves.png (PSNR and SSIM while they trained; both need the extra `plot`) and OUT.json. Numbers are means over --count
images.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ldm_jax import api, build, evaluation
from ldm_jax.data.pipeline import eval_batches
from ldm_jax.data.source import Spread
from ldm_jax.first_stage import codebook, latents, psnr
from ldm_jax.training.metrics import image_grid


def read_images(config: dict, data: str | None, count: int) -> np.ndarray:
    if data:
        config["data"]["path"] = data
    source = Spread(build.make_source(config, "validation", ()), count)
    batches = eval_batches(source, build.make_transform(config), 32)
    return np.concatenate([batch["image"][batch["mask"]] for batch in batches])


def reconstruct(workdir: Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    config = json.loads((workdir / "config.json").read_text())
    stage, params = build.make_first_stage(config), api.load_first_stage(config, workdir)

    @jax.jit
    def run(params, x):
        encoded = stage.encode(params, x)
        z = latents.mode(encoded["moments"]) if "moments" in encoded else encoded["latents"]
        indices = stage.module.apply({"params": params}, z, method="quantize")[1] if stage.module.quantizes else None
        y = jnp.clip(stage.decode(params, z), -1, 1)
        return y, psnr(x, y), evaluation.ssim(x, y), indices

    parts = [jax.device_get(run(params, images[i : i + 32])) for i in range(0, len(images), 32)]
    y, quality, similarity = (np.concatenate([part[i] for part in parts]) for i in range(3))
    h, w, channels = stage.latent_shape(*images.shape[1:3])
    found = {"latent": f"{h}x{w}x{channels}", "psnr": float(quality.mean()), "ssim": float(similarity.mean())}
    if stage.module.quantizes:
        indices = np.concatenate([part[3].reshape(-1) for part in parts])
        usage = jax.device_get(codebook.usage(codebook.counts(indices, stage.module.codes)))
        found |= {name: float(value) for name, value in usage.items()}
    return y, found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR=TITLE")
    parser.add_argument("--data", help="where the images are; default: where the first workdir had them")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--shown", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    named = [(Path(path), title or path) for path, _, title in (text.partition("=") for text in args.workdirs)]
    images = read_images(json.loads((named[0][0] / "config.json").read_text()), args.data, args.count)
    frequency, power = (np.asarray(a) for a in evaluation.power_spectrum(images))
    rows, results, spectra = [images[: args.shown]], {}, {}
    for path, title in named:
        made, results[title] = reconstruct(path, images)
        rows.append(made[: args.shown])
        spectra[title] = np.asarray(evaluation.power_spectrum(made)[1]) / power
        high = frequency > 0.25
        results[title]["high_frequency_power"] = float(spectra[title][high].mean())
        print(title, {name: round(v, 4) if isinstance(v, float) else v for name, v in results[title].items()}, flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_grid(np.concatenate(rows), columns=args.shown)).save(args.out.with_suffix(".png"))
    args.out.with_suffix(".json").write_text(json.dumps({"images": len(images), "rows": results}, indent=2))

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4))
    for title, ratio in spectra.items():
        axes.plot(frequency, ratio, label=title)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="frequency (cycles a pixel)", ylabel="power, of the originals'", yscale="log")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(f"{args.out}_spectrum.png", dpi=90)

    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for path, title in named:
        found = [json.loads(line) for line in (path / "first_stage" / "metrics.jsonl").read_text().splitlines()]
        for ax, name in zip(axes, ("psnr", "ssim")):
            curve = {line["step"]: line[f"validation/{name}"] for line in found if f"validation/{name}" in line}
            ax.plot(list(curve), list(curve.values()), marker=".", label=title)
    for ax, name in zip(axes, ("PSNR (dB)", "SSIM")):
        ax.set(xlabel="step", ylabel=f"validation {name}")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(f"{args.out}_curves.png", dpi=90)


if __name__ == "__main__":
    main()
