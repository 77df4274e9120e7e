"""Self-chat: two models talk with each other, and the transcript is saved as a dataset row."""

import json
import re
from dataclasses import replace
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners.chat.model import ChatModel
from manners.chat.session import Session, add_turn
from manners.chat.streaming import SamplingState
from manners.chat.terminal import COLORS, Screen, generate_reply
from manners.redact import redact_secrets
from manners.runtime.atomic_io import atomic_write
from manners.tracking import store


def run_self_chat(cfg: DictConfig, chat_models: dict[str, ChatModel]) -> Path:
    """Generate ``cfg.turns`` turns, fewer if a reply is empty. The user begins, with ``cfg.prompt`` if it is set.

    The transcript is written after every turn. At the end its folder, which is returned, is logged as an MLflow run.
    """
    screen, sampling_state = Screen(interactive=False, colors=True), SamplingState.from_config(cfg)
    names = {role: chat_model.name for role, chat_model in chat_models.items()}
    folder = new_self_chat_dir(Path(cfg.output_dir) / "self_chat", names)
    (folder / "config.yaml").write_text(redact_secrets(OmegaConf.to_yaml(cfg, resolve=True)))
    for chat_model in chat_models.values():
        chat_model.set_scale(cfg.adapter_scale)
    session = Session(system=cfg.system, scale=cfg.adapter_scale)
    try:
        for i in range(cfg.turns):
            role = ("user", "assistant")[i % 2]
            screen.out.print(f"{role}: ", end="", style=f"bold {COLORS[role]}")
            if i == 0 and cfg.prompt:
                session = add_turn(session, role, screen.stream(iter([cfg.prompt.strip()]), role))
            elif extended := generate_reply(replace(session, role=role), chat_models[role], sampling_state, screen):
                session = extended
            else:
                break
            row = {"messages": session.messages, **names}
            with atomic_write(folder / "transcript.jsonl") as file:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    except KeyboardInterrupt:
        screen.note("\nstopped")
    tags = {"manners.method": "self_chat"} | {f"manners.{role}": name for role, name in names.items()}
    store.log_evaluation(cfg, folder.name, tags, {"turns": len(session.turns)}, folder)
    screen.note(f"transcript: {folder / 'transcript.jsonl'}")
    return folder


def new_self_chat_dir(parent: Path, names: dict[str, str]) -> Path:
    """Create the first unused folder ``USER-and-ASSISTANT-N`` in ``parent``."""
    name = re.sub(r"[^\w.-]+", "_", f"{names['user']}-and-{names['assistant']}")
    folder = next(parent / f"{name}-{n}" for n in count(1) if not (parent / f"{name}-{n}").exists())
    folder.mkdir(parents=True)
    return folder
