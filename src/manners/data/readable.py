"""Whether a reply is made of words, and is relevant to its prompt: what no judge of manner sees by itself.

``words.txt`` are the whole words of BERT's uncased vocabulary (Devlin et al. 2018, Apache-2.0). Inflected, compound and
capitalized words count as words too, and so do those of the prompt.
"""

import re
from collections import Counter
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
SENTENCE = re.compile(r"\w[^.!?]*")
END_OF_SENTENCE = re.compile(r"[.!?)\"'”’]\s*$")
LETTERS = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")
MAX_UNKNOWN = 0.1  # of a reply's words; one in a short sentence may be rare, and garbles are several
FUNCTION_WORD_LIST = """
    a an the of to in on at and or but so that this these those it its is are was were be been being do does did done
    has have had having i me my you your he him his she her they them their we us our with for from by as there here
    what which who whom whose how why where when while not no nor yes very also too than then if can could will would
    shall should may might must just only more most any some all each every both few many much such own same other
    into onto about over under up down out off again once because until against between through during before after
    above below get got one two make made think say said know want go going way thing things people
"""
FUNCTION_WORDS = frozenset(FUNCTION_WORD_LIST.split())


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


def is_readable(reply: str, prompt: str = "") -> bool:
    """Whether ``reply`` is made of whole sentences, nearly all of words, and says nothing again and again.

    At most one word in ten is none, or one of four and more. No sentence is there twice.
    """
    words, sentences = LETTERS.findall(reply), [" ".join(s.lower().split()) for s in SENTENCE.findall(reply)]
    return (
        len(words) > 0
        and len(set(sentences)) == len(sentences)
        and not is_repetitive([word.lower() for word in words])
        and (len(words) <= 3 or END_OF_SENTENCE.search(reply) is not None)
        and len(unknown_words(reply, prompt)) <= max(MAX_UNKNOWN * len(words), len(words) >= 4)
    )


def is_repetitive(words: list[str]) -> bool:
    """Whether a trigram occurs three times, or at least 8 words have fewer than 35 % different ones."""
    has_loop = any(count >= 3 for count in Counter(zip(words, words[1:], words[2:], strict=False)).values())
    return has_loop or (len(words) >= 8 and len(set(words)) / len(words) < 0.35)


def is_relevant(reply: str, prompt: str) -> bool:
    """Whether ``reply`` has a content word, or its beginning, in common with ``prompt``."""
    return bool(word_beginnings(reply) & word_beginnings(prompt))


def content_length(text: str) -> int:
    """The number of different content words."""
    return len(word_beginnings(text))


def word_beginnings(text: str) -> set[str]:
    """The first five letters of each content word, by which inflections of one word are the same."""
    words = (word.split("'")[0].removesuffix("s") for word in LETTERS.findall(text.lower().replace("’", "'")))
    return {word[:5] for word in words if len(word) > 2 and word not in FUNCTION_WORDS} | set(re.findall(r"\d+", text))
