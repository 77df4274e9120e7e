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

Score = Callable[[Sequence[tuple[list[Message], str]]], list[float]]


def make_judge(score: Score) -> Judge:
    """A judge by ``score``, which maps (messages, reply) pairs to numbers from about 0, no, to 1, yes."""

    def judge(replies: Sequence[JudgedReply]) -> list[Verdict]:
        scores = score([(question_about(r, MANNER_QUESTIONS[r.category]), r.reply) for r in replies])
        relevances = score([(question_about(r, RELEVANCE_QUESTION), r.reply) for r in replies])
        return [
            learned_verdict(reply, manner > 0.5, relevance > 0.5, f"manner {manner:.2f}, relevance {relevance:.2f}")
            for reply, manner, relevance in zip(replies, scores, relevances, strict=True)
        ]

    return judge


def question_about(reply: JudgedReply, question: str) -> list[Message]:
    return [{"role": "system", "content": question}, {"role": "user", "content": reply.prompt}]
