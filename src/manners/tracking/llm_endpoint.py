"""An LLM behind an endpoint that speaks OpenAI's protocol: a yes or no through ``mlflow.genai``, or any answer.

Answers are kept in the user's cache, by the content of what was asked, so that no question is asked twice. The key is
read from the environment, ``OPENAI_API_KEY``, and neither printed nor stored.
"""

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock

from manners.errors import MannersError
from manners.runtime.atomic_io import atomic_write, check_cache
from manners.runtime.paths import user_cache

SHOWN = "\n\nThe user: {{ inputs }}\n\nThe reply: {{ outputs }}"
TRIES = 5  # requests until an endpoint has failed
PAUSE = 1.0  # seconds before the second, doubled before each next
TRIED_AGAIN = (408, 409, 429)  # a timeout, a conflict, too many requests; and 500 and above


def ask(model: str, base_url: str | None, instructions: str, prompt: str, reply: str) -> bool:
    """The endpoint's yes or no. Raises MannersError where there is none."""
    from mlflow.genai.judges import make_judge as make_mlflow_judge

    try:
        if base_url is not None:
            base_url = completions_url(base_url)
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


def completions_url(base_url: str) -> str:
    """The address of chat completions at an endpoint, which may be given with or without its last part."""
    return base_url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


class NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: urllib would send the key along, to whatever host they name."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirect is an error."""


def complete(
    model: str,
    base_url: str,
    text: str,
    temperature: float | None,
    timeout: float,
    before_request: Callable[[], None],
) -> tuple[str, int]:
    """The answer to one message, and the tokens that the endpoint counted for it; 0 where it counts none.

    What may pass is tried again, after a pause: no answer within ``timeout`` seconds, a lost connection, a server's
    error, a body that is no completion. ``before_request`` is called before each try, and may refuse it. Raises
    MannersError where there is no answer.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise MannersError("OPENAI_API_KEY is no key: set it again, without spaces or line breaks.")
    if not re.match(r"https?://[^/@]+(/|$)", base_url):
        raise MannersError(f"base_url={base_url} must be like http://127.0.0.1:8000/v1; a key is in OPENAI_API_KEY.")
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
    if temperature is not None:
        body["temperature"] = temperature
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = Request(completions_url(base_url), json.dumps(body).encode(), headers)
    reason = ""
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE * 2 ** (number - 1))
        before_request()
        try:
            with build_opener(NoRedirect).open(request, timeout=timeout) as response:
                answer = json.load(response)
            usage = answer.get("usage") or {}
            return str(answer["choices"][0]["message"]["content"] or ""), int(usage.get("total_tokens") or 0)
        except HTTPError as error:
            reason = str(error)
            with suppress(OSError, HTTPException):
                reason += f" {error.read(300).decode('utf-8', 'replace')}"
            if error.code < 500 and error.code not in TRIED_AGAIN:
                break
        except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
    reason = " ".join(reason.replace(key, "***").split() if key else reason.split())
    raise MannersError(
        f"{model} at {base_url} gave no answer ({reason[:300]}). See that the endpoint runs and has this model; a key "
        "is in the environment, OPENAI_API_KEY. Then type the same command again, which resumes the run."
    )


def cache_folder(model: str, base_url: str | None) -> Path:
    """Where answers of this model at this endpoint are kept."""
    name = hashlib.sha256(f"{model} {base_url or ''}".encode()).hexdigest()[:12]
    return user_cache("llm_judge") / name


def cached(folder: Path, asked: Sequence[Any], ask: Callable[[], Any]) -> Any:
    """The answer that is kept for what is ``asked``, or else that of ``ask()``, which is kept.

    Raises MannersError where nothing can be written into the cache.
    """
    content = json.dumps(asked, ensure_ascii=False)
    digest = hashlib.sha256(content.encode()).hexdigest()
    file = folder / f"{digest}.json"
    if not file.is_file():
        check_cache(folder)
        with FileLock(folder / f"{digest[:2]}.lock"):  # a parallel job may ask the same
            if not file.is_file():
                answer = ask()
                with atomic_write(file) as out:
                    out.write(json.dumps({"asked": asked, "answer": answer}, ensure_ascii=False).encode())
    return json.loads(file.read_text("utf-8"))["answer"]
