"""Each method's own options. Names follow transformers and TRL."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from manners.config.option import option


@dataclass
class Method:
    """What every method has; the rest of its options are its own."""

    name: str = option(MISSING, "which method runs")
    view: str = option(MISSING, "the view of the dataset that it needs")


@dataclass
class DPO(Method):
    """Learning from pairs of replies, by TRL's DPOTrainer, whose names these are. Rafailov et al. 2023."""

    name: str = option("dpo", "direct preference optimisation")
    view: str = option("pairs", "the view of the dataset that it needs")
    learning_rate: float = option(5e-6, "peak step size; with LoRA about ten times that of full fine-tuning")
    num_train_epochs: float = option(1.0, "passes over the training pairs")
    max_steps: int = option(-1, "optimizer steps; above 0 it takes precedence over the epochs")
    per_device_train_batch_size: int = option(8, "pairs in a micro-batch, held-out ones too")
    gradient_accumulation_steps: int = option(1, "micro-batches in an optimizer step")
    max_length: int = option(512, "tokens of a conversation; the oldest give way")
    beta: float = option(0.1, "price of leaving the reference; of ipo, its τ")
    loss_type: str = option("sigmoid", "of a pair: DPO's own, SLiC's, or IPO's", ("sigmoid", "hinge", "ipo"))
    lr_scheduler_type: str = option("cosine", "shape of the learning rate", ("cosine", "linear", "constant"))
    warmup_steps: float = option(0.1, "steps of rising learning rate; below 1 a share of the run")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 leaves them")
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    eval_steps: int = option(100, "optimizer steps between validations; the best is kept")
    save_steps: int = option(50, "optimizer steps between checkpoints to resume from")
    logging_steps: int = option(5, "optimizer steps between logged metrics")


@dataclass
class Fit(Method):
    """What Lightning trains."""

    learning_rate: float = option(2e-4, "peak step size; with LoRA about ten times that of full fine-tuning")
    num_train_epochs: float = option(3.0, "passes over the training rows")
    max_steps: int = option(-1, "optimizer steps; above 0 it takes precedence over the epochs")
    per_device_train_batch_size: int = option(8, "rows in a micro-batch")
    per_device_eval_batch_size: int = option(32, "rows in a batch of the validation")
    gradient_accumulation_steps: int = option(1, "micro-batches in an optimizer step")
    max_length: int = option(512, "tokens of a conversation; the oldest give way")
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
class SFT(Fit):
    name: str = option("sft", "supervised fine-tuning")
    view: str = option("chat", "the view of the dataset that it needs")
    packing: bool = option(False, "several conversations in one row, each seeing only itself")


@dataclass
class Reward(Fit):
    name: str = option("reward", "a reward model: one score for a reply")
    view: str = option("scored", "the view of the dataset that it needs; pairs for the pairwise loss")
    loss: str = option("mse", "regression of the score, or Bradley-Terry on pairs", ("mse", "huber", "pairwise"))
    ranking: float = option(0.0, "weight of the order of a prompt's replies beside their scores; decoders only")
    corrupted: float = option(0.0, "spoilt replies (shuffled, ...) taught at the lowest score, for each real one")


@dataclass
class Online(Method):
    """Learning from scores of the policy's own replies. Names are TRL's where TRL has one.

    Sources: Schulman et al. 2017 (clipping), Ziegler et al. 2019 (KL in the reward, adaptive KL), Huang et al. 2024
    (arXiv 2403.17031: the details).
    """

    view: str = option("prompt", "the view of the dataset that it needs")
    total_episodes: int = option(4096, "replies in the whole run")
    batch_size: int = option(64, "replies in an iteration, over all processes")
    response_length: int = option(48, "longest reply, in tokens")
    max_prompt_length: int = option(256, "tokens of a prompt; the oldest give way")
    temperature: float = option(1.0, "of sampling, and so of every log-probability")
    generation: str = option("auto", "who samples; vllm is an extra", ("auto", "own", "transformers", "vllm"))
    rewards: Any = option({"model": {"weight": 1.0}}, "parts of the reward: name: {weight, _target_, its arguments}")
    missing_eos_penalty: float = option(1.0, "taken from the score of a reply that does not end by itself")
    reward_clip: float | None = option(None, "scores are held within plus and minus this; null for no limit")
    learning_rate: float = option(1e-4, "of the policy, at the start; falls to 0 linearly")
    lr_scheduler_type: str = option("linear", "shape of the learning rate", ("cosine", "linear", "constant"))
    num_ppo_epochs: int = option(4, "passes over each rollout")
    num_mini_batches: int = option(4, "optimizer steps in a pass")
    micro_batch_tokens: int = option(4096, "most token slots in memory at once; the gradient does not depend on it")
    cliprange: float = option(0.2, "how far the ratio to the old policy may go")
    kl_coef: float = option(0.05, "price of a nat of KL to the reference, in the reward")
    kl_estimator: str = option("k1", "of each token in the reward (Schulman, kl-approx)", ("k1", "k2", "k3"))
    adap_kl_ctrl: bool = option(False, "let kl_coef follow the KL (Ziegler et al. 2019)")
    target: float = option(6.0, "nats a reply that the adaptive kl_coef aims at")
    horizon: int = option(10000, "episodes over which it adapts")
    target_kl: float | None = option(None, "an iteration's update ends once approxkl passes this; null never ends it")
    entropy_coef: float = option(0.0, "bonus for entropy in the loss")
    vf_coef: float = option(0.0, "weight of the value loss")
    cliprange_value: float = option(0.2, "how far a value may move from the old one")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 leaves them")
    gradient_checkpointing: bool = option(False, "recompute activations: less memory, about a third more time")
    sanity_floor: float = option(0.9, "a reward model that sees through fewer spoilt replies is refused; 0 takes any")
    eval_steps: int = option(10, "iterations between evaluations on held-out prompts; the best is kept")
    eval_prompts: int = option(128, "held-out prompts to answer there")
    save_steps: int = option(5, "iterations between checkpoints to resume from")
    log_samples_steps: int = option(10, "iterations between tables of replies")
    log_samples: int = option(16, "replies in such a table")


@dataclass
class PPO(Online):
    name: str = option("ppo", "proximal policy optimisation")
    critic: str = option("head", "a value head on the trunk, or on an adapter of its own there", ("head", "adapter"))
    value_learning_rate: float = option(1e-2, "of the critic")
    vf_coef: float = option(0.1, "weight of the value loss")
    gamma: float = option(1.0, "discount of later rewards")
    lam: float = option(0.95, "λ of the generalised advantages")
    whiten_rewards: bool = option(False, "scale rewards to variance 1 before the advantages")


@dataclass
class RLOO(Online):
    name: str = option("rloo", "REINFORCE, leaving one out: no critic")
    num_generations: int = option(4, "replies to each prompt; batch_size is a multiple of it")
    num_ppo_epochs: int = option(1, "passes over each rollout")
