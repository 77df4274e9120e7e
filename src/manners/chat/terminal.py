"""The conversation of a person with a model: at a terminal, through a pipe, or for one prompt."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from manners.chat.commands import Result, Tools, dispatch, lazy_scorer
from manners.chat.model import ChatModel
from manners.chat.session import Session, add_turn
from manners.chat.streaming import SamplingState, prompt_ids, stream_reply
from manners.errors import MannersError
from manners.pipeline.model_ref import ModelRef

COLOURS = {"user": "cyan", "assistant": "green"}
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}  # words as they are


@dataclass
class Screen:
    """Where words go. A ``person`` at a terminal can stop a reply and mend a mistake; a pipe can do neither."""

    person: bool
    colours: bool
    out: Console = field(default_factory=partial(Console, **PLAIN))
    err: Console = field(default_factory=partial(Console, **PLAIN, stderr=True))
    noted: set[str] = field(default_factory=set)

    def note(self, words: str) -> None:
        """What is no turn: a pipe carries turns alone."""
        (self.out if self.person else self.err).print(words, style="dim")

    def once(self, words: str) -> None:
        if words not in self.noted:
            self.noted.add(words)
            self.note(words)

    def stream(self, pieces: Iterator[str], role: str) -> str:
        """Show a turn as it comes, and return it."""
        coloured = partial(self.out.print, end="", style=COLOURS[role])
        plain = partial(print, end="", flush=True, file=self.out.file)  # rich would turn tabs into spaces
        text = self.heard(pieces, coloured if self.colours else plain)
        self.out.print()
        return text

    def stream_beside(self, sides: dict[str, Iterator[str]], role: str) -> str:
        """Turns in columns, one after the other as they are made; the last is returned."""
        if not self.person:
            for name, pieces in sides.items():
                self.out.print(f"{name}: ", end="")
                text = self.stream(pieces, role)
            return text
        texts = [Text(style=COLOURS[role]) for _ in sides]
        table = Table(*(Column(name, ratio=1) for name in sides), box=None, expand=True, header_style="dim")
        table.add_row(*texts)
        with Live(table, console=self.out, auto_refresh=False, vertical_overflow="visible") as live:
            for shown, pieces in zip(texts, sides.values(), strict=True):
                self.heard(pieces, partial(append_live, live, shown))
        return texts[-1].plain

    def heard(self, pieces: Iterator[str], show: Callable[[str], object]) -> str:
        """All of ``pieces``, or those up to Ctrl-C, which stops a reply and not the program."""
        text = ""
        try:
            for piece in pieces:
                text += piece
                show(piece)
        except KeyboardInterrupt:
            if not self.person:
                raise
        return text


def append_live(live: Live, shown: Text, piece: str) -> None:
    shown.append(piece)
    live.refresh()


def run_terminal(cfg: DictConfig, chosen: ModelRef, voice: ChatModel) -> None:
    """Talk until the person leaves, the pipe ends, or the one prompt is answered."""
    person = cfg.prompt is None and sys.stdin.isatty()
    screen = Screen(person, colours=person)
    session = Session(system=cfg.system, role=cfg.role, scale=cfg.adapter_scale)
    tools = Tools(voice.turn, lazy_scorer(cfg, chosen, str(voice.model.device)))
    voice.turn(cfg.adapter_scale)
    if cfg.prompt is not None:
        with_reply(add_turn(session, session.person, cfg.prompt.strip()), voice, SamplingState.of(cfg), screen)
        return
    if person:
        origin = f", trained from {voice.origin}" if voice.origin else ""
        screen.note(f"{voice.name}{origin}. It is the {cfg.role}; /help lists what you can type, /quit leaves.")
    run_session(session, typed_lines(session) if person else piped_lines(), voice, tools, SamplingState.of(cfg), screen)


def run_session(
    session: Session, lines: Iterable[str], voice: ChatModel, tools: Tools, chance: SamplingState, screen: Screen
) -> Session:
    """The session after all ``lines``; each is a turn or a command."""
    if session.waits:
        session = with_reply(session, voice, chance, screen) or session
    for line in filter(None, map(str.strip, lines)):
        try:
            turn = Result(add_turn(session, session.person, line))
            result = dispatch(line, session, tools) if line.startswith("/") else turn
            if result.leave:
                break
            if result.words:
                screen.out.print(result.words, style="dim" if screen.person else None)
            if result.session.waits:
                session = with_reply(result.session, voice, chance, screen) or session
            else:
                session = result.session
        except MannersError as error:
            if not screen.person:
                raise
            screen.out.print(str(error), style="red")
        except KeyboardInterrupt:
            if not screen.person:
                raise
    return session


def with_reply(session: Session, voice: ChatModel, chance: SamplingState, screen: Screen) -> Session | None:
    """With the model's turn; None where it said nothing, or was stopped before it could."""
    ids, left_out = prompt_ids(session, voice, chance.max_new_tokens)
    if left_out:
        screen.once("(longer than the model can read: from here on the oldest turns are left out)")
    draws = chance.draw()

    def at(scale: float) -> Iterator[str]:
        voice.turn(scale)
        yield from stream_reply(voice, ids, session.role, chance, draws)

    if session.compare:
        sides = {"before training": at(0), f"scale {session.scale:g}": at(session.scale)}
        text = screen.stream_beside(sides, session.role)
    else:
        text = screen.stream(at(0 if session.base else session.scale), session.role)
    if not text:
        screen.note("(nothing was said: the conversation is as it was before)")
    return add_turn(session, session.role, text) if text else None


def typed_lines(session: Session) -> Iterator[str]:
    """What the person types, until Ctrl-D. Arrow keys edit it and bring back earlier lines."""
    import readline  # noqa: F401  it is enough that it is there

    while True:
        try:
            yield input(f"{session.person}> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("  (/quit or Ctrl-D leaves)")


def piped_lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise MannersError(f"the input is not UTF-8 text ({error.reason}): iconv -f latin1 -t utf-8") from None
