"""`sentences`, the embedded data set of text: a small grammar of English that draws sentences and reads them back."""

from ldm_jax.data.sentences.grammar import KINDS, LONGEST, draw, kinds_of, words_of
from ldm_jax.data.sentences.source import Sentences

__all__ = ["KINDS", "LONGEST", "Sentences", "draw", "kinds_of", "words_of"]
