"""Text statistics of an assistant's replies that need no model: politeness strategies, refusals, length, diversity.

The strategies are those of Danescu-Niculescu-Mizil, Sudhof, Jurafsky, Leskovec and Potts, "A computational approach to
politeness with application to social factors", ACL 2013, Table 3, reimplemented from the descriptions. The positive and
negative lexicons are left out, since none is distributed with this package. The paper finds strategies in dependency
parses; here they are regular expressions over a sentence. They match thanks that are denied ("nobody thanked you") or
quoted, and miss a strategy in other words. The signs were measured on requests: an imperative in a recipe is not
impolite, and a long text has more chances to contain a strategy than a short one.

All of it is for English. In other languages only length, questions and n-gram statistics mean something.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from manners.data.ngrams import normalize_spelling, repeated_ngrams, split_words, word_ngrams
from manners.errors import MannersError
from manners.evaluation.stats import Estimate, bootstrap_estimate, proportion, resamples_of_clusters

Feature = Callable[[str], float]

SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”)\]*]*\s+|(?<=[。！？])|\n")


@lru_cache(maxsize=1)  # every feature splits the same reply
def split_sentences(text: str) -> tuple[str, ...]:
    """Return the parts between end marks or line breaks that contain a letter. "Dr. Who" is two."""
    parts = SENTENCE_END.split(normalize_spelling(text))
    return tuple(" ".join(part.split()) for part in parts if any(map(str.isalpha, part)))


def any_phrase(phrases: str) -> Feature:
    """Return a feature: 1 where some sentence contains one of the phrases, else 0."""
    pattern = re.compile(rf"\b(?:{phrases})\b", re.IGNORECASE)
    return lambda text: float(any(map(pattern.search, split_sentences(text))))


def phrase_inside(phrases: str) -> Feature:
    """Return the same feature for phrases that do not start the sentence."""
    return any_phrase(rf"\w+\W+(?:{phrases})")


def phrase_at_start(phrases: str) -> Feature:
    """Return the same feature for phrases that start the sentence. "So-called" does not start with "so"."""
    pattern = re.compile(rf"\W*(?:{phrases})\b(?!-)", re.IGNORECASE)
    return lambda text: float(any(map(pattern.match, split_sentences(text))))


PLEASE = "please|pls|plz"
ME = r"i(?!\.\w)|my|me|mine|myself"  # but not "i.e."
YOU = "you|your|yours|yourself|yourselves"
PRAISE = "great|good|nice|excellent|wonderful|brilliant|fantastic|amazing|awesome|impressive|fine|lovely"
PRAISED = "(?:work|job|question|point|idea|find|catch|effort|start|thinking|suggestion|contribution|article)s?"
# Verbs that seldom start a sentence unless it is an imperative.
VERBS = (
    "add|allow|answer|apply|ask|avoid|be|begin|boil|bring|calculate|call|change|check|choose|click|close|come|compare|"
    "complete|consider|continue|copy|count|create|cut|decide|define|delete|describe|discuss|draw|drink|eat|enjoy|ensure|"
    "enter|explain|fill|find|finish|fix|follow|get|give|go|help|hold|hurry|identify|ignore|imagine|include|install|keep|"
    "learn|leave|list|listen|look|make|mix|move|name|note|open|pay|pick|play|prepare|press|provide|pull|push|put|read|"
    "remember|remove|repeat|replace|return|run|save|say|search|see|select|send|set|show|shut|speak|spend|start|stay|"
    "stop|take|talk|tell|think|touch|try|turn|use|visit|wait|walk|wash|watch|work|write"
)

# Each strategy with the sign of its score in Table 3 (the imperative is an addition). Strategies that the paper scores
# within 0.1 of zero, such as the first person, have sign 0.
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
    # Misses unlisted verbs and commands after a name or a clause; "please sit" counts as "please at the start".
    "direct imperative": (
        -1,
        phrase_at_start(
            rf"(?:(?:just|now|then|so|and|but|also|always|never|first|next|do not|don't),? )*(?:{VERBS})\b"
            r"(?!'|:| (?:is|are|was|were|of|has|had|will|can|may)\b)"
        ),
    ),
}

# "I cannot" without its common other uses, such as "I can't wait". "I can't swim" is a false positive.
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
    rf"|(?:\n|[.!?…][\"'”)]*\s){LABEL.format('assistant|ai|bot')}",  # at the very start it labels the reply itself
    re.IGNORECASE | re.MULTILINE,
)


def politeness(reply: str) -> float:
    """Return the number of different polite strategies in the reply, minus that of impolite ones."""
    return sum(sign * feature(reply) for sign, feature in STRATEGIES.values() if sign)


def question_fraction(reply: str) -> float:
    """Return the fraction of the sentences that end with a question mark."""
    sentences = split_sentences(reply)
    return sum(bool(re.search(r"[?？]\W*$", s)) for s in sentences) / max(1, len(sentences))


def reading_ease(reply: str) -> float:
    """Return the Flesch score ("A new readability yardstick", 1948): near 100 for easy English, below 30 for hard.

    nan for a reply without words. A long reply that is a single sentence scores far below 0.
    """
    words = split_words(reply)
    if not words:
        return float("nan")
    words_per_sentence = len(words) / max(1, len(split_sentences(reply)))
    return 206.835 - 1.015 * words_per_sentence - 84.6 * sum(map(count_syllables, words)) / len(words)


def count_syllables(word: str) -> int:
    """Count groups of vowels, without a silent final e, ed or es; at least 1. Correct for "table", not for "idea"."""
    decomposed = unicodedata.normalize("NFKD", word)  # separates accents from their vowels
    pronounced = re.sub(r"(?<![^aeiouy]l)e$|(?<![td])ed$|(?<![cghsxz])es$", "", decomposed)
    return max(1, len(re.findall("[aeiouy]+", pronounced)))


# The features of one reply by their names in reports. All are fractions or 0/1, except those in UNITS.
RUNS_ON = "runs on as both speakers"
FEATURES: dict[str, Feature] = {name: feature for name, (_, feature) in STRATEGIES.items()} | {
    "politeness": politeness,
    "questions": question_fraction,
    "refusal": refusal,
    RUNS_ON: lambda reply: float(TURN.search(reply.strip()) is not None),
    "repeated 4grams": lambda reply: repeated_ngrams(reply, 4),
    "words": lambda reply: float(len(split_words(reply))),
    "reading ease": reading_ease,
}
UNITS = {
    "politeness": "polite minus impolite strategies per reply",
    "words": "words per reply",
    "reading ease": "Flesch reading ease, higher is easier",
}
CORE_FEATURES = (  # in every report
    "politeness",
    "gratitude",
    "hedges",
    "direct imperative",
    "questions",
    "refusal",
    RUNS_ON,
    "repeated 4grams",
    "words",
)


def style_features(reply: str) -> dict[str, float]:
    """Return every feature of one reply, by name. For an empty reply all are 0, and the reading ease is nan."""
    return {name: feature(reply) for name, feature in FEATURES.items()}


def style_stats(replies: Sequence[str], seed: int = 0, clusters: np.ndarray | None = None) -> dict[str, Estimate]:
    """Return the mean of each feature over N replies, with a bootstrap over replies, and their joint ``distinct-2``.

    With ``clusters`` (N,), intervals are over these instead.

    Replies whose feature is nan are left out; so is a feature that is nan for all. Where a fraction is 0 or 1, the
    interval is Wilson's, since a bootstrap interval would have no width. Raises MannersError without replies.
    """
    if not replies:
        raise MannersError("there are no replies for the text statistics: evaluation.test_prompts must be above 0.")
    table = np.array([list(style_features(reply).values()) for reply in replies])  # (N, F)
    is_finite = np.isfinite(table)
    clusters = np.arange(len(replies)) if clusters is None else clusters
    weights = resamples_of_clusters(clusters, seed)  # (1 + R, N)
    counts = weights @ is_finite
    sums = weights @ np.where(is_finite, table, 0)
    means = np.divide(sums, counts, out=np.full_like(counts, np.nan), where=counts > 0)  # (1 + R, F)
    estimates = {}
    for name, column in zip(FEATURES, means.T, strict=True):
        if name not in UNITS and column[0] in (0, 1):
            independent = len(set(clusters))
            estimates[name] = proportion(round(column[0] * independent), independent)
        elif mean := bootstrap_estimate(column):
            estimates[name] = mean
    diversity = distinct_2_estimate(replies, clusters)
    return estimates | ({"distinct-2": diversity} if diversity else {})


def distinct_2_estimate(replies: Sequence[str], clusters: np.ndarray | None = None) -> Estimate | None:
    """Return ``ngrams.distinct_2`` of all replies together, with a jackknife interval; None without any bigram.

    The value falls with the number of words: compare sets of similar size. In a bootstrap, duplicate replies would
    lower it, and the interval would exclude the value itself. The jackknife leaves out one reply at a time, or all of
    one of the ``clusters`` (N,), and does not underestimate the variance (Efron and Stein 1981).
    """
    by_cluster: dict[int, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for cluster, reply in zip(range(len(replies)) if clusters is None else clusters, replies, strict=True):
        by_cluster[int(cluster)].update(word_ngrams(reply, 2))
    counters = list(by_cluster.values())
    total: Counter[tuple[str, ...]] = Counter()
    for counter in counters:
        total.update(counter)
    if not total:
        return None
    value = len(total) / total.total()
    sizes = np.array([counter.total() for counter in counters])
    only_here = np.array([sum(total[bigram] == n for bigram, n in counter.items()) for counter in counters])
    if sizes.max() == total.total():
        return Estimate(value, value, value)  # all bigrams are in one reply
    left_out = (len(total) - only_here) / (total.total() - sizes)
    half_width = 1.96 * float(np.sqrt((len(counters) - 1) * left_out.var()))
    return Estimate(value, max(0.0, value - half_width), min(1.0, value + half_width))
