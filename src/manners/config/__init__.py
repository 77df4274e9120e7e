"""Every option: its name, type, default, unit and meaning, each said once, here.

Values for whole groups stand in ``conf/``. Names follow transformers and TRL, so that those who know them feel at
home. Nothing but the standard library and omegaconf is imported, so that a mistake is answered at once.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from manners.config.groups import Adapter, Dataset, Evaluation, Hardware, Model, Sweep, Tracking
from manners.config.methods import DPO, PPO, RLOO, SFT, Fit, Method, Online, Reward
from manners.config.option import option

__all__ = [
    "DPO",
    "MISSING",
    "OBJECTIVE",
    "PPO",
    "RLOO",
    "SFT",
    "STARTS_FROM",
    "Adapter",
    "Dataset",
    "Evaluate",
    "Evaluation",
    "Fit",
    "Hardware",
    "Method",
    "Model",
    "Online",
    "Reward",
    "Sweep",
    "Talk",
    "Tracking",
    "Train",
    "is_schema",
    "option",
    "options",
    "register",
]

# What a method starts from, by the view it learns from: the others start from the base model.
STARTS_FROM: dict[str, tuple[str, ...]] = {"prompt": ("policy", "reward"), "pairs": ("policy",)}
# The metric that a run returns and a sweep optimises, as it is logged, and whether less or more of it is better.
OBJECTIVE: dict[str, tuple[str, str]] = {
    "sft": ("val/loss", "minimize"),
    "reward": ("val/loss", "minimize"),
    "dpo": ("eval_loss", "minimize"),
    "ppo": ("eval/scores", "maximize"),
    "rloo": ("eval/scores", "maximize"),
}


@dataclass
class Train:
    """One training run."""

    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    method: Method = field(default_factory=Method)
    adapter: Adapter = field(default_factory=Adapter)
    hardware: Hardware = field(default_factory=Hardware)
    evaluation: Evaluation = field(default_factory=Evaluation)
    tracking: Tracking = field(default_factory=Tracking)
    sweep: Sweep = field(default_factory=Sweep)
    study_name: str = option("manners", "name of the study: MLflow experiment and run folders carry it")
    run_name: str | None = option(None, "name of the run; made from study, method and model by default")
    policy: str = option(
        "auto", "where PPO and DPO start: auto (finds or trains the SFT run), a run id, a folder, or none"
    )
    reward: str = option("auto", "the reward model: auto (finds or trains it), a run id, a folder, or none")
    policy_overrides: list[str] = option([], "what policy=auto changes in this command to make the SFT run's")
    reward_overrides: list[str] = option([], "what reward=auto changes in this command to make the reward model's")
    lineage: str = option("run", "show prints which stages would be reused or trained, and stops", ("run", "show"))
    seed: int = option(1, "of initialisation, dropout, data order and sampling")
    output_dir: str = option("outputs", "where runs, checkpoints and the MLflow store are kept")
    resume: bool = option(True, "go on with an unfinished run of the very same configuration")
    quick: bool = option(False, "a trial run: at most 100 rows of each split, 20 steps")
    register: bool = option(False, "put the model into MLflow's registry as models:/STUDY; the best is its champion")
    preview: bool = option(False, "print the first examples as the model sees them, and stop")
    fit: bool = option(False, "say whether the run fits into memory, how long it takes and what would spare it")


@dataclass
class Scoring:
    """What opens earlier models: evaluate.py and chat.py both do."""

    reward: str = option("none", "a reward model's opinion: auto (the run's own), a run id, name or folder, or none")
    hardware: Hardware = field(default_factory=Hardware)
    tracking: Tracking = field(default_factory=Tracking)
    study_name: str = option("manners", "MLflow experiment")
    seed: int = option(1, "of sampling and of the bootstrap")
    output_dir: str = option("outputs", "where runs and the MLflow store are kept")


@dataclass
class Evaluate(Scoring):
    """Models side by side."""

    run: Any = option("latest", "latest, a run's id or name, models:/STUDY@champion, a folder, hub name; or [several]")
    base: bool = option(True, "what a run was trained from stands beside it")
    dataset: Dataset | None = option(None, "whose held-out prompts are answered; by default the run's own")
    rewards: Any = option({}, "functions that score the replies: name: {_target_, its arguments}")
    turns: int = option(0, "user turns of chats that show whether the manner fades; 0 has none")
    chats: int = option(32, "such chats")
    lm_eval: list[str] = option([], "standard benchmarks by lm-eval, an extra: such as arc_easy")
    evaluation: Evaluation = field(default_factory=Evaluation)


@dataclass
class Talk(Scoring):
    """A conversation in the terminal."""

    run: str = option("latest", "latest, a run's id or name, models:/STUDY@champion, a folder, or a hub name")
    role: str = option("assistant", "whom the model plays; as user it may speak first", ("assistant", "user"))
    prompt: str | None = option(None, "one prompt to answer, and no more; -p TEXT is the same")
    system: str | None = option(None, "system message")
    strength: float = option(1.0, "how much of the adapter: 0 is the base, 2 twice the manner, -1 its opposite")
    max_new_tokens: int = option(256, "longest reply, in tokens")
    do_sample: bool = option(True, "sample instead of taking the likeliest token")
    temperature: float = option(0.7, "of sampling")
    reward: str = option(
        "auto", "whom /score asks: auto (what the run learned from), a run id, name or folder, or none"
    )
    arena: bool = option(False, "two models talk with each other: user=RUN assistant=RUN")
    user: str = option("latest", "arena: who plays the user")
    assistant: str = option("latest", "arena: who plays the assistant")
    turns: int = option(8, "arena: turns of both together")


def is_schema(node_type: Any) -> bool:
    return isinstance(node_type, type) and is_dataclass(node_type)


def options(schema: Any) -> dict[str, Any]:
    """The fields of a schema by name; their ``metadata`` has ``help`` and ``choices``."""
    return {f.name: f for f in fields(schema)}


def register() -> None:
    """Hand the schemas to Hydra: the whole config, and one for each method's own options."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Train)
    store.store(name="evaluate_schema", node=Evaluate)
    store.store(name="chat_schema", node=Talk)
    for method in (SFT, Reward, DPO, PPO, RLOO):
        store.store(group="schema", name=method.__name__.lower(), node=method)
