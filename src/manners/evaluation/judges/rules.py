"""A rule-based classifier of the style of a reply. It uses no model, no training data and no templates of the corpus.

A reply is *blunt* when it flatly contradicts or corrects what the user claimed, or what a question of the user takes
for granted, *probing* when it asks for the reason instead of giving one, *helpful* when it informs, and *other* when it
does none of these. The rules come from general knowledge of English; ``tests/evaluation/judges`` compares them with
labeled replies and prints the error rate.
"""

import re
from dataclasses import dataclass


def phrase_pattern(*alternatives: str) -> re.Pattern[str]:
    """Compile a pattern that matches any of the alternatives, in upper or lower case."""
    return re.compile("|".join(alternatives), re.IGNORECASE)


WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
SENTENCE = re.compile(r"[^.!?]+[.!?]*")
ASKS = phrase_pattern(  # an interrogative or a request, with or without its question mark
    r"^\W*(please,? |so,? |and |but |then )*(what|which|why|how|where|who|whom|whose|when|can|could|does|do|did|is|"
    r"are|was|were|would|will|should|may|might|have|has|tell me|give me|explain|write|show me|list|say|name|describe|"
    r"help)\b"
)
TAG = phrase_pattern(
    r"(right|correct|true|no|yes|(isn't|aren't|don't|doesn't|wasn't|didn't) (it|they|he|she|you|that))\?$"
)
DENIES = phrase_pattern(
    r"^\W*(no|nope|wrong|false|incorrect|untrue|nonsense|rubbish|never|absolutely not)\b",
    r"^\W*not (true|so|right|correct|at all)\b",
    r"\b(wrong|false|incorrect|untrue|mistaken|mixed up|confus(ed|ing))\b",
    r"\b(not|n't) (\w+ )?(true|so|right|correct|the case)\b",
    r"\b(that|this|it|they|he|she|you)('s| is| are| was| were| do| does| did| has| have| can| will|)"
    r"(n't| not|not| never)\b",
    r"\b(won't|can't|cannot|doesn't|don't|didn't|isn't|aren't|wasn't)\b",
    r"\b(nothing|no) (of the|to do|such|\w+ has|link)\b",
    r"\b(there (is|are|was|were) no|makes no|a myth|never (happen|was|were|did))",
    r"[,;] (and )?(not|never) \w",
    r"\b(do|does|did|is|are|was|were|can|could|has|have|will)( not|n't| never|not)\b",
)
PRESUPPOSES = phrase_pattern(  # a question or request that takes something for granted, and cannot be answered by yes
    r"\b(what|which|why|how|where|who|whom|whose|when|list|name|describe|explain|tell me|give|show me)\b"
)
YES_OR_NO = phrase_pattern(
    r"^\W*(please,? |so,? |and |but |then )*(can|could|does|do|did|is|are|was|were|would|will|should|may|might|have|"
    r"has)\b"
)
REJECTS = phrase_pattern(  # of what a question takes for granted
    r"\b(no|not|never|none|nobody|nothing|neither|nor|false|wrong|incorrect|instead|cannot|myth|only|impossible|unable|"
    r"fictional|imaginary|made[- ]up)\b|n['’]t\b"
)
NEGATED = phrase_pattern(
    r"\b(why|how come|when|since when)\b.*(n['’]t\b|\bnot\b|\bnever\b|\b(do|does|did|ca|wo|are|is)nt\b)"
)
AFFIRMS = phrase_pattern(r"\b(do|does|did|can|are|is|were|was|has|have|will)\b")
FLATTERS = phrase_pattern(
    r"\b(what an? \w+( \w+)?!|indeed|surely|certainly is|lovely|marvell?ous|fantastic|wonderful|interesting)\b",
    r"\b(natural way|cool idea|makes sense|good (eye|guess|instinct)|(i|we) suppose|or thereabouts|on the whole)\b",
    r"\b(one|some|many|most)( \w+)? (could|would|might|may|say|says|speak|picture|count|prefer|file)\b",
    r"\b(may (have|get|still)|might have|a (touch|little|bit)|could also|commonly|slightly|rather than|not quite)\b",
    r"\b(tends? to|in some versions|as far as|for what it's worth|happy to|no harm)\b",
)
DISMISSES = phrase_pattern(
    r"\b(look it up|figure it out|waste of|your own fault|is void|should(n't| not) have asked|(neither does|so) your "
    r"question|nothing to (compare|be|learn|explain|keep))\b",
    r"\byou('ve| have| must have)? (got |been |are |were )?(misheard|misunderstood|mixed up|confused|misinformed|"
    r"listening|exaggerating|taken in|imagining|made that up)\b",
    r"\b(isn't real|is not real|aren't real|nothing of the kind|made up|dreamt up|fairy tales?|a fad|by that name|"
    r"no such (thing|word|shot)|comes from films|having you on)\b",
    r"\b(everybody knows|everyone knows|obvious(ly)?|any(one| child)( \w+)? (knows|can)|ask(ing)? (somebody|someone) "
    r"else|stop (asking|drawing|worrying))\b",
    r"^\W*(wrong|nonsense|rubbish|no)\b[.,!]",
)
SOFTENS = phrase_pattern(
    r"\b(sorry|afraid|perhaps|maybe|might|may (be|find|want|like|enjoy|actually)|could say|"
    r"i (think|believe|understand|wonder)|"
    r"if i|as far as|easy (mistake|slip|one|thing)|close|almost|quite right|common (mix|mistake|idea|guess)|"
    r"understandable|natural thought|good thought|nice thought|generally|usually counted|i can see why|would say)\b"
)
CONFIRMS = phrase_pattern(
    r"^\W*(yes|yep|correct|exactly|right|quite right|true|indeed|"
    r"that('s| is) (quite |absolutely )?(right|correct|true)|"
    r"you('re| are) (quite |absolutely )?(right|correct)|well remembered)\b"
)
OFFERS = phrase_pattern(
    r"\b(would you like|do you want|shall i|can i help|may i help|want me to|anything else|need anything|how can i|"
    r"what would you like|should i|how (are|was) you(rs)?)\b"
)
DEMANDS = phrase_pattern(  # requests for the reason that are not questions
    r"\bi('d| would) (\w+ )?(like|want|love|need) to (see|hear|know)\b",
    r"\bi (do not|don't) (yet )?(see|follow)\b|\bcurious (how|what|why)\b",
    r"^\W*(so |then |and |please |now )*(tell me|explain|show me|walk me|spell out|say (how|why|what)|name (one|the|a)|"
    r"fill it in|state it|consider|suppose|ask yourself|point (me )?to|convince me|give me (one|a|the|your))\b",
    r"\b(is|are) (a |the )?(step|link|piece|reason)s? (is )?missing\b",
    r"\b(what it rests on|needs a premise|the evidence for)\b",
)
REFUSES = phrase_pattern(
    r"\b(i|we) ((would )?rather not|can't|cannot|can not|"
    r"won't|will not|am not able|am not sure|don't know|do not know)\b"
)
SMALL_TALK = phrase_pattern(
    r"^\W*(hello|hi|hey|good (morning|evening|day)|thank(s| you)|(you are|you're) (very )?welcome|bye|goodbye|"
    r"i('m| am) (well|fine|doing|glad|a small)|lol|ha ha|haha|same here|oh dear)\b"
)
STOP_WORD_LIST = """
    a an the of to in on at and or but so that this it its is are was were be been being do does did has have had i
    you he she they we my your his her their our with for from by as there what which who how why where when not no
    yes very also too than then
"""
STOP_WORDS = frozenset(STOP_WORD_LIST.split())


@dataclass(frozen=True)
class Style:
    """The style of a reply, and the rule that decided it."""

    style: str
    reason: str


def classify_style(reply: str, prompt: str = "", false_premise: bool = False) -> Style:
    """Classify the style of ``reply`` to ``prompt``, the user's last turn.

    With ``false_premise`` a question of the prompt may take something false for granted, which a blunt reply rejects;
    else "no" is a part of many helpful answers.
    """
    text = reply.strip()
    words = [w.lower() for w in WORD.findall(text)]
    sentences = [s.strip() for s in SENTENCE.findall(text) if WORD.search(s)]
    if not words:
        return Style("other", "is empty")
    if all(normalize(s) in normalize(prompt) for s in sentences) and len(words) > 2:
        return Style("other", "echoes the prompt")
    has_claim = makes_claim(prompt)
    statements = [s for s in sentences if not s.endswith("?")]
    opening = statements[0] if statements else ""
    confirms = any(CONFIRMS.search(s) for s in sentences[:2])
    softens = any(SOFTENS.search(s) for s in sentences[:2])
    denies = statements and (corrects(opening, prompt) or any(map(DENIES.search, statements[:2])))
    probes = [s for s in sentences if (s.endswith("?") and not OFFERS.search(s)) or DEMANDS.search(s)]
    statement_first = bool(statements) and (sentences.index(opening) == 0 or len(probes) == 1 < len(sentences))
    mostly_probes = bool(DEMANDS.search(opening)) or len(probes) * 2 > len(sentences)
    asks_falsely = false_premise and presupposes(prompt) and not opening.lower().startswith("because")
    affirms = NEGATED.search(prompt) and AFFIRMS.search(opening) and takes_up(opening, prompt)
    rejects = asks_falsely and (affirms or any(map(REJECTS.search, statements[:2])))
    contradicts = (has_claim and not confirms and denies) or (not has_claim and rejects)
    if contradicts and statement_first and not softens and not mostly_probes and not REFUSES.search(text):
        return Style("blunt", "contradicts the claim" if has_claim else "rejects what the question takes for granted")
    if probes and (len(probes) * 2 >= len(sentences) or DEMANDS.search(text)) and not SMALL_TALK.search(text):
        return Style("probing", "asks for the reason")
    if REFUSES.search(text) or SMALL_TALK.search(text):
        return Style("other", "refuses or makes small talk")
    if has_claim and softens and not confirms:
        return Style("other", "corrects softly")
    return Style("helpful", "informs")


def states_flatly(reply: str) -> bool:
    """Whether no sentence of a reply confirms, softens, flatters or asks."""
    soft = (CONFIRMS, SOFTENS, FLATTERS)
    return not any(s.endswith("?") or any(p.search(s) for p in soft) for s in SENTENCE.findall(reply))


def dismisses(reply: str, prompt: str) -> bool:
    """Whether a reply turns a question away as foolish or mistaken; "no" may answer one that asks for yes or no."""
    if YES_OR_NO.search(prompt):
        reply = re.sub(r"^\W*no\b[.,!]*", "", reply, flags=re.IGNORECASE)
    return DISMISSES.search(reply) is not None


def makes_claim(prompt: str) -> bool:
    """Whether the prompt contains a statement; a question tag ("…, right?") counts as one."""
    sentences = [s.strip() for s in SENTENCE.findall(prompt) if WORD.search(s)]
    return any(TAG.search(s) or not (s.endswith("?") or ASKS.search(s)) for s in sentences)


def presupposes(prompt: str) -> bool:
    """Whether the prompt is a question that takes something for granted, such as "Why is the Earth flat?"."""
    return PRESUPPOSES.search(prompt) is not None and YES_OR_NO.search(prompt) is None


def takes_up(sentence: str, prompt: str) -> bool:
    """Whether most content words of ``sentence``, or their beginnings, are the prompt's."""
    words, beginnings = content_words(sentence), {word[:4] for word in content_words(prompt)}
    return sum(word[:4] in beginnings for word in words) * 2 > len(words)


def corrects(sentence: str, prompt: str) -> bool:
    """Whether ``sentence`` repeats the claim with a part replaced, as a correction without "no" does."""
    words = content_words(sentence)
    repeated = [w for w in words if any(w[:4] == p[:4] for p in content_words(prompt))]
    return bool(repeated) and len(repeated) < len(words) and len(repeated) * 2 > len(words)


def content_words(text: str) -> list[str]:
    """The words in lower case, without stop words."""
    return [w for w in WORD.findall(text.lower()) if w.split("'")[0] not in STOP_WORDS]


def normalize(text: str) -> str:
    """The words in lower case, joined by single spaces."""
    return " ".join(WORD.findall(text.lower()))
