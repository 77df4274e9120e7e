"""Every option: its name, type, default, range and meaning, each stated once, here.

Values for whole groups are in ``conf/``. Names are those of transformers, TRL and Lightning where they have one. Only
the standard library, Hydra's config store and omegaconf are imported, so that a mistake is answered at once.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

CORRUPTION_KINDS = (  # data/corruptions.py
    *("shuffled", "empty", "truncated", "stuffed", "repeated", "overlong", "garbled", "garbled_word", "misplaced"),
)


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A config field with its one-line meaning, and the values that it accepts: ``choices``, or a range."""
    metadata = {"help": help, "choices": choices, "ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """The base model."""

    name: str = option(MISSING, "hub name, local folder or GGUF file; 'tiny' is the base model in the package")
    revision: str | None = option(None, "branch, tag or commit on the hub")
    chat_template: str = option(
        "auto", "auto uses the tokenizer's own; the others are for base models", ("auto", "chatml", "plain", "marked")
    )
    added_tokens: list[str] = option([], "markers added to the vocabulary, whose embeddings are trained")
    attn_implementation: str = option("sdpa", "attention implementation, as in transformers")
    decoder: bool = option(True, "a causal language model (GPT-2, Llama, Qwen2); false for encoders such as BERT")


@dataclass
class DatasetConfig:
    """The data, and what of it is used."""

    path: str = option(MISSING, "file, folder, hub name, or 'package:NAME' for a corpus in the package")
    format: str = option(
        "auto",
        "how a row holds its conversation; auto looks at the first row",
        (
            *("auto", "messages", "prompt_completion", "sharegpt", "alpaca", "dolly", "preference"),
            *("marked", "guanaco", "hh", "chatml", "text", "politeness", "oasst", "votes"),
        ),
    )
    name: str | None = option(None, "configuration of a hub dataset")
    splits: list[str] = option([], "splits of a hub dataset to read; all by default")
    mix: Any = option(
        None, "several datasets in one training: [{name: strictbot, weight: 2}, {name: jsonl, path: FILE, weight: 1}]"
    )
    columns: Any = option(
        None, "a file's own names, such as {prompt: question, completion: answer}; {context: null} leaves one out"
    )
    score_field: str = option("score", "field of a row that holds its score")
    sample_types: list[str] = option(
        [],
        "what the data must offer: conversation (SFT), scored (reward), preference (reward, DPO, KTO), "
        "unpaired_preference (KTO), prompt (PPO); by default what the method needs",
    )
    merge_turns: bool = option(False, "join turns by the same role in a row; by default such a row is invalid")
    loss_roles: str = option("assistant", "whose turns carry loss", ("assistant", "user", "system", "all"))
    languages: list[str] = option([], "OpenAssistant: languages of the messages, such as en; all by default")
    keep_flagged: list[str] = option([], "OpenAssistant: flagged messages to keep: deleted, synthetic, unreviewed")
    conversation_eos: str | None = option(None, "SFT: what the user says after the last reply, one token: when to stop")
    min_score_quantile: float | None = option(
        None, "SFT trains on rows at or above this quantile of the training scores", ge=0, lt=1
    )
    include_alternatives: bool = option(
        False, "SFT trains on the mismatched replies of a row too, whatever their score"
    )
    prefix_words: int = option(4, "plain text: its first words become a prompt to continue; 0 for no prompts", ge=0)
    on_invalid_row: str = option("raise", "stop at an invalid row, or count and skip it", ("raise", "skip"))
    max_rows: int | None = option(None, "rows to use of each split; all by default", ge=1)
    validation_share: float = option(0.1, "share held out for validation where the rows name no split", ge=0, lt=1)
    test_share: float = option(0.1, "share held out for the test where the rows name no split", ge=0, lt=1)
    eval_prompts_file: str | None = option(None, "fixed prompts for the before/after report; else from the test split")
    style_judge: str = option(
        "none", "who judges the style of replies: see evaluation/README.md", ("none", "rules", "classifier", "llm")
    )
    judge_labels: str | None = option(
        None, "labeled replies by which style accuracy is corrected for the judge's errors"
    )
    prompted_baseline: str | None = option(
        None, "system message that asks for the manner: evaluate.py compares with the base that has it"
    )
    text_stats: str = option("manner", "what reports count in the replies", ("none", "manner", "human"))


@dataclass
class AdapterConfig:
    """LoRA, QLoRA, full fine-tuning, or a head alone."""

    kind: str = option(
        MISSING,
        "none is full fine-tuning; frozen trains a reward model's head alone",
        ("none", "lora", "qlora", "frozen"),
    )
    r: int = option(16, "rank of the update", ge=1)
    lora_alpha: int = option(32, "scale of the update: it is multiplied by alpha / r", ge=1)
    lora_dropout: float = option(0.0, "dropout on the input of the adapter", ge=0, lt=1)
    target_modules: Any = option("all-linear", "names of the modules to adapt, or all-linear")
    use_rslora: bool = option(False, "rank-stabilized LoRA: the update is multiplied by alpha / sqrt(r) instead")
    use_dora: bool = option(False, "DoRA: a trained magnitude for each output beside the update; slower steps")
    init_lora_weights: Any = option(
        True,
        "PEFT's initialization: true, gaussian, orthogonal; or pissa, pissa_niter_N, olora (SFT and reward models)",
    )
    quantization: str = option("none", "how the frozen base is stored", ("none", "nf4"))
    double_quantization: bool = option(True, "quantize the quantization constants too (QLoRA, section 3)")


@dataclass
class DeviceConfig:
    """Device and precision."""

    accelerator: str = option("auto", "device", ("auto", "cpu", "mps", "cuda"))
    precision: str = option("auto", "number format of the forward pass", ("auto", "32", "bf16", "fp16"))
    num_threads: int | None = option(None, "CPU threads; torch's own choice by default", ge=1, le=4096)


@dataclass
class HardwareConfig(DeviceConfig):
    """Devices, precision and memory of training."""

    devices: int = option(1, "processes that train one SFT or reward model together, a device each", ge=1)
    strategy: str = option("ddp", "each device holds a copy of the model, or a shard", ("ddp", "fsdp"))
    microbatch_size: Any = option(
        "auto", "rows per device in memory at once; the optimizer step is the same; auto: as many as fit"
    )
    compile: bool = option(False, "torch.compile the layers: faster steps, after half a minute")


@dataclass
class EvaluationConfig:
    """The evaluation before and after training."""

    prompts: int = option(12, "prompts in the before/after table", ge=0)
    test_prompts: int = option(600, "test prompts to answer, and rows for the held-out loss, at most", ge=0)
    max_new_tokens: int = option(64, "longest reply, in tokens", ge=1)
    do_sample: bool = option(False, "sample instead of greedy decoding")
    temperature: float = option(1.0, "of sampling; do_sample=false is greedy", ge=0.01)
    batch_size: int = option(64, "prompts answered at once", ge=1)
    classifier: str = option(
        "latest", "the run of dataset.style_judge=classifier: the latest of experiment=style_classifier, or a run"
    )
    llm_judge: str = option("openai:/gpt-5-mini", "the model of dataset.style_judge=llm, as MLflow names it")
    llm_base_url: str | None = option(None, "its endpoint, where that is another one")


@dataclass
class TrackingConfig:
    """MLflow."""

    uri: str = option(
        "${oc.env:MLFLOW_TRACKING_URI,sqlite:///${output_dir}/mlflow.db}", "MLflow store or server, as MLflow names it"
    )
    experiment: str | None = option("${experiment_name}", "MLflow experiment")
    system_metrics: bool = option(True, "log CPU, memory and GPU use")


@dataclass
class SweepConfig:
    """Several jobs in one command."""

    sampler: str = option("grid", "every combination (grid), or a search by Optuna", ("grid", "tpe", "random"))
    trials: int = option(20, "jobs of a search", ge=1)
    pruner: str = option("none", "stops the jobs of a search that fall behind", ("none", "median", "hyperband"))
    space: Any = option({}, "what varies beside the lists of the command line: KEY: choice(1, 2), interval(0.1, 1)")
    max_failures: int | None = option(None, "stop when more jobs than this have failed; by default all are tried")
    parent: str | None = option(None, "(set by a sweep) MLflow run that the job belongs to")
    trial: int | None = option(None, "(set by a sweep) number of the job in its search")
    journal: str | None = option(None, "(set by a sweep) where the search keeps its trials")


MAX_SEED = 2**32 - 1  # numpy's generators take no more
OPTIMIZERS = ("adamw_torch_fused", "paged_adamw_8bit")


@dataclass
class MethodConfig:
    """What every method has; the rest of its options are its own."""

    name: str = option(MISSING, "which method runs")
    sample_type: str = option(MISSING, "the kind of sample that it trains on")


@dataclass
class PreferenceConfig(MethodConfig):
    """What TRL's trainers of preferences have in common, with its names."""

    learning_rate: float = option(5e-6, "peak; with LoRA about ten times that of full fine-tuning", ge=0)
    num_train_epochs: float = option(1.0, "passes over the training pairs or replies", ge=0)
    max_steps: int = option(-1, "optimizer steps; above 0 it takes precedence over the epochs", ge=-1)
    per_device_train_batch_size: int = option(8, "pairs in a batch, held-out ones too", ge=1)
    gradient_accumulation_steps: int = option(1, "batches in an optimizer step", ge=1)
    max_length: int = option(512, "tokens of a conversation; the oldest are dropped", ge=8)
    beta: float = option(0.1, "strength of the KL regularization; of ipo, its τ", ge=0.001)
    optim: str = option("adamw_torch_fused", "optimizer; the paged one keeps its states in 8 bits", OPTIMIZERS)
    lr_scheduler_type: str = option("cosine", "learning-rate schedule", ("cosine", "linear", "constant"))
    warmup_steps: float = option(0.1, "steps of warm-up; below 1 a share of the run", ge=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 does not clip", ge=0)
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    eval_steps: int = option(100, "optimizer steps between evaluations; the best weights are kept", ge=1)
    save_steps: int = option(50, "optimizer steps between checkpoints", ge=1)
    logging_steps: int = option(5, "optimizer steps between logged metrics", ge=1)


@dataclass
class DPOConfig(PreferenceConfig):
    """Preference optimization by TRL's DPOTrainer. Rafailov et al. 2023."""

    name: str = option("dpo", "direct preference optimization")
    sample_type: str = option("preference", "the kind of sample that it trains on")
    loss_type: str = option("sigmoid", "DPO's own loss, SLiC's, or IPO's", ("sigmoid", "hinge", "ipo"))


@dataclass
class KTOConfig(PreferenceConfig):
    """Kahneman-Tversky optimization by TRL's KTOTrainer. Ethayarajh et al. 2024 (arXiv 2402.01306)."""

    name: str = option("kto", "Kahneman-Tversky optimization: replies that are labeled good or bad, not paired")
    sample_type: str = option("unpaired_preference", "the kind of sample that it trains on")
    per_device_train_batch_size: int = option(
        16, "replies in a batch, held-out ones too; its KL estimate pairs each with the prompt of another", ge=2
    )
    desirable_weight: float = option(1.0, "of the loss of desirable replies, against their number", ge=0)
    undesirable_weight: float = option(1.0, "of the loss of undesirable replies, against their number", ge=0)


@dataclass
class SupervisedConfig(MethodConfig):
    """What Lightning trains: SFT and reward models."""

    learning_rate: float = option(2e-4, "peak; with LoRA about ten times that of full fine-tuning", ge=0)
    num_train_epochs: float = option(3.0, "passes over the training rows", ge=0)
    max_steps: int = option(-1, "optimizer steps; above 0 it takes precedence over the epochs", ge=-1)
    per_device_train_batch_size: int = option(8, "rows in a batch", ge=1)
    per_device_eval_batch_size: int = option(32, "rows in a batch of the evaluation", ge=1)
    gradient_accumulation_steps: int = option(1, "batches in an optimizer step", ge=1)
    max_length: int = option(512, "tokens of a conversation; the oldest are dropped", ge=8)
    optim: str = option("adamw_torch_fused", "optimizer; the paged one keeps its states in 8 bits", OPTIMIZERS)
    lr_scheduler_type: str = option("cosine", "learning-rate schedule", ("cosine", "linear", "constant"))
    warmup_steps: float = option(0.03, "steps of warm-up; below 1 a share of the run", ge=0)
    weight_decay: float = option(0.0, "of AdamW, on matrices only", ge=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 does not clip", ge=0)
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    group_by_length: bool = option(True, "batches of similar length: less padding, still in random order")
    eval_steps: int = option(100, "optimizer steps between evaluations; the best weights are kept", ge=1)
    save_steps: int = option(50, "optimizer steps between checkpoints", ge=1)
    logging_steps: int = option(5, "optimizer steps between logged metrics", ge=1)
    early_stopping_patience: int = option(
        0, "evaluations without improvement before the run ends; 0 never ends it", ge=0
    )


@dataclass
class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning."""

    name: str = option("sft", "supervised fine-tuning")
    sample_type: str = option("conversation", "the kind of sample that it trains on")
    packing: bool = option(False, "several conversations in one row, each attending to itself only")
    neftune_noise_alpha: float | None = option(
        None, "NEFTune: size of the noise on the embeddings in training, such as 5; null adds none", gt=0
    )


@dataclass
class RewardConfig(SupervisedConfig):
    """Reward modeling. The margins of pairs are in units of their root mean square, whatever the dataset's are."""

    name: str = option("reward", "a reward model: one score for a reply")
    sample_type: str = option("scored", "the kind of sample that it trains on; preference for the pairwise loss")
    loss: str = option("mse", "regression of the score, or Bradley-Terry on pairs", ("mse", "huber", "pairwise"))
    ranking_coef: float = option(0.0, "weight of a ranking loss over the replies to a prompt; decoders only", ge=0)
    disable_dropout: bool = option(
        True, "train without the model's own dropout, as TRL does; on a CPU it takes a fifth of a step"
    )
    corruption_ratio: float = option(0.0, "corrupted replies, as the worst ones, per real reply or pair", ge=0)
    corruption_kinds: list[str] | None = option(None, "what they are made by; null takes all kinds", CORRUPTION_KINDS)


@dataclass
class OnlineRLConfig(MethodConfig):
    """Learning from scores of the policy's own replies. Names are TRL's where TRL has one.

    Sources: Schulman et al. 2017 (clipping), Ziegler et al. 2019 (KL in the reward, adaptive KL), Huang et al. 2024
    (arXiv 2403.17031: the details).
    """

    sample_type: str = option("prompt", "the kind of sample that it trains on")
    total_episodes: int = option(4096, "replies in the whole run", ge=1)
    batch_size: int = option(64, "replies in an iteration, over all processes", ge=1)
    response_length: int = option(48, "longest reply, in tokens", ge=1)
    max_prompt_length: int = option(256, "tokens of a prompt; the oldest are dropped", ge=8)
    temperature: float = option(1.0, "of sampling, and so of every log-probability", ge=0.01)
    generation_backend: str = option(
        "auto", "what samples; vllm is an extra", ("auto", "native", "transformers", "vllm")
    )
    rewards: Any = option(
        {"model": {"weight": 1.0}},
        "components of the reward: name: {weight, _target_, arguments}; see rewards/README.md",
    )
    missing_eos_penalty: float = option(1.0, "subtracted from the score of a reply without EOS", ge=0)
    reward_clip: float | None = option(None, "scores are clipped to plus and minus this; null does not clip", ge=0)
    learning_rate: float = option(1e-4, "of the policy, at the start", ge=0)
    optim: str = option("adamw_torch_fused", "optimizer; the paged one keeps its states in 8 bits", OPTIMIZERS)
    lr_scheduler_type: str = option("linear", "learning-rate schedule", ("cosine", "linear", "constant"))
    num_ppo_epochs: int = option(4, "passes over each rollout", ge=1)
    num_mini_batches: int = option(4, "optimizer steps in a pass", ge=1)
    microbatch_tokens: int = option(4096, "padded tokens in memory at once; the gradient is the same", ge=1)
    cliprange: float = option(0.2, "how far the ratio to the sampling policy may go", ge=0)
    kl_coef: float = option(0.05, "weight of the KL penalty to the reference, per nat", ge=0)
    adaptive_kl: bool = option(False, "adapt kl_coef to the KL (Ziegler et al. 2019)")
    kl_target: float = option(6.0, "nats per reply that the adaptive kl_coef aims at", ge=0.01)
    kl_horizon: int = option(10000, "episodes over which it adapts", ge=1)
    target_kl: float | None = option(None, "an update stops once approxkl exceeds this; null never stops it", ge=0)
    entropy_coef: float = option(0.0, "weight of an entropy bonus in the loss", ge=0)
    vf_coef: float = option(0.0, "weight of the value loss", ge=0)
    cliprange_value: float = option(0.2, "how far a value may move from the old one", ge=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 does not clip", ge=0)
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    min_sanity_accuracy: float = option(0.9, "a reward model that detects fewer corrupted replies is refused", ge=0)
    eval_steps: int = option(
        10, "iterations between evaluations; the last weights are kept, or clearly better ones", ge=1
    )
    num_eval_prompts: int = option(128, "held-out prompts of such an evaluation, whose replies are sampled", ge=0)
    save_steps: int = option(5, "iterations between checkpoints", ge=1)
    log_samples_steps: int = option(10, "iterations between tables of replies", ge=1)
    log_samples: int = option(16, "replies in such a table", ge=1)


@dataclass
class PPOConfig(OnlineRLConfig):
    """Proximal policy optimization."""

    name: str = option("ppo", "proximal policy optimization")
    critic: str = option("head", "a value head on the trunk, or on an adapter of its own there", ("head", "adapter"))
    value_learning_rate: float = option(1e-2, "of the critic", ge=0)
    vf_coef: float = option(0.1, "weight of the value loss", ge=0)
    gamma: float = option(1.0, "discount factor", ge=0)
    lam: float = option(0.95, "λ of generalized advantage estimation", ge=0)
    whiten_rewards: bool = option(False, "scale rewards to variance 1 before the advantages")


@dataclass
class RLOOConfig(OnlineRLConfig):
    """REINFORCE leave-one-out: no critic."""

    name: str = option("rloo", "REINFORCE leave-one-out: no critic")
    num_generations: int = option(4, "replies to each prompt; batch_size is a multiple of it", ge=2)
    num_ppo_epochs: int = option(1, "passes over each rollout", ge=1)


# What a method starts from, by the samples that it trains on: the others start from the base model.
STARTS_FROM: dict[str, tuple[str, ...]] = {
    "prompt": ("policy", "reward"),
    "preference": ("policy",),
    "unpaired_preference": ("policy",),
}
# The metric that a run returns and a sweep optimizes, as it is logged, and whether less or more of it is better.
OBJECTIVE: dict[str, tuple[str, str]] = {
    "sft": ("eval/loss", "minimize"),
    "reward": ("eval/loss", "minimize"),
    "dpo": ("eval/loss", "minimize"),
    "kto": ("eval/loss", "minimize"),
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
    experiment_name: str = option("manners", "MLflow experiment and prefix of run directories")
    run_name: str | None = option(None, "name of the run; made from experiment, method and model by default")
    report_to: list[str] = option(["mlflow"], "where metrics go beside MLflow: tensorboard, wandb (extras)")
    policy_from: str = option(
        "auto", "where PPO, RLOO, DPO and KTO start: auto (finds or trains the SFT run), a run id, a folder, or none"
    )
    reward_from: str = option("auto", "the reward model: auto (finds or trains it), a run id, a folder, or none")
    policy_run_overrides: list[str] = option([], "overrides of this command that make the SFT run of policy_from=auto")
    reward_run_overrides: list[str] = option([], "overrides of this command that make the run of reward_from=auto")
    seed: int = option(1, "of initialization, dropout, data order and sampling", ge=0, le=MAX_SEED)
    output_dir: str = option(
        "outputs", "where runs, checkpoints and the MLflow store are kept, from the folder you are in"
    )
    resume: bool = option(True, "resume an unfinished run of the very same configuration")
    register_model: bool = option(False, "register the model as models:/EXPERIMENT_NAME; the best becomes champion")
    plan: bool = option(False, "print which runs would be reused or trained, and stop")
    preview: bool = option(False, "print the first examples as the model sees them, and stop")
    estimate: bool = option(False, "print peak memory and time, and what would reduce them, and stop")


@dataclass
class SavedModelConfig:
    """What opens trained models: evaluate.py and chat.py."""

    reward_from: str = option(
        "none", "reward model that scores replies: auto (the run's own), a run, a folder, or none"
    )
    hardware: DeviceConfig = field(default_factory=DeviceConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    experiment_name: str | None = option(None, "MLflow experiment; by default that of the run")
    seed: int = option(1, "of sampling and of the bootstrap", ge=0, le=MAX_SEED)
    output_dir: str = option("outputs", "where runs and the MLflow store are kept")


@dataclass
class EvaluateConfig(SavedModelConfig):
    """Models side by side."""

    run: Any = option("latest", "latest, a run's id or name, models:/NAME@champion, a folder, hub name; or [several]")
    base: bool = option(True, "evaluate the model that a run was trained from, too")
    dataset: DatasetConfig | None = option(None, "whose held-out prompts are answered; by default the run's own")
    rewards: Any = option({}, "functions that score the replies: name: {_target_, arguments}; see rewards/README.md")
    best_of: int = option(
        1, "as a further column, the reply that the reward model of reward_from likes best of so many sampled", ge=1
    )
    turns: int = option(0, "user turns of conversations that show whether the style fades; 0 for none", ge=0)
    chats: int = option(32, "such conversations", ge=1)
    benchmarks: list[str] = option([], "tasks of lm-eval, an extra: names such as ifeval, yaml files, or folders")
    include_path: str | None = option(None, "folder with tasks of your own, in lm-eval's format, for benchmarks=")
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass
class ChatConfig(SavedModelConfig):
    """A conversation in the terminal."""

    run: str = option("latest", "latest, a run's id or name, models:/NAME@champion, a folder, or a hub name")
    role: str = option("assistant", "whom the model plays; as user it may speak first", ("assistant", "user"))
    prompt: str | None = option(None, "one prompt to answer, and no more; -p TEXT is the same")
    system: str | None = option(None, "system message")
    adapter_scale: float = option(
        1.0, "scale of what training changed: 0 is the base, 2 twice the change, -1 its opposite", ge=-1, le=2
    )
    max_new_tokens: int = option(256, "longest reply, in tokens", ge=1)
    do_sample: bool = option(True, "sample instead of greedy decoding")
    temperature: float = option(0.7, "of sampling; do_sample=false is greedy", ge=0.01)
    reward_from: str = option("auto", "reward model for /score: auto (the run's own), a run, a folder, or none")
    self_chat: bool = option(False, "two models talk with each other: user=RUN assistant=RUN")
    user: str = option("latest", "self_chat: the model that plays the user")
    assistant: str = option("latest", "self_chat: the model that plays the assistant")
    turns: int = option(8, "self_chat: turns of both together", ge=1)


@dataclass
class WebConfig(SavedModelConfig):
    """Models side by side in a browser, and votes on their replies."""

    run: Any = option("latest", "latest, a run's id or name, models:/NAME@champion, a folder, hub name; or up to three")
    base: bool = option(True, "show the model that the first run was trained from, too")
    dataset: DatasetConfig | None = option(None, "whose held-out prompts are voted on; by default the run's own")
    prompts: str = option(
        "validation", "prompts to vote on: validation or test rows, a file of {prompt: ...} rows, or none to type them"
    )
    votes: str | None = option(None, "file that votes are appended to; by default OUTPUT_DIR/votes.jsonl")
    system: str | None = option(None, "system message at the start")
    max_new_tokens: int = option(256, "longest reply, in tokens", ge=1)
    do_sample: bool = option(True, "sample instead of greedy decoding")
    temperature: float = option(0.7, "of sampling; do_sample=false is greedy", ge=0.01)
    reward_from: str = option("auto", "reward model for the scores: auto (the run's own), a run, a folder, or none")
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    port: int = option(7860, "of the page, on this machine alone", ge=1, le=65535)


@dataclass
class DistillConfig(SavedModelConfig):
    """What a model says under a system message, as training data without that message."""

    run: str = option(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "who replies: a hub name, latest, a run's id or name, or a folder"
    )
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    system: str | None = option(None, "system message; by default the dataset's prompted_baseline")
    num_generations: int = option(8, "replies sampled to each prompt", ge=1)
    max_new_tokens: int = option(64, "longest reply, in tokens", ge=1)
    temperature: float = option(0.7, "of sampling", ge=0.01)
    batch_size: int = option(64, "replies sampled at once", ge=1)
    min_reward: float | None = option(None, "the best reply to a prompt is left out below this score of reward_from")
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    out: str = option("outputs/distilled.jsonl", "the file, which dataset=distilled reads")


CONFIGS = {
    **{"train": TrainConfig, "evaluate": EvaluateConfig, "chat": ChatConfig},
    **{"web": WebConfig, "distill": DistillConfig},
}


def is_schema(node_type: Any) -> bool:
    """Whether a node of a config is a group with options of its own."""
    return isinstance(node_type, type) and is_dataclass(node_type)


def options(schema: Any) -> dict[str, Any]:
    """The fields of a schema by name; their ``metadata`` has ``help``, ``choices`` and the range."""
    return {f.name: f for f in fields(schema)}


def register_schemas() -> None:
    """Hand the schemas to Hydra: the whole config, and one for the options of each method."""
    store = ConfigStore.instance()
    store.store(name="schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="chat_schema", node=ChatConfig)
    store.store(name="web_schema", node=WebConfig)
    store.store(name="distill_schema", node=DistillConfig)
    for method in (SFTConfig, RewardConfig, DPOConfig, KTOConfig, PPOConfig, RLOOConfig):
        store.store(group="schema", name=method.__name__.removesuffix("Config").lower(), node=method)
