"""What can be counted about the manner of replies without a model: the report card.

The strategies are those of Danescu-Niculescu-Mizil, Sudhof, Jurafsky, Leskovec and Potts, "A computational approach to
politeness with application to social factors", ACL 2013, Table 3, written anew from its descriptions. Its positive and
negative lexicons are left out: no such list ships with us. The paper finds its strategies in dependency parses; here
they are regular expressions over the words of a sentence, which take a word for what it looks like: they hear thanks
that are denied ("nobody thanked you") or quoted, and miss a strategy put in other words. The signs are those of
requests. In a recipe an imperative is no rudeness, and a long text has room for more strategies than a short one.

All of it is about English; of another language, only lengths, questions and repetition mean something.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from manners.errors import MannersError
from manners.evaluation.stats import Estimate, bootstrap_estimate, proportion, resamples

Feature = Callable[[str], float]

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
END = re.compile(r"(?<=[.!?…])[\"'”)\]*]*\s+|(?<=[。！？])|\n")
APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ´`", "'"))


def written(text: str) -> str:
    """One spelling for what looks the same: composed letters, straight apostrophes."""
    return unicodedata.normalize("NFC", text).translate(APOSTROPHES)


def split_words(text: str) -> list[str]:
    """In lower case. A script without spaces gives one word a clause."""
    return WORD.findall(written(text).lower())


@lru_cache(maxsize=1)  # every feature asks for those of the same reply
def split_sentences(text: str) -> tuple[str, ...]:
    """What stands between end marks or line breaks and holds a letter. "Dr. Who" is two."""
    return tuple(" ".join(part.split()) for part in END.split(written(text)) if any(map(str.isalpha, part)))


def any_phrase(phrases: str) -> Feature:
    """1 for a text of which some sentence has one of the phrases, else 0."""
    pattern = re.compile(rf"\b(?:{phrases})\b", re.IGNORECASE)
    return lambda text: float(any(map(pattern.search, split_sentences(text))))


def phrase_inside(phrases: str) -> Feature:
    """The same where the phrase is not the first word of the sentence."""
    return any_phrase(rf"\w+\W+(?:{phrases})")


def phrase_at_start(phrases: str) -> Feature:
    """The same where it begins the sentence. "So-called" does not begin with "so"."""
    pattern = re.compile(rf"\W*(?:{phrases})\b(?!-)", re.IGNORECASE)
    return lambda text: float(any(map(pattern.match, split_sentences(text))))


PLEASE = "please|pls|plz"
ME = r"i(?!\.\w)|my|me|mine|myself"  # but not "i.e."
YOU = "you|your|yours|yourself|yourselves"
PRAISE = "great|good|nice|excellent|wonderful|brilliant|fantastic|amazing|awesome|impressive|fine|lovely"
PRAISED = "(?:work|job|question|point|idea|find|catch|effort|start|thinking|suggestion|contribution|article)s?"
# Verbs that a sentence seldom begins with unless it commands.
VERBS = (
    "add|allow|answer|apply|ask|avoid|be|begin|boil|bring|calculate|call|change|check|choose|click|close|come|compare|"
    "complete|consider|continue|copy|count|create|cut|decide|define|delete|describe|discuss|draw|drink|eat|enjoy|ensure|"
    "enter|explain|fill|find|finish|fix|follow|get|give|go|help|hold|hurry|identify|ignore|imagine|include|install|keep|"
    "learn|leave|list|listen|look|make|mix|move|name|note|open|pay|pick|play|prepare|press|provide|pull|push|put|read|"
    "remember|remove|repeat|replace|return|run|save|say|search|see|select|send|set|show|shut|speak|spend|start|stay|"
    "stop|take|talk|tell|think|touch|try|turn|use|visit|wait|walk|wash|watch|work|write"
)

# Each strategy with the sign of its score in Table 3, where the imperative does not stand. Those that the paper finds
# within 0.1 of nothing have no vote: who says "I" is not polite for that.
STRATEGIES: dict[str, tuple[int, Feature]] = {
    "please": (1, phrase_inside(PLEASE)),
    "gratitude": (
        1,
        any_phrase("thank(?:s|ful)?|thx|grateful|(?:i|we|i'd|we'd|i'll|would|much|really|greatly|be) appreciated?"),
    ),
    "apology": (
        1,
        any_phrase(
            r"(?<!a )sorry|apolog(?:y|ies|i[sz]e[ds]?|i[sz]ing)|(?:forgive|excuse|pardon) me|w?h?oops|"
            r"my (?:bad|mistake|fault)|i'm afraid(?! of)"
        ),
    ),
    "deference": (
        1,
        phrase_at_start(
            rf"(?:(?:wow|oh|yes|and|but|that's|that is|what|this is|such|an?|very|really),? )*(?:{PRAISE}) {PRAISED}|"
            rf"(?:{PRAISE})(?=!)|well done"
        ),
    ),
    "greeting": (1, phrase_at_start("hi|hello|hey|hiya|greetings|good (?:morning|afternoon|evening|day)")),
    "hedges": (
        1,
        any_phrase(
            r"perhaps|maybe|possibl[ey]|probabl[ey]|apparently|presumably|(?:un)?likely|might|(?-i:may)|somewhat|almost|"
            r"mostly|generally|usually|sometimes|a (?:little )?bit|seem(?:s|ed)?|appears?|suggest(?:s|ed)?|tends? to|"
            r"(?:i|we|i'd|i'm|i am|was|just) (?:\w+ )?(?:think|thought|guess|suppose|believe|assum(?:e|ing)|"
            r"wonder(?:ing)?)|in my (?:opinion|view)|as far as i|not (?:quite |entirely |really )?(?:sure|certain)"
        ),
    ),
    "by the way": (1, any_phrase("by the way|btw|incidentally")),
    "could or would you": (1, any_phrase("(?:could|would) you")),
    "can or will you": (0, any_phrase("(?:can|will) you")),
    "1st person plural": (0, any_phrase("we|our|ours|(?-i:us)|ourselves|let's")),
    "1st person": (0, phrase_inside(ME)),
    "1st person start": (1, phrase_at_start(ME)),
    "2nd person": (0, phrase_inside(YOU)),
    "2nd person start": (-1, phrase_at_start(YOU)),
    "please at the start": (-1, phrase_at_start(PLEASE)),
    "direct question": (-1, phrase_at_start(r"(?:what|why|who|how|where|when|which)\b(?=.*\?)")),
    "direct start": (-1, phrase_at_start("so|then|and|but|or")),
    "factuality": (-1, any_phrase("in fact|really|actually|honestly|the (?:fact|truth|point|reality) is")),
    # Misses verbs that are not listed, and commands after a name or a clause; "please sit" is a please at the start.
    "direct imperative": (
        -1,
        phrase_at_start(
            rf"(?:(?:just|now|then|so|and|but|also|always|never|first|next|do not|don't),? )*(?:{VERBS})\b"
            r"(?!'|:| (?:is|are|was|were|of|has|had|will|can|may)\b)"
        ),
    ),
}
POLITE = tuple(name for name, (sign, _) in STRATEGIES.items() if sign > 0)
IMPOLITE = tuple(name for name, (sign, _) in STRATEGIES.items() if sign < 0)

# Of "I cannot" only what usually refuses: "I can't wait" does not. "I can't swim" is taken for a refusal.
refusal = any_phrase(
    r"(?:i|we) (?:(?:really|simply|just) )?(?:can't|cannot|can not|won't|will not)"
    r"(?! (?:wait|believe|imagine|help (?:but|\w+ing)|thank|stress|emphasi[sz]e|agree more|say enough|recommend))|"
    r"(?:i'm|i am|we're|we are) (?:\w+ )?(?:unable|not able|not allowed|not permitted|not comfortable)|"
    r"(?:i|we) (?:must|have to|will have to|need to) (?:\w+ )?(?:decline|refuse)|(?:i'd|i would) (?:much )?rather not|"
    r"as an? (?:\w+ )?(?:ai|artificial intelligence|language model)"
)
LABEL = r"[#*>\s]*(?:{})\b[*\s]*:"
TURN = re.compile(
    r"<\|(?:user|assistant|system|im_start)\|>|\[/?INST\]|<start_of_turn>"
    rf"|(?:^|[.!?…][\"'”)]*\s){LABEL.format('user|human|prompter')}"
    rf"|(?:\n|[.!?…][\"'”)]*\s){LABEL.format('assistant|ai|bot')}",  # at the very start it is but the reply's own
    re.IGNORECASE | re.MULTILINE,
)


def politeness(reply: str) -> float:
    """Polite strategies that the reply has, minus impolite ones: how many, not how often."""
    return sum(sign * feature(reply) for sign, feature in STRATEGIES.values() if sign)


def question_share(reply: str) -> float:
    """The share of the sentences that end in a question mark."""
    found = split_sentences(reply)
    return sum(bool(re.search(r"[?？]\W*$", s)) for s in found) / max(1, len(found))


def repeated_4grams(reply: str) -> float:
    """The share of the reply's runs of four words that it has said before."""
    said = split_words(reply)
    runs = list(zip(said, said[1:], said[2:], said[3:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def reading_ease(reply: str) -> float:
    """Flesch, "A new readability yardstick", 1948: about 100 for the easiest English, below 30 for the hardest.

    nan for a reply without words. One that never ends its sentence falls as far below 0 as it is long.
    """
    said = split_words(reply)
    if not said:
        return float("nan")
    return (
        206.835 - 1.015 * len(said) / max(1, len(split_sentences(reply))) - 84.6 * sum(map(syllables, said)) / len(said)
    )


def syllables(word: str) -> int:
    """Groups of vowels, less a mute ending in e, ed or es, and at least one. Right of "table", not of "idea"."""
    plain = unicodedata.normalize("NFKD", word)  # an accent comes apart from its vowel
    spoken = re.sub(r"(?<![^aeiouy]l)e$|(?<![td])ed$|(?<![cghsxz])es$", "", plain)
    return max(1, len(re.findall("[aeiouy]+", spoken)))


# By its name in a report, the number of one reply: 0 or 1 where a reply has it or not.
RUNS_ON = "runs on as both speakers"
FEATURES: dict[str, Feature] = {name: feature for name, (_, feature) in STRATEGIES.items()} | {
    "politeness": politeness,
    "questions": question_share,
    "refusal": refusal,
    RUNS_ON: lambda reply: float(TURN.search(reply.strip()) is not None),
    "repetition": repeated_4grams,
    "words": lambda reply: float(len(split_words(reply))),
    "reading ease": reading_ease,
}
# Units of those that are no share of something.
UNITS = {
    "politeness": "polite strategies less impolite ones, a reply",
    "words": "words a reply",
    "reading ease": "points on Flesch's scale; the higher, the easier",
}
# Worth a line in every report.
SHORT = (
    "politeness",
    "gratitude",
    "hedges",
    "direct imperative",
    "questions",
    "refusal",
    RUNS_ON,
    "repetition",
    "words",
)


def style_features(reply: str) -> dict[str, float]:
    """Every feature of one reply, by name. An empty one has nothing of anything, and no reading ease (nan)."""
    return {name: feature(reply) for name, feature in FEATURES.items()}


def style_stats(replies: Sequence[str], seed: int = 0) -> dict[str, Estimate]:
    """The mean of each feature over the replies, with a bootstrap over them, and their common ``distinct-2``.

    A mean is over those replies that have such a number; where none has, it is left out. Where all replies have a
    feature, or none, the interval is Wilson's, since a bootstrap would be sure of it.
    """
    if not replies:
        raise MannersError("there is no reply to make a card of: evaluation.test_prompts must be above 0.")
    table = np.array([list(style_features(reply).values()) for reply in replies])  # (N, F)
    known = np.isfinite(table)
    weights = resamples(len(replies), seed)  # (1 + R, N)
    counts = weights @ known
    means = np.divide(weights @ np.where(known, table, 0), counts, out=np.full_like(counts, np.nan), where=counts > 0)
    found = {}
    for name, column in zip(FEATURES, means.T, strict=True):
        if name not in UNITS and column[0] in (0, 1):
            found[name] = proportion(round(column[0] * len(replies)), len(replies))
        elif mean := bootstrap_estimate(column):
            found[name] = mean
    return found | ({"distinct-2": variety} if (variety := distinct_2(replies)) else {})


def distinct_2(replies: Sequence[str]) -> Estimate | None:
    """Different word pairs in all replies together, as a share of all pairs (Li et al. 2016); None without any pair.

    The share falls with the number of words: compare sets of like size. A reply drawn twice would lower it too, so that
    a bootstrap's interval misses the value itself; this one is the jackknife's, which leaves out each reply in turn
    and whose variance is no underestimate (Efron and Stein 1981).
    """
    pairs = [Counter(pairwise(split_words(reply))) for reply in replies]
    total: Counter[tuple[str, str]] = Counter()
    for own in pairs:
        total.update(own)
    if not total:
        return None
    value = len(total) / total.total()
    sizes = np.array([own.total() for own in pairs])
    alone = np.array([sum(total[pair] == times for pair, times in own.items()) for own in pairs])
    if sizes.max() == total.total():
        return Estimate(value, value, value)  # all pairs are of one reply
    without = (len(total) - alone) / (total.total() - sizes)
    reach = 1.96 * float(np.sqrt((len(pairs) - 1) * without.var()))
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))
