"""Names of classes as a tokenizer of one token, in the format of the `tokenizers` library: the whole prompt is a class's name,
and the empty prompt the empty class."""

from collections.abc import Mapping
from typing import Any

EMPTY = "[empty]"
CLASS = "PreTrainedTokenizerFast"
SETTINGS = {"tokenizer_class": CLASS, "model_max_length": 1, "pad_token": EMPTY}


def tokenizer(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json for config.conditioner of kind "class". Classes without a name are called by their number, and those
    that share one have it in brackets; a name that isn't there is an error of the library."""
    count, named = fields["n_classes"], list(fields.get("class_names") or ())
    empty = fields.get("null_label", count - 1)
    empty = empty if empty >= 0 else 0  # of models that were trained without: never to be used
    names = {}
    for i in range(count):
        name = named[i] if i < len(named) else str(i)
        names[i] = f"{name} ({i})" if name in names.values() or name == EMPTY else name
    names[empty] = EMPTY
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": empty, "content": EMPTY, **special}],
        "normalizer": {"type": "Strip", "strip_left": True, "strip_right": True},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {name: i for i, name in names.items()}, "unk_token": "[UNK]"},
    }
