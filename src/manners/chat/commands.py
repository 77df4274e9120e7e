"""The slash commands: each maps the session to a new session, possibly with a message to print."""

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

Scorer = Callable[[list[tuple[list[Message], str]]], list[float]]


class Result(NamedTuple):
    session: Session
    message: str = ""
    quit: bool = False


@dataclass(frozen=True)
class Tools:
    """The functions of models that commands call."""

    set_scale: SetScale
    score: Scorer


class Command(NamedTuple):
    run: Callable[[Session, str, Tools], Result]
    argument: str
    help: str


def dispatch(line: str, session: Session, tools: Tools) -> Result:
    """Run the command in ``line``, which starts with a slash. Raises MannersError if it is unknown or cannot be run."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise MannersError(f"there is no {name}. {did_you_mean(name, COMMANDS)}")
    if argument.strip() and not COMMANDS[name].argument:
        raise MannersError(f"{name} takes no text: type {name} alone, and your turn on a line of its own.")
    return COMMANDS[name].run(session, argument.strip(), tools)


def toggle_base(session: Session, _argument: str, tools: Tools) -> Result:
    """Switch between the base model and the trained one. Raises MannersError if there is no base model."""
    tools.set_scale(0)  # fails now, not at the next reply, if there is no base model
    use_base = not session.use_base
    message = "the base model replies now" if use_base else f"scale {session.scale:g} again"
    return Result(replace(session, use_base=use_base), message)


def toggle_compare(session: Session, _argument: str, tools: Tools) -> Result:
    """Switch between one model and both. Raises MannersError if there is no base model."""
    tools.set_scale(0)
    compare = not session.compare
    on = "both models reply now; the conversation continues with the trained model's reply"
    return Result(replace(session, compare=compare), on if compare else "one model replies again")


def set_adapter_scale(session: Session, argument: str, tools: Tools) -> Result:
    """Set the adapter scale. Raises MannersError for a scale outside [-1, 2]."""
    try:
        scale = float(argument)
    except ValueError:
        scale = float("nan")
    if not -1 <= scale <= 2:
        raise MannersError(f"the scale is {session.scale:g}; change it to a number from -1 to 2, such as /scale 0.5")
    tools.set_scale(scale)
    return Result(replace(session, scale=scale, use_base=False), f"scale {scale:g}")


def set_system(session: Session, argument: str, _tools: Tools) -> Result:
    """Set the system message, or remove it."""
    message = f"system message set: {argument}" if argument else "system message removed"
    return Result(replace(session, system=argument or None), message)


def undo(session: Session, _argument: str, _tools: Tools) -> Result:
    """Remove the human's last turn and the reply to it."""
    undone = undo_turn(session)
    removed = session.turns[len(undone.turns)]["content"]
    return Result(undone, f"removed: {shorten(removed, 60, placeholder=' …')}")


def retry(session: Session, _argument: str, _tools: Tools) -> Result:
    """Remove the last reply, so that the model generates another one."""
    return Result(drop_reply(session))


def reset(session: Session, _argument: str, _tools: Tools) -> Result:
    """Start a new conversation with the same settings."""
    return Result(replace(session, turns=()), "a new conversation")


def save_conversation(session: Session, argument: str, _tools: Tools) -> Result:
    """Append the conversation to a file as a row for ``dataset=jsonl``. Raises MannersError if it cannot be written."""
    file = Path(argument).expanduser()
    if file.suffix != ".jsonl":
        raise MannersError("conversations are saved as rows of a .jsonl file: /save chat.jsonl")
    if len(session.turns) < 2:
        raise MannersError("there is no reply to save yet.")
    try:
        ends_line = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
        row = json.dumps({"messages": session.messages}, ensure_ascii=False)
        with file.open("a", encoding="utf-8") as out:
            out.write(("" if ends_line else "\n") + row + "\n")
    except OSError as error:
        raise MannersError(f"{file} cannot be written ({error.strerror}): /save another.jsonl") from None
    return Result(session, f"saved to {file}")


def score_replies(session: Session, _argument: str, tools: Tools) -> Result:
    """List the replies with their scores. Raises MannersError if there is no reply yet, or no reward model."""
    messages = session.messages
    replies = [(messages[:i], m["content"]) for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not replies:
        raise MannersError("there is no reply to score yet.")
    scores = tools.score(replies)
    rows = zip(scores, replies, strict=True)
    lines = [f"{score:7.2f}  {shorten(reply, 70, placeholder=' …')}" for score, (_, reply) in rows]
    return Result(session, "\n".join(lines))


def show_help(session: Session, _argument: str, _tools: Tools) -> Result:
    """List the commands."""
    rows = [(f"{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
    return Result(session, "\n".join(f"{usage:18}{text}" for usage, text in rows))


def quit_chat(session: Session, _argument: str, _tools: Tools) -> Result:
    """End the chat."""
    return Result(session, quit=True)


COMMANDS = {
    "/base": Command(toggle_base, "", "let the base model reply; again: the trained model"),
    "/compare": Command(toggle_compare, "", "show the replies of both, side by side; again: of one"),
    "/scale": Command(
        set_adapter_scale, "NUMBER", "adapter scale: 0 base, 1 trained, 2 twice the change, -1 its opposite"
    ),
    "/system": Command(set_system, "TEXT", "set the system message; without TEXT: remove it"),
    "/undo": Command(undo, "", "remove your last turn and the reply to it"),
    "/retry": Command(retry, "", "generate another reply to your last turn"),
    "/reset": Command(reset, "", "start a new conversation"),
    "/save": Command(save_conversation, "FILE.jsonl", "append the conversation as a row for dataset=jsonl"),
    "/score": Command(score_replies, "", "show the reward model's score of each reply"),
    "/help": Command(show_help, "", "show this list"),
    "/quit": Command(quit_chat, "", "quit; so does Ctrl-D"),
}


def lazy_scorer(cfg: DictConfig, ref: ModelRef, device: str) -> Scorer:
    """The reward model that ``cfg.reward_from`` names, loaded on first use. Raises MannersError if there is none."""
    named = None if cfg.reward_from == "auto" else model_ref.resolve_reward_model(cfg, [ref])
    loaded: list[Scorer] = []

    def score(replies: list[tuple[list[Message], str]]) -> list[float]:
        reward_ref = model_ref.resolve_reward_model(cfg, [ref]) if cfg.reward_from == "auto" else named
        if reward_ref is None:
            raise MannersError("there is no reward model: start again with reward_from=auto or reward_from=RUN.")
        if not loaded:
            loaded.append(model_ref.load_scorer(reward_ref, device))
        return loaded[0](replies)

    return score
