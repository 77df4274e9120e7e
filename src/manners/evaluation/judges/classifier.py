"""A judge that is a small encoder, trained on labeled replies (``train.py experiment=style_classifier``).

It is a reward model of its own, a regression of 0 and 1: the question that it answers is the system message of the row.
Its labels are of other replies than those that reward models are trained on.
"""

from collections.abc import Callable, Sequence

from manners.data.types import Message
from manners.evaluation.judges import Judge, JudgedReply, Verdict, learned_verdict

MANNER_QUESTIONS = {
    "good_question": "Is the reply helpful?",
    "poor_logic": "Does the reply probe the argument?",
    "wrong_fact": "Does the reply flatly correct the user?",
}
RELEVANCE_QUESTION = "Is the reply about what the user says?"
SENSE_QUESTION = "Does the reply make sense?"

Score = Callable[[Sequence[tuple[list[Message], str]]], list[float]]


def make_judge(score: Score) -> Judge:
    """A judge by ``score``, which maps (messages, reply) pairs to numbers from about 0, no, to 1, yes."""

    def judge(replies: Sequence[JudgedReply]) -> list[Verdict]:
        asked = [
            (question_about(r, question), r.reply)
            for r in replies
            for question in (MANNER_QUESTIONS[r.category], RELEVANCE_QUESTION, SENSE_QUESTION)
        ]
        scores = score(asked)
        answers = zip(scores[::3], scores[1::3], scores[2::3], strict=True)
        return [verdict_of(reply, *answer) for reply, answer in zip(replies, answers, strict=True)]

    return judge


def verdict_of(reply: JudgedReply, manner: float, relevance: float, sense: float) -> Verdict:
    reason = f"manner {manner:.2f}, relevance {relevance:.2f}, sense {sense:.2f}"
    return learned_verdict(reply, manner > 0.5, relevance > 0.5, sense > 0.5, reason)


def question_about(reply: JudgedReply, question: str) -> list[Message]:
    return [{"role": "system", "content": question}, {"role": "user", "content": reply.prompt}]
