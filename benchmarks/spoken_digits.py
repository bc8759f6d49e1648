"""Spoken digits: makes the data of configs/spoken_digits.py with espeak-ng, and measures a model trained on them.

    python benchmarks/spoken_digits.py make --out data/spoken_digits
    python benchmarks/spoken_digits.py measure --workdir runs/spoken_digits --judge runs/spoken_digits_judge

`make` writes OUT/digits (train: some voices; validation: others) and OUT/judge, for a classifier: it learns from the voices
that the model never heard, and is tested on those that the model learnt from. Each is a folder of WAV files by class with a
metadata.jsonl; real recordings in such folders work the same. The same arguments give the same files, up to espeak-ng's
version.

`measure` reads drawn sounds with the classifier, after the vocoder, as a listener would: how many are the digit that was asked
for; the same without a condition and with conditions shuffled, which is chance; and of held-out recordings, as they are,
through the vocoder alone, and through first stage and vocoder.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

import ldm_jax
from ldm_jax import build, probes
from ldm_jax.data.sound import read_sound, wav_bytes
from ldm_jax.data.sound.mel import TOP_DB
from ldm_jax.data.source import Spread
from ldm_jax.primitives.files import write_json

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029")
KNOWN = ("m1", "m2", "m3", "m4", "m6", "f1", "f2", "f3")  # espeak-ng's variants that the model learns from
HELD_OUT = ("m5", "m7", "m8", "f4", "f5")
SPEEDS, PITCHES = (140, 200), (30, 70)  # words a minute; espeak-ng's scale
SILENCE, MARGIN = 10 ** (-45 / 20), 0.03  # below which ends are cut off; seconds that are left of them
FOLDERS = {  # folder -> (voices, clips a digit)
    "digits/train": (KNOWN, 240),
    "digits/validation": (HELD_OUT, 30),
    "judge/train": (HELD_OUT, 120),
    "judge/validation": (KNOWN, 30),
}


def speak(word: str, voice: str, speed: int, pitch: int) -> tuple[np.ndarray, int]:
    """A word by espeak-ng, its silent ends cut off: samples [T, 1] and their rate."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", file.name, word]
        subprocess.run(command, check=True, capture_output=True)
        samples, rate = read_sound(Path(file.name).read_bytes(), f"{word} by {voice}")
    loud, margin = np.flatnonzero(np.abs(samples[:, 0]) > SILENCE), int(MARGIN * rate)
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin], rate


def make(out: Path, share: float) -> None:
    """Writes all folders. FileExistsError rather than write into one that is there."""
    if shutil.which("espeak-ng") is None:
        raise FileNotFoundError("espeak-ng is not there: apt-get install espeak-ng (or its like)")
    for number, (folder, (voices, count)) in enumerate(FOLDERS.items()):
        write(out / folder, voices, max(int(share * count), 1), np.random.default_rng(number))


def write(folder: Path, voices: Sequence[str], count: int, rng: np.random.Generator) -> None:
    """`count` clips of every digit by these voices, and a metadata.jsonl with two captions each."""
    folder.mkdir(parents=True)
    jobs = []
    for digit in DIGITS:
        (folder / digit).mkdir()
        for i in range(count):
            variant, accent = voices[i % len(voices)], ACCENTS[int(rng.integers(len(ACCENTS)))]
            speed, pitch = int(rng.integers(*SPEEDS)), int(rng.integers(*PITCHES))
            jobs.append((digit, f"{accent}+{variant}", speed, pitch, f"{digit}/{i:04d}_{accent}_{variant}_{speed}_{pitch}.wav"))

    def spoken(job: tuple[str, str, int, int, str]) -> dict[str, object]:
        digit, voice, speed, pitch, name = job
        (folder / name).write_bytes(wav_bytes(*speak(digit, voice, speed, pitch)))
        who = "woman" if "+f" in voice else "man"
        return {"file_name": name, "label": digit, "caption": [f"say {digit}", f"a {who} says {digit}"]}

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(spoken, jobs))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{folder}: {len(rows)} clips by {', '.join(voices)}", flush=True)


def measure(workdir: str, judge: str, num: int, seed: int, guidance_scale: float | None) -> dict[str, float]:
    """Shares of sounds that the classifier takes for the digit that was meant; and how far, in decibels, a band of a
    recording's spectrogram is from that of the sound that the vocoder makes of it, on the average."""
    ldm, probe = ldm_jax.load(workdir), probes.load(judge)
    config, names = ldm.config, list(probe.class_names)
    medium = build.make_medium(config)
    wanted = np.arange(num) % len(DIGITS)
    labels = np.array([names.index(DIGITS[i]) for i in wanted])

    def spoken(arrays: np.ndarray) -> np.ndarray:
        """The spectrograms of the sounds that are made of these."""
        transform = medium.transform()
        return medium.seen(np.stack([transform.scaled(medium.samples(array)) for array in arrays]))

    def heard(arrays: np.ndarray) -> np.ndarray:
        """What the classifier takes spectrograms for, after they were made sounds."""
        return probe(spoken(arrays)).argmax(-1)

    def drawn(prompts: Sequence[str] | None) -> np.ndarray:
        key = jax.random.key(seed)
        parts, at_once = [], 50
        for start in range(0, num, at_once):
            rows = np.minimum(np.arange(start, start + at_once), num - 1)
            cond = ldm.null(ldm.params, at_once) if prompts is None else ldm.embed(ldm.params, [prompts[i] for i in rows])
            scale = 1.0 if prompts is None else guidance_scale
            images = ldm.sample(ldm.params, jax.random.fold_in(key, start), cond, guidance_scale=scale)
            parts.append(np.asarray(images)[: num - start])
        return np.concatenate(parts)

    source = Spread(build.make_source(config, "validation", ("label",)), num)
    rows = [source[i] for i in range(len(source))]
    truth = np.array([names.index(source.info.class_names[row["label"]]) for row in rows])
    real = np.stack([medium.transform()(row)["image"] for row in rows])
    parts = [real[i : i + 50] for i in range(0, len(real), 50)]
    first = np.concatenate([np.asarray(ldm.decode(ldm.params, ldm.encode(ldm.params, part))) for part in parts])
    asked = heard(drawn([f"say {DIGITS[i]}" for i in wanted]))
    shuffled = np.random.default_rng(seed).permutation(labels)
    found = {
        "recordings": float((probe(medium.seen(real)).argmax(-1) == truth).mean()),
        "recordings, vocoder": float((heard(real) == truth).mean()),
        "recordings, first stage and vocoder": float((heard(first) == truth).mean()),
        "drawn": float((asked == labels).mean()),
        "drawn, conditions shuffled": float((asked == shuffled).mean()),
        "drawn without a condition": float((heard(drawn(None)) == labels).mean()),
    }
    if medium.name == "sound":
        decibels = float(np.abs(spoken(real) - real).mean()) * (TOP_DB - medium.setting.floor_db) / 2
        found["vocoder, decibels"] = decibels
    found |= {f"drawn, {DIGITS[i]}": float((asked == labels)[wanted == i].mean()) for i in range(len(DIGITS))}
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--share", type=float, default=1.0, help="of the clips, for a smaller set")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--workdir", required=True)
    measuring.add_argument("--judge", required=True, help="a classifier by python -m ldm_jax.probes train")
    measuring.add_argument("--num", type=int, default=200)
    measuring.add_argument("--seed", type=int, default=0)
    measuring.add_argument("--guidance_scale", type=float)
    measuring.add_argument("--out", type=Path, help="a JSON file for the numbers")
    chosen = parser.parse_args()
    if chosen.command == "make":
        make(chosen.out, chosen.share)
        return
    found = measure(chosen.workdir, chosen.judge, chosen.num, chosen.seed, chosen.guidance_scale)
    for name, value in found.items():
        print(f"{name:38} " + (f"{value:.2f} dB" if name.endswith("decibels") else f"{value:.1%}"))
    if chosen.out:
        write_json(chosen.out, found)


if __name__ == "__main__":
    main()
