"""Words and marks to text as people write it: "don ' t stop , please ( now )" -> "don't stop, please (now)".

Words of `data.tokenizer` are runs of letters and digits; every mark and every ideograph is a word of its own. A blank is left
out only where a mark or an ideograph ends or begins, so the text has the same words again: `words(join(words(text))) ==
words(text)` for all text. Text that is spaced as usual comes back as it was, but for what tokenizers take away: capitals, runs
of blanks.
"""

import unicodedata
from collections.abc import Sequence

_NONE_BEFORE = frozenset(".,;:!?)]}%…‰”’»›、。，．：；！？）］｝」』】〉》")
_NONE_AFTER = frozenset("([{#$€£¥§“‘«‹„‚（［｛「『【〈《¿¡@")
_WIDE = frozenset("、。，．：；！？）］｝」』】〉》（［｛「『【〈《・")  # beside ideographs and kana
_JOINING = frozenset("-/_\\=+*&‐‑~^|<>")  # "well-known", "and/or"
_APOSTROPHES = frozenset("'’")
_BEFORE_APOSTROPHE = frozenset(("l", "d", "j", "n", "m", "t", "s", "c", "qu", "o"))
_AFTER_APOSTROPHE = frozenset(("s", "t", "re", "ve", "ll", "d", "m", "em", "clock"))


def join(words: Sequence[str]) -> str:
    """One line of text."""
    text, quoted = "", {'"': False, "'": False}
    glued = True  # whether what comes next follows without a blank
    for i, word in enumerate(words):
        before, after = (words[i - 1] if i else ""), (words[i + 1] if i + 1 < len(words) else "")
        free, glue = _mark(word, before, after, quoted)
        text += word if glued or free or _without_blanks(before, word) else f" {word}"
        glued = glue
    return text


def _mark(word: str, before: str, after: str, quoted: dict[str, bool]) -> tuple[bool, bool]:
    """Whether a word stands without a blank before it, and without one behind it."""
    if word in _APOSTROPHES and _is_word(before) and (after in _AFTER_APOSTROPHE or before in _BEFORE_APOSTROPHE):
        return True, True
    if word in ".,:" and before[-1:].isdigit() and after[:1].isdigit():  # 3.14, 1,000, 12:30
        return True, word != "," or len(after) == 3
    if word in quoted:
        quoted[word] = not quoted[word]
        return not quoted[word], quoted[word]
    if word in _JOINING:
        joins = _is_word(before) and _is_word(after)
        return joins, joins
    return word in _NONE_BEFORE, word in _NONE_AFTER


def _is_word(word: str) -> bool:
    return word[:1].isalnum()


def _without_blanks(before: str, word: str) -> bool:
    """Whether two words follow each other as in Chinese and Japanese; of two runs of kana a blank tells where one ends."""
    if not (before and word):
        return False
    beside = _script(before[-1]), _script(word[0])
    return None not in beside and beside != ("kana", "kana")


def _script(letter: str) -> str | None:
    if letter in _WIDE:
        return "mark"
    name = unicodedata.name(letter, "")
    if name.startswith("CJK UNIFIED"):
        return "ideograph"
    return "kana" if name.startswith(("HIRAGANA", "KATAKANA", "IDEOGRAPHIC ITERATION")) else None
