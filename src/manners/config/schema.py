"""Every option: its name, type, default, unit and meaning, each said once, here.

Values for whole groups stand in ``conf/``. Names follow transformers and TRL, so that those who know them feel at
home. Nothing but the standard library and omegaconf is imported, so that a mistake is answered at once.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


def option(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """A config field with its one-line meaning, and the words it accepts where only some make sense."""
    extra = {"help": meaning, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=extra)
    return field(default=default, metadata=extra)


@dataclass
class ModelConfig:
    name: str = option(MISSING, "hub name or local folder; 'tiny' is the base model in the package")
    revision: str | None = option(None, "branch, tag or commit on the hub")
    chat_template: str = option(
        "auto", "auto takes the tokenizer's own; the others are for base models", ("auto", "chatml", "plain", "marked")
    )
    added_tokens: list[str] = option([], "turn marks that become tokens of their own, whose embeddings are trained")
    attn_implementation: str = option("sdpa", "attention kernel, as in transformers")
    decoder: bool = option(True, "writes text (GPT-2, Llama, Qwen2); False for encoders such as BERT")


@dataclass
class DatasetConfig:
    path: str = option(MISSING, "file, folder, hub name, or 'package:NAME' for a corpus in the package")
    format: str = option(
        "auto",
        "how a row holds its conversation; auto looks at the first row",
        (
            *("auto", "messages", "prompt_completion", "marked", "sharegpt", "alpaca", "dolly", "guanaco", "text"),
            *("preference", "politeness", "oasst"),
        ),
    )
    name: str | None = option(None, "configuration of a hub dataset")
    splits: list[str] = option([], "splits of a hub dataset to read; all by default")
    score_field: str = option("score", "field of a row that holds its score")
    sample_types: list[str] = option(
        ["conversation", "prompt"], "what the data offers: conversation (SFT), scored (reward), preference (reward, DPO), prompt (PPO)"
    )
    loss_roles: str = option("assistant", "whose turns carry loss", ("assistant", "user", "system", "all"))
    languages: list[str] = option([], "OpenAssistant: languages of the messages, such as en; all by default")
    keep_flagged: list[str] = option([], "OpenAssistant: messages to keep all the same: deleted, synthetic, unreviewed")
    conversation_eos: str | None = option(None, "what the user 'says' after the last reply, to teach when to stop")
    min_score_quantile: float | None = option(None, "SFT learns from training rows above this quantile of the scores, 0 to 1")
    include_alternatives: bool = option(False, "SFT learns from a row's mismatched replies too: all the words, no judgement")
    prefix_words: int = option(0, "plain text: the first words are a prompt that is continued; 0 gives no prompts")
    on_invalid_row: str = option("raise", "a malformed row stops the run, or is counted and left out", ("raise", "skip"))
    max_rows: int | None = option(None, "rows to use of each split; all by default")
    validation_share: float = option(0.1, "share held out for validation where the rows name no split")
    test_share: float = option(0.1, "share held out for the test where the rows name no split")
    eval_prompts_file: str | None = option(None, "file of fixed prompts for the before/after report; else from the test")
    style_judge: str = option("none", "who judges the replies' manner", ("none", "strictbot"))
    text_stats: str = option("manner", "what reports count in the replies", ("none", "manner", "human"))


@dataclass
class AdapterConfig:
    kind: str = option(MISSING, "none trains every weight", ("none", "lora", "qlora"))
    r: int = option(16, "rank of the update")
    lora_alpha: int = option(32, "scale of the update: it is multiplied by alpha / r")
    lora_dropout: float = option(0.0, "dropout on the adapter's input, 0 to 1")
    target_modules: Any = option("all-linear", "names of the modules to adapt, or all-linear")
    quantization: str = option("none", "how the frozen base is stored", ("none", "nf4"))
    double_quantization: bool = option(True, "quantize the quantization constants too (QLoRA, section 3)")


@dataclass
class HardwareConfig:
    accelerator: str = option("auto", "device", ("auto", "cpu", "mps", "cuda"))
    precision: str = option("auto", "number format of the forward pass", ("auto", "32", "bf16", "fp16"))
    num_threads: int | None = option(None, "CPU threads; torch's own choice by default")
    devices: int = option(1, "processes that train one model together by SFT or as a reward model, a device each")
    parts: Any = option("auto", "parts that rows are read in, for memory's sake: the same steps; auto: as few as fit")
    compile: bool = option(False, "compile the layers (torch.compile): faster steps, after half a minute")
    strategy: str = option("ddp", "several devices hold a copy of the model each, or a share", ("ddp", "fsdp"))


@dataclass
class EvaluationConfig:
    prompts: int = option(12, "prompts in the before/after report")
    test_prompts: int = option(600, "most test prompts to answer for the judge's figures")
    max_new_tokens: int = option(64, "longest reply, in tokens")
    do_sample: bool = option(False, "sample instead of taking the likeliest token")
    temperature: float = option(1.0, "of sampling")
    batch_size: int = option(64, "prompts answered at once")


@dataclass
class TrackingConfig:
    uri: str = option("sqlite:///${output_dir}/mlflow.db", "MLflow store or server")
    experiment: str = option("${experiment_name}", "MLflow experiment")
    system_metrics: bool = option(True, "log CPU, memory and GPU use")


@dataclass
class SweepConfig:
    sampler: str = option("grid", "every combination (grid), or a search by Optuna", ("grid", "tpe", "random"))
    trials: int = option(20, "a search's jobs")
    pruner: str = option("none", "gives up a search's jobs that fall behind", ("none", "median", "hyperband"))
    space: Any = option({}, "what varies beside the command line's lists: KEY: choice(1, 2) or KEY: interval(0.1, 1)")
    max_failures: int | None = option(None, "stop when more jobs than this have failed; by default all are tried")
    parent: str | None = option(None, "(a sweep sets it) MLflow run that the job belongs to")
    trial: int | None = option(None, "(a sweep sets it) number of the job in its search")
    journal: str | None = option(None, "(a sweep sets it) where the search keeps its trials")


@dataclass
class MethodConfig:
    """What every method has; the rest of its options are its own."""

    name: str = option(MISSING, "which method runs")
    sample_type: str = option(MISSING, "the kind of sample that it trains on")


@dataclass
class DPOConfig(MethodConfig):
    """Learning from pairs of replies, by TRL's DPOTrainer, whose names these are. Rafailov et al. 2023."""

    name: str = option("dpo", "direct preference optimisation")
    sample_type: str = option("preference", "the kind of sample that it trains on")
    learning_rate: float = option(5e-6, "peak step size; with LoRA about ten times that of full fine-tuning")
    num_train_epochs: float = option(1.0, "passes over the training pairs")
    max_steps: int = option(-1, "optimizer steps; above 0 it takes precedence over the epochs")
    per_device_train_batch_size: int = option(8, "pairs in a micro-batch, held-out ones too")
    gradient_accumulation_steps: int = option(1, "micro-batches in an optimizer step")
    max_length: int = option(512, "tokens of a conversation; the oldest give way")
    beta: float = option(0.1, "price of leaving the reference; of ipo, its τ")
    loss_type: str = option("sigmoid", "of a pair: DPO's own, SLiC's, or IPO's", ("sigmoid", "hinge", "ipo"))
    optim: str = option(
        "adamw_torch_fused", "optimizer, as in transformers; the paged one keeps its states in 8 bits", ("adamw_torch_fused", "paged_adamw_8bit")
    )
    lr_scheduler_type: str = option("cosine", "shape of the learning rate", ("cosine", "linear", "constant"))
    warmup_steps: float = option(0.1, "steps of rising learning rate; below 1 a share of the run")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 leaves them")
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    eval_steps: int = option(100, "optimizer steps between validations; the best is kept")
    save_steps: int = option(50, "optimizer steps between checkpoints to resume from")
    logging_steps: int = option(5, "optimizer steps between logged metrics")


@dataclass
class SupervisedConfig(MethodConfig):
    """What Lightning trains."""

    learning_rate: float = option(2e-4, "peak step size; with LoRA about ten times that of full fine-tuning")
    num_train_epochs: float = option(3.0, "passes over the training rows")
    max_steps: int = option(-1, "optimizer steps; above 0 it takes precedence over the epochs")
    per_device_train_batch_size: int = option(8, "rows in a micro-batch")
    per_device_eval_batch_size: int = option(32, "rows in a batch of the validation")
    gradient_accumulation_steps: int = option(1, "micro-batches in an optimizer step")
    max_length: int = option(512, "tokens of a conversation; the oldest give way")
    optim: str = option(
        "adamw_torch_fused", "optimizer, as in transformers; the paged one keeps its states in 8 bits", ("adamw_torch_fused", "paged_adamw_8bit")
    )
    lr_scheduler_type: str = option("cosine", "shape of the learning rate", ("cosine", "linear", "constant"))
    warmup_steps: float = option(0.03, "steps of rising learning rate; below 1 a share of the run")
    weight_decay: float = option(0.0, "AdamW's decay, on matrices only")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 leaves them")
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    group_by_length: bool = option(True, "batches of like length: less padding, still in random order")
    eval_steps: int = option(100, "optimizer steps between validations")
    save_steps: int = option(50, "optimizer steps between checkpoints to resume from")
    logging_steps: int = option(5, "optimizer steps between logged metrics")
    early_stopping_patience: int = option(0, "validations without improvement before the run ends; 0 never ends it")


@dataclass
class SFTConfig(SupervisedConfig):
    name: str = option("sft", "supervised fine-tuning")
    sample_type: str = option("conversation", "the kind of sample that it trains on")
    packing: bool = option(False, "several conversations in one row, each seeing only itself")


@dataclass
class RewardConfig(SupervisedConfig):
    name: str = option("reward", "a reward model: one score for a reply")
    sample_type: str = option("scored", "the kind of sample that it trains on; preference for the pairwise loss")
    loss: str = option("mse", "regression of the score, or Bradley-Terry on pairs", ("mse", "huber", "pairwise"))
    ranking_coef: float = option(0.0, "weight of the order of a prompt's replies beside their scores; decoders only")
    corruption_ratio: float = option(0.0, "spoilt replies (shuffled, ...) taught at the lowest score, for each real one")


@dataclass
class OnlineRLConfig(MethodConfig):
    """Learning from scores of the policy's own replies. Names are TRL's where TRL has one.

    Sources: Schulman et al. 2017 (clipping), Ziegler et al. 2019 (KL in the reward, adaptive KL), Huang et al. 2024
    (arXiv 2403.17031: the details).
    """

    sample_type: str = option("prompt", "the kind of sample that it trains on")
    total_episodes: int = option(4096, "replies in the whole run")
    batch_size: int = option(64, "replies in an iteration, over all processes")
    response_length: int = option(48, "longest reply, in tokens")
    max_prompt_length: int = option(256, "tokens of a prompt; the oldest give way")
    temperature: float = option(1.0, "of sampling, and so of every log-probability")
    generation_backend: str = option("auto", "who samples; vllm is an extra", ("auto", "native", "transformers", "vllm"))
    rewards: Any = option({"model": {"weight": 1.0}}, "parts of the reward: name: {weight, _target_, its arguments}")
    missing_eos_penalty: float = option(1.0, "taken from the score of a reply that does not end by itself")
    reward_clip: float | None = option(None, "scores are held within plus and minus this; null for no limit")
    learning_rate: float = option(1e-4, "of the policy, at the start; falls to 0 linearly")
    optim: str = option(
        "adamw_torch_fused", "optimizer, as in transformers; the paged one keeps its states in 8 bits", ("adamw_torch_fused", "paged_adamw_8bit")
    )
    lr_scheduler_type: str = option("linear", "shape of the learning rate", ("cosine", "linear", "constant"))
    num_ppo_epochs: int = option(4, "passes over each rollout")
    num_mini_batches: int = option(4, "optimizer steps in a pass")
    micro_batch_tokens: int = option(4096, "most token slots in memory at once; the gradient does not depend on it")
    cliprange: float = option(0.2, "how far the ratio to the old policy may go")
    kl_coef: float = option(0.05, "price of a nat of KL to the reference, in the reward")
    kl_estimator: str = option("k1", "of each token in the reward (Schulman, kl-approx)", ("k1", "k2", "k3"))
    adaptive_kl: bool = option(False, "let kl_coef follow the KL (Ziegler et al. 2019)")
    kl_target: float = option(6.0, "nats a reply that the adaptive kl_coef aims at")
    kl_horizon: int = option(10000, "episodes over which it adapts")
    target_kl: float | None = option(None, "an iteration's update ends once approxkl passes this; null never ends it")
    entropy_coef: float = option(0.0, "bonus for entropy in the loss")
    vf_coef: float = option(0.0, "weight of the value loss")
    cliprange_value: float = option(0.2, "how far a value may move from the old one")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 leaves them")
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    min_sanity_accuracy: float = option(0.9, "a reward model that sees through fewer spoilt replies is refused; 0 takes any")
    eval_steps: int = option(10, "iterations between evaluations on held-out prompts; the best is kept")
    num_eval_prompts: int = option(128, "held-out prompts to answer there")
    save_steps: int = option(5, "iterations between checkpoints to resume from")
    log_samples_steps: int = option(10, "iterations between tables of replies")
    log_samples: int = option(16, "replies in such a table")


@dataclass
class PPOConfig(OnlineRLConfig):
    name: str = option("ppo", "proximal policy optimisation")
    critic: str = option("head", "a value head on the trunk, or on an adapter of its own there", ("head", "adapter"))
    value_learning_rate: float = option(1e-2, "of the critic")
    vf_coef: float = option(0.1, "weight of the value loss")
    gamma: float = option(1.0, "discount of later rewards")
    lam: float = option(0.95, "λ of the generalised advantages")
    whiten_rewards: bool = option(False, "scale rewards to variance 1 before the advantages")


@dataclass
class RLOOConfig(OnlineRLConfig):
    name: str = option("rloo", "REINFORCE, leaving one out: no critic")
    num_generations: int = option(4, "replies to each prompt; batch_size is a multiple of it")
    num_ppo_epochs: int = option(1, "passes over each rollout")


# What a method starts from, by the view it learns from: the others start from the base model.
STARTS_FROM: dict[str, tuple[str, ...]] = {"prompt": ("policy", "reward"), "preference": ("policy",)}
# The metric that a run returns and a sweep optimises, as it is logged, and whether less or more of it is better.
OBJECTIVE: dict[str, tuple[str, str]] = {
    "sft": ("val/loss", "minimize"),
    "reward": ("val/loss", "minimize"),
    "dpo": ("eval_loss", "minimize"),
    "ppo": ("eval/scores", "maximize"),
    "rloo": ("eval/scores", "maximize"),
}


@dataclass
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    experiment_name: str = option("manners", "name of the study: MLflow experiment and run folders carry it")
    run_name: str | None = option(None, "name of the run; made from study, method and model by default")
    policy_from: str = option(
        "auto", "where PPO and DPO start: auto (finds or trains the SFT run), a run id, a folder, or none"
    )
    reward_from: str = option("auto", "the reward model: auto (finds or trains it), a run id, a folder, or none")
    policy_run_overrides: list[str] = option([], "what policy_from=auto changes in this command to make the SFT run's")
    reward_run_overrides: list[str] = option([], "what reward_from=auto changes in this command to make the reward model's")
    plan: bool = option(False, "print which stages would be reused or trained, and stop")
    seed: int = option(1, "of initialisation, dropout, data order and sampling")
    output_dir: str = option("outputs", "where runs, checkpoints and the MLflow store are kept")
    resume: bool = option(True, "go on with an unfinished run of the very same configuration")
    register_model: bool = option(False, "put the model into MLflow's registry as models:/STUDY; the best is its champion")
    preview: bool = option(False, "print the first examples as the model sees them, and stop")
    estimate: bool = option(False, "say whether the run fits into memory, how long it takes and what would spare it")


@dataclass
class SavedModelConfig:
    """What opens earlier models: evaluate.py and chat.py both do."""

    reward_from: str = option("none", "a reward model's opinion: auto (the run's own), a run id, name or folder, or none")
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    experiment_name: str = option("manners", "MLflow experiment")
    seed: int = option(1, "of sampling and of the bootstrap")
    output_dir: str = option("outputs", "where runs and the MLflow store are kept")


@dataclass
class EvaluateConfig(SavedModelConfig):
    """Models side by side."""

    run: Any = option("latest", "latest, a run's id or name, models:/STUDY@champion, a folder, hub name; or [several]")
    base: bool = option(True, "what a run was trained from stands beside it")
    dataset: DatasetConfig | None = option(None, "whose held-out prompts are answered; by default the run's own")
    rewards: Any = option({}, "functions that score the replies: name: {_target_, its arguments}")
    turns: int = option(0, "user turns of chats that show whether the manner fades; 0 has none")
    chats: int = option(32, "such chats")
    lm_eval: list[str] = option([], "standard benchmarks by lm-eval, an extra: such as arc_easy")
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class ChatConfig(SavedModelConfig):
    """A conversation in the terminal."""

    run: str = option("latest", "latest, a run's id or name, models:/STUDY@champion, a folder, or a hub name")
    role: str = option("assistant", "whom the model plays; as user it may speak first", ("assistant", "user"))
    prompt: str | None = option(None, "one prompt to answer, and no more; -p TEXT is the same")
    system: str | None = option(None, "system message")
    adapter_scale: float = option(1.0, "how much of the adapter: 0 is the base, 2 twice the manner, -1 its opposite")
    max_new_tokens: int = option(256, "longest reply, in tokens")
    do_sample: bool = option(True, "sample instead of taking the likeliest token")
    temperature: float = option(0.7, "of sampling")
    reward_from: str = option(
        "auto", "whom /score asks: auto (what the run learned from), a run id, name or folder, or none"
    )
    self_chat: bool = option(False, "two models talk with each other: user=RUN assistant=RUN")
    user: str = option("latest", "self_chat: who plays the user")
    assistant: str = option("latest", "self_chat: who plays the assistant")
    turns: int = option(8, "self_chat: turns of both together")


def is_schema(node_type: Any) -> bool:
    return isinstance(node_type, type) and is_dataclass(node_type)


def options(schema: Any) -> dict[str, Any]:
    """The fields of a schema by name; their ``metadata`` has ``help`` and ``choices``."""
    return {f.name: f for f in fields(schema)}


def register_schemas() -> None:
    """Hand the schemas to Hydra: the whole config, and one for each method's own options."""
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="chat_schema", node=ChatConfig)
    for method in (SFTConfig, RewardConfig, DPOConfig, PPOConfig, RLOOConfig):
        store.store(group="schema", name=method.__name__.removesuffix("Config").lower(), node=method)
