"""Two models that talk with each other; what they say is kept as data."""

import json
import os
import re
from dataclasses import replace
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners import store
from manners.chat.dial import Voice
from manners.chat.session import Session, said
from manners.chat.speech import Chance
from manners.chat.terminal import COLOURS, Screen, answered


def run(cfg: DictConfig, voices: dict[str, Voice]) -> Path:
    """``cfg.turns`` turns of both together, fewer where one says nothing. The user opens, with ``cfg.prompt`` if set.

    The transcript is written after every turn; at the end its folder, which is returned, goes to a run of its own.
    """
    screen, chance = Screen(person=False, colours=True), Chance.of(cfg)
    names = {role: voice.name for role, voice in voices.items()}
    folder = new_folder(Path(cfg.output_dir) / "arena", names)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    for voice in voices.values():
        voice.turn(cfg.strength)
    session = Session(system=cfg.system, strength=cfg.strength)
    try:
        for i in range(cfg.turns):
            role = ("user", "assistant")[i % 2]
            screen.out.print(f"{role}: ", end="", style=f"bold {COLOURS[role]}")
            if i == 0 and cfg.prompt:
                session = said(session, role, screen.stream(iter([cfg.prompt.strip()]), role))
            elif longer := answered(replace(session, role=role), voices[role], chance, screen):
                session = longer
            else:
                break
            write(folder / "transcript.jsonl", {"messages": session.messages, **names})
    except KeyboardInterrupt:
        screen.note("\nstopped")
    tags = {"manners.method": "arena"} | {f"manners.{role}": name for role, name in names.items()}
    store.record(cfg, folder.name, tags, {"turns": len(session.turns)}, folder)
    screen.note(f"transcript: {folder / 'transcript.jsonl'}")
    return folder


def new_folder(under: Path, names: dict[str, str]) -> Path:
    name = re.sub(r"[^\w.-]+", "_", f"{names['user']}-and-{names['assistant']}")
    folder = next(under / f"{name}-{n}" for n in count(1) if not (under / f"{name}-{n}").exists())
    folder.mkdir(parents=True)
    return folder


def write(file: Path, row: dict[str, object]) -> None:
    """As a whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, file)
