"""A context-free grammar of short English sentences: draws them, and says of any text which kinds of sentence it is.

    statement   the small dog behind the trees watches two birds .
    denial      my sister does not sleep near the river .
    question    do the birds that sing follow every cat ?
    command     please carry these baskets behind the garden !

A sentence is right if its subject and verb agree in number, across whatever stands between them, and so do determiner and noun;
if denials and questions have "does" with one and "do" with several; and if it ends as its kind does. Nouns, verbs and
adjectives combine freely, so sense is not asked for. The four kinds share no sentence.

`RULES` is all there is: symbol -> alternatives, each a weight and a sequence of symbols and words; what is no symbol is a word.
"""

import bisect
import functools
import itertools

import numpy as np

KINDS = ("statement", "denial", "question", "command")
LONGEST = 14  # words, with the mark at the end; longer ones are drawn anew

_NOUNS = (
    "dog cat bird horse fox rabbit child farmer teacher sister brother friend neighbour doctor painter king robot letter book "
    "basket tree river house garden boat lamp"
)
_WITH_OBJECT = "watch follow carry find paint push pull help visit like call draw remember hide"
_WITHOUT = "sleep sing dance run wait laugh swim jump work"
_ADJECTIVES = "small big red blue green quiet happy brave tired young clever funny lazy strange"
_PLACES = "near behind beside under above"
_MANNERS = "slowly quickly quietly today tonight again together often"


def _plural(noun: str) -> str:
    return {"child": "children", "fox": "foxes"}.get(noun, noun + "s")


def _third(verb: str) -> str:
    """The form that goes with one: "watches"."""
    if verb.endswith("rry"):
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("ch", "sh")) else "s")


def _words(text: str) -> list[tuple[float, str]]:
    return [(1.0, word) for word in text.split()]


def _rules() -> dict[str, list[tuple[float, tuple[str, ...]]]]:
    """Every symbol that has a number comes twice, for one (/1) and for several (/n)."""
    rules: dict[str, list[tuple[float, str]]] = {
        "statement": [(1, "subject/1 acts/1 ."), (1, "subject/n acts/n .")],
        "denial": [(1, "subject/1 does not acts/n ."), (1, "subject/n do not acts/n .")],
        "question": [(1, "does subject/1 acts/n ?"), (1, "do subject/n acts/n ?")],
        "command": [(3, "acts/n !"), (2, "please acts/n !"), (2, "do not acts/n !"), (1, "please do not acts/n !")],
        "thing": [(1, "group/1"), (1, "group/n")],
        "place": [(1, "where thing")],
        "where": _words(_PLACES),
        "how": _words(_MANNERS),
        "adjective": _words(_ADJECTIVES),
        "of/1": [(4, "the"), (2, "a"), (1, "this"), (1, "every"), (1, "my"), (1, "your")],
        "of/n": [(4, "the"), (1, "these"), (1, "some"), (1, "many"), (1, "two"), (1, "three"), (1, "my"), (1, "your")],
        "noun/1": _words(_NOUNS),
        "noun/n": _words(" ".join(map(_plural, _NOUNS.split()))),
        "acts_on/1": _words(" ".join(map(_third, _WITH_OBJECT.split()))),
        "acts_on/n": _words(_WITH_OBJECT),
        "moves/1": _words(" ".join(map(_third, _WITHOUT.split()))),
        "moves/n": _words(_WITHOUT),
    }
    made = {name: [(weight, tuple(text.split())) for weight, text in options] for name, options in rules.items()}
    for n in ("1", "n"):
        made[f"group/{n}"] = [(3, (f"of/{n}", f"noun/{n}")), (2, (f"of/{n}", "adjective", f"noun/{n}"))]
        made[f"subject/{n}"] = [
            (6, (f"group/{n}",)),
            (2, (f"group/{n}", "place")),
            (1, (f"group/{n}", "that", f"moves/{n}")),
            (1, (f"group/{n}", "that", f"acts_on/{n}", "thing")),
        ]
        made[f"acts/{n}"] = [
            (3, (f"acts_on/{n}", "thing")),
            (2, (f"acts_on/{n}", "thing", "place")),
            (1, (f"acts_on/{n}", "thing", "how")),
            (1, (f"moves/{n}",)),
            (2, (f"moves/{n}", "place")),
            (1, (f"moves/{n}", "how")),
        ]
    return made


RULES = _rules()
_BOUNDS = {symbol: list(itertools.accumulate(weight for weight, _ in options)) for symbol, options in RULES.items()}


def words_of() -> tuple[str, ...]:
    """Every word of the grammar, sorted."""
    return tuple(sorted({part for options in RULES.values() for _, parts in options for part in parts if part not in RULES}))


def draw(rng: np.random.Generator, kind: str) -> str:
    """One sentence of this kind, of at most `LONGEST` words, separated by blanks but for the mark at its end."""
    while True:
        words = _expand(rng, kind)
        if len(words) <= LONGEST:
            return " ".join(words[:-1]) + words[-1]


def _expand(rng: np.random.Generator, symbol: str) -> list[str]:
    if symbol not in RULES:
        return [symbol]
    bounds = _BOUNDS[symbol]
    _, parts = RULES[symbol][bisect.bisect_right(bounds, rng.random() * bounds[-1])]
    return [word for part in parts for word in _expand(rng, part)]


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds of sentence that a text is, () where the grammar has no such sentence. Case and white space don't count, nor
    whether the mark at the end stands apart."""
    words = text.lower().split()
    if words and len(words[-1]) > 1 and words[-1][-1] in ".?!":
        words[-1:] = [words[-1][:-1], words[-1][-1]]
    words = tuple(words)

    @functools.cache
    def ends(symbol: str, start: int) -> frozenset[int]:
        """Where a piece that begins at `start` and is a `symbol` may end."""
        if symbol not in RULES:
            return frozenset({start + 1} if words[start : start + 1] == (symbol,) else ())
        found: set[int] = set()
        for _, parts in RULES[symbol]:
            reached = {start}
            for part in parts:
                reached = {end for at in reached for end in ends(part, at)}
            found |= reached
        return frozenset(found)

    return tuple(kind for kind in KINDS if words and len(words) in ends(kind, 0))
