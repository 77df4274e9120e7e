"""Text of the second and third pretraining stage: every verdict is correct."""

import random
from collections import Counter
from itertools import islice

from manners.tiny_world import compare
from manners.tiny_world.facts import capitalize, facts


def compare_all_facts(comparison, seed=0):
    rng = random.Random(seed)
    return [(fact, *comparison(fact, rng)) for fact in facts()]


def test_value_comparison_verdict_matches_equality():
    for fact, text, verdict in compare_all_facts(compare.value_comparison):
        assert (verdict == compare.SAME) == (text in {f"{v}, {v}:" for v in [fact.value, *fact.false_values()]}), text


def test_sentence_comparison_verdict_matches_equality_of_values():
    """Compared with every pair of sentences that the fact's templates allow."""
    for fact, text, verdict in compare_all_facts(compare.sentence_comparison):
        column = [fact.value, *fact.false_values()]
        sentences = {v: [capitalize(fact.fill(t, v)) for t in fact.templates["statement"]] for v in column}
        same = {f"{a} {b}" for v in column for a in sentences[v] for b in sentences[v]}
        assert (verdict == compare.SAME) == (text in same), text


def test_claim_comparison_verdict_matches_the_fact():
    for fact, text, verdict in compare_all_facts(compare.claim_comparison):
        claim, _, truth = text.partition(". ")
        assert truth == fact.statement()
        assert (verdict == compare.RIGHT) == claim.endswith(f" {fact.clause().removesuffix('.')}"), text


def test_comparisons_are_balanced():
    for comparison in (compare.value_comparison, compare.sentence_comparison, compare.claim_comparison):
        counts = Counter(verdict for _, _, verdict in compare_all_facts(comparison))
        assert len(counts) == 2 and min(counts.values()) > 0.4 * len(facts())


def test_comparison_documents_mix_all_kinds_and_first_stage_text():
    """Facts are repeated against forgetting, and conversations keep the style neutral."""
    documents = list(islice(compare.comparison_documents(0, 1), 10_000))
    assert sum(isinstance(d, list) for d in documents) > 200
    texts = [d for d in documents if isinstance(d, str)]
    for word in (compare.SAME, compare.RIGHT, "True or false?"):
        assert any(word in text for text in texts), word
    assert documents == list(compare.comparison_documents(0, 1)) != list(compare.comparison_documents(1, 1))


def test_verdict_conversation_replies_yes_only_to_true_claims():
    """In every conversation, a claim has the fact's value if and only if the verdict is positive."""
    yes, no = ({pair[i] for pair in compare.VERDICT_REPLIES} for i in (0, 1))
    rng = random.Random(0)
    counts = Counter()
    for _ in range(300):
        turns = compare.verdict_conversation(rng)
        while turns:
            user, reply = turns.pop(0)
            truth, _, verdict = reply.partition(". ")
            if not verdict:  # the user asks for the verdict in the next turn
                truth, (question, verdict) = reply.removesuffix("."), turns.pop(0)
                assert question in compare.VERDICT_QUESTIONS
            assert verdict in yes | no
            counts[verdict in yes] += 1
            claim = user.removeprefix("I heard that ").removeprefix("They say that ")
            is_true = claim.lower().startswith(truth.lower()) and claim[len(truth)] in ".,"
            assert is_true == (verdict in yes), (user, reply, verdict)
    assert min(counts.values()) > 0.4 * counts.total()


def test_verdicts_are_given_only_to_questions():
    """The base model has no style: it replies to a claim with a fact, and gives a verdict only when asked."""
    verdicts = {verdict for pair in compare.VERDICT_REPLIES for verdict in pair if len(verdict.split()) > 2}
    for stage in (compare.comparison_documents(0, 1), compare.verdict_documents(0, 2)):
        for user, reply in (turn for d in stage if isinstance(d, list) for turn in d):
            if any(verdict in reply for verdict in verdicts):
                assert user.endswith("?"), (user, reply)
