"""Two models that talk with each other; what they say is kept as data."""

import json
import os
import re
from dataclasses import replace
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners.chat.model import ChatModel
from manners.chat.session import Session, add_turn
from manners.chat.streaming import SamplingState
from manners.chat.terminal import COLOURS, Screen, with_reply
from manners.tracking import store


def run_self_chat(cfg: DictConfig, voices: dict[str, ChatModel]) -> Path:
    """``cfg.turns`` turns of both together, fewer where one says nothing. The user opens, with ``cfg.prompt`` if set.

    The transcript is written after every turn; at the end its folder, which is returned, goes to a run of its own.
    """
    screen, chance = Screen(person=False, colours=True), SamplingState.of(cfg)
    names = {role: voice.name for role, voice in voices.items()}
    folder = new_self_chat_dir(Path(cfg.output_dir) / "arena", names)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    for voice in voices.values():
        voice.turn(cfg.adapter_scale)
    session = Session(system=cfg.system, scale=cfg.adapter_scale)
    try:
        for i in range(cfg.turns):
            role = ("user", "assistant")[i % 2]
            screen.out.print(f"{role}: ", end="", style=f"bold {COLOURS[role]}")
            if i == 0 and cfg.prompt:
                session = add_turn(session, role, screen.stream(iter([cfg.prompt.strip()]), role))
            elif longer := with_reply(replace(session, role=role), voices[role], chance, screen):
                session = longer
            else:
                break
            write_row(folder / "transcript.jsonl", {"messages": session.messages, **names})
    except KeyboardInterrupt:
        screen.note("\nstopped")
    tags = {"manners.method": "arena"} | {f"manners.{role}": name for role, name in names.items()}
    store.log_evaluation(cfg, folder.name, tags, {"turns": len(session.turns)}, folder)
    screen.note(f"transcript: {folder / 'transcript.jsonl'}")
    return folder


def new_self_chat_dir(under: Path, names: dict[str, str]) -> Path:
    name = re.sub(r"[^\w.-]+", "_", f"{names['user']}-and-{names['assistant']}")
    folder = next(under / f"{name}-{n}" for n in count(1) if not (under / f"{name}-{n}").exists())
    folder.mkdir(parents=True)
    return folder


def write_row(file: Path, row: dict[str, object]) -> None:
    """As a whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, file)
