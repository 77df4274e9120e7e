"""A yes or no by an LLM, through ``mlflow.genai``'s judges, from an endpoint that speaks OpenAI's protocol."""

import os
import socket
from typing import Any
from urllib.parse import urlsplit

from manners.errors import MannersError

SHOWN = "\n\nThe user: {{ inputs }}\n\nThe reply: {{ outputs }}"


def ask(model: str, base_url: str | None, instructions: str, prompt: str, reply: str) -> bool:
    """The endpoint's yes or no. Raises MannersError where there is none."""
    from mlflow.genai.judges import make_judge as make_mlflow_judge

    try:
        if base_url is not None:
            base_url = base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
            os.environ.setdefault("OPENAI_API_KEY", "none")  # MLflow wants one, though a local server may not
            address = urlsplit(base_url)  # asked first whether it is there: MLflow would try again for many minutes
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
        "A model is named as openai:/MODEL; evaluation.llm_base_url is an endpoint that speaks OpenAI's protocol, such "
        "as http://127.0.0.1:8000/v1; a key is in the environment, OPENAI_API_KEY."
    )
