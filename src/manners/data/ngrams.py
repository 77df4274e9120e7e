"""Words, word n-grams and sentences: the one word splitter, and measures of diversity that are computed from them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ´`", "'"))


def normalize_spelling(text: str) -> str:
    """Return the text with composed letters (NFC) and straight apostrophes."""
    return unicodedata.normalize("NFC", text).translate(APOSTROPHES)


def split_words(text: str) -> list[str]:
    """Return the words in lower case. In a script without spaces, a clause counts as one word."""
    return WORD.findall(normalize_spelling(text).lower())


def word_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return all runs of ``n`` consecutive words, in order."""
    words = split_words(text)
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_2(texts: Sequence[str]) -> float:
    """Return the different word bigrams of all texts, divided by all bigrams: Li et al. 2016, arXiv 1510.03055."""
    bigrams = [bigram for text in texts for bigram in word_ngrams(text, 2)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def repeated_ngrams(text: str, n: int) -> float:
    """Return the fraction of the word n-grams of one text that occurred in it before; 0 for a text without any."""
    ngrams = word_ngrams(text, n)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def texts_with_commonest_sentence(texts: Sequence[str]) -> list[bool]:
    """Which of the texts have the sentence that stands in most of them, if it is in two or more.

    A sentence has two words or more; case and punctuation do not count.
    """
    parts = [map(split_words, re.split(r"[.?!]+(?=\s|$)|\n", text)) for text in texts]
    sentences = [{tuple(words) for words in of_text if len(words) > 1} for of_text in parts]  # "1." is no sentence
    counts = Counter(sentence for of_text in sentences for sentence in of_text)
    commonest = max(counts, key=counts.__getitem__, default=())
    return [counts[commonest] > 1 and commonest in of_text for of_text in sentences]
