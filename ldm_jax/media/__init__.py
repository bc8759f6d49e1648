"""What is learnt and drawn: one file a medium; `MEDIA` names them, and a new one is a file and a name there.

medium   a file holds        the array, float32 in [-1, 1]   shown as              written as
image    a picture           [H, W, 3]                       itself                PNG, WebP or JPEG
sound    a sound             [mels, frames, channels]        its spectrogram       WAV beside that
waveform a sound             [samples, channels]             its spectrogram       WAV beside that
film     frames, or frames   [frames, H, W, 3]               a strip of frames     GIF
         in a folder
volume   numbers             [D, H, W, 1]                    slices                GIF through the slices, .npy
text     lines of text       [N, 1], numbers of words       a line of text         .txt

config.data.medium says which ("image" where the field is missing). Nothing else knows what an array means: first stages,
diffusion, caches and samplers work on arrays of any kind. What a medium has to give is in `Medium`: a transform of rows into
arrays, pictures to show them as, and the files that people expect.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_jax.media.film import Film
from ldm_jax.media.image import Image
from ldm_jax.media.medium import Medium
from ldm_jax.media.sound import Sound
from ldm_jax.media.text import Text
from ldm_jax.media.volume import Volume
from ldm_jax.media.waveform import Waveform
from ldm_jax.primitives.choices import choose

MEDIA: dict[str, type[Medium]] = {medium.name: medium for medium in (Image, Sound, Waveform, Film, Volume, Text)}

__all__ = ["MEDIA", "Film", "Image", "Medium", "Sound", "Text", "Volume", "Waveform", "make_medium"]


def make_medium(section: Mapping[str, Any], workdir: Path | None = None) -> Medium:
    """The medium of config.data. `workdir`: where one that learns something of its data keeps it. ValueError that names what
    there is."""
    return choose(MEDIA, section.get("medium", Image.name), "config.data.medium")(section, workdir)
