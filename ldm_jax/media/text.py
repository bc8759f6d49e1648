"""Text: a sentence is a row of N tokens, float32 [N, 1], whole numbers of a vocabulary (nothing of them lies in [-1, 1]).

[BOS] word word ... [EOS] [PAD] ...; N is config.data.image_size. The vocabulary is learnt of the training set, in
WORKDIR/text_tokenizer.json, or is the tokenizer.json that config.data.tokenizer names, or that of the first stage which another
training has taught (config.first_stage.path, config.first_stage_train.start_from).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from ldm_jax.data.texts import all_texts
from ldm_jax.data.tokenizer import END, TEXT_TOKENIZER, Tokenizer, load_tokenizer, train_tokenizer
from ldm_jax.data.transform import of_task, other_columns
from ldm_jax.media.medium import Medium
from ldm_jax.primitives.choices import check_choice
from ldm_jax.primitives.files import write_text

WIDTH, HEIGHT, SIZE = 280, 44, 12  # of a line that is drawn, in pixels
TOO_LONG = ("raise", "cut")


@dataclasses.dataclass(frozen=True)
class TextTransform:
    """Row with "text" -> {"image": float32 [N, 1], ...} with the other columns as `data.transform` gives them.

    words       the vocabulary
    length      N
    too_long    "raise": a text of more than N - 2 tokens is a ValueError with its name; "cut": it ends early
    tokenize    of captions; task: see `data.transform`
    """

    words: Tokenizer
    length: int
    too_long: str = "raise"
    tokenize: Callable[[str], np.ndarray] | None = None
    task: Callable | None = None
    whole_boxes: bool = False
    column: ClassVar[str] = "text"
    crop: ClassVar[str] = "center"
    flip: ClassVar[bool] = False

    @property
    def array_shape(self) -> tuple[int, int]:
        """Of an example's "image"."""
        return self.length, 1

    @property
    def geometry(self) -> dict[str, Any]:
        """What the arrays depend on beside the text."""
        vocabulary = hashlib.sha256(repr(self.words.__getstate__()).encode()).hexdigest()
        return {"length": self.length, "too_long": self.too_long, "tokenizer": vocabulary}

    def fit(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as it is: text is small, and the vocabulary may still have to be learnt of it."""
        return row

    def view(self, row: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """The row with tokens in place of its text."""
        return row | {"text": self.encode(row["text"], row.get("name", "text"))}

    def encode(self, text: str, name: str) -> np.ndarray:
        """float32 [N, 1]. ValueError with the name for a text that is too long, unless those are cut."""
        if self.too_long == "raise" and (over := self.words.count(text) - (self.length - 2)) > 0:
            raise ValueError(_too_long(name, self.length - 2 + over, self.length, text))
        return self.words.encode_one(text, self.length).astype(np.float32)[:, None]

    @staticmethod
    def scaled(tokens: np.ndarray) -> np.ndarray:
        """Tokens are taken as they are."""
        return tokens

    def __call__(self, row: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """One example."""
        seen = self.view(row, rng)
        example = {"image": seen["text"]} | other_columns(seen, self.tokenize, 0, rng)
        return example | of_task(self.task, example, seen, rng)


class Text(Medium):
    """Sentences of text files (`data.texts`) or of the grammar (`data.sentences`), or captions: those of the pictures of
    `shapes` or of a folder ("pictures")."""

    name = "text"
    sources = ("sentences", "folder", "shapes", "pictures")
    axes = 1
    unit = "tokens"
    one, many = "sentence", "sentences"
    channels = 1
    decoded = False
    abilities = ("sample", "variation", "interpolate")

    @property
    def length(self) -> int:
        """N, the tokens of a sentence."""
        size = self.section["image_size"]
        return size if isinstance(size, int) else size[0]

    def check(self) -> None:
        """The fields that only text has."""
        section = self.section
        check_choice(section["too_long"], TOO_LONG, "config.data.too_long")
        if self.length < 3:
            raise ValueError(f"config.data.image_size={section['image_size']}: begin and end alone take 2 tokens")
        if section["flip"] or section["crop"] != "center":
            raise ValueError("config.data.flip and config.data.crop are of pictures: of text set them to False and 'center'")
        if _is_file(section["tokenizer"]):
            if not Path(section["tokenizer"]).is_file():
                raise FileNotFoundError(f"config.data.tokenizer={section['tokenizer']!r}: no such file")
            self._fitting(load_tokenizer(section["tokenizer"]))
        else:
            check_choice(section["tokenizer"], ("words", "wordpiece"), "config.data.tokenizer")

    def _fitting(self, tokenizer: Tokenizer, where: str = "") -> Tokenizer:
        """The tokenizer, if a model of text can have it. `where` it comes from, if not from config.data."""
        where, room = where or f"config.data.tokenizer={self.section['tokenizer']!r}", self.section["vocab_size"]
        if tokenizer.vocab_size > room:
            raise ValueError(f"config.data.vocab_size={room}: {where} has {tokenizer.vocab_size} tokens")
        if tokenizer.end != END:
            raise ValueError(f"{where}: its end is token {tokenizer.end}; [PAD], [UNK], [BOS] and [EOS] must come first")
        return tokenizer

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary: of the working directory, or else of the file that is named. ValueError before it is learnt."""
        if self.workdir is not None and (self.workdir / TEXT_TOKENIZER).is_file():
            return self._fitting(load_tokenizer(self.workdir / TEXT_TOKENIZER))
        if _is_file(self.section["tokenizer"]):
            return self._fitting(load_tokenizer(self.section["tokenizer"]))
        place = self.workdir or "its working directory"
        raise ValueError(f"the vocabulary of this model is not known: {place} has no {TEXT_TOKENIZER}")

    def transform(self, **columns: Any) -> TextTransform:
        """Tokens of this vocabulary."""
        return TextTransform(self.tokenizer, self.length, self.section["too_long"], **columns)

    def learn(self, source: Any, folder: Path, first: Path | None = None) -> None:
        """The vocabulary, unless it is there: that of `first`, whose first stage knows words by its numbers; or else learnt, or
        copied from the file that is named. ValueError where the file, or what is there, has other numbers than `first`."""
        kind, path = self.section["tokenizer"], folder / TEXT_TOKENIZER
        taken = None if first is None else load_tokenizer(first / TEXT_TOKENIZER)
        if there := path.is_file() or _is_file(kind):
            known = load_tokenizer(path if path.is_file() else kind)
        else:
            known = taken or train_tokenizer(all_texts(source), kind, self.section["vocab_size"])
        if taken is not None and not known.numbers_alike(taken):
            where = str(path) if path.is_file() else f"config.data.tokenizer={kind!r}"
            raise ValueError(
                f"{where} numbers words otherwise than {first / TEXT_TOKENIZER}, by which the first stage knows them: "
                "leave config.data.tokenizer at 'words' and train in a new working directory, or train a first stage of its own"
            )
        if not path.is_file():
            self._fitting(known, "" if there or taken is None else str(first / TEXT_TOKENIZER)).save(path)

    def settled(self) -> dict[str, Any]:
        """With the vocabulary's file as its tokenizer."""
        section = super().settled()
        if self.workdir is not None:
            section["tokenizer"] = str(self.workdir.absolute() / TEXT_TOKENIZER)
        return section

    def look(self, source: Any) -> str:
        """What is lost of a source's texts, in one line. ValueError that names the first text that is too long, unless those
        are cut."""
        lost = self.tokenizer.losses(all_texts(source), self.length)
        if lost.cut and self.section["too_long"] == "raise":
            for row in map(source.__getitem__, range(len(source))):
                if (count := self.tokenizer.count(row["text"])) > self.length - 2:
                    raise ValueError(_too_long(row["name"], count, self.length, row["text"]))
        return str(lost).replace("captions", "texts")

    def words(self, arrays: np.ndarray) -> list[str]:
        """Tokens [B, N, 1] as lines of text."""
        return [self.tokenizer.text(np.rint(tokens[:, 0]).astype(np.int64)) for tokens in np.asarray(arrays)]

    def shown(self, arrays: np.ndarray) -> np.ndarray:
        """Lines of text, black on white; what doesn't fit is cut."""
        return np.stack([_picture(text) for text in self.words(arrays)])

    def files_of(self, array: np.ndarray) -> dict[str, bytes]:
        """A file with the line."""
        return {"txt": f"{self.words(array[None])[0]}\n".encode()}

    def save(self, folder: Path, name: str, arrays: np.ndarray, words: Sequence[str], *arguments: Any, **options: Any) -> Path:
        """The same, and all lines together in folder/sentences.txt."""
        path = folder / "sentences.txt"
        if path.exists():
            raise FileExistsError(f"{path} exists; choose another folder")
        grid = super().save(folder, name, arrays, words, *arguments, **options)
        write_text(path, "".join(f"{line}\n" for line in self.words(arrays)))
        return grid


def _is_file(tokenizer: str) -> bool:
    return Path(tokenizer).suffix == ".json"


def _too_long(name: str, count: int, length: int, text: str) -> str:
    start = text if len(text) <= 60 else f"{text[:57]}..."
    return (
        f"{name}: {count} tokens, and {length - 2} fit ({start!r}). Shorten or remove it, raise "
        f"config.data.image_size={length}, or set config.data.too_long='cut'"
    )


def _picture(text: str) -> np.ndarray:
    """float32 [HEIGHT, WIDTH, 3] in [-1, 1]."""
    font = ImageFont.load_default(SIZE)
    lines, line = [], ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > WIDTH - 8:
            lines.append(line)
            longer = word
        line = longer
    picture = Picture.new("RGB", (WIDTH, HEIGHT), "white")
    ImageDraw.Draw(picture).multiline_text((4, 2), "\n".join([*lines, line]), fill="black", font=font, spacing=1)
    return np.asarray(picture, np.float32) / np.float32(127.5) - np.float32(1)
