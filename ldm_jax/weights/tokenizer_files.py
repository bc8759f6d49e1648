"""The tokenizer.json of an export, in the format of the `tokenizers` library."""

from collections.abc import Mapping
from typing import Any

ENDS = (("[BOS]", "[EOS]"), ("[CLS]", "[SEP]"))
EMPTY = "[empty]"
CLASS = "PreTrainedTokenizerFast"
SETTINGS = {"tokenizer_class": CLASS, "model_max_length": 1, "pad_token": EMPTY}


def with_ends(content: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer of ours, which puts begin and end around a text itself, as one that says so. ValueError if it has none."""
    if content.get("post_processor"):
        return dict(content)
    known = content["model"]["vocab"]
    ends = next((ends for ends in ENDS if {*ends} <= {*known}), None)
    if ends is None:
        raise ValueError(f"the tokenizer has none of the pairs {', '.join(' '.join(pair) for pair in ENDS)}")
    begin, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ends)
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokens = {token: {"id": token, "ids": [known[token]], "tokens": [token]} for token in ends}
    template = {"single": [begin, first, end], "pair": [begin, first, end, second, end], "special_tokens": tokens}
    return {**content, "post_processor": {"type": "TemplateProcessing", **template}}


def of_classes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Names of classes, for config.conditioner of kind "class": the whole prompt is one token, a class's name, and the empty
    prompt the empty class. Classes without a name are called by their number, and those that share one have it in brackets; a
    name that isn't there is an error of the library."""
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
