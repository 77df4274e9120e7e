"""A judge that is an LLM, behind any endpoint that speaks OpenAI's protocol, asked through ``mlflow.genai``'s judges.

Off by default: it needs a server, and perhaps costs money. Answers are kept in the user's cache, by the content of what
was asked, so that no question is asked twice.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from manners.errors import MannersError
from manners.evaluation.judges import Judge, JudgedReply, Verdict, learned_verdict
from manners.runtime.paths import user_cache
from manners.runtime.progress import progress

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
SHOWN = "\n\nThe user: {{ inputs }}\n\nThe reply: {{ outputs }}"
NUM_THREADS = 4  # requests under way at once

Ask = Callable[[str, str, str], bool]  # instructions, prompt, reply → the answer


def make_judge(model: str, base_url: str | None = None) -> Judge:
    """A judge by ``model``, as MLflow names it: "openai:/gpt-5-mini". ``base_url`` is that of another
    endpoint, such as "http://127.0.0.1:8000/v1".

    Raises MannersError where the endpoint does not answer.
    """
    if base_url is not None:
        base_url = base_url.rstrip("/")
        base_url += "" if base_url.endswith("/chat/completions") else "/chat/completions"
        os.environ.setdefault("OPENAI_API_KEY", "none")  # MLflow wants one, though a local server may not
    ask = partial(ask_cached, cache_folder(model, base_url), partial(ask_endpoint, model, base_url))

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


def cache_folder(model: str, base_url: str | None) -> Path:
    """Where answers of this model at this endpoint are kept."""
    name = hashlib.sha256(f"{model} {base_url or ''}".encode()).hexdigest()[:12]
    return user_cache("llm_judge") / name


def ask_cached(folder: Path, ask: Ask, instructions: str, prompt: str, reply: str) -> bool:
    """The answer that is kept for this question, or else asked for now, and kept."""
    from manners.runtime.atomic_io import atomic_write

    content = json.dumps([instructions, prompt, reply], ensure_ascii=False)
    file = folder / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
    if file.is_file():
        return bool(json.loads(file.read_text("utf-8"))["answer"])
    answer = ask(instructions, prompt, reply)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as out:
        out.write(json.dumps({"asked": json.loads(content), "answer": answer}, ensure_ascii=False).encode())
    return answer


def ask_endpoint(model: str, base_url: str | None, instructions: str, prompt: str, reply: str) -> bool:
    """The endpoint's yes or no. Raises MannersError where there is none."""
    from mlflow.genai.judges import make_judge as make_mlflow_judge

    try:
        if base_url is not None:  # MLflow would try again for many minutes
            address = urlsplit(base_url)
            port = address.port or {"http": 80, "https": 443}[address.scheme]
            socket.create_connection((str(address.hostname), port), timeout=10).close()
        judge: Any = make_mlflow_judge(
            "manners", instructions + SHOWN, model=model, feedback_value_type=bool, base_url=base_url,
            inference_params={"temperature": 0.0},
        )  # fmt: skip
        feedback = judge(inputs={"text": prompt}, outputs={"text": reply})
    except Exception as error:  # noqa: BLE001  MLflow passes on whatever the network or the provider raised
        raise endpoint_error(model, base_url, str(error)) from None
    if feedback.error or not isinstance(feedback.value, bool):
        raise endpoint_error(model, base_url, str(feedback.error or f"it answered {feedback.value!r}"))
    return feedback.value


def endpoint_error(model: str, base_url: str | None, reason: str) -> MannersError:
    place = f" at {base_url}" if base_url else ""
    return MannersError(
        f"evaluation.llm_judge={model}{place}: no verdict ({reason.splitlines()[0][:200] if reason else 'no reason'}). "
        "A model is named as openai:/MODEL; evaluation.llm_base_url is an endpoint that speaks OpenAI's protocol, "
        "http://HOST:PORT/v1; a key is in the environment, OPENAI_API_KEY."
    )
