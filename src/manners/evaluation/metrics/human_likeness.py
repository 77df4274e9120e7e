"""How human the turns of a user simulator are: text features, compared with turns that people wrote.

A model in the user's role writes longer and cleaner turns than people do, and falls back into the assistant that it was
trained to be (Naous et al. 2025, arXiv 2510.06552). No single feature identifies a human; together they show how the
turns differ. All of them are for English.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain, islice

import numpy as np
from scipy import stats

from manners.data.ngrams import split_words, word_ngrams
from manners.evaluation.stats import Estimate, mean, rate

NUM_SUBSETS = 200  # random halves for distinct-n


def word_pattern(*alternatives: str) -> re.Pattern[str]:
    """Compile a pattern that matches any of the alternatives, in upper or lower case, with ^ and $ at line breaks."""
    return re.compile("|".join(alternatives), re.IGNORECASE | re.MULTILINE)


# Phrases of assistants that users hardly ever write. Developed on half of sixty OpenAssistant trees: in the other half
# they match two of five turns by the assistant, and one of seventy by the prompter.
AI = r"(ai|artificial intelligence|(large )?language model|chat ?bot|virtual assistant)( language)?( model| assistant)?"
ROLE_BREAKS = word_pattern(
    rf"\bas an? (\w+ )?{AI}( (trained|developed|created) by \w+)?,? i\b",
    rf"\bi(['’]m| am) (just |only )?an? (\w+ )?{AI}(?=[^\w\s]| (and|but|so|that|without|trained|designed|created)\b|$)",
    r"\bi( was| have been|['’]ve been) trained on\b",
    r"\bi(['’]m| am|['’]d be| would be|['’]ll be) (\w+ )?(happy|glad|here|able|willing|ready) to "
    r"(help|assist|explain|provide|answer)\b|\bglad i (could|can|was able to)\b",
    r"\b(how|what else) (can|may|could) i (help|assist|do for)\b|\bwould you like (me to|to know|more)\b",
    r"\b(can|may|could|might) i (help|assist)( you)? (with )?(anything|something|you|today)\b",
    r"\banything else (that )?(i (can|could|may|might)|you(['’]d| would))\b",
    r"\bi hope (this|that|it|these|my) (\w+ )?(help|answer|clarif|give|inform)|\bhopefully,? (this|i was able to) help",
    r"\blet me know if (you|there)\b|\bfeel free to (ask|reach|contact|let)\b|\bdon['’]t hesitate to\b",
    r"\byou(['’]re| are) (\w+ )?welcome\b|\bi apologi[sz]e for (the|any|my)\b",
    r"\A\W*(certainly|of course|definitely)\s*[!,.]",
    r"\A\W*(sure|absolutely)\b[^\w\n]*(thing\W*)?(here|i (can|could|would)|i['’](d|ll)|let me|there are)\b",
    r"\bhere(['’]s| is| are) (some|several|a (few|list|brief|simple|quick|short|step)|"
    r"the (top|steps|corrected|revised|updated|basic|key|main)|an? (\w+ ){0,3}(example|version|overview|summary|script|"
    r"song|guide|comparison|outline|explanation|implementation|breakdown))\b",
    r"\bit(['’]s| is)( \w+)? (important|worth|best|crucial|essential|recommended) (to|noting)\b",
    r"\b(consult|speak|talk) (to |with )?an? (\w+ )?(professional|doctor|lawyer|expert|therapist|advisor)\b",
    r"(^[ \t]*(\d+[.):-]|[-*•])[ \t]+\S[^\n]*\s*){3}",  # a list of three
)
ASKS = word_pattern(
    r"\?(?!\w)",
    r"\A\W*(what|which|why|how|where|who|whose|when|(can|could|would|will|do|does|did|is|are) (you|i|we|it|there))\b",
)
GREETS = word_pattern(r"\A\W*(hi|hello|hey|greetings|good (morning|afternoon|evening|day))\b")
COURTESY = word_pattern(r"\b(please|pls|plz|thanks|thank you|thankyou|thx)\b")
SENTENCE_END = re.compile(r"[.!?]+\s+|\n+")

CHAT_SPELLINGS = "ur pls plz thx tho thru cuz coz gonna wanna gotta gimme lemme dunno idk btw imo tbh wat wut lol omg"
NO_APOSTROPHE = """
    arent cant couldnt didnt doesnt dont hasnt havent im isnt ive shouldnt thats theyre wasnt werent whats wont wouldnt
    youre
"""
MISSPELT = """
    abotu accomodate acheive actualy adn adress alot anwser arguement awnser basicly beautifull becuase begining beleive
    buisness calender catagory comming completly concious definately definitly diffrent embarass enviroment especialy
    exmaple existance experiance explaination finaly foriegn freind futher garantee goverment grammer happend hte
    immediatly independant intresting jsut knowlege knwo langauge lenght maintainance necesary neccessary noticable
    occassion occured peice posible powerfull prefered probaly programing proffesional realy recieve recomend refered
    remeber responce sentance seperate shoud similiar somthing sucess successfull suprise taht teh thier tommorow
    tomorow truely untill usefull usualy waht wether wich wierd woudl writting yuo
"""
SPELLINGS = "|".join((CHAT_SPELLINGS + NO_APOSTROPHE + MISSPELT).split())
# A single i or u counts only before a word: not in "i = 0", "for i in", "i.e." or "the U.S.".
MISSPELLING = re.compile(rf"\b(?:i['’](?:m|ve|ll|d)|i(?= (?!in\b)[a-z])|u(?= [a-z]|[?!])|(?i:{SPELLINGS}))\b")


def starts_lower_case(text: str) -> bool:
    """Whether the first letter or digit is a lower-case letter."""
    first = re.search(r"[^\W_]", text)
    return first is not None and first.group().islower()


def words_per_sentence(text: str) -> float:
    """The mean length of the sentences in words."""
    sentences = [part for part in SENTENCE_END.split(text) if split_words(part)]
    return len(split_words(text)) / max(1, len(sentences))


def misspelled_fraction(text: str) -> float:
    """The fraction of the words that are in a list of some 130 chat spellings and common typos, or a lower-case "i".

    A trace of careless typing, which models seldom leave, not a count of errors: unlisted misspellings are missed. It
    is for comparing two sets of turns.
    """
    return len(MISSPELLING.findall(text)) / max(1, len(split_words(text)))


BINARY_FEATURES: dict[str, Callable[[str], bool]] = {
    "role breaks": lambda text: ROLE_BREAKS.search(text) is not None,
    "asks a question": lambda text: ASKS.search(text) is not None,
    "greets": lambda text: GREETS.search(text) is not None,
    "says please or thanks": lambda text: COURTESY.search(text) is not None,
    "starts in lower case": starts_lower_case,
    "ends without punctuation": lambda text: re.search(r"\w\s*\Z", text) is not None,
}
FEATURES: dict[str, Callable[[str], float]] = {
    **BINARY_FEATURES,
    "words": lambda text: len(split_words(text)),
    "words per sentence": words_per_sentence,
    "misspelled words": misspelled_fraction,
}


def turn_features(text: str) -> dict[str, float]:
    """Every feature of one turn, by name; binary features are 1.0 or 0.0."""
    return {name: float(feature(text)) for name, feature in FEATURES.items()}


def mean_estimate(values: np.ndarray, name: str, seed: int, clusters: np.ndarray | None = None) -> Estimate:
    """The mean of the feature ``name``, (N,): Wilson's interval for a binary one, a bootstrap for the others.

    Both are over the ``clusters`` (N,) where there are several turns in one.
    """
    if name in BINARY_FEATURES:
        return rate(values, clusters)
    return mean(values, clusters, seed)


def distances_from_people(generated: Sequence[str], human: Sequence[str], seed: int) -> dict[str, float]:
    """How far generated turns are from human ones, from 0 to 1, in each of FEATURES, then distinct-1 and distinct-2.

    The distance is the two-sample Kolmogorov-Smirnov statistic, the largest difference of the two cumulative
    distributions; for a binary feature, this is the difference of the two fractions, and for distinct-n that of the
    two values.
    """
    distances = {}
    for name, feature in FEATURES.items():
        x, y = (np.array([feature(text) for text in texts], float) for texts in (generated, human))
        distances[name] = float(stats.ks_2samp(x, y, method="asymp").statistic)
    for n in (1, 2):
        ours, theirs = distinct_n(generated, human, n, seed)
        distances[f"distinct-{n}"] = abs(ours - theirs)
    return distances


def distinct_n(generated: Sequence[str], human: Sequence[str], n: int, seed: int) -> tuple[float, float]:
    """Distinct-n (Li et al. 2016) of both sides: different word n-grams over all n-grams, of all turns together.

    Longer texts repeat more n-grams, so distinct-n falls with length whoever writes: both sides are reduced to the same
    number, half of what the smaller side has, and the value is the median over random subsets of turns. Both are nan
    if a side has fewer than two n-grams.
    """
    sides = [[word_ngrams(text, n) for text in texts] for texts in (generated, human)]
    count = min(sum(map(len, side)) for side in sides) // 2
    if not count:
        return np.nan, np.nan
    medians = []
    for side in sides:
        rng = np.random.default_rng(seed)
        orders = (rng.permutation(len(side)) for _ in range(NUM_SUBSETS))
        subsets = (islice(chain.from_iterable(side[i] for i in order), count) for order in orders)
        medians.append(float(np.median([len(set(subset)) / count for subset in subsets])))
    return medians[0], medians[1]
