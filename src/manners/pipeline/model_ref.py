"""Models that are there already, to listen to: the latest run, a run by id or name, a folder, a name on the hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from manners.data.types import Message
from manners.errors import MannersError, did_you_mean
from manners.runtime import run_dir
from manners.runtime.run_dir import MODEL_DIR, RunArtifact
from manners.tracking import store

GENERATING_METHODS = ("sft", "dpo", "ppo", "rloo")  # methods whose runs answer; a reward run only scores


@dataclass(frozen=True)
class ModelRef:
    """What a name stands for, before anything is loaded."""

    name: str  # as reports call it
    model: str  # a folder, or a name on the hub
    run: RunArtifact | None = None  # None for a name on the hub

    @property
    def config(self) -> DictConfig | None:
        """What made it; None where that was not us."""
        return self.run.config if self.run else None

    @property
    def reward(self) -> str | None:
        """The folder of the reward model that its run learned from."""
        return run_dir.load_state(Path(self.model).parent).get("inputs", {}).get("reward") if self.run else None


class LoadedModel:
    """A model that answers, and the one it was before its training."""

    def __init__(self, chosen: ModelRef, model: Any, tokenizer: Any, adapted: bool):
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
        from manners.models import loading

        made_by = self.chosen.config
        if made_by is None:
            raise MannersError(f"{self.name} was not trained here: there is no model before it to compare with.")
        whole: Any = loading.load_model(made_by.model.name, made_by.model.revision)
        return whole.to(self.model.device)

    @contextmanager
    def before(self) -> Iterator[Any]:
        """Within: the model before its training."""
        if not self.adapted:
            yield self.whole_base
            return
        with self.model.disable_adapter():
            yield self.model


def load_model_ref(chosen: ModelRef, device: str) -> LoadedModel:
    """The model of a run or a name, in 32 bits (4-bit where it was trained so), on ``device``."""
    from manners.models import loading, lora

    made_by, folder = chosen.config, Path(loading.resolve_name(chosen.model))
    template = made_by.model.chat_template if made_by else "auto"
    adapted = (folder / lora.CONFIG).exists()
    own = chosen.model if (folder / "tokenizer_config.json").exists() or not adapted else lora.base_model_name(folder)
    tokenizer = loading.load_tokenizer(own, None, "auto" if made_by else template)
    if not adapted:
        whole: Any = loading.load_model(chosen.model)
        return LoadedModel(chosen, whole.to(device), tokenizer, False)
    name, revision = (made_by.model.name, made_by.model.revision) if made_by else (lora.base_model_name(folder), None)
    four_bit = made_by is not None and made_by.adapter.quantization != "none"
    whole = loading.load_model(name, revision, quantization=made_by.adapter.quantization if made_by else "none")
    model = lora.load_adapter(whole, folder, tokenizer)
    return LoadedModel(chosen, model if four_bit else model.to(device), tokenizer, True)


def load_scorer(chosen: ModelRef, device: str) -> Callable[[Sequence[tuple[list[Message], str]]], list[float]]:
    """A reward model by its own tokenizer: (conversation, reply) pairs → scores in the units of its data."""
    from manners.methods.reward import predict_scores
    from manners.models import loading, reward_model

    made_by, folder = chosen.config, Path(chosen.model)
    network = reward_model.load_reward_model(folder, made_by.model.revision if made_by else None).to(device)
    tokenizer, units = loading.load_tokenizer(str(folder), chats=False), reward_model.ScoreNormalizer.load(folder)
    longest = made_by.method.max_length if made_by else 512
    return lambda replies: [
        units.mean + units.scale * raw for raw in predict_scores(network, tokenizer, longest, replies)
    ]


def resolve_reward_model(cfg: DictConfig, speakers: Sequence[ModelRef]) -> ModelRef | None:
    """The reward model that ``cfg.reward_from`` names; ``auto`` is the one that the first of the runs learned from."""
    if cfg.reward_from == "none":
        return None
    if cfg.reward_from != "auto":
        return resolve_model(cfg.reward_from, cfg, ("reward",), "reward_from")
    known = [chosen.reward for chosen in speakers if chosen.reward]
    if not known:
        raise MannersError(
            "reward_from=auto: none of these runs learned from a reward model. Name one: reward_from=RUN.", "reward_from"
        )
    return resolve_model(known[0], cfg, ("reward",), "reward_from")


def resolve_model(
    name: str, cfg: DictConfig, methods: tuple[str, ...] = GENERATING_METHODS, key: str = "run"
) -> ModelRef:
    """What ``name`` means among the runs of ``cfg.output_dir``, the tracking store, the folders and the hub.

    ``latest_run`` is the newest finished run of one of ``methods``. Raises MannersError where it means nothing.
    """
    if name == "latest":
        return latest_run(cfg, methods, key)
    if name == "tiny":
        return ModelRef("tiny", "tiny")
    found = run_dir.find_by_name(name, cfg.output_dir) or store.fetch_run(cfg, name)
    if found and found.config and found.config.method.name not in methods:
        raise MannersError(
            f"{key}={name} is a run of method={found.config.method.name}, and one of {', '.join(methods)} is needed.",
            key,
        )
    if found:
        return ModelRef(found.run, str(found.model), found)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelRef(name, name)
    names = [p.name for p in (Path(cfg.output_dir) / "runs").glob("*")]
    raise MannersError(
        f"{key}={name} is neither a finished run, nor a folder with a model, nor a name on the hub. "
        + (did_you_mean(name, names) if names else "There are no runs here yet: python train.py"),
        key,
    )


def latest_run(cfg: DictConfig, methods: tuple[str, ...] = GENERATING_METHODS, key: str = "run") -> ModelRef:
    """The run that finished last."""
    found = []
    for path in (Path(cfg.output_dir) / "runs").glob("*/run.json"):
        state, model = run_dir.load_state(path.parent), path.parent / MODEL_DIR
        made = RunArtifact(model, state.get("stage_mark", ""), path.parent.name, state.get("mlflow_run_id", ""))
        if state.get("status") == "finished" and made.config and made.config.method.name in methods:
            found.append((path.stat().st_mtime, made))
    if not found:
        raise MannersError(f"{key}=latest: {cfg.output_dir}/runs has no finished run yet. Train one: python train.py")
    made = max(found, key=lambda one: one[0])[1]
    return ModelRef(made.run, str(made.model), made)
