"""What is typed with a slash: each command makes a new session of the old one, and may have something to say."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

from omegaconf import DictConfig

from manners import speaker
from manners.chat.dial import Turn
from manners.chat.session import Session, unanswered, undone
from manners.data.rows import Message
from manners.errors import MannersError, did_you_mean
from manners.speaker import Chosen

Score = Callable[[list[tuple[list[Message], str]]], list[float]]


class Result(NamedTuple):
    session: Session
    words: str = ""
    leave: bool = False


@dataclass(frozen=True)
class Tools:
    """What commands need of the world."""

    turn: Turn
    score: Score


class Command(NamedTuple):
    run: Callable[[Session, str, Tools], Result]
    argument: str
    meaning: str


def obey(line: str, session: Session, tools: Tools) -> Result:
    """The command in ``line``, which begins with a slash. Raises MannersError for what it cannot do."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise MannersError(f"there is no {name}. {did_you_mean(name, COMMANDS)}")
    return COMMANDS[name].run(session, argument.strip(), tools)


def toggle_base(session: Session, _argument: str, tools: Tools) -> Result:
    tools.turn(0)
    off = not session.base
    words = "the model before training answers now" if off else f"strength {session.strength:g} again"
    return Result(replace(session, base=off), words)


def toggle_compare(session: Session, _argument: str, tools: Tools) -> Result:
    tools.turn(0)
    on = not session.compare
    words = "both answer now; the conversation goes on with what the trained one says" if on else "one answers again"
    return Result(replace(session, compare=on), words)


def set_strength(session: Session, argument: str, tools: Tools) -> Result:
    try:
        strength = float(argument)
    except ValueError:
        strength = float("nan")
    if not -1 <= strength <= 2:
        raise MannersError(
            f"the strength is {session.strength:g}; another is a number from -1 to 2, such as /strength 0.5"
        )
    tools.turn(strength)
    return Result(replace(session, strength=strength, base=False), f"strength {strength:g}")


def set_system(session: Session, argument: str, _tools: Tools) -> Result:
    words = f"the system message from here on: {argument}" if argument else "no system message"
    return Result(replace(session, system=argument or None), words)


def undo(session: Session, _argument: str, _tools: Tools) -> Result:
    shorter = undone(session)
    line = session.turns[len(shorter.turns)]["content"]
    return Result(shorter, f"taken back: {shorten(line, 60, placeholder=' …')}")


def retry(session: Session, _argument: str, _tools: Tools) -> Result:
    return Result(unanswered(session))


def reset(session: Session, _argument: str, _tools: Tools) -> Result:
    return Result(replace(session, turns=()), "a new conversation")


def save(session: Session, argument: str, _tools: Tools) -> Result:
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


def score(session: Session, _argument: str, tools: Tools) -> Result:
    said = session.messages
    replies = [(said[:i], message["content"]) for i, message in enumerate(said) if message["role"] == "assistant"]
    if not replies:
        raise MannersError("there is no reply yet to score.")
    scores = tools.score(replies)
    lines = [f"{s:7.2f}  {shorten(reply, 70, placeholder=' …')}" for s, (_, reply) in zip(scores, replies, strict=True)]
    return Result(session, "\n".join(lines))


def tell(session: Session, _argument: str, _tools: Tools) -> Result:
    rows = [(f"{name} {command.argument}", command.meaning) for name, command in COMMANDS.items()]
    return Result(session, "\n".join(f"{words:18}{meaning}" for words, meaning in rows))


def leave(session: Session, _argument: str, _tools: Tools) -> Result:
    return Result(session, leave=True)


COMMANDS = {
    "/base": Command(toggle_base, "", "the model before its training answers; again: the trained one"),
    "/compare": Command(toggle_compare, "", "both answer, side by side; again: one"),
    "/strength": Command(
        set_strength, "NUMBER", "how much of the training acts: 0 none, 1 all, 2 twice, -1 its opposite"
    ),
    "/system": Command(set_system, "TEXT", "set the system message; without TEXT: none"),
    "/undo": Command(undo, "", "take back your last line and the reply to it"),
    "/retry": Command(retry, "", "another reply to your last line"),
    "/reset": Command(reset, "", "begin anew"),
    "/save": Command(save, "FILE.jsonl", "append the conversation, as dataset=jsonl reads it"),
    "/score": Command(score, "", "the reward model's opinion of each reply so far"),
    "/help": Command(tell, "", "this list"),
    "/quit": Command(leave, "", "leave; so does Ctrl-D"),
}


def scores_by(cfg: DictConfig, chosen: Chosen, device: str) -> Score:
    """The reward model that ``cfg.reward`` names: found now, loaded when it is first asked."""
    source = None if cfg.reward == "auto" else speaker.choose_reward(cfg, [chosen])
    loaded: list[Score] = []

    def score(replies: list[tuple[list[Message], str]]) -> list[float]:
        found = speaker.choose_reward(cfg, [chosen]) if cfg.reward == "auto" else source
        if found is None:
            raise MannersError("there is no reward model to ask: begin again with reward=auto or reward=RUN.")
        if not loaded:
            loaded.append(speaker.scorer(found, device))
        return loaded[0](replies)

    return score
