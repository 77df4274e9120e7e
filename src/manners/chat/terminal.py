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

from manners.chat.commands import Result, Tools, obey, scores_by
from manners.chat.dial import Voice
from manners.chat.session import Session, said
from manners.chat.speech import Chance, prompt, speak
from manners.errors import MannersError
from manners.speaker import Chosen

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
                self.heard(pieces, partial(append, live, shown))
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


def append(live: Live, shown: Text, piece: str) -> None:
    shown.append(piece)
    live.refresh()


def run(cfg: DictConfig, chosen: Chosen, voice: Voice) -> None:
    """Talk until the person leaves, the pipe ends, or the one prompt is answered."""
    person = cfg.prompt is None and sys.stdin.isatty()
    screen = Screen(person, colours=person)
    session = Session(system=cfg.system, role=cfg.role, strength=cfg.strength)
    tools = Tools(voice.turn, scores_by(cfg, chosen, str(voice.model.device)))
    voice.turn(cfg.strength)
    if cfg.prompt is not None:
        answered(said(session, session.person, cfg.prompt.strip()), voice, Chance.of(cfg), screen)
        return
    if person:
        origin = f", trained from {voice.origin}" if voice.origin else ""
        screen.note(f"{voice.name}{origin}. It is the {cfg.role}; /help lists what you can type, /quit leaves.")
    talk(session, typed(session) if person else piped(), voice, tools, Chance.of(cfg), screen)


def talk(session: Session, lines: Iterable[str], voice: Voice, tools: Tools, chance: Chance, screen: Screen) -> Session:
    """The session after all ``lines``; each is a turn or a command."""
    if session.waits:
        session = answered(session, voice, chance, screen) or session
    for line in filter(None, map(str.strip, lines)):
        try:
            turn = Result(said(session, session.person, line))
            result = obey(line, session, tools) if line.startswith("/") else turn
            if result.leave:
                break
            if result.words:
                screen.out.print(result.words, style="dim" if screen.person else None)
            if result.session.waits:
                session = answered(result.session, voice, chance, screen) or session
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


def answered(session: Session, voice: Voice, chance: Chance, screen: Screen) -> Session | None:
    """With the model's turn; None where it said nothing, or was stopped before it could."""
    ids, left_out = prompt(session, voice, chance.max_new_tokens)
    if left_out:
        screen.once("(longer than the model can read: from here on the oldest turns are left out)")
    draws = chance.draw()

    def at(strength: float) -> Iterator[str]:
        voice.turn(strength)
        yield from speak(voice, ids, session.role, chance, draws)

    if session.compare:
        sides = {"before training": at(0), f"strength {session.strength:g}": at(session.strength)}
        text = screen.stream_beside(sides, session.role)
    else:
        text = screen.stream(at(0 if session.base else session.strength), session.role)
    if not text:
        screen.note("(nothing was said: the conversation is as it was before)")
    return said(session, session.role, text) if text else None


def typed(session: Session) -> Iterator[str]:
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


def piped() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise MannersError(f"the input is not UTF-8 text ({error.reason}): iconv -f latin1 -t utf-8") from None
