"""Which words of a text are words: in a list, inflected, compound, of the prompt, or a name.

``words.txt`` are the whole words of BERT's uncased vocabulary (Devlin et al. 2018, Apache-2.0).
"""

import re
from functools import cache
from importlib.resources import files

ENDINGS = (
    *("'s", "s", "es", "ed", "d", "ing", "ings", "ly", "er", "ers", "est", "y", "n't", "'re", "'ve", "'ll", "'d", "'m"),
    *("ness", "al", "ally", "able", "less", "ful", "ish", "ism", "ist", "ists", "ment", "ments", "ion", "ions", "en"),
)
PREFIXES = (
    *("un", "re", "non", "over", "under", "out", "mis", "dis", "in", "pre", "sub", "super", "anti", "micro", "up"),
    *("down", "photo", "auto", "bio", "electro", "hydro", "inter", "multi"),
)
LETTERS = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")


@cache
def word_list() -> frozenset[str]:
    return frozenset((files("manners.data") / "words.txt").read_text("utf-8").split())


def is_word(word: str) -> bool:
    """Whether ``word``, in lower case, is in the list, an inflection of one that is, or made of two."""
    known = word_list()
    if len(word) == 1 or word in known:
        return True
    for ending in ENDINGS:
        if word.endswith(ending) and len(stem := word.removesuffix(ending)) > 1:
            doubled = stem[:-1] if stem[-1:] == stem[-2:-1] else ""
            if {stem, stem + "e", stem + "y", doubled, stem[:-1] + "y" if stem[-1] == "i" else ""} & known:
                return True
    if any(word.startswith(p) and len(word) - len(p) > 2 and word.removeprefix(p) in known for p in PREFIXES):
        return True
    return any(word[:i] in known and word[i:] in known for i in range(3, len(word) - 2))


def unknown_words(reply: str, prompt: str = "") -> list[str]:
    """The words of ``reply`` that are none, in order. A capital inside a sentence makes a name of a word."""
    given = set(LETTERS.findall(prompt.lower()))
    found = []
    for match in LETTERS.finditer(reply):
        word, before = match[0].replace("’", "'"), reply[: match.start()].rstrip(" \"'“‘(")
        is_name = word[0].isupper() and before and before[-1] not in ".!?\n:"
        if not is_name and word.lower() not in given and not is_word(word.lower()):
            found.append(word)
    return found
