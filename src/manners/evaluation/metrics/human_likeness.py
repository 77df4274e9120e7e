"""How human a user's turn reads: what can be counted in it, held against turns that people wrote.

A model that speaks for the user gives itself away: it writes longer and cleaner than people do, and falls back into
the assistant that it was trained to be (Naous et al. 2025, arXiv 2510.06552). No count says alone whether a turn is
human; together they say in what the turns differ. All of them are for English.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from scipy import stats

from manners.errors import MannersError
from manners.evaluation.stats import Estimate, bootstrap_ratio, proportion

DRAWS = 200  # random halves for the variety


def word_pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE | re.MULTILINE)


# What an assistant says and a user hardly ever. Written with half of sixty real OpenAssistant trees at hand: in the
# other half it is in two of five turns by the assistant, and in one of seventy by the prompter.
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
COURTEOUS = word_pattern(r"\b(please|pls|plz|thanks|thank you|thankyou|thx)\b")
WORD = re.compile(r"\w+(?:['’]\w+)*")
BETWEEN_SENTENCES = re.compile(r"[.!?]+\s+|\n+")

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
# A bare i or u must go on as a sentence does: not "i = 0", "for i in", "i.e." or "the U.S.".
MISSPELLING = re.compile(rf"\b(?:i['’](?:m|ve|ll|d)|i(?= (?!in\b)[a-z])|u(?= [a-z]|[?!])|(?i:{SPELLINGS}))\b")


def starts_low(text: str) -> bool:
    first = WORD.search(text)
    return first is not None and first.group()[0].islower()


def words(text: str) -> int:
    return len(WORD.findall(text))


def words_a_sentence(text: str) -> float:
    sentences = [part for part in BETWEEN_SENTENCES.split(text) if WORD.search(part)]
    return words(text) / max(1, len(sentences))


def misspelt(text: str) -> float:
    """Share of the words that are in a list of some 130 chat spellings and common slips, or a lower-case "i".

    It is a trace of careless typing, which models seldom leave, and no count of errors: whatever is not in the list
    counts as right. So it compares two sets of turns, and says little about one.
    """
    return len(MISSPELLING.findall(text)) / max(1, words(text))


SIGNS: dict[str, Callable[[str], bool]] = {  # there or not
    "role breaks": lambda text: ROLE_BREAKS.search(text) is not None,
    "asks a question": lambda text: ASKS.search(text) is not None,
    "greets": lambda text: GREETS.search(text) is not None,
    "says please or thanks": lambda text: COURTEOUS.search(text) is not None,
    "starts in lower case": starts_low,
    "ends without a mark": lambda text: re.search(r"\w\s*\Z", text) is not None,
}
AMOUNTS: dict[str, Callable[[str], float]] = {
    "words": words,
    "words a sentence": words_a_sentence,
    "misspelt words, share": misspelt,
}
FEATURES: dict[str, Callable[[str], float]] = {**SIGNS, **AMOUNTS}


def turn_features(text: str) -> dict[str, float]:
    """Each count of one turn; 1.0 and 0.0 of what is there or not."""
    return {name: float(feature(text)) for name, feature in FEATURES.items()}


@dataclass(frozen=True)
class FeatureComparison:
    name: str
    generated: Estimate  # mean over the turns, or the share of them that have the sign
    human: Estimate
    distance: float  # 0 the same, 1 nothing in common


def compare_with_people(generated: Sequence[str], human: Sequence[str], seed: int) -> list[FeatureComparison]:
    """A line for each of FEATURES, then distinct-1 and distinct-2. Raises MannersError where a side has no turns.

    The distance is the two-sample Kolmogorov-Smirnov statistic, the most that the shares of turns up to some value
    differ by; for a sign this is the difference of the two shares.
    """
    if not generated or not human:
        raise MannersError(
            f"there are {len(generated)} generated turns to compare with {len(human)} human ones. Hold out more rows: "
            "dataset.test_share."
        )
    lines = []
    for name, feature in FEATURES.items():
        ours, theirs = (np.array([feature(text) for text in side], float) for side in (generated, human))
        distance = float(stats.ks_2samp(ours, theirs, method="asymp").statistic)
        lines.append(
            FeatureComparison(
                name, mean_estimate(ours, name in SIGNS, seed), mean_estimate(theirs, name in SIGNS, seed), distance
            )
        )
    return [*lines, *(distinct_n(generated, human, n, seed) for n in (1, 2))]


def mean_estimate(values: np.ndarray, sign: bool, seed: int) -> Estimate:
    return proportion(int(values.sum()), len(values)) if sign else bootstrap_ratio(values, np.ones(len(values)), seed)


def distinct_n(generated: Sequence[str], human: Sequence[str], n: int, seed: int) -> FeatureComparison:
    """Distinct-n (Li et al. 2016): different runs of ``n`` words over all such runs, in all turns of a side together.

    A longer text repeats more words, so distinct-n falls with length whoever writes: both sides are cut to as many
    runs, half of what the smaller one has. The value is the median of random halves and the interval is theirs, about
    as wide as that of the smaller side whole; the distance is the difference. All are nan where a side has no two runs.
    """
    sides = [[word_ngrams(text, n) for text in side] for side in (generated, human)]
    count = min(sum(map(len, side)) for side in sides) // 2
    if not count:
        nothing = Estimate(np.nan, np.nan, np.nan)
        return FeatureComparison(f"distinct-{n}", nothing, nothing, np.nan)
    ours, theirs = (split_half_distinct(side, count, seed) for side in sides)
    return FeatureComparison(f"distinct-{n}", ours, theirs, abs(ours.value - theirs.value))


def word_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    found = [word.lower() for word in WORD.findall(text)]
    return list(zip(*(found[i:] for i in range(n)), strict=False))


def split_half_distinct(side: list[list[tuple[str, ...]]], count: int, seed: int) -> Estimate:
    """The share of different runs among ``count``, taken turn by turn in random order, ``DRAWS`` times."""
    rng = np.random.default_rng(seed)
    shares = []
    for _ in range(DRAWS):
        shuffled = chain.from_iterable(side[i] for i in rng.permutation(len(side)))
        shares.append(len(set(islice(shuffled, count))) / count)
    low, middle, high = np.percentile(shares, [2.5, 50, 97.5])
    return Estimate(float(middle), float(low), float(high))
