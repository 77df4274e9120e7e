"""What is typed with a slash: each command makes a new session of the old one, and may have something to say."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from omegaconf import DictConfig

from manners.chat.model import SetScale
from manners.chat.session import Session, drop_reply, undo_turn
from manners.data.types import Message
from manners.errors import MannersError, did_you_mean
from manners.pipeline import model_ref
from manners.pipeline.model_ref import ModelRef

Score = Callable[[list[tuple[list[Message], str]]], list[float]]


class Result(NamedTuple):
    session: Session
    words: str = ""
    leave: bool = False


@dataclass(frozen=True)
class Tools:
    """What commands need of the world."""

    turn: SetScale
    score: Score


class Command(NamedTuple):
    run: Callable[[Session, str, Tools], Result]
    argument: str
    meaning: str


def dispatch(line: str, session: Session, tools: Tools) -> Result:
    """The command in ``line``, which begins with a slash. Raises MannersError for what it cannot do."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise MannersError(f"there is no {name}. {did_you_mean(name, COMMANDS)}")
    return COMMANDS[name].run(session, argument.strip(), tools)


def toggle_base(session: Session, _argument: str, tools: Tools) -> Result:
    tools.turn(0)
    off = not session.base
    words = "the model before training answers now" if off else f"scale {session.scale:g} again"
    return Result(replace(session, base=off), words)


def toggle_compare(session: Session, _argument: str, tools: Tools) -> Result:
    tools.turn(0)
    on = not session.compare
    words = "both answer now; the conversation goes on with what the trained one says" if on else "one answers again"
    return Result(replace(session, compare=on), words)


def set_adapter_scale(session: Session, argument: str, tools: Tools) -> Result:
    try:
        scale = float(argument)
    except ValueError:
        scale = float("nan")
    if not -1 <= scale <= 2:
        raise MannersError(
            f"the scale is {session.scale:g}; another is a number from -1 to 2, such as /scale 0.5"
        )
    tools.turn(scale)
    return Result(replace(session, scale=scale, base=False), f"scale {scale:g}")


def set_system(session: Session, argument: str, _tools: Tools) -> Result:
    words = f"the system message from here on: {argument}" if argument else "no system message"
    return Result(replace(session, system=argument or None), words)


def undo(session: Session, _argument: str, _tools: Tools) -> Result:
    shorter = undo_turn(session)
    line = session.turns[len(shorter.turns)]["content"]
    return Result(shorter, f"taken back: {shorten(line, 60, placeholder=' …')}")


def retry(session: Session, _argument: str, _tools: Tools) -> Result:
    return Result(drop_reply(session))


def reset(session: Session, _argument: str, _tools: Tools) -> Result:
    return Result(replace(session, turns=()), "a new conversation")


def save_conversation(session: Session, argument: str, _tools: Tools) -> Result:
    """One more line of the file, as ``dataset=jsonl`` reads it."""
    file = Path(argument).expanduser()
    if file.suffix != ".jsonl":
        raise MannersError("conversations are saved as lines of a .jsonl file: /save chat.jsonl")
    if len(session.turns) < 2:
        raise MannersError("there is nothing to save yet.")
    try:
        whole = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
        with file.open("a", encoding="utf-8") as out:
            out.write(("" if whole else "\n") + json.dumps({"messages": session.messages}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MannersError(f"{file} cannot be written ({error.strerror}): /save another.jsonl") from None
    return Result(session, f"saved to {file}")


def score_reply(session: Session, _argument: str, tools: Tools) -> Result:
    said = session.messages
    replies = [(said[:i], message["content"]) for i, message in enumerate(said) if message["role"] == "assistant"]
    if not replies:
        raise MannersError("there is no reply yet to score.")
    scores = tools.score(replies)
    lines = [f"{s:7.2f}  {shorten(reply, 70, placeholder=' …')}" for s, (_, reply) in zip(scores, replies, strict=True)]
    return Result(session, "\n".join(lines))


def show_help(session: Session, _argument: str, _tools: Tools) -> Result:
    rows = [(f"{name} {command.argument}", command.meaning) for name, command in COMMANDS.items()]
    return Result(session, "\n".join(f"{words:18}{meaning}" for words, meaning in rows))


def quit_chat(session: Session, _argument: str, _tools: Tools) -> Result:
    return Result(session, leave=True)


COMMANDS = {
    "/base": Command(toggle_base, "", "the model before its training answers; again: the trained one"),
    "/compare": Command(toggle_compare, "", "both answer, side by side; again: one"),
    "/scale": Command(
        set_adapter_scale, "NUMBER", "how much of the training acts: 0 none, 1 all, 2 twice, -1 its opposite"
    ),
    "/system": Command(set_system, "TEXT", "set the system message; without TEXT: none"),
    "/undo": Command(undo, "", "take back your last line and the reply to it"),
    "/retry": Command(retry, "", "another reply to your last line"),
    "/reset": Command(reset, "", "begin anew"),
    "/save": Command(save_conversation, "FILE.jsonl", "append the conversation, as dataset=jsonl reads it"),
    "/score": Command(score_reply, "", "the reward model's opinion of each reply so far"),
    "/help": Command(show_help, "", "this list"),
    "/quit": Command(quit_chat, "", "leave; so does Ctrl-D"),
}


def lazy_scorer(cfg: DictConfig, chosen: ModelRef, device: str) -> Score:
    """The reward model that ``cfg.reward_from`` names: found now, loaded when it is first asked."""
    source = None if cfg.reward_from == "auto" else model_ref.resolve_reward_model(cfg, [chosen])
    loaded: list[Score] = []

    def score(replies: list[tuple[list[Message], str]]) -> list[float]:
        found = model_ref.resolve_reward_model(cfg, [chosen]) if cfg.reward_from == "auto" else source
        if found is None:
            raise MannersError("there is no reward model to ask: begin again with reward_from=auto or reward_from=RUN.")
        if not loaded:
            loaded.append(model_ref.load_scorer(found, device))
        return loaded[0](replies)

    return score
