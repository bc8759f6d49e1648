"""Sound files to samples and back: the one place where bytes become sound.

WAV (whole numbers of 8 to 32 bits, floating point) is read by scipy. FLAC, Ogg, MP3 and what else libsndfile knows need the
package soundfile (pip install "ldm_jax[sound]"), without which files of these kinds are passed by in folders. Every failure is
a ValueError that names the sound, a missing file a FileNotFoundError.
"""

import functools
import importlib.util
import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ldm_jax.data.walk import FileKind

Encoded = bytes | str | Path  # the bytes of a sound file, or its path
WAV = frozenset((".wav", ".wave"))
WITH_SOUNDFILE = frozenset((".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf"))
UNREAD = frozenset((".m4a", ".aac", ".wma", ".amr", ".ape", ".mid", ".midi"))
HINT = 'FLAC, Ogg and MP3 need soundfile: pip install "ldm_jax[sound]"'
_UNKNOWN = 0x7FFF0000  # bytes, from which on sizes stand for those that were not known (sox, ffmpeg)
_MOST_RATE = 1_000_000  # samples a second; beyond it a header is damaged
_ZERO, _SCALE = {"u1": 128.0}, {"u1": 128.0, "i2": 2.0**15, "i4": 2.0**31}


@functools.cache
def has_soundfile() -> bool:
    """Whether more than WAV is read."""
    return importlib.util.find_spec("soundfile") is not None


def suffixes() -> frozenset[str]:
    """Suffixes, lower case with a dot, of the files that can be read here."""
    return WAV | WITH_SOUNDFILE if has_soundfile() else WAV


_BEGINNINGS = (b"RIFF", b"fLaC", b"OggS", b"ID3")
SOUNDS = FileKind(
    "sound", "sound", "sounds", suffixes, UNREAD | WITH_SOUNDFILE, "audio/", _BEGINNINGS,
    lambda: "" if has_soundfile() else HINT,
)  # fmt: skip


def read_sound(encoded: Encoded, name: str = "sound") -> tuple[np.ndarray, int]:
    """float32 [T, channels], whole numbers brought to [-1, 1], and the samples a second. ValueError for what can't be read, is
    cut off, holds no samples or such as are not finite."""
    with _naming(name):
        data = encoded if isinstance(encoded, bytes) else Path(encoded).read_bytes()
        samples, rate = _of_wav(data) if data[:4] in (b"RIFF", b"RIFX", b"RF64") else _of_soundfile(data)
        if not samples.size:
            raise ValueError("it holds no samples")
        if not 0 < rate <= _MOST_RATE:
            raise ValueError(f"it says that it has {rate} samples a second")
        if not np.isfinite(samples).all():
            raise ValueError("it holds samples that are not finite")
        return samples, rate


def wav_bytes(samples: np.ndarray, rate: int) -> bytes:
    """Samples [T] or [T, channels] in [-1, 1] (what exceeds that is cut off) as a WAV file of 16 bits. ValueError for whole
    numbers, which would be heard as noise, and for such as are not finite."""
    from scipy.io import wavfile  # here, because importing it takes a while, as below

    samples = np.asarray(samples)
    if samples.dtype.kind in "iub" or not np.isfinite(samples).all():
        what = "not finite" if samples.dtype.kind not in "iub" else samples.dtype
        raise ValueError(f"samples are {what}: expected floating-point numbers in [-1, 1]")
    file = io.BytesIO()
    wavfile.write(file, rate, np.round(np.clip(samples, -1, 1) * 32767).astype("<i2"))
    return file.getvalue()


def resampled(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Samples [T, channels] at another rate, float32, by a polyphase filter against aliases."""
    if rate == to:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, to)
    return resample_poly(samples, to // common, rate // common, axis=0).astype(np.float32)


def _of_wav(data: bytes) -> tuple[np.ndarray, int]:
    from scipy.io import wavfile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that are none of sound
        warnings.filterwarnings("error", "Reached EOF prematurely", wavfile.WavFileWarning)
        try:
            rate, samples = wavfile.read(io.BytesIO(_with_sizes(data)))
        except wavfile.WavFileWarning:
            raise ValueError("it is cut off") from None
        except ZeroDivisionError:
            raise ValueError("it says that it has no channels, or samples without bits") from None
        except ValueError as error:
            if "Unknown wave file format" in str(error) and has_soundfile():  # compressed
                return _of_soundfile(data)
            if "reshape" in str(error):
                raise ValueError("it is cut off: its last sample lacks channels") from None
            raise
    kind = samples.dtype.str[1:]
    if kind in _SCALE:
        samples = (samples.astype(np.float32) - np.float32(_ZERO.get(kind, 0.0))) / np.float32(_SCALE[kind])
    elif samples.dtype.kind != "f":
        raise ValueError(f"samples of {samples.dtype} are not read; store 8 to 32 bits, or floating point")
    samples = samples.astype(np.float32)
    return samples if samples.ndim == 2 else samples[:, None], int(rate)


def _with_sizes(data: bytes) -> bytes:
    """A WAV file with the sizes that whoever wrote it into a pipe didn't know: 0 stands there, or about the most there can be.
    (An empty file says 0 for its samples alone.)"""
    if data[:4] == b"RF64" or len(data) < 12:
        return data
    size = struct.Struct("<I" if data[:4] == b"RIFF" else ">I")
    whole, block, at = bytearray(data), 1, 12
    while at + 8 <= len(data) and data[at : at + 4] != b"data":
        if data[at : at + 4] == b"fmt " and at + 22 <= len(data):
            block = struct.unpack_from(size.format[0] + "H", data, at + 20)[0] or 1
        at += 8 + size.unpack_from(data, at + 4)[0]
        at += at % 2
    if open_ended := (size.unpack_from(data, 4)[0] or _UNKNOWN) >= _UNKNOWN:
        size.pack_into(whole, 4, len(data) - 8)
    said = size.unpack_from(data, at + 4)[0] if at + 8 <= len(data) else 1
    if said >= _UNKNOWN or not said and open_ended:
        size.pack_into(whole, at + 4, (len(data) - at - 8) // block * block)
    return bytes(whole)


def _of_soundfile(data: bytes) -> tuple[np.ndarray, int]:
    if not has_soundfile():
        raise ValueError(f"it is no WAV file. {HINT}")
    import soundfile

    try:
        return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(error.error_string) from None


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns whatever decoding raises into an error that says which sound it was."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no such file") from error
    except Exception as error:  # scipy raises struct.error and many more on damaged files, soundfile its own
        said = str(error) or type(error).__name__
        raise ValueError(f"{name} cannot be read as a sound: {said}") from error
