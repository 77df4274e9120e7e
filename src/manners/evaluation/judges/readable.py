"""Whether a reply is made of words, and is relevant to its prompt: what no judge of manner sees by itself."""

import re

from manners.data.known_words import LETTERS, unknown_words

SENTENCE = re.compile(r"\w[^.!?]*")
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


def is_readable(reply: str, prompt: str = "") -> bool:
    """Whether nearly all of ``reply`` are words, and no sentence is said twice.

    At most one word in ten is none, or one of four and more.
    """
    total, sentences = len(LETTERS.findall(reply)), [" ".join(s.lower().split()) for s in SENTENCE.findall(reply)]
    return (
        total > 0
        and len(set(sentences)) == len(sentences)
        and len(unknown_words(reply, prompt)) <= max(MAX_UNKNOWN * total, total >= 4)
    )


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
