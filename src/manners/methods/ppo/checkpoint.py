"""Checkpoints of a PPO run, written atomically, and which weights it ends with."""

import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from manners.methods.callbacks import BEST, LAST
from manners.methods.distributed import ProcessGroup
from manners.methods.ppo.diagnostics import CollapseDetector
from manners.models.lora import trainable_parameters
from manners.models.policy import Policy
from manners.runtime import atomic_io, signals


@dataclass
class TrainerState:
    """How far a run has come. Random numbers need no state: each iteration derives its own from the seed."""

    kl_coef: float
    iteration: int = 0
    collapse: CollapseDetector = field(default_factory=CollapseDetector)
    start_scores: list[float] = field(default_factory=list)  # of the eval prompts, in order; NaN for no score
    best_scores: list[float] = field(default_factory=list)
    last_scores: list[float] = field(default_factory=list)
    best_iteration: int = 0
    num_evaluations: int = 0


def save_checkpoint(folder: Path, state: TrainerState, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    with atomic_io.atomic_write(folder / LAST) as file:
        torch.save(
            {
                "state": asdict(state),
                "weights": trainable_weights(policy),
                "optimizer": optimizer.state_dict(),
            },
            file,
        )


def stop_if_requested(
    folder: Path, state: TrainerState, policy: Policy, optimizer: torch.optim.Optimizer, process_group: ProcessGroup
) -> None:
    """Save a checkpoint where any process has had a signal.

    Raises ShutdownRequested then. The weights must be those of ``state``.
    """
    if process_group.sum(torch.tensor(float(signals.shutdown_requested()))) > 0:
        if process_group.rank == 0:
            save_checkpoint(folder, state, policy, optimizer)
        raise signals.ShutdownRequested(signals.pending_signals[0] if signals.pending_signals else signal.SIGTERM)


def load_checkpoint(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> TrainerState | None:
    """Restore ``policy`` and ``optimizer`` from the last checkpoint; None where there is none."""
    if not (folder / LAST).exists():
        return None
    saved: dict[str, Any] = torch.load(folder / LAST, weights_only=True, map_location="cpu")
    copy_weights(policy, saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])
    return TrainerState(**saved["state"] | {"collapse": CollapseDetector(**saved["state"]["collapse"])})


def save_best_policy(folder: Path, policy: Policy) -> None:
    with atomic_io.atomic_write(folder / BEST) as file:
        save_file(trainable_weights(policy), file.name)


def load_best_policy(folder: Path, policy: Policy) -> None:
    if (folder / BEST).exists():
        copy_weights(policy, load_file(folder / BEST))


def significantly_better(
    scores: list[float], others: list[float], num_candidates: int = 1, clusters: np.ndarray | None = None
) -> bool:
    """Whether ``scores`` are higher than ``others`` of the same N prompts, beyond chance.

    A paired t-test over the prompts, or over the means of their ``clusters`` (N,), one-sided at 5 %; where ``scores``
    are the best of several candidates, the level is divided among these (Bonferroni).
    """
    differences = np.array(scores) - np.array(others)
    scored = ~np.isnan(differences)
    differences = differences[scored]
    if clusters is not None and len(differences):
        _, of = np.unique(clusters[scored], return_inverse=True)
        differences = np.bincount(of, differences) / np.bincount(of)
    if len(differences) < 2 or np.ptp(differences) == 0:  # no variance to test with
        return bool(len(differences) > 1 and differences[0] > 0)
    return bool(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue < 0.05 / num_candidates)


def trainable_weights(policy: Policy) -> dict[str, torch.Tensor]:
    """Copies of the trainable weights on the CPU, by name, of any shape (...)."""
    return {name: p.detach().cpu().contiguous().clone() for name, p in trainable_parameters(policy).items()}


def copy_weights(policy: Policy, saved: dict[str, torch.Tensor]) -> None:
    """Load ``saved`` weights (...) in place. Raises RuntimeError where they belong to another model."""
    own = trainable_parameters(policy)
    if own.keys() != saved.keys():
        raise RuntimeError("the checkpoint belongs to another model")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(saved[name])
