"""Pictures as files: a grid with what each is, every picture alone with how it was drawn, a film.

    PNG         text chunks {keyword: text}, tEXt for ASCII, iTXt in UTF-8 for all else
    JPEG, WebP  EXIF: "parameters" as UserComment, where other tools look for it, "ldm_jax" as ImageDescription
"""

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ldm_jax.primitives.choices import check_choice
from ldm_jax.primitives.files import write_text
from ldm_jax.primitives.flags import FORMATS
from ldm_jax.training.metrics import image_grid, to_uint8

_DESCRIPTION, _EXIF_IFD, _USER_COMMENT = 0x010E, 0x8769, 0x9286
MOST_PIXELS = {"webp": 16383, "jpg": 65500}  # along a side; what Pillow writes at most
_BORDER, _LINE, _MOST_LINES = 2, 13, 3


def save_pictures(
    folder: Path,
    name: str,
    images: np.ndarray,
    words: list[str],
    columns: int = 0,
    singly: bool = False,
    texts: Sequence[Mapping[str, str]] = (),
    *,
    suffix: str = "png",
    labels: bool = False,
) -> Path:
    """One grid, with what was asked for in a .txt beside it; `singly`: every picture as a file of its own besides, with the
    text chunks {keyword: text} of `texts`, one mapping a picture. `suffix`: one of `FORMATS`; `labels`: the words stand in the
    grid, too. What is larger than the files of its suffix may be is a PNG instead.

    Raises FileExistsError rather than overwrite anything, ValueError for texts of another number of pictures."""
    check_choice(suffix, FORMATS, "format")
    if texts and (len(texts) != len(images) or not singly):
        raise ValueError(f"texts of {len(texts)} pictures for {len(images)}: give one mapping a picture, with singly=True")
    folder.mkdir(parents=True, exist_ok=True)
    together = labelled_grid(images, words, columns) if labels else image_grid(images, columns)
    grid = folder / f"{name}.{_with_room(suffix, together)}"
    files = {grid: (together, {})}
    if singly:
        single = _with_room(suffix, images[0])
        said = [*texts, *[{}] * (len(images) - len(texts))]
        files |= {folder / f"{i:04d}.{single}": both for i, both in enumerate(zip(to_uint8(images), said, strict=True))}
    if taken := [path for path in (*files, grid.with_suffix(".txt")) if os.path.lexists(path)]:
        raise FileExistsError(f"{taken[0]} exists; choose another folder")
    for path, (picture, text) in files.items():
        save_picture(path, picture, text)
    write_text(grid.with_suffix(".txt"), "".join(f"{' '.join(line.splitlines())}\n" for line in words))
    return grid


def _with_room(suffix: str, picture: np.ndarray) -> str:
    """The suffix, or "png" where a picture [H, W, 3] has more pixels along a side than such files hold."""
    return suffix if max(picture.shape[:2]) <= MOST_PIXELS.get(suffix, math.inf) else "png"


def save_picture(path: Path, picture: np.ndarray, texts: Mapping[str, str]) -> None:
    """A uint8 [H, W, 3] picture as a file whose suffix is one of `FORMATS`, with these texts."""
    path.write_bytes(encoded(picture, texts, path.suffix[1:]))


def encoded(picture: np.ndarray, texts: Mapping[str, str], suffix: str = "png") -> bytes:
    """The bytes of that file."""
    kind, options = FORMATS[suffix]
    if kind == "PNG":
        options = {"pnginfo": png_info(texts)} if texts else {}
    elif texts:
        options = {**options, "exif": exif(texts)}
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def png_info(texts: Mapping[str, str]) -> PngInfo:
    """Text chunks of a PNG, {keyword: text}: tEXt for ASCII, iTXt in UTF-8 for all else."""
    info = PngInfo()
    for keyword, text in texts.items():
        (info.add_text if text.isascii() else info.add_itxt)(keyword, text)
    return info


def exif(texts: Mapping[str, str]) -> bytes:
    """The EXIF data that hold "parameters" and "ldm_jax"."""
    made = Image.Exif()
    if "ldm_jax" in texts:
        made[_DESCRIPTION] = texts["ldm_jax"]  # JSON in ASCII
    if "parameters" in texts:
        made.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + texts["parameters"].encode("utf-16-be", "replace")
    return made.tobytes()


def described(image: Image.Image) -> Any:
    """The "ldm_jax" text of an open picture that `save_picture` wrote; None where there is none."""
    return image.info.get("ldm_jax") if image.format == "PNG" else image.getexif().get(_DESCRIPTION)


def labelled_grid(images: np.ndarray, words: Sequence[str], columns: int = 0) -> np.ndarray:
    """`image_grid` with a line of words above each row whose pictures share them, or else under each picture: uint8 [H, W, 3].
    What doesn't fit is cut."""
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = [slice(start, start + columns) for start in range(0, len(images), columns)]
    shared = all(len(set(words[row])) == 1 for row in rows)
    parts = []
    for row in rows:
        strip = image_grid(images[row], columns)[: -_BORDER or None]
        width = strip.shape[1] if shared else images.shape[2]
        lines = [_wrapped(text, width) for text in ([words[row][0]] if shared else words[row])]
        label = Image.new("RGB", (strip.shape[1], _LINE * max(map(len, lines)) + 2 * _BORDER), "white")
        for i, each in enumerate(lines):
            left = _BORDER + i * (images.shape[2] + _BORDER)
            ImageDraw.Draw(label).multiline_text((left, _BORDER), "\n".join(each), fill="black", font=_font(), spacing=1)
        parts += [np.asarray(label), strip] if shared else [strip, np.asarray(label)]
    return np.concatenate(parts + [np.full((_BORDER, parts[0].shape[1], 3), 255, np.uint8)])


def _font() -> Any:
    return ImageFont.load_default(10)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels."""
    letters = max(4, int(width / _font().getlength("n")))
    return textwrap.wrap(text, letters, max_lines=_MOST_LINES, placeholder="…") or [""]


def save_film(folder: Path, images: np.ndarray, milliseconds: int = 120) -> Path:
    """The pictures one after the other, there and back, as folder/film.gif. FileExistsError rather than overwrite one."""
    path, film = folder / "film.gif", encoded_film(images, milliseconds)
    with open(path, "xb") as file:
        file.write(film)
    return path


def encoded_film(images: np.ndarray, milliseconds: int = 120, back: bool = True, hold: int = 0) -> bytes:
    """A GIF of the pictures [N, H, W, 3] in [-1, 1] one after the other, endlessly; `back`: and back again; `hold`: so many
    milliseconds more for the last one."""
    frames = [Image.fromarray(picture) for picture in to_uint8(images)]
    durations = [milliseconds] * len(frames)
    durations[-1] += hold
    if back:
        frames, durations = [*frames, *frames[-2:0:-1]], [*durations, *durations[-2:0:-1]]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return file.getvalue()
