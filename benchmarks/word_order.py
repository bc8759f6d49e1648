"""Whether a model of `shapes` knows which word belongs to which: how much worse it denoises pictures of two objects when their
captions have the colours, the shapes, or both exchanged. 1.0000 everywhere but in the last column: a caption is a bag of words.

    python -m benchmarks.word_order runs/shapes runs/shapes_all

240 scenes of two plain objects that differ in colour and shape, none of them trained on. Noise is added at four ratios
sigma / alpha, the same for every caption; quoted is the mean square of the error of the predicted latents over that with the
right caption. "Another's": the caption of the next scene.
"""

import argparse
import re

import jax
import jax.numpy as jnp
import numpy as np

import ldm_jax
from ldm_jax.data import shapes
from ldm_jax.data.shapes.scene import Scene, Thing, caption, compose

STREAM, COUNT = 32, 240
NOISE = (0.5, 1.5, 4.0, 12.0)


def exchanged(text: str, one: str, other: str) -> str:
    """The text with every `one` in place of `other`, and the reverse."""
    return re.sub(rf"\b({one}|{other})\b", lambda found: other if found.group() == one else one, text)


def scenes() -> list[tuple[Scene, str]]:
    found, index = [], 0
    while len(found) < COUNT:
        rng = np.random.default_rng([STREAM, index])
        scene, index = compose(rng, 2, shapes.Mix(counts=(0, 1, 0), fills=(1, 0, 0))), index + 1
        first, second = scene.things
        if first.colour != second.colour and first.shape != second.shape:
            found.append((scene, caption(scene, rng, state_relation=True)))
    return found


def captions(pairs: list[tuple[Scene, str]]) -> dict[str, list[str]]:
    def told(text: str, things: tuple[Thing, ...], colours: bool, forms: bool) -> str:
        (colour, shape), (other_colour, other_shape) = (thing.words for thing in things)
        text = exchanged(text, colour, other_colour) if colours else text
        return exchanged(text, shape, other_shape) if forms else text

    changes = {"right": (False, False), "colours": (True, False), "shapes": (False, True), "both": (True, True)}
    rows = {name: [told(text, scene.things, *change) for scene, text in pairs] for name, change in changes.items()}
    return rows | {"another's": [text for _, text in pairs[1:] + pairs[:1]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+")
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    pairs = scenes()
    pictures = np.stack([shapes.render(scene, options.size)[0] for scene, _ in pairs]).astype(np.float32) / 127.5 - 1
    for workdir in options.workdirs:
        ldm = ldm_jax.load(workdir)
        z = ldm.encode(ldm.params, pictures, jax.random.key(0))
        noise = jax.random.normal(jax.random.key(1), z.shape)

        @jax.jit
        def error(params: dict, cond: dict, ratio: jax.Array, ldm=ldm, z=z, noise=noise) -> jax.Array:
            level = ldm.schedule.from_log_snr(-2 * jnp.log(ratio))
            predicted = ldm.denoiser(params, cond)(level.alpha * z + level.sigma * noise, level)
            return jnp.square(predicted.x0 - z).mean()

        told = {name: ldm.embed(ldm.params, texts) for name, texts in captions(pairs).items()}
        print(f"{workdir}\n  sigma / alpha  " + "  ".join(f"{name:>9}" for name in told), flush=True)
        for ratio in NOISE:
            errors = {name: float(error(ldm.params, cond, jnp.float32(ratio))) for name, cond in told.items()}
            print(f"  {ratio:13}  " + "  ".join(f"{each / errors['right']:9.4f}" for each in errors.values()), flush=True)


if __name__ == "__main__":
    main()
