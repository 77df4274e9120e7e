"""What a restart needs, written as a whole or not at all; and the best weights so far."""

import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from manners import disk, stop
from manners.methods.fit import BEST, LAST
from manners.methods.ppo.guards import Collapse
from manners.methods.ppo.world import World
from manners.models.actor import Actor
from manners.models.adapters import trainable


@dataclass
class Progressed:
    """How far a run has come. Random numbers need no state: each iteration derives its own from the seed."""

    kl_coef: float
    iteration: int = 0
    best_reward: float = float("-inf")
    best_iteration: int = 0
    collapse: Collapse = field(default_factory=Collapse)


def save(folder: Path, state: Progressed, actor: Actor, optimizer: torch.optim.Optimizer) -> None:
    with disk.whole(folder / LAST) as file:
        torch.save({"state": asdict(state), "weights": weights(actor), "optimizer": optimizer.state_dict()}, file)


def save_and_stop_if_told(
    folder: Path, state: Progressed, actor: Actor, optimizer: torch.optim.Optimizer, world: World
) -> None:
    """All processes stop together, one of which may have been told first. The weights must be those of ``state``."""
    if world.sum(torch.tensor(float(stop.asked()))) > 0:
        if world.rank == 0:
            save(folder, state, actor, optimizer)
        raise stop.Stopped(stop.noted[0] if stop.noted else signal.SIGTERM)


def load(folder: Path, actor: Actor, optimizer: torch.optim.Optimizer) -> Progressed | None:
    """Put ``actor`` and ``optimizer`` back where the last checkpoint was; None where there is none."""
    if not (folder / LAST).exists():
        return None
    saved: dict[str, Any] = torch.load(folder / LAST, weights_only=True, map_location="cpu")
    put(actor, saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])
    return Progressed(**saved["state"] | {"collapse": Collapse(**saved["state"]["collapse"])})


def save_best(folder: Path, actor: Actor) -> None:
    with disk.whole(folder / BEST) as file:
        save_file(weights(actor), file.name)


def load_best(folder: Path, actor: Actor) -> None:
    if (folder / BEST).exists():
        put(actor, load_file(folder / BEST))


def weights(actor: Actor) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().contiguous().clone() for name, p in trainable(actor).items()}


def put(actor: Actor, saved: dict[str, torch.Tensor]) -> None:
    own = trainable(actor)
    if own.keys() != saved.keys():
        raise RuntimeError("the checkpoint is of another model")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(saved[name])
