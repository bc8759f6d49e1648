"""Measures of drawn sentences, each a list of words.

distinct-n        different n-grams over all n-grams (Li et al. 2016): 1 if nothing is ever said twice
n-gram model      p(w | h) = (c(hw) + t(h) p(w | h')) / (c(h) + t(h)), with t(h) the number of different words seen after h,
                  and h' the history without its first word; down to p(w) = 1 / V (Witten & Bell 1991). What a
                  language model of real sentences finds of drawn ones says how much they are like these, word by word; it
                  can't see further than its order
novel             the share of sentences that are no training sentence
overlap           the words that two sentences share, of what stands in both (ROUGE-1)

All are functions of words, whatever a word is. A sentence begins with n - 1 begins and ends with one end, which counts as a
word.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

Sentence = Sequence[str]
BEGIN, END = "\x02", "\x03"  # no word holds these


def ngrams(sentence: Sentence, n: int) -> list[tuple[str, ...]]:
    """All of a sentence, in order."""
    return [tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1)]


def distinct(sentences: Iterable[Sentence], n: int) -> float:
    """The share of n-grams that are different; NaN where there are none."""
    found = [gram for sentence in sentences for gram in ngrams(sentence, n)]
    return len(set(found)) / len(found) if found else math.nan


def novelty(sentences: Sequence[Sentence], training: Iterable[Sentence]) -> float:
    """The share of sentences that `training` doesn't hold. ValueError without sentences."""
    known = {tuple(sentence) for sentence in training}
    return float(np.mean([tuple(sentence) not in known for sentence in _some(sentences)]))


def different(sentences: Sequence[Sentence]) -> float:
    """Different sentences over all. ValueError without sentences."""
    return len({tuple(sentence) for sentence in _some(sentences)}) / len(sentences)


def overlap(one: Sentence, other: Sentence) -> float:
    """2 |both| / (|one| + |other|), words counted as often as they stand: the F1 of ROUGE-1 (Lin 2004). 1 for two without
    words."""
    both = sum((Counter(one) & Counter(other)).values())
    return 2 * both / (len(one) + len(other)) if len(one) + len(other) else 1.0


def _some(sentences: Sequence[Sentence]) -> Sequence[Sentence]:
    if not len(sentences):
        raise ValueError("no sentences to measure")
    return sentences


class NGrams:
    """A model of sentences that sees the last `order` - 1 words."""

    def __init__(self, sentences: Iterable[Sentence], order: int = 3):
        if order < 1:
            raise ValueError(f"order={order}: at least 1")
        self.order = order
        self._after: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        words = {END}
        for sentence in sentences:
            words.update(sentence)
            padded = self._padded(sentence)
            for i in range(order - 1, len(padded)):
                for back in range(order):
                    self._after[tuple(padded[i - back : i])][padded[i]] += 1
        if not self._after:
            raise ValueError("an n-gram model needs sentences to learn of")
        self.words = frozenset(words)
        self._totals = {history: after.total() for history, after in self._after.items()}

    def _padded(self, sentence: Sentence) -> list[str]:
        return [BEGIN] * (self.order - 1) + [*sentence, END]

    def probability(self, word: str, history: Sentence) -> float:
        """p(word | the last words of history). A word that was never seen has that of one more word of the vocabulary."""
        p = 1 / (len(self.words) + 1)
        history = tuple(history)[len(history) - (self.order - 1) :] if self.order > 1 else ()
        for back in range(len(history) + 1):
            seen = history[len(history) - back :]
            if after := self._after.get(seen):
                kinds = len(after)
                p = (after[word] + kinds * p) / (self._totals[seen] + kinds)
        return p

    def nll(self, sentence: Sentence) -> np.ndarray:
        """-log p of every word of a sentence and of its end, in nats."""
        padded = self._padded(sentence)
        places = range(self.order - 1, len(padded))
        return np.array([-math.log(self.probability(padded[i], padded[:i])) for i in places])

    def perplexity(self, sentences: Iterable[Sentence]) -> float:
        """exp of the mean of -log p over all words and ends of the sentences."""
        found = [self.nll(sentence) for sentence in sentences]
        if not found:
            raise ValueError("no sentences to measure")
        return float(np.exp(np.concatenate(found).mean()))

    def draw(self, rng: np.random.Generator, most: int) -> list[str]:
        """One sentence, of at most so many words; of the counts alone, without the words that were never seen after another."""
        words = [BEGIN] * (self.order - 1)
        while len(words) < most + self.order - 1:
            after = self._after[tuple(words[len(words) - (self.order - 1) :]) if self.order > 1 else ()]
            options, counts = list(after), np.fromiter(after.values(), np.float64)
            word = options[int(rng.choice(len(options), p=counts / counts.sum()))]
            if word == END:
                break
            words.append(word)
        return words[self.order - 1 :]


def shuffled(sentences: Iterable[Sentence], rng: np.random.Generator) -> list[list[str]]:
    """The words of every sentence in a random order: what is left of language when order goes."""
    return [[sentence[i] for i in rng.permutation(len(sentence))] for sentence in map(list, sentences)]
