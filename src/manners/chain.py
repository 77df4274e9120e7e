"""How runs follow from one another: PPO from its SFT policy and its reward model.

A stage that a run needs is a command of its own: the run's, with another method and the overrides that the config
names. So what `python train.py method=sft` trained by hand is found, and a sweep over PPO trains it once.
"""

import json
import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from manners import lineage, store
from manners.data import readers, source
from manners.data.readers import Splits
from manners.data.rows import digest
from manners.errors import MannersError, did_you_mean
from manners.lineage import Folder, Input


@dataclass(frozen=True)
class Stage:
    """A run that is to be. ``role`` is what a later run needs it for: "policy" or "reward", "" for the last one."""

    cfg: DictConfig
    overrides: list[str]  # the command that makes it, less `python train.py`
    role: str = ""
    given: str = ""  # a run id or folder, in place of a run that this config would make

    @property
    def splits(self) -> Splits:
        return rows(*source_of(self.cfg.dataset))

    @property
    def digest(self) -> str:
        return digest_of(*source_of(self.cfg.dataset))

    @property
    def command(self) -> str:
        return shlex.join(["python", "train.py", *self.overrides])


def source_of(dataset: DictConfig) -> tuple[str, tuple[int, ...]]:
    """What the rows depend on: the config, and when its files were last written."""
    place = source.local_path(dataset.path)
    written = tuple(f.stat().st_mtime_ns for f in source.files_of(place)) if place else ()
    return json.dumps(OmegaConf.to_container(dataset, resolve=True)), written


@lru_cache(maxsize=4)
def rows(dataset: str, written: tuple[int, ...]) -> Splits:
    """Read once for all jobs and stages of a process that have the same data."""
    return readers.read(OmegaConf.create(json.loads(dataset)))


@lru_cache(maxsize=4)
def digest_of(dataset: str, written: tuple[int, ...]) -> str:
    return digest(rows(dataset, written).train)


def mark(stage: Stage) -> str:
    return lineage.stage_mark(stage.cfg, stage.digest)


def mark_of(need: Stage) -> str:
    """That of the run which a stage stands for, be it given, finished, or still to be trained."""
    return take(need).mark if need.given else mark(need)


def find(stage: Stage, mark: str) -> Input | None:
    """The finished run that the stage would make, in the run folders or, failing that, in the tracking store."""
    return lineage.finished(stage.cfg.output_dir, mark) or store.find(stage.cfg, mark)


def take(stage: Stage) -> Input:
    """The run or folder that the config names. Raises MannersError where it is none, or does not fit."""
    cfg = stage.cfg
    found = lineage.given(stage.given, cfg.output_dir) or store.fetch(cfg, stage.given)
    if found is None:
        names = [p.name for p in (Path(cfg.output_dir) / "runs").glob("*")]
        raise MannersError(
            f"{stage.role}={stage.given} is neither a folder with a model nor a finished run. "
            f"{did_you_mean(stage.given, names) if names else ''}"
        )
    check_fits(stage, found)
    return found


def check_fits(stage: Stage, found: Input) -> None:
    """Refuse a run of another kind, and a policy on another base or template, by name."""
    made_by = found.config
    if made_by is None:
        return
    method = made_by.method.name
    kinds = {"policy": ("sft", "ppo", "rloo", "dpo"), "reward": ("reward",)}[stage.role]
    if method not in kinds:
        raise MannersError(f"{stage.role}={stage.given} is a run of method={method}: {' or '.join(kinds)} is needed.")
    if stage.role == "reward":
        return  # it reads replies with a tokenizer of its own
    for key in ("name", "revision", "chat_template"):
        theirs, ours = made_by.model[key], stage.cfg.model[key]
        if theirs != ours:
            raise MannersError(
                f"{stage.role}={stage.given} was made with model.{key}={theirs}, and this run has {ours}: a policy "
                f"starts from its own base and template. Set model.{key}={theirs}, or choose another run."
            )


def show(stage: Stage, needs: list[Stage]) -> None:
    """What would be reused and what trained; nothing is."""
    for need in needs:
        found = take(need) if need.given else find(need, mark(need))
        print(f"{need.role:<8}{f'reuse {found.run}' if found else 'train'}  {need.command}")
    print(f"{stage.cfg.method.name:<8}train  {stage.command}")


def draw(folder: Folder, summary: str, inputs: dict[str, Input]) -> str:
    """The chain as text: each run under those that it came from."""
    lines = []
    for role, found in inputs.items():
        told = lineage.load_state(found.model.parent).get("summary", "")
        lines.append(f"{role:>8}  {found.run}" + (f"  ({told})" if told else ""))
    arrow = "       └→ " if inputs else ""
    return "\n".join([*lines, f"{arrow}{folder.path.name}" + (f"  ({summary})" if summary else "")]) + "\n"
