"""The tokenizers that come with published models, from the files in their folders; nothing is downloaded.

    tokenizer.json                        any of the below, or what `Tokenizer.save` wrote
    vocab.json, merges.txt                CLIP: byte-level BPE (Radford et al. 2021), NFC, one blank for white space, lower case
    vocab.txt                             BERT: WordPiece (Devlin et al. 2019), lower case without accents
    tokenizer_config.json, special_tokens_map.json     say what rows are filled up with: <|endoftext|> in Stable Diffusion 1,
                                          "!" (number 0) in Stable Diffusion 2, [PAD] in BERT

Rows are [begin] pieces [end] [pad] ..., cut to a fixed length with the end kept, as the models were trained.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ldm_jax.data.text_files import read_json
from ldm_jax.data.tokenizer import CLIP_ENDS, Tokenizer
from ldm_jax.primitives.files import write_text

FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
# Words of letters, single digits, runs of other signs; the clitics of English on their own.
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def found_in(path: str | Path) -> bool:
    """Whether `path` is a tokenizer.json, or a folder with a tokenizer's files."""
    path = Path(path)
    return path.is_file() or any(all((path / name).is_file() for name in names) for names in FILES)


def load(path: str | Path, pad: int | None = None) -> Tokenizer:
    """The tokenizer of a folder, or of a tokenizer.json.

    `pad`: the number to fill rows up with, for models that were trained with another than the files say.
    Raises FileNotFoundError if the files are not there, ValueError if they are no tokenizer of a known kind.
    """
    path = Path(path)
    if not found_in(path):
        raise FileNotFoundError(f"{path} has no tokenizer: neither {', nor '.join(' with '.join(names) for names in FILES)}")
    folder = path if path.is_dir() else path.parent
    try:
        config = _json(folder / "tokenizer_config.json")
        inner = _inner(path, config)
        inner.add_special_tokens(_special(inner, folder, config))
        inner.no_padding()
        inner.no_truncation()
        return Tokenizer(inner, _pad(inner, folder, config) if pad is None else pad)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path} is not a tokenizer: {error}") from error


def copy(source: str | Path, to: str | Path, pad: int | None = None) -> Path:
    """Copies the files of a tokenizer, and nothing else of its folder, into the new folder `to`; returns what was copied.
    `pad`, as for `load`, is written into them. Raises ValueError if there is no tokenizer at `source`."""
    source, to = Path(source), Path(to)
    if not found_in(source):
        raise ValueError(f"the model's tokenizer is not at {source}")
    to.mkdir()
    if source.is_file():
        return Path(shutil.copyfile(source, to / "tokenizer.json"))
    for name in (*SETTINGS, *(name for names in FILES for name in names)):
        if (source / name).is_file():
            shutil.copyfile(source / name, to / name)
    if pad is not None:
        token = _inner(to, {}).id_to_token(pad)
        for name in SETTINGS:
            write_text(to / name, json.dumps({**_json(to / name), "pad_token": token}, indent=2) + "\n")
    return to


def _inner(path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if path.is_file():
        return tokenizers.Tokenizer.from_file(str(path))
    if (path / "tokenizer.json").is_file():
        return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    if (path / "vocab.json").is_file():
        return _clip(path)
    return _bert(path / "vocab.txt", config.get("do_lower_case", True))


def _clip(folder: Path) -> tokenizers.Tokenizer:
    begin, end = CLIP_ENDS
    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    inner = tokenizers.Tokenizer(
        models.BPE.from_file(*files, unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>")
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    inner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (begin, end)])
    return inner


def _bert(vocabulary: Path, lower: bool) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lower)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    known = inner.get_vocab()
    inner.add_special_tokens([token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in known])
    return inner


def _special(inner: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """The special tokens that the folder names: where a text spells one, as "!" in Stable Diffusion 2, it is that token."""
    settings = {**config, **_json(folder / "special_tokens_map.json")}
    named = [settings.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")]
    found = {}
    for token in named:
        flags = token if isinstance(token, dict) else {"content": token}
        text = flags.get("content")
        if isinstance(text, str) and inner.token_to_id(text) is not None:
            kept = {name: bool(flags[name]) for name in ("lstrip", "rstrip", "single_word", "normalized") if name in flags}
            found[text] = AddedToken(text, special=True, **{"normalized": False} | kept)
    return list(found.values())


def _pad(inner: tokenizers.Tokenizer, folder: Path, config: Mapping[str, Any]) -> int | None:
    """The number of the pad token that the folder names, if it names one."""
    named = _json(folder / "special_tokens_map.json").get("pad_token") or config.get("pad_token")
    token = named["content"] if isinstance(named, dict) else named
    if token is None:
        return None
    number = inner.token_to_id(token)
    if number is None:
        raise ValueError(f"its vocabulary lacks the pad_token {token!r} of its configuration")
    return number


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, not settings")
    return found
