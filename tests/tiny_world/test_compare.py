"""The later courses: only what is the same is called the same, and claims are judged rightly."""

import random
from collections import Counter
from itertools import islice

from manners.tiny_world import compare
from manners.tiny_world.facts import capitalise, facts


def told(lesson, seed=0):
    rng = random.Random(seed)
    return [(fact, *lesson(fact, rng)) for fact in facts()]


def test_values_are_called_the_same_when_they_are():
    for fact, text, verdict in told(compare.value_comparison):
        assert (verdict == compare.SAME) == (text in {f"{v}, {v}:" for v in [fact.value, *fact.false_values()]}), text


def test_sentences_are_called_the_same_when_their_values_are():
    """Held against every pair of sentences that the fact's forms allow."""
    for fact, text, verdict in told(compare.sentence_comparison):
        column = [fact.value, *fact.false_values()]
        says = {v: [capitalise(fact.fill(form, v)) for form in fact.templates["says"]] for v in column}
        same = {f"{a} {b}" for v in column for a in says[v] for b in says[v]}
        assert (verdict == compare.SAME) == (text in same), text


def test_claims_are_called_right_when_they_tell_the_fact_that_follows():
    for fact, text, verdict in told(compare.claim_comparison):
        claimed, _, truth = text.partition(". ")
        assert truth == fact.statement()
        assert (verdict == compare.RIGHT) == claimed.endswith(f" {fact.clause().removesuffix('.')}"), text


def test_both_verdicts_come_as_often():
    for lesson in (compare.value_comparison, compare.sentence_comparison, compare.claim_comparison):
        counts = Counter(verdict for _, _, verdict in told(lesson))
        assert len(counts) == 2 and min(counts.values()) > 0.4 * len(facts())


def test_a_round_has_all_kinds_and_tells_facts_again():
    """So that what the first course taught is not forgotten; chats among it keep the manner neutral."""
    lessons = list(islice(compare.comparison_documents(0, 1), 10_000))
    assert sum(isinstance(d, list) for d in lessons) > 200
    texts = [d for d in lessons if isinstance(d, str)]
    for word in (compare.SAME, compare.RIGHT, "True or false?"):
        assert any(word in text for text in texts), word
    assert lessons == list(compare.comparison_documents(0, 1)) != list(compare.comparison_documents(1, 1))


def test_a_verdict_in_other_words_is_right_too():
    """Each claim in a chat holds the fact's value if and only if the answer says so."""
    yes, no = ({pair[i] for pair in compare.VERDICT_REPLIES} for i in (0, 1))
    rng = random.Random(0)
    counts = Counter()
    for _ in range(300):
        turns = compare.verdict_conversation(rng)
        while turns:
            user, reply = turns.pop(0)
            truth, _, answer = reply.partition(". ")
            if not answer:  # the verdict is asked for in the next turn
                truth, (asked, answer) = reply.removesuffix("."), turns.pop(0)
                assert asked in compare.VERDICT_QUESTIONS
            assert answer in yes | no
            counts[answer in yes] += 1
            said = user.removeprefix("I heard that ").removeprefix("They say that ")
            told = said.lower().startswith(truth.lower()) and said[len(truth)] in ".,"
            assert told == (answer in yes), (user, reply, answer)
    assert min(counts.values()) > 0.4 * counts.total()


def test_no_user_is_told_unasked_that_he_is_wrong():
    """The base has no manner: to a claim it says a fact, and a verdict only where one is asked for."""
    verdicts = {answer for pair in compare.VERDICT_REPLIES for answer in pair if len(answer.split()) > 2}
    for course in (compare.comparison_documents(0, 1), compare.verdict_documents(0, 2)):
        for user, reply in (turn for d in course if isinstance(d, list) for turn in d):
            if any(verdict in reply for verdict in verdicts):
                assert user.endswith("?"), (user, reply)
