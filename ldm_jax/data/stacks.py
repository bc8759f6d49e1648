"""Films and volumes from files: many pictures in one array.

    film      .npy, .npz        uint8 [T, H, W, 3] or [T, H, W] (grey); an .npz holds one such array
              .gif, .apng       the frames of an animated picture, by Pillow; each counts once, however long it stands, and a
                                still picture for programs that play none doesn't
              .mp4, ...         by imageio, where it is installed (pip install "ldm_jax[video]")
              a folder          its pictures in the order of their names, numbers as numbers: 2.png before 10.png
    volume    .npy, .npz        numbers [D, H, W]
              a folder          its pictures as grey slices: of 16 and 32 bits as they are stored, below zero too

Arrays are read without pickle, so that no file can run code. Every failure is a ValueError that names the file.
"""

import importlib.util
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import GifImagePlugin, Image, ImageSequence

from ldm_jax.data.decode import decode_grey, decode_rgb, suffixes
from ldm_jax.data.walk import FileKind

ARRAYS = (".npy", ".npz")
ANIMATED = (".gif", ".apng")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
_MOST_BYTES = 2**31  # of one decoded film


def read_film(source: Any, name: str) -> np.ndarray:
    """uint8 [T, H, W, 3] of a path, or of such an array itself."""
    if isinstance(source, np.ndarray):
        return _as_film(source, name)
    path = Path(source)
    if path.is_dir():
        return _frames_of_folder(path, name)
    suffix = path.suffix.lower()
    if suffix in ARRAYS:
        return _as_film(read_array(path, name), name)
    if suffix in VIDEOS:
        return _stacked(_video(path, name), name)
    return _stacked(_animation(path, name), name)


def read_volume(source: Any, name: str) -> np.ndarray:
    """Numbers [D, H, W] of a path, or of such an array itself."""
    array = source
    if not isinstance(source, np.ndarray):
        path = Path(source)
        array = _slices_of_folder(path, name) if path.is_dir() else read_array(path, name)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "uif" or not array.size:
        raise ValueError(f"{name} holds {array.dtype}{list(array.shape)}: a volume is numbers [depth, height, width]")
    return array


def read_array(path: Path, name: str) -> np.ndarray:
    """The array of an .npy, or the only one of an .npz; without pickle."""
    try:
        with open(path, "rb") as file:
            if (begin := file.read(6)) and not begin.startswith((b"\x93NUMPY", b"PK")):  # numpy would speak of pickle
                raise ValueError("it is no .npy or .npz file")
        data = np.load(path, allow_pickle=False)
        if not isinstance(data, np.lib.npyio.NpzFile):
            return data
        with data:
            if len(data.files) != 1:
                raise ValueError(f"it holds {len(data.files)} arrays ({', '.join(data.files[:4])}); one is expected")
            if not isinstance(array := data[data.files[0]], np.ndarray):
                raise ValueError(f"{data.files[0]} in it is no array")
            return array
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged archives and heads end in zlib's errors, tokenize's, NotImplementedError and more
        raise ValueError(f"{name} can't be read as an array: {str(error) or repr(error)}") from None


def _as_film(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):  # or its rows would be frames of as many pixels across
        raise ValueError(f"{name} holds {array.dtype}{list(array.shape)}, one picture: a film is [frames, height, width, 3]")
    if array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"{name} holds {array.dtype}{list(array.shape)}: a film is uint8 [frames, height, width, 3], or grey")
    return array


def _frames_of_folder(path: Path, name: str) -> np.ndarray:
    """Frames of 16 bits are scaled alike: whether their numbers are 8 bits in 16 is asked of all together."""
    files = _pictures_of_folder(path, name)
    film = _stacked((decode_rgb(file, str(file), dim=True) for file in files), name)
    return film if film.min() < film.max() else _stacked((decode_rgb(file, str(file)) for file in files), name)


def _slices_of_folder(path: Path, name: str) -> np.ndarray:
    files = _pictures_of_folder(path, name)
    slices = [decode_grey(file, str(file)) for file in files]
    depths = [slice.dtype for slice in slices]
    if odd := [file for file, depth in zip(files, depths) if depth != depths[0]]:
        raise ValueError(f"{name}: {odd[0].name} and {files[0].name} are not both of 8 bits or both of more; all must be alike")
    volume = _stacked(iter(slices), name)
    return volume.astype(np.uint16) if volume.dtype != np.uint8 and 0 <= volume.min() <= volume.max() < 2**16 else volume


def _pictures_of_folder(path: Path, name: str) -> list[Path]:
    def number(file: Path) -> list:
        return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", file.name))]

    files = [file for file in path.iterdir() if file.suffix.lower() in suffixes() and not file.name.startswith(".")]
    if not files:
        raise ValueError(f"{name} is a folder without pictures: a film's folder holds its frames")
    return sorted(files, key=number)


def _animation(path: Path, name: str) -> Iterator[np.ndarray]:
    try:
        with Image.open(path) as image:
            for i, frame in enumerate(ImageSequence.Iterator(image)):
                if i == 0 and getattr(image, "default_image", False):  # shown by programs that play no films, and no frame
                    continue
                if frame.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
                    frame = Image.fromarray((np.asarray(frame, np.int64) * 255 // 65535).astype(np.uint8))
                rgba = frame.convert("RGBA")
                yield np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB"))
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow raises IndexError, struct.error and many more on damaged files
        raise ValueError(f"{name} can't be read as a film: {str(error) or repr(error)}") from None


def _video(path: Path, name: str) -> Iterator[np.ndarray]:
    if importlib.util.find_spec("imageio") is None:
        raise ValueError(
            f'{name}: reading {path.suffix} needs imageio (pip install "ldm_jax[video]"); or give folders of frames, GIF, .npy'
        )
    import imageio.v3 as imageio

    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        for frame in imageio.imiter(path):
            yield np.asarray(frame)[..., :3]
    except Exception as error:  # each of its plugins has errors of its own
        raise ValueError(f"{name} can't be read as a film: {str(error).splitlines()[0] if str(error) else error!r}") from None


def _stacked(frames: Iterator[np.ndarray], name: str) -> np.ndarray:
    found, shape = [], None
    for frame in frames:
        shape = shape or frame.shape
        if frame.shape != shape:
            here, there = (f"{s[1]} x {s[0]}" for s in (frame.shape, shape))
            raise ValueError(f"{name}: frame {len(found)} is {here}, those before {there}; all frames must be of one size")
        found.append(frame)
        if len(found) * frame.nbytes > _MOST_BYTES:
            raise ValueError(f"{name} is longer than {_MOST_BYTES // 2**30} GiB of decoded frames; cut it into parts")
    return np.stack(found)


FILMS = FileKind(
    "film", "film", "films", lambda: frozenset((*ARRAYS, *ANIMATED, *VIDEOS)), frozenset((".mpg", ".mpeg", ".wmv", ".flv")),
    "video/", stacks=True,
)  # fmt: skip
VOLUMES = FileKind(
    "volume", "volume", "volumes", lambda: frozenset(ARRAYS), frozenset((".nii", ".gz", ".nrrd", ".mha", ".mhd", ".dcm")),
    "application/dicom", stacks=True,
)  # fmt: skip


def gif(frames: np.ndarray, milliseconds: int = 120) -> bytes:
    """An animated GIF of uint8 [T, H, W, 3], without end, of T frames: Pillow's own writer makes one of equal neighbours."""
    head = struct.pack("<6sHHBBB", b"GIF89a", frames.shape[2], frames.shape[1], 0x70, 0, 0)  # each frame has its own colours
    parts = [head, b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"]  # again and again
    for frame in frames:
        picture = Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE)
        parts += GifImagePlugin.getdata(picture, duration=milliseconds, disposal=2, include_color_table=True)
    return b"".join([*parts, b";"])
