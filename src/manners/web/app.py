"""The page's own interface: a few addresses, JSON in and out, replies as a stream of JSON lines."""

import json
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from omegaconf import DictConfig
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from manners.data.formats.fields import InvalidRow
from manners.data.formats.votes import LABELS, VERDICTS
from manners.data.types import Message, Prompt
from manners.errors import MannersError
from manners.evaluation.metrics.votes import results_markdown, vote_results
from manners.web.ballots import Ballot, Ballots, prompt_key, with_system
from manners.web.models import Models, ReplyOptions
from manners.web.vote_file import VoteFile

STATIC = files("manners.web") / "static"
CONTENT_TYPES = {"app.js": "text/javascript", "style.css": "text/css"}
MAX_BODY = 2**20  # bytes of a request: more is no conversation
POLICY = "default-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'"  # no other address


class ReplyRequest(BaseModel):
    model: str
    messages: list[Message] = Field(min_length=1)
    system: str = ""
    scale: float = Field(1.0, ge=-1, le=2)  # NaN is in no range
    temperature: float = Field(0.7, ge=0, le=5)
    seed: int | None = Field(None, ge=0)


class ScoreRequest(BaseModel):
    messages: list[Message] = Field(min_length=1)
    system: str = ""
    reply: str
    category: str = ""  # of the prompt, for the style judge


class BallotRequest(BaseModel):
    annotator: str = Field("", max_length=80)
    pair: list[str] = Field(min_length=2, max_length=2)
    typed: str = ""


class VoteRequest(BaseModel):
    ballot: str
    verdict: str
    annotator: str = Field("", max_length=80)
    side: int = Field(0, ge=0, le=1)  # of an edited reply
    edited: str = ""


class LabelRequest(BaseModel):
    """A verdict on one reply of the comparison."""

    annotator: str = Field("", max_length=80)
    verdict: str
    messages: list[Message] = Field(min_length=1)
    system: str = ""
    reply: dict[str, Any]  # text, model, seed, temperature, scale
    edited: str = ""


def make_app(
    cfg: DictConfig, models: Models, ballots: Ballots, votes: VoteFile, commands: Sequence[str] = ()
) -> FastAPI:
    """The application, which shows ``commands`` that train on the votes.

    Mistakes of a request are answered by 4xx and a sentence in ``detail``.
    """
    casting = threading.Lock()  # of one vote at a time: whether a person has judged a pair already is read first
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page elsewhere could point its own name at this machine's loopback address and talk to us under it.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.middleware("http")
    async def add_policy(request: Any, call_next: Any) -> Response:
        response: Response = refusal(request) or await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(RequestValidationError)
    def explain(_request: Any, error: RequestValidationError) -> JSONResponse:
        mistakes = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"detail": "; ".join(mistakes)}, 422)

    @app.exception_handler(MannersError)
    def explain_rows(_request: Any, error: MannersError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409)

    @app.exception_handler(OSError)
    def explain_file(_request: Any, error: OSError) -> JSONResponse:
        return JSONResponse({"detail": f"{votes.path} cannot be read ({error.strerror})."}, 507)

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse((STATIC / "index.html").read_text("utf-8"))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in CONTENT_TYPES:
            raise HTTPException(404)
        return Response((STATIC / name).read_text("utf-8"), media_type=CONTENT_TYPES[name])

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return {
            "models": list(models.by_name),
            "base": models.base,
            "pairs": ballots.pairs(),
            "prompts": len(ballots.prompts),
            "source": cfg.prompts,
            "system": cfg.system or "",
            "temperature": cfg.temperature if cfg.do_sample else 0.0,
            "has_reward": models.score is not None,
            "categories": sorted(ballots.categories) if models.judge else [],
            "commands": list(commands),
        }

    @app.get("/api/prompt")
    def prompt() -> dict[str, Any]:
        if not ballots.prompts:
            raise HTTPException(409, "there are no held-out prompts here.")
        chosen = secrets.choice(ballots.prompts)
        return {"messages": chosen.messages, "category": ballots.category(chosen)}

    @app.post("/api/reply")
    def reply(r: ReplyRequest) -> StreamingResponse:
        check_model(models, r.model)
        messages = with_system(r.messages, r.system)
        seed = secrets.randbelow(2**31) if r.seed is None else r.seed
        options = ReplyOptions(seed, r.temperature, cfg.max_new_tokens, r.scale)
        return StreamingResponse(stream(models, r.model, messages, options), media_type="application/x-ndjson")

    @app.post("/api/score")
    def score(r: ScoreRequest) -> dict[str, Any]:
        messages = with_system(r.messages, r.system)
        verdict = models.verdict(Prompt(messages, metadata={"category": r.category} if r.category else {}), r.reply)
        credit = models.credits(messages, r.reply)
        judged = {"style": verdict.style, "fits": verdict.fits, "parts": verdict.parts()} if verdict else None
        return {"credit": credit, "verdict": judged}

    @app.post("/api/ballot")
    def ballot(r: BallotRequest) -> dict[str, Any]:
        for name in r.pair:
            check_model(models, name)
        try:
            dealt = ballots.next(r.annotator, r.pair, r.typed)
        except MannersError as error:
            raise HTTPException(422, str(error)) from None
        return {"ballot": shown(dealt) if dealt else None, **counts(votes, r.annotator)}

    @app.post("/api/vote")
    def vote(r: VoteRequest) -> dict[str, Any]:
        if r.verdict not in VERDICTS or r.verdict in LABELS:
            raise HTTPException(422, f"a comparison has no verdict {r.verdict!r}")
        with casting:
            dealt = ballots.dealt.get(r.ballot)
            if dealt is None:
                raise HTTPException(409, "this comparison is not known here any more: ask for the next one.")
            if prompt_key(dealt.prompt) in ballots.judged(r.annotator, dealt.models):
                raise HTTPException(409, "you have judged this comparison already, on another page.")
            row: dict[str, Any] = dealt.row
            if r.verdict == "edit":
                replies = [row["replies"][r.side], row["replies"][1 - r.side]]
                row |= {"replies": replies, "edited": edited_text(r.edited, replies[0])}
            with refusals(votes):
                votes.append(r.verdict, r.annotator, **row)
            del ballots.dealt[r.ballot]
        return counts(votes, r.annotator)

    @app.post("/api/label")
    def label(r: LabelRequest) -> dict[str, Any]:
        if r.verdict not in (*LABELS, "edit"):
            raise HTTPException(422, f"one reply has no verdict {r.verdict!r}")
        check_model(models, str(r.reply.get("model")))
        row: dict[str, Any] = {"prompt": with_system(r.messages, r.system), "replies": [r.reply]}
        if r.verdict == "edit":
            row |= {"edited": edited_text(r.edited, r.reply)}
        with casting, refusals(votes):
            votes.replace(r.verdict, r.annotator, **row)
        return counts(votes, r.annotator)

    @app.post("/api/undo")
    def undo(r: BallotRequest) -> dict[str, Any]:
        with casting, refusals(votes):
            undone = votes.undo(r.annotator)
        if undone is None:
            raise HTTPException(409, "there is no vote of yours to take back.")
        return {"undone": undone.verdict, **counts(votes, r.annotator)}

    @app.get("/api/results")
    def results() -> dict[str, Any]:
        found = vote_results(votes.standing())
        return {"markdown": results_markdown(found), "results": found}

    return app


def stream(models: Models, name: str, messages: list[Message], options: ReplyOptions) -> Iterator[str]:
    """JSON lines: the reply's seed, its chunks, and an error where it cannot be given."""
    yield json.dumps({"seed": options.seed}) + "\n"
    try:
        for chunk in models.stream(name, messages, options):
            yield json.dumps({"text": chunk}) + "\n"
    except MannersError as error:
        yield json.dumps({"error": str(error)}) + "\n"


def check_model(models: Models, name: str) -> None:
    """Raises HTTPException for a name that is not on the page."""
    if name not in models.by_name:
        raise HTTPException(422, f"there is no model {name!r} here: {', '.join(models.by_name)}")


def refusal(request: Any) -> Response | None:
    """The answer to a request that is too large, or that another page sends; None for any other."""
    length, origin = request.headers.get("content-length", ""), request.headers.get("origin")
    if request.method == "POST" and not (length.isdecimal() and int(length) <= MAX_BODY):
        return JSONResponse({"detail": f"a request has at most {MAX_BODY:,} bytes, and says how many."}, 413)
    if origin and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"detail": f"{origin} is another page."}, 403)
    return None


def edited_text(text: str, reply: dict[str, Any]) -> str:
    """Raises HTTPException for an empty text, and for the one that the reply has."""
    if text.strip() in ("", str(reply.get("text")).strip()):
        raise HTTPException(422, "the edited reply is empty, or as it was")
    return text.strip()


@contextmanager
def refusals(votes: VoteFile) -> Iterator[None]:
    """Raises HTTPException for what is no vote, and where it could not be written."""
    try:
        yield
    except InvalidRow as error:
        raise HTTPException(422, f"this is no vote: {error}") from None
    except OSError as error:
        raise HTTPException(
            507, f"{votes.path} cannot be written ({error.strerror}): the vote is not counted."
        ) from None


def shown(ballot: Ballot) -> dict[str, Any]:
    """A ballot as the page may know it."""
    return {"id": ballot.id, "messages": ballot.prompt.messages, "replies": [r["text"] for r in ballot.replies]}


def counts(votes: VoteFile, annotator: str) -> dict[str, Any]:
    """How many votes stand, and how many of them are this person's."""
    standing = [vote for vote in votes.standing() if vote.verdict != "skip"]
    return {"votes": len(standing), "mine": sum(vote.annotator == annotator for vote in standing)}
