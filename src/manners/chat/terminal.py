"""Chat between a person and a model: in a terminal, through a pipe, or with a single prompt."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
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

COLORS = {"user": "cyan", "assistant": "green"}
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}  # text as it is


@dataclass
class Screen:
    """The output. In an ``interactive`` terminal Ctrl-C stops a reply and an error does not end the chat."""

    interactive: bool
    colors: bool
    out: Console = field(default_factory=partial(Console, **PLAIN))
    err: Console = field(default_factory=partial(Console, **PLAIN, stderr=True))
    notes_shown: set[str] = field(default_factory=set)

    def note(self, text: str) -> None:
        """Print what is not part of the conversation; to stderr in a pipe."""
        (self.out if self.interactive else self.err).print(text, style="dim")

    def note_once(self, text: str) -> None:
        """Print a note, but only the first time."""
        if text not in self.notes_shown:
            self.notes_shown.add(text)
            self.note(text)

    def stream(self, chunks: Iterator[str], role: str) -> str:
        """Print a turn while it is generated, and return it."""
        print_colored = partial(self.out.print, end="", style=COLORS[role])
        print_plain = partial(print, end="", flush=True, file=self.out.file)  # rich would expand tabs
        text = self.consume(chunks, print_colored if self.colors else print_plain)
        self.out.print()
        return text

    def stream_columns(self, replies: dict[str, Iterator[str]], role: str) -> str:
        """Print several replies in columns, each while it is generated, one after another; return the last."""
        if not self.interactive:
            for name, chunks in replies.items():
                self.out.print(f"{name}: ", end="")
                text = self.stream(chunks, role)
            return text
        texts = [Text(style=COLORS[role]) for _ in replies]
        table = Table(*(Column(name, ratio=1) for name in replies), box=None, expand=True, header_style="dim")
        table.add_row(*texts)
        with Live(table, console=self.out, auto_refresh=False, vertical_overflow="visible") as live:
            for cell, chunks in zip(texts, replies.values(), strict=True):
                self.consume(chunks, partial(append_live, live, cell))
        return texts[-1].plain

    def consume(self, chunks: Iterator[str], show: Callable[[str], object]) -> str:
        """The joined ``chunks``, each shown; in a terminal Ctrl-C ends the reply early and not the program."""
        text = ""
        try:
            for chunk in chunks:
                text += chunk
                show(chunk)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        return text


def append_live(live: Live, cell: Text, chunk: str) -> None:
    """Append a chunk to a cell of the live table."""
    cell.append(chunk)
    live.refresh()


def run_terminal(cfg: DictConfig, ref: ModelRef, chat_model: ChatModel) -> None:
    """Chat until the user quits, the pipe ends, or the single prompt is answered."""
    interactive = cfg.prompt is None and sys.stdin.isatty()
    screen, sampling_state = Screen(interactive, colors=interactive), SamplingState.from_config(cfg)
    session = Session(system=cfg.system, role=cfg.role, scale=cfg.adapter_scale)
    tools = Tools(chat_model.set_scale, lazy_scorer(cfg, ref, str(chat_model.model.device)))
    chat_model.set_scale(cfg.adapter_scale)
    if cfg.prompt is not None:
        session = add_turn(session, session.human_role, cfg.prompt.strip())
        generate_reply(session, chat_model, sampling_state, screen)
        return
    if interactive:
        base = f", trained from {chat_model.base_name}" if chat_model.base_name else ""
        screen.note(f"{chat_model.name}{base}, in the role of the {cfg.role}. /help lists the commands, /quit quits.")
    lines = read_terminal(session) if interactive else read_pipe()
    run_session(session, lines, chat_model, tools, sampling_state, screen)


def run_session(
    session: Session,
    lines: Iterable[str],
    chat_model: ChatModel,
    tools: Tools,
    sampling_state: SamplingState,
    screen: Screen,
) -> Session:
    """The session after all ``lines``, each a turn or a command. In a pipe, raises MannersError for a wrong line."""
    if session.is_model_turn:
        session = generate_reply(session, chat_model, sampling_state, screen) or session
    for line in filter(None, map(str.strip, lines)):
        try:
            if line.startswith("/"):
                result = dispatch(line, session, tools)
            else:
                result = Result(add_turn(session, session.human_role, line))
            if result.quit:
                break
            if result.message:
                screen.out.print(result.message, style="dim" if screen.interactive else None)
            if result.session.is_model_turn:
                session = generate_reply(result.session, chat_model, sampling_state, screen) or session
            else:
                session = result.session
        except MannersError as error:
            if not screen.interactive:
                raise
            screen.out.print(str(error), style="red")
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
    return session


def generate_reply(
    session: Session, chat_model: ChatModel, sampling_state: SamplingState, screen: Screen
) -> Session | None:
    """The session with the model's next turn; None if the reply is empty."""
    ids, num_dropped = prompt_ids(session, chat_model, sampling_state.max_new_tokens)
    if num_dropped:
        screen.note_once("(the conversation exceeds the model's context: from here on the oldest turns are left out)")
    uniforms = sampling_state.draw_uniforms()

    def stream_at(scale: float) -> Iterator[str]:
        chat_model.set_scale(scale)
        yield from stream_reply(chat_model, ids, session.role, sampling_state, uniforms)

    if session.compare:
        replies = {"base": stream_at(0), f"scale {session.scale:g}": stream_at(session.scale)}
        text = screen.stream_columns(replies, session.role)
    else:
        text = screen.stream(stream_at(0 if session.use_base else session.scale), session.role)
    if not text:
        screen.note("(empty reply: the conversation is unchanged)")
    return add_turn(session, session.role, text) if text else None


def read_terminal(session: Session) -> Iterator[str]:
    """The lines typed until Ctrl-D, with line editing and history."""
    with suppress(ImportError):  # Windows lacks it, and its terminal has both
        import readline  # noqa: F401  importing it is what enables both

    while True:
        try:
            yield input(f"{session.human_role}> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("  (/quit or Ctrl-D quits)")


def read_pipe() -> Iterator[str]:
    """The lines of stdin. Raises MannersError if they are not UTF-8."""
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise MannersError(f"the input is not UTF-8 text ({error.reason}): iconv -f latin1 -t utf-8") from None
