"""Words to token numbers: a small tokenizer trained on the captions of the data set at hand.

Word-level (every word of the captions is a token) for small vocabularies, WordPiece (greedy longest pieces, Schuster
and Nakajima 2012, as in BERT) for large ones; both lower-case and split at punctuation. Texts are brought to the composed form
of Unicode (NFC), so that an accent counts the same however it was typed, and no mark is stripped: "resume" and "résumé" are two
words, and vowel signs stay. (Tokenizers that were saved by older versions strip marks; their file says so, and they still do.)
A sequence is

    [BOS] word word ... [EOS] [PAD] [PAD] ...          ([CLS] and [SEP] for WordPiece)

of fixed length. The empty string, `[BOS] [EOS] [PAD] ...`, is the null prompt of classifier-free guidance.
"""

import difflib
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from ldm_jax.data.detokenize import join
from ldm_jax.primitives.choices import check_choice
from ldm_jax.primitives.files import write_text

TEXT_TOKENIZER = "text_tokenizer.json"  # of the data, in the working directory of a model of text
END = 3  # the number of [EOS] in every tokenizer that is trained here: [PAD], [UNK], [BOS], [EOS] come first
_ENDS = {"words": ("[BOS]", "[EOS]"), "wordpiece": ("[CLS]", "[SEP]")}
KINDS = tuple(_ENDS)  # that are trained here
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")  # its pieces are made of bytes: no word is unknown
T5_ENDS = ("<pad>", "</s>")  # a text has no begin; what it doesn't know is <unk>, as it was trained
_START, _MOST_SAID = 100, 10  # letters of a text, and words of it, that an error says
_SPLITTER = pre_tokenizers.BertPreTokenizer()


@dataclass(frozen=True)
class Losses:
    """What becomes of texts as rows of `length` tokens.

    texts, cut        how many there are, and how many of them are longer than fits
    words, unknown    how many words, and how many of them become [UNK]
    examples          some of the unknown words, the most frequent first
    """

    length: int
    texts: int
    cut: int
    words: int
    unknown: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One sentence; "" if nothing is lost."""
        said = []
        if self.cut:
            said.append(f"{self.cut} of {self.texts} captions are longer than {self.length} tokens and are cut")
        if self.unknown:
            some = f" (such as {', '.join(map(repr, self.examples))})" if self.examples else ""
            said.append(f"{self.unknown} of {self.words} words became [UNK]{some}")
        return ", ".join(said)


class Tokenizer:
    """Texts to rows of numbers; made by `train_tokenizer`, `load_tokenizer` or `checkpoint_tokenizers.load`.

    `pad`: the number that fills rows up, [PAD] unless given. `truncated`: how many texts were cut so far. `is_clip`: whether it
    is CLIP's, of pieces of bytes, to which no word is unknown; `is_t5`: whether it is T5's, whose texts have no begin."""

    def __init__(self, inner: tokenizers.Tokenizer, pad: int | None = None):
        self._inner = inner
        vocabulary = inner.get_vocab()
        ends = next((ends for ends in (*_ENDS.values(), CLIP_ENDS, T5_ENDS) if set(ends) <= vocabulary.keys()), None)
        foreign = ends == T5_ENDS and "<s>" in vocabulary  # of a model whose texts have a begin
        if ends is None or foreign or (ends in _ENDS.values() and not {"[PAD]", "[UNK]"} <= vocabulary.keys()):
            raise ValueError(
                "a tokenizer needs [PAD], [UNK], and [BOS], [EOS] or [CLS], [SEP]; or <|startoftext|>, <|endoftext|>; or "
                "<pad>, </s>; this one lacks some"
            )
        self.is_clip, self.is_t5 = ends == CLIP_ENDS, ends == T5_ENDS
        self._begin, self._end = [] if self.is_t5 else [vocabulary[ends[0]]], vocabulary[ends[1]]
        self.unknown = vocabulary["[UNK]"] if ends in _ENDS.values() else None
        self.pad = vocabulary.get("<pad>" if self.is_t5 else "[PAD]", self._end) if pad is None else pad
        self._special = {"[PAD]", "[UNK]", *ends}
        self._words: dict[str, str] = {}  # that were added: the tokens that each stands for
        self.truncated = 0

    def __getstate__(self) -> tuple[str, int, dict[str, str]]:
        return self._inner.to_str(), self.pad, self._words

    def __setstate__(self, state: tuple[str, int, dict[str, str]]) -> None:
        self.__init__(tokenizers.Tokenizer.from_str(state[0]), state[1])
        self._words = state[2]

    @property
    def end(self) -> int:
        """The number of the token that ends a text."""
        return self._end

    @property
    def added(self) -> tuple[str, ...]:
        """Words of `with_word`."""
        return tuple(self._words)

    def with_word(self, word: str, count: int = 1) -> "Tokenizer":
        """A tokenizer that knows one more word, as `count` further tokens: `vocab_size` and those after it. ValueError for a
        word that is there already."""
        if not word.strip() or word in self._inner.get_vocab():
            raise ValueError(f"{word!r} is a token already, or none: give another one")
        inner = tokenizers.Tokenizer.from_str(self._inner.to_str())
        tokens = [word, *(f"{word}_{i}" for i in range(1, count))]
        inner.add_tokens([tokenizers.AddedToken(token, normalized=False, special=False) for token in tokens])
        made = Tokenizer(inner, self.pad)
        made._words = {**self._words, word: " ".join(tokens)}
        return made

    def _with_tokens(self, text: str) -> str:
        """The text with words that were added as their tokens, the longest of those that begin at one place; in any case where
        case doesn't count."""
        if not self._words:
            return text
        words = sorted(self._words, key=len, reverse=True)
        lowers = self._inner.normalizer is not None and self._inner.normalizer.normalize_str("A") == "a"
        known = ({word.lower(): self._words[word] for word in reversed(words)} if lowers else {}) | self._words
        pattern = re.compile("|".join(map(re.escape, words)), re.IGNORECASE if lowers else 0)
        return pattern.sub(lambda found: known.get(found[0], known.get(found[0].lower(), found[0])), text)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self._inner.get_vocab_size()

    def encode(self, texts: Sequence[str], length: int, strict: bool = False) -> np.ndarray:
        """int32 [B, length]. Texts too long are cut (and counted), unknown words become [UNK]; `strict`, as prompts want
        it, refuses both and says what is wrong."""
        if isinstance(texts, str):
            raise ValueError(f"texts={texts!r}: expected a list of texts")
        return np.stack([self.encode_one(text, length, strict) for text in texts]) if texts else np.zeros((0, length), np.int32)

    def encode_one(self, text: str, length: int, strict: bool = False) -> np.ndarray:
        """`encode` for one text: int32 [length]."""
        room = self._room(length)
        if room < 0:
            raise ValueError(f"length={length}: begin and end alone take {length - room} tokens")
        text = self._with_tokens(text)
        words = self._inner.encode(text, add_special_tokens=False)
        ids = words.ids
        if strict and self.unknown in ids:
            raise ValueError(self._explain_unknown(text))
        if len(ids) > room:
            if strict:
                over = len(ids) - room
                raise ValueError(f"prompt {_start(text)!r} has {len(ids)} tokens, {over} more than the {room} that fit")
            self.truncated += 1
        out = np.full(length, self.pad, np.int32)
        whole = [*self._begin, *ids[:room], self._end]
        out[: len(whole)] = whole
        return out

    def _room(self, length: int) -> int:
        """How many tokens fit between begin and end."""
        return length - 1 - len(self._begin)

    def numbers_in(self, other: "Tokenizer") -> np.ndarray:
        """The number that each of these tokens has there, int32 [vocab_size]; -1 where it is unknown."""
        there, here = (tokenizer._inner.get_vocab() for tokenizer in (other, self))
        return np.asarray([there.get(token, -1) for token in sorted(here, key=here.__getitem__)], np.int32)

    def numbers_alike(self, other: "Tokenizer") -> bool:
        """Whether both have the same tokens, and the same number for each."""
        return self._inner.get_vocab() == other._inner.get_vocab()

    def count(self, text: str) -> int:
        """How many tokens a text has, without begin and end."""
        return len(self._inner.encode(text, add_special_tokens=False).ids)

    def words(self, text: str) -> list[str]:
        """The words and marks of a text, as they are told apart here; those that are unknown stay."""
        if self._inner.normalizer is not None:
            text = self._inner.normalizer.normalize_str(text)
        return [word for word, _ in self._inner.pre_tokenizer.pre_tokenize_str(text)]

    def losses(self, texts: Iterable[str], length: int) -> Losses:
        """How many of `texts` are cut when they are encoded to `length` tokens, and how many words become [UNK]."""
        count = cut = words = 0
        unknown: Counter[str] = Counter()
        for text in texts:
            encoded = self._inner.encode(text, add_special_tokens=False)
            count += 1
            cut += len(encoded.ids) > self._room(length)
            words += len({i for i in encoded.word_ids if i is not None})
            unknown.update(text[slice(*span)] for i, span in zip(encoded.ids, encoded.offsets) if i == self.unknown)
        examples = tuple(word for word, _ in sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:3])
        return Losses(length, count, cut, words, unknown.total(), examples)

    def decode(self, ids: np.ndarray) -> str:
        """The text of token numbers [L], special tokens left out. A number of no token, as models of text may draw where their
        config has room for more, is [UNK]."""
        if self.is_clip or self.is_t5:
            kept = [int(i) for i in ids if i not in (*self._begin, self._end, self.pad)]
            return self._inner.decode(kept).replace("</w>", " ").strip()
        names = [self._inner.id_to_token(int(i)) or "[UNK]" for i in ids]
        return " ".join(n for n in names if n not in self._special or n == "[UNK]").replace(" ##", "")

    def text(self, ids: np.ndarray) -> str:
        """The same as a line of text up to the first end, with blanks as people set them (`detokenize`): a text that was
        encoded is that text again, in lower case. "[UNK]" where the tokenizer lacks a word."""
        ids = [int(i) for i in ids]
        ids = ids[: ids.index(self._end)] if self._end in ids else ids
        said = self.decode(np.asarray(ids, np.int64))
        return said if self.is_clip or self.is_t5 else join(said.split())

    def save(self, path: str | Path) -> None:
        """Writes one JSON file in the format of the `tokenizers` library, whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self._inner.to_str(pretty=True))

    def _explain_unknown(self, text: str) -> str:
        normal = self._inner.normalizer.normalize_str(text)
        words = dict.fromkeys(word for word, _ in self._inner.pre_tokenizer.pre_tokenize_str(normal))
        known = sorted(token for token in self._inner.get_vocab() if token not in self._special and not token.startswith("##"))
        said = []
        for word in words:
            if self.unknown in self._inner.encode(word, add_special_tokens=False).ids:
                if len(said) == _MOST_SAID:
                    said.append("...")
                    break
                near = difflib.get_close_matches(_start(word), known, n=3, cutoff=0.6)
                said.append(repr(_start(word)) + (f" (near: {', '.join(near)})" if near else ""))
        some = "" if len(known) > 60 else f"; it knows {', '.join(known)}"
        return f"prompt {_start(text)!r}: words that no training caption had: {', '.join(said)}{some}"


@dataclass(frozen=True)
class Tokenizers:
    """One tokenizer for each tower of a model that reads a text through several: rows are int32 [T, length]."""

    parts: tuple[Tokenizer, ...]

    @property
    def is_clip(self) -> bool:
        """As of the parts."""
        return all(part.is_clip for part in self.parts)

    @property
    def added(self) -> tuple[str, ...]:
        """As of the parts."""
        return self.parts[0].added

    @property
    def vocab_size(self) -> int:
        """Of the largest."""
        return max(part.vocab_size for part in self.parts)

    def encode_one(self, text: str, length: int, strict: bool = False) -> np.ndarray:
        """The same text for all: int32 [T, length]."""
        return self.encode_several([text] * len(self.parts), length, strict)

    def encode_several(self, texts: Sequence[str], length: int, strict: bool = False) -> np.ndarray:
        """A text for each, in order: int32 [T, length]; further ones are passed by."""
        return np.stack([part.encode_one(text, length, strict) for part, text in zip(self.parts, texts)])

    def losses(self, texts: Iterable[str], length: int) -> Losses:
        """As `Tokenizer.losses`, of the first."""
        return self.parts[0].losses(texts, length)


def train_tokenizer(captions: Iterable[str], kind: str = "words", vocab_size: int = 8192) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens for `captions`; deterministic. `kind`: "words" or "wordpiece"."""
    check_choice(kind, _ENDS, "kind")
    special = ["[PAD]", "[UNK]", *_ENDS[kind]]
    if vocab_size <= len(special):
        raise ValueError(f"vocab_size={vocab_size}: must exceed the {len(special)} special tokens")
    words = Counter(word for caption in captions for word in words_of(caption))
    if not words:
        raise ValueError("a tokenizer cannot be trained on captions without words")
    if kind == "words":
        kept = sorted(words, key=lambda word: (-words[word], word))[: vocab_size - len(special)]
        model = models.WordLevel({token: i for i, token in enumerate([*special, *kept])}, unk_token="[UNK]")
    else:
        model = models.WordPiece(_train_pieces(words, special, vocab_size), unk_token="[UNK]")
    inner = tokenizers.Tokenizer(model)
    inner.normalizer, inner.pre_tokenizer = _normalizer(), _SPLITTER
    return Tokenizer(inner)


def _start(text: str) -> str:
    """As much of a text as an error says of it."""
    return text if len(text) <= _START else f"{text[: _START - 3]}..."


def words_of(text: str) -> list[str]:
    """The words and marks of a text, as tokenizers that are trained here tell them apart."""
    return [word for word, _ in _SPLITTER.pre_tokenize_str(_normalizer().normalize_str(text))]


@functools.cache
def _normalizer() -> normalizers.Normalizer:
    """White space to blanks, control characters away (but not the joiners of scripts and emoji), lower case, composed."""
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(r"[\p{Cc}\x{FEFF}\x{FFFD}]"), ""),
            normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=True),
            normalizers.NFC(),
        ]
    )


def _train_pieces(words: Mapping[str, int], special: list[str], vocab_size: int) -> dict[str, int]:
    """The vocabulary of a WordPiece model. The library numbers pieces like '##a' in the order of a randomly seeded hash
    table, and breaks ties by number; giving it those pieces in order makes the result a function of the captions."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inside = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + inside, show_progress=False)
    inner.train_from_iterator((" ".join([word] * count) for word, count in sorted(words.items())), trainer)
    return inner.get_vocab()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """What `Tokenizer.save` wrote, or any tokenizer.json with the special tokens named above. FileNotFoundError if there is
    none; ValueError, with the file's name and what to do, for a damaged one."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: the model's tokenizer is missing. Copy it from a backup of the model, or, where nothing is trained on it "
            "yet, train: it will be made again from the captions"
        )
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
        if max(inner.get_vocab().values(), default=0) >= inner.get_vocab_size():
            raise RuntimeError("its tokens are not numbered without gaps")
        return Tokenizer(inner)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # the library raises bare Exceptions
        what = "it is empty" if not Path(path).stat().st_size else error
        raise ValueError(
            f"{path} is not a tokenizer: {what}. Copy it from a backup of the model, or, where nothing is trained on it yet, "
            "delete it: it will be made again from the captions"
        ) from error


def caption_texts(rows: Iterable[dict]) -> Iterator[str]:
    """Every caption of rows, each of several on its own."""
    for row in rows:
        yield from (row["caption"],) if isinstance(row["caption"], str) else row["caption"]
