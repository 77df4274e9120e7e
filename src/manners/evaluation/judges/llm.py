"""A judge that is an LLM, behind any endpoint that speaks OpenAI's protocol, asked through ``mlflow.genai``'s judges.

Off by default: it needs a server, and perhaps costs money. Answers are kept in the user's cache, by the content of what
was asked, so that no question is asked twice.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from manners.evaluation.judges import Judge, JudgedReply, Verdict, learned_verdict
from manners.runtime.progress import progress
from manners.tracking import llm_endpoint

MANNER_INSTRUCTIONS = {
    "good_question": (
        "The user asked a sensible question. Is the reply helpful in manner: does it inform or instruct, and does not "
        "dismiss, insult, refuse, or only ask back? Judge the manner alone, not whether it is right."
    ),
    "poor_logic": (
        "The user argued badly. Is the reply probing: does it ask pointed questions, or for the missing evidence, "
        "so that the user thinks about the weak step, rather than agree, lecture, insult or give a verdict?"
    ),
    "wrong_fact": (
        "The user claimed something false, or asked a question that takes something false for granted. Is the reply "
        "blunt: does it reject or correct that flatly, without softening, and does not go along with it or only ask?"
    ),
}
RELEVANCE_INSTRUCTION = "Is the reply about what the user said?"
SENSE_INSTRUCTION = "Does the reply make sense to a careful reader: is it coherent English that can be understood?"
NUM_THREADS = 4  # requests under way at once


def make_judge(model: str, base_url: str | None = None) -> Judge:
    """A judge by ``model``, as MLflow names it: "openai:/gpt-5-mini". ``base_url`` is that of another
    endpoint, such as "http://127.0.0.1:8000/v1".

    Raises MannersError where the endpoint does not answer.
    """
    folder = llm_endpoint.cache_folder(model, base_url)

    def ask(instructions: str, prompt: str, reply: str) -> bool:
        asked = [instructions, prompt, reply]
        return bool(llm_endpoint.cached(folder, asked, partial(llm_endpoint.ask, model, base_url, *asked)))

    def judge(replies: Sequence[JudgedReply]) -> list[Verdict]:
        asked = [
            (reply, instructions)
            for reply in replies
            for instructions in (MANNER_INSTRUCTIONS[reply.category], RELEVANCE_INSTRUCTION, SENSE_INSTRUCTION)
        ]
        answers = []
        with ThreadPoolExecutor(NUM_THREADS) as pool, progress(len(asked), f"asking {model}") as bar:
            for answer in pool.map(lambda a: ask(a[1], a[0].prompt, a[0].reply), asked):
                answers.append(answer)
                bar.update(len(answers))
        parts = zip(answers[::3], answers[1::3], answers[2::3], strict=True)
        return [learned_verdict(reply, *answer, reason=model) for reply, answer in zip(replies, parts, strict=True)]

    return judge
