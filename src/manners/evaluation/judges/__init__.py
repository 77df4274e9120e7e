"""Judges of replies: their manner, and whether they are replies at all.

A reply *fits* when all that can be asked of it is right, and each part is reported alone: the manner suits the prompt,
the fact is the right one where one is owed, its words are words, and it is relevant to its prompt. A judge of the
manner alone passes "Asdf qwer?" as a probing reply.

There are three judges, one function each: ``judge_by_rules`` here, ``classifier.make_judge`` and ``llm.make_judge``.
They differ in what they say of manner and relevance; fact and words are always judged by rules. Whether a reply makes
sense is beyond rules.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from manners.data.readable import content_length, is_readable, is_relevant
from manners.evaluation.judges.rules import classify_style, dismisses, states_flatly

STYLE_FOR_CATEGORY = {"good_question": "helpful", "poor_logic": "probing", "wrong_fact": "blunt"}
NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
SMALL_NUMBERS = re.compile(rf"\b({'|'.join(w for w in NUMBER_WORDS if w != 'one')})\b")  # one is a pronoun, too
DENIED_BEFORE = re.compile(r"\b(not|never|neither|nor|\w+n't) ((?!but )\w+ )?$")
DENIED_AFTER = re.compile(r" (is|are|was|were)(n't| not)\b")
MIN_CONTENT = 3  # content words of a helpful reply that shares none with its prompt
PARTS = {
    "manner": "right manner",
    "fact": "right fact",
    "words": "whole sentences, none said twice",
    "relevance": "relevant to the prompt",
    "sense": "making sense",
}


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one reply."""

    style: str
    reason: str  # the rule that decided the style
    manner: bool  # the style suits the category of the prompt
    fact: bool | None  # the reply names the fact that it owes; None where it owes none
    words: bool
    relevance: bool
    sense: bool | None = None  # a careful reader understands it; None where the judge cannot tell

    @property
    def fits(self) -> bool:
        return self.manner and self.fact is not False and self.words and self.relevance and self.sense is not False

    def parts(self) -> dict[str, bool]:
        """Each part that the verdict is made of, by its name in ``PARTS``."""
        return {name: value for name, value in asdict(self).items() if name in PARTS and value is not None}


@dataclass(frozen=True)
class JudgedReply:
    """What a judge reads."""

    prompt: str  # the user's last turn
    reply: str
    category: str  # of the prompt: a key of ``STYLE_FOR_CATEGORY``
    fact: str | Sequence[str] | None = None  # what a reply to a wrong fact has to name


Judge = Callable[[Sequence[JudgedReply]], list[Verdict]]


def judge_by_rules(replies: Sequence[JudgedReply]) -> list[Verdict]:
    """A verdict on each reply, by rules."""
    return [judge_reply(r.prompt, r.reply, r.category, r.fact) for r in replies]


def learned_verdict(reply: JudgedReply, manner: bool, relevance: bool, sense: bool, reason: str) -> Verdict:
    """The verdict where something learned says whether the manner suits, and the reply is relevant and makes sense."""
    return Verdict(
        style=STYLE_FOR_CATEGORY[reply.category] if manner else "other",
        reason=reason,
        manner=manner,
        fact=names_fact(reply.reply, reply.fact) if reply.fact else None,
        words=is_readable(reply.reply, reply.prompt),
        relevance=relevance,
        sense=sense,
    )


def judge_reply(prompt: str, reply: str, category: str, fact: str | Sequence[str] | None = None) -> Verdict:
    """Judge ``reply`` to ``prompt``, the user's last turn. ``fact`` is what a reply to a wrong fact has to name."""
    style = classify_style(reply, prompt, false_premise=category == "wrong_fact")
    right_fact = names_fact(reply, fact) if fact else None
    suits = style.style == STYLE_FOR_CATEGORY[category]
    if category == "wrong_fact" and style.style == "helpful":  # the contrary fact alone, and not put softly
        suits = bool(right_fact) and states_flatly(reply)
    elif category == "good_question" and dismisses(reply, prompt):
        suits = False
    fluent = category == "good_question" and content_length(reply) >= MIN_CONTENT
    relevant = is_relevant(reply, prompt) or fluent or bool(right_fact)
    return Verdict(
        style=style.style,
        reason=style.reason,
        manner=suits,
        fact=right_fact,
        words=is_readable(reply, prompt),
        relevance=relevant,
    )


def names_fact(reply: str, fact: str | Sequence[str]) -> bool:
    """Whether a reply has the words of ``fact``, or of a list of facts those that one of them begins with.

    A number is found as a whole: 100 is not in 1000 or -100, and 1,500 is 1500. A beginning 42 is in 42.195, a text is
    not. Accents and small numbers in words make no difference. A fact that is denied ("not Santiago") is not named.
    """
    ending = r"s?(?!\w|[.,]\d)" if isinstance(fact, str) else r"(?<!\d)|(?!\d)"
    text, facts = plain(reply), [plain(f) for f in ([fact] if isinstance(fact, str) else fact)]
    for each in facts:
        found = list(re.finditer(rf"(?<![\w.])(?<!(?<!\w)-){re.escape(each)}(?:{ending})", text))
        if any(not DENIED_BEFORE.search(text[: m.start()]) and not DENIED_AFTER.match(text, m.end()) for m in found):
            return True
    return False


def plain(text: str) -> str:
    """The text in lower case without accents, with 1,500 as 1500, eight as 8, and straight apostrophes."""
    text = unicodedata.normalize("NFKD", text.replace("’", "'").lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return SMALL_NUMBERS.sub(lambda match: str(NUMBER_WORDS.index(match[0])), text)
