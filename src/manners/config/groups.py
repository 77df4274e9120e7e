"""The groups that every run has: model, dataset, adapter, hardware, evaluation, tracking."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from manners.config.option import option


@dataclass
class Model:
    name: str = option(MISSING, "hub name or local folder; 'tiny' is the base model in the package")
    revision: str | None = option(None, "branch, tag or commit on the hub")
    chat_template: str = option(
        "auto", "auto takes the tokenizer's own; the others are for base models", ("auto", "chatml", "plain", "marked")
    )
    added_tokens: list[str] = option([], "turn marks that become tokens of their own, whose embeddings are trained")
    attn_implementation: str = option("sdpa", "attention kernel, as in transformers")
    decoder: bool = option(True, "writes text (GPT-2, Llama, Qwen2); False for encoders such as BERT")


@dataclass
class Dataset:
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
    views: list[str] = option(
        ["chat", "prompt"], "what the data offers: chat (SFT), scored (reward), pairs (reward, DPO), prompt (PPO)"
    )
    train_on: str = option("assistant", "whose turns carry loss", ("assistant", "user", "system", "all"))
    languages: list[str] = option([], "OpenAssistant: languages of the messages, such as en; all by default")
    keep: list[str] = option([], "OpenAssistant: messages to keep all the same: deleted, synthetic, unreviewed")
    end_of_conversation: str | None = option(None, "what the user 'says' after the last reply, to teach when to stop")
    score_above: float | None = option(None, "SFT learns from training rows above this quantile of the scores, 0 to 1")
    every_reply: bool = option(False, "SFT learns from a row's mismatched replies too: all the words, no judgement")
    prompt_words: int = option(0, "plain text: the first words are a prompt that is continued; 0 gives no prompts")
    on_error: str = option("raise", "a malformed row stops the run, or is counted and left out", ("raise", "skip"))
    max_rows: int | None = option(None, "rows to use of each split; all by default")
    validation_share: float = option(0.1, "share held out for validation where the rows name no split")
    test_share: float = option(0.1, "share held out for the test where the rows name no split")
    eval_prompts: str | None = option(None, "file of fixed prompts for the before/after report; else from the test")
    judge: str = option("none", "who judges the replies' manner", ("none", "strictbot"))
    card: str = option("manner", "what reports count in the replies", ("none", "manner", "human"))


@dataclass
class Adapter:
    kind: str = option(MISSING, "none trains every weight", ("none", "lora", "qlora"))
    r: int = option(16, "rank of the update")
    lora_alpha: int = option(32, "scale of the update: it is multiplied by alpha / r")
    lora_dropout: float = option(0.0, "dropout on the adapter's input, 0 to 1")
    target_modules: Any = option("all-linear", "names of the modules to adapt, or all-linear")
    quantization: str = option("none", "how the frozen base is stored", ("none", "nf4"))
    double_quantization: bool = option(True, "quantize the quantization constants too (QLoRA, section 3)")


@dataclass
class Hardware:
    accelerator: str = option("auto", "device", ("auto", "cpu", "mps", "cuda"))
    precision: str = option("auto", "number format of the forward pass", ("auto", "32", "bf16", "fp16"))
    optim: str = option("adamw", "optimizer; the paged one keeps 8-bit states", ("adamw", "paged_adamw_8bit"))
    num_threads: int | None = option(None, "CPU threads; torch's own choice by default")
    devices: int = option(1, "processes that train one model together by SFT or as a reward model, a device each")
    parts: Any = option("auto", "parts that rows are read in, for memory's sake: the same steps; auto: as few as fit")
    compile: bool = option(False, "compile the layers (torch.compile): faster steps, after half a minute")
    strategy: str = option("ddp", "several devices hold a copy of the model each, or a share", ("ddp", "fsdp"))


@dataclass
class Evaluation:
    prompts: int = option(12, "prompts in the before/after report")
    test_prompts: int = option(600, "most test prompts to answer for the judge's figures")
    max_new_tokens: int = option(64, "longest reply, in tokens")
    do_sample: bool = option(False, "sample instead of taking the likeliest token")
    temperature: float = option(1.0, "of sampling")
    batch_size: int = option(64, "prompts answered at once")


@dataclass
class Tracking:
    uri: str = option("sqlite:///${output_dir}/mlflow.db", "MLflow store or server")
    experiment: str = option("${study_name}", "MLflow experiment")
    system_metrics: bool = option(True, "log CPU, memory and GPU use")


@dataclass
class Sweep:
    sampler: str = option("grid", "every combination (grid), or a search by Optuna", ("grid", "tpe", "random"))
    trials: int = option(20, "a search's jobs")
    pruner: str = option("none", "gives up a search's jobs that fall behind", ("none", "median", "hyperband"))
    space: Any = option({}, "what varies beside the command line's lists: KEY: choice(1, 2) or KEY: interval(0.1, 1)")
    max_failures: int | None = option(None, "stop when more jobs than this have failed; by default all are tried")
    parent: str | None = option(None, "(a sweep sets it) MLflow run that the job belongs to")
    trial: int | None = option(None, "(a sweep sets it) number of the job in its search")
    journal: str | None = option(None, "(a sweep sets it) where the search keeps its trials")
