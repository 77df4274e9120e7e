"""Models that are there already, to listen to: the latest run, a run by id or name, a folder, a name on the hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners import lineage, store
from manners.data.rows import Message
from manners.errors import MannersError, did_you_mean
from manners.lineage import MODEL, Input

ANSWERING = ("sft", "dpo", "ppo", "rloo")  # methods whose runs answer; a reward run only scores


@dataclass(frozen=True)
class Chosen:
    """What a name stands for, before anything is loaded."""

    name: str  # as reports call it
    model: str  # a folder, or a name on the hub
    run: Input | None = None  # None for a name on the hub

    @property
    def config(self) -> DictConfig | None:
        """What made it; None where that was not us."""
        return self.run.config if self.run else None

    @property
    def reward(self) -> str | None:
        """The folder of the reward model that its run learned from."""
        return lineage.load_state(Path(self.model).parent).get("inputs", {}).get("reward") if self.run else None


class Speaker:
    """A model that answers, and the one it was before its training."""

    def __init__(self, chosen: Chosen, model: Any, tokenizer: Any, adapted: bool):
        self.chosen, self.model, self.tokenizer, self.adapted = chosen, model, tokenizer, adapted

    @property
    def name(self) -> str:
        return self.chosen.name

    @property
    def trained(self) -> bool:
        """Whether there is a model before it to compare with."""
        return self.adapted or self.chosen.config is not None

    @cached_property
    def whole_base(self) -> Any:
        """The weights that a full fine-tuning began with."""
        from manners.models import base

        made_by = self.chosen.config
        if made_by is None:
            raise MannersError(f"{self.name} was not trained here: there is no model before it to compare with.")
        whole: Any = base.load(made_by.model.name, made_by.model.revision)
        return whole.to(self.model.device)

    @contextmanager
    def before(self) -> Iterator[Any]:
        """Within: the model before its training."""
        if not self.adapted:
            yield self.whole_base
            return
        with self.model.disable_adapter():
            yield self.model


def load(chosen: Chosen, device: str) -> Speaker:
    """The model of a run or a name, in 32 bits (4-bit where it was trained so), on ``device``."""
    from manners.models import adapters, base

    made_by, folder = chosen.config, Path(base.resolve(chosen.model))
    template = made_by.model.chat_template if made_by else "auto"
    adapted = (folder / adapters.CONFIG).exists()
    own = chosen.model if (folder / "tokenizer_config.json").exists() or not adapted else adapters.base_of(folder)
    tokenizer = base.load_tokenizer(own, None, "auto" if made_by else template)
    if not adapted:
        whole: Any = base.load(chosen.model)
        return Speaker(chosen, whole.to(device), tokenizer, False)
    name, revision = (made_by.model.name, made_by.model.revision) if made_by else (adapters.base_of(folder), None)
    four_bit = made_by is not None and made_by.adapter.quantization != "none"
    whole = base.load(name, revision, quantization=made_by.adapter.quantization if made_by else "none")
    model = adapters.load(whole, folder, tokenizer)
    return Speaker(chosen, model if four_bit else model.to(device), tokenizer, True)


def scorer(chosen: Chosen, device: str) -> Callable[[Sequence[tuple[list[Message], str]]], list[float]]:
    """A reward model by its own tokenizer: (conversation, reply) pairs → scores in the units of its data."""
    from manners.methods.reward import predict
    from manners.models import base, reward

    made_by, folder = chosen.config, Path(chosen.model)
    network = reward.reload(folder, made_by.model.revision if made_by else None).to(device)
    tokenizer, units = base.load_tokenizer(str(folder), chats=False), reward.Units.load(folder)
    longest = made_by.method.max_length if made_by else 512
    return lambda replies: [units.mean + units.scale * raw for raw in predict(network, tokenizer, longest, replies)]


def choose_reward(cfg: DictConfig, speakers: Sequence[Chosen]) -> Chosen | None:
    """The reward model that ``cfg.reward`` names; ``auto`` is the one that the first of the runs learned from."""
    if cfg.reward == "none":
        return None
    if cfg.reward != "auto":
        return choose(cfg.reward, cfg, ("reward",), "reward")
    known = [chosen.reward for chosen in speakers if chosen.reward]
    if not known:
        raise MannersError(
            "reward=auto: none of these runs learned from a reward model. Name one: reward=RUN.", "reward"
        )
    return choose(known[0], cfg, ("reward",), "reward")


def choose(name: str, cfg: DictConfig, methods: tuple[str, ...] = ANSWERING, key: str = "run") -> Chosen:
    """What ``name`` means among the runs of ``cfg.output_dir``, the tracking store, the folders and the hub.

    ``latest`` is the newest finished run of one of ``methods``. Raises MannersError where it means nothing.
    """
    if name == "latest":
        return latest(cfg, methods, key)
    if name == "tiny":
        return Chosen("tiny", "tiny")
    found = lineage.given(name, cfg.output_dir) or store.fetch(cfg, name)
    if found and found.config and found.config.method.name not in methods:
        raise MannersError(
            f"{key}={name} is a run of method={found.config.method.name}, and one of {', '.join(methods)} is needed.",
            key,
        )
    if found:
        return Chosen(found.run, str(found.model), found)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Chosen(name, name)
    names = [p.name for p in (Path(cfg.output_dir) / "runs").glob("*")]
    raise MannersError(
        f"{key}={name} is neither a finished run, nor a folder with a model, nor a name on the hub. "
        + (did_you_mean(name, names) if names else "There are no runs here yet: python train.py"),
        key,
    )


def latest(cfg: DictConfig, methods: tuple[str, ...] = ANSWERING, key: str = "run") -> Chosen:
    """The run that finished last."""
    found = []
    for path in (Path(cfg.output_dir) / "runs").glob("*/run.json"):
        state, model = lineage.load_state(path.parent), path.parent / MODEL
        made = Input(model, state.get("stage_mark", ""), path.parent.name, state.get("mlflow_run_id", ""))
        if state.get("status") == "finished" and made.config and made.config.method.name in methods:
            found.append((path.stat().st_mtime, made))
    if not found:
        raise MannersError(f"{key}=latest: {cfg.output_dir}/runs has no finished run yet. Train one: python train.py")
    made = max(found, key=lambda one: one[0])[1]
    return Chosen(made.run, str(made.model), made)
