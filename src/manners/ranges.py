"""Numbers out of their range, refused before anything heavy is imported."""

import math

from omegaconf import DictConfig

from manners.errors import MannersError, did_you_mean

# The least that a method's option may be, where the method has it.
AT_LEAST = {
    "learning_rate": 0,
    "value_learning_rate": 0,
    "warmup_steps": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 8,
    "eval_steps": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "early_stopping_patience": 0,
    "ranking": 0,
    "corrupted": 0,
    "beta": 0.001,
    "total_episodes": 1,
    "batch_size": 1,
    "num_generations": 2,
    "response_length": 1,
    "max_prompt_length": 8,
    "micro_batch_tokens": 1,
    "num_ppo_epochs": 1,
    "num_mini_batches": 1,
    "temperature": 0.01,
    "cliprange": 0,
    "cliprange_value": 0,
    "vf_coef": 0,
    "entropy_coef": 0,
    "kl_coef": 0,
    "target": 0.01,
    "horizon": 1,
    "target_kl": 0,
    "reward_clip": 0,
    "missing_eos_penalty": 0,
    "gamma": 0,
    "lam": 0,
    "sanity_floor": 0,
    "eval_prompts": 0,
    "log_samples_steps": 1,
    "log_samples": 1,
}
KEPT = ("deleted", "synthetic", "unreviewed")  # messages of OpenAssistant that are left out by default


def check(cfg: DictConfig) -> None:
    m, a, d = cfg.method, cfg.adapter, cfg.dataset
    at_least = {f"method.{name}": (m[name], least) for name, least in AT_LEAST.items() if name in m}
    at_least |= {
        "adapter.r": (a.r, 1),
        "evaluation.prompts": (cfg.evaluation.prompts, 0),
        "evaluation.test_prompts": (cfg.evaluation.test_prompts, 0),
        "evaluation.max_new_tokens": (cfg.evaluation.max_new_tokens, 1),
        "evaluation.batch_size": (cfg.evaluation.batch_size, 1),
    }
    for key, (value, least) in at_least.items():
        if value is not None and not least <= value < math.inf:  # nan compares with nothing, and is refused too
            raise MannersError(f"{key}={value} must be at least {least}.", key)
    shares = {
        "adapter.lora_dropout": a.lora_dropout,
        "dataset.validation_share": d.validation_share,
        "dataset.test_share": d.test_share,
    }
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise MannersError(f"{key}={value} must be from 0 up to, but not including, 1.", key)
    if d.score_above is not None and not 0 <= d.score_above < 1:
        raise MannersError(f"dataset.score_above={d.score_above} is a quantile: from 0 up to 1.", "dataset.score_above")
    if d.prompt_words < 0:
        raise MannersError(f"dataset.prompt_words={d.prompt_words} must be at least 0.", "dataset.prompt_words")
    for word in d.keep:
        if word not in KEPT:
            raise MannersError(f"dataset.keep={list(d.keep)}: {did_you_mean(word, KEPT)}", "dataset.keep")
    if d.end_of_conversation is not None and d.train_on == "assistant":
        raise MannersError(
            "dataset.end_of_conversation is said by the user, whose turns carry no loss: dataset.train_on=user.",
            "dataset.end_of_conversation",
        )
    if d.validation_share + d.test_share >= 1:
        raise MannersError("dataset.validation_share and dataset.test_share leave nothing to train on.")
    if cfg.hardware.num_threads is not None and cfg.hardware.num_threads < 1:
        raise MannersError(f"hardware.num_threads={cfg.hardware.num_threads} must be at least 1, or null.")
    if cfg.hardware.parts != "auto" and not (type(cfg.hardware.parts) is int and cfg.hardware.parts >= 1):
        raise MannersError(f"hardware.parts={cfg.hardware.parts} must be auto, or a number from 1 up.")
    if d.max_rows is not None and d.max_rows < 1:
        raise MannersError(f"dataset.max_rows={d.max_rows} must be at least 1, or null for all rows.")
    if "max_steps" in m and m.max_steps < -1:
        raise MannersError(f"method.max_steps={m.max_steps} must be above 0, or -1 to train for the epochs.")
    if "max_steps" in m and (m.max_steps == 0 or (m.max_steps < 0 and m.num_train_epochs <= 0)):
        raise MannersError("there is nothing to train: set method.num_train_epochs or method.max_steps above 0.")
    if cfg.evaluation.do_sample and cfg.evaluation.temperature <= 0:
        raise MannersError("evaluation.temperature must be above 0 to sample; evaluation.do_sample=false is greedy.")
