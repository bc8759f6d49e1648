"""Files of textual inversion (Gal et al. 2023): the vectors of a new word, for a text encoder's table.

    {"<cat-toy>": [D] or [n, D]}                        diffusers: the word is the name
    {"emb_params": [n, D]}, {"string_to_param": {"*": [n, D]}}      of other programs: the word is the file's name
    {"clip_l": [n, D], "clip_g": [n, D']}               for both text encoders of Stable Diffusion XL
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm_jax.primitives.files import place
from ldm_jax.weights import files, safetensors_files

_NAMELESS = ("emb_params", "string_to_param.*", "*")
_TOWERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
WORD = "word"  # of the metadata


def read(path: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """The word of a file, or of a folder with one of `_FILES`, and its vectors float32 [n, D] by the text encoder that they are
    for, "" where there is one.

    ValueError for a file of anything else."""
    own = "ldm_jax.load(PATH) knows what it learnt, and ldm_jax.save_embedding(PATH, FILE) writes that"
    path = files.given(path, "the vectors of a word", own)
    if path.is_dir():  # of a concept, as diffusers writes it
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            there = ", ".join(sorted(file.name for file in path.iterdir())[:6]) or "nothing"
            names = " or ".join(_FILES)
            raise ValueError(f"{path}: {names} is expected in the folder of a word; there is {there}: name the file")
        path = found[0]
    tensors = {name: tensor for name, tensor in files.tensors(path, []).items() if np.ndim(tensor) in (1, 2)}
    said = safetensors_files.read_with_metadata(path)[1] if path.suffix == ".safetensors" else {}
    if set(tensors) == set(_TOWERS):
        found = {tower: tensors[name] for name, tower in _TOWERS.items()}
    elif len(tensors) == 1:
        found = {"": next(iter(tensors.values()))}
    else:
        named = ", ".join(list(tensors)[:6]) or "none"
        raise ValueError(f"{path}: vectors of one word are expected ({', '.join(_TOWERS)}, or one tensor); there are {named}")
    vectors = {tower: np.atleast_2d(np.asarray(tensor, np.float32)) for tower, tensor in found.items()}
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise ValueError(f"{path}: the text encoders have different numbers of vectors")
    name = next(iter(tensors))
    return said.get(WORD) or path.stem if name in (*_NAMELESS, *_TOWERS) else name, vectors


def write(path: str | Path, word: str, vectors: Mapping[str, np.ndarray]) -> None:
    """Writes a word's vectors [n, D], by text encoder, as diffusers' `load_textual_inversion` takes them. ValueError for a path
    that exists or doesn't end with .safetensors, and for text encoders that no such file is for."""
    path, names = place(path, "save_embedding"), {tower: name for name, tower in _TOWERS.items()}
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: files of words are named .safetensors, such as learned_embeds.safetensors")
    if path.exists():
        raise ValueError(f"{path} exists already; save somewhere else")
    if len(vectors) > 1 and set(vectors) != set(names):
        raise ValueError(f"vectors for {', '.join(vectors)}: files are for one text encoder, or for {', '.join(names)}")
    found = {(names[tower] if len(vectors) > 1 else word): np.asarray(rows, np.float32) for tower, rows in vectors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors_files.write(path, found, {"format": "pt", WORD: word})
