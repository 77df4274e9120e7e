"""Prompt distillation: what a model says under a system message becomes training data without that message.

Askell et al. 2021 (arXiv 2112.00861, section 2.2, "context distillation"), with filtered samples in place of the
teacher's distribution. Sampled are replies to the training and validation prompts of a dataset; of those that end, and
that the style judge accepts, the first is written, or the one that a reward model likes best. Test rows are copied, so
that a model trained on the file is tested on what the dataset asks.
"""

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from manners.config.overrides import quoted_override
from manners.config.validate import check_new_tokens
from manners.data.loading import Splits, load_splits
from manners.data.types import REWARD_FIELDS, Conversation, has_category
from manners.distill.samples import Asked, SampleFile, fingerprint_of, sample_batches
from manners.errors import MannersError
from manners.evaluation.generate import cut_prompts_line
from manners.models.loading import context_length
from manners.pipeline import model_ref
from manners.pipeline.evaluate import with_system
from manners.pipeline.model_ref import ModelRef
from manners.pipeline.style_judge import check_style_judge
from manners.runtime.atomic_io import atomic_write, check_writable

console = Console(markup=False)


def write_distilled(cfg: DictConfig) -> Path:
    """Sample, filter and write ``cfg.out``, a .jsonl file, which is returned. A killed command goes on where it was.

    Raises MannersError for a model, judge or reward model that is not there, and where no reply is accepted.
    """
    system = cfg.system or cfg.dataset.prompted_baseline
    check_options(cfg, system)
    ref = model_ref.resolve_model(cfg.run, cfg)
    splits = load_splits(cfg.dataset)
    asked = asked_prompts(splits)
    if asked and cfg.reward_from == "none" and not any(has_category(a.prompt) for a in asked):
        raise MannersError(
            f"dataset.style_judge={cfg.dataset.style_judge} judges a reply by the 'category' of its row, and no row of "
            f"{cfg.dataset.path} has one: choose by a reward model, reward_from=RUN.",
            "reward_from",
        )
    check_room(cfg, ref, asked, system)
    samples = SampleFile(Path(f"{cfg.out}.samples"), fingerprint_of(cfg, ref, [a.row for a in asked]))
    if samples.batches:
        console.print(f"resuming: {len(samples.batches)} batches are in {samples.path}", soft_wrap=True)
    for batch in sample_batches(cfg, ref, asked, system, skip=len(samples.batches)):
        samples.append(batch)
    kept = [(asked[i], reply) for batch in samples.batches for i, reply in batch["kept"]]
    report(cfg, asked, kept, Counter([fate for batch in samples.batches for fate in batch["fates"]]))
    if not any(a.split == "train" for a, _ in kept):
        raise MannersError(
            f"no reply to a training prompt was accepted: ask in other words (system=), sample more (num_generations="
            f"{2 * cfg.num_generations}), or take a larger model (run=)."
        )
    write_rows(Path(cfg.out), splits, kept, ref.name)
    samples.path.unlink()
    console.print(
        f"train on it: python train.py method=sft dataset=distilled {shlex.quote(dataset_path(cfg.out))}",
        soft_wrap=True,
    )
    return Path(cfg.out)


def check_options(cfg: DictConfig, system: str | None) -> None:
    """Raises MannersError where there is no system message, nothing that chooses, or no file to write."""
    if not system:
        raise MannersError(f"{cfg.dataset.path} has no system message of its own: system='Answer …'.", "system")
    if cfg.dataset.style_judge == "none" and cfg.reward_from == "none":
        raise MannersError(
            "nothing chooses among the replies: dataset.style_judge=rules, or a reward model, reward_from=RUN.",
            "reward_from",
        )
    if cfg.min_reward is not None and cfg.reward_from == "none":
        raise MannersError(f"min_reward={cfg.min_reward} needs a reward model: reward_from=RUN.", "min_reward")
    if Path(cfg.out).suffix != ".jsonl":
        raise MannersError(f"out={cfg.out}: the rows are written to a .jsonl file.", "out")
    if Path(cfg.out).exists() and "distilled_from" not in Path(cfg.out).read_text(encoding="utf-8").partition("\n")[0]:
        raise MannersError(f"out={cfg.out} exists, and is no file of a distillation: choose another name.", "out")
    check_writable(str(Path(cfg.out).parent), "Choose another place: out=FOLDER/FILE.jsonl.", "out=")
    check_style_judge(cfg)


def check_room(cfg: DictConfig, ref: ModelRef, asked: list[Asked], system: str) -> None:
    """Print how many prompts are cut, with the system message. Raises MannersError where there is no room for them."""
    context = context_length(*model_ref.base_of(ref))
    check_new_tokens("max_new_tokens", cfg.max_new_tokens, context, ref.name)
    prompts = [p.messages for p in with_system([a.prompt for a in asked], system)]
    tokenizer, room = model_ref.tokenizer_of(ref), context - cfg.max_new_tokens
    if line := cut_prompts_line(prompts, tokenizer, "assistant", room, "max_new_tokens"):
        console.print(f"{ref.name}: {line}", style="yellow", highlight=False)


def asked_prompts(splits: Splits) -> list[Asked]:
    """Each different training and validation prompt, with the first row that asks it."""
    found: dict[str, Asked] = {}
    for split in ("train", "validation"):
        for row in getattr(splits, split):
            if row.messages[-1]["role"] == "assistant" and len(row.messages) > 1:
                found.setdefault(json.dumps(row.messages[:-1]), Asked(split, row))
    return list(found.values())


def report(cfg: DictConfig, asked: list[Asked], kept: list[tuple[Asked, str]], fates: Counter[str]) -> None:
    """Print what became of the replies, and how many prompts of each category are left."""
    sampled = fates.total()
    for fate, count in fates.most_common():
        console.print(f"{fate}: {count} of {sampled} replies ({count / sampled:.1%})", highlight=False)
    left = Counter(category_of(a) for a, _ in kept)
    for category, count in sorted(Counter(map(category_of, asked)).items()):
        console.print(f"{category}: {left[category]} of {count} prompts have a reply", highlight=False)


def category_of(asked: Asked) -> str:
    return str(asked.row.metadata.get("category", "all")).replace("_", " ")


def write_rows(out: Path, splits: Splits, kept: list[tuple[Asked, str]], model: str) -> None:
    """The accepted replies, and the test rows as they are, in place of an earlier file."""
    rows = [distilled_row(asked, reply, model) for asked, reply in kept]
    rows += [fields_of(row) | {"messages": row.messages, "split": "test"} for row in splits.test]
    with atomic_write(out) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    counts = Counter(row["split"] for row in rows)
    console.print(f"{out}: " + ", ".join(f"{count} {split} rows" for split, count in counts.items()), soft_wrap=True)


def distilled_row(asked: Asked, reply: str, model: str) -> dict[str, Any]:
    """The prompt without the system message, the model's reply, and the row's other fields."""
    messages = [*asked.row.messages[:-1], {"role": "assistant", "content": reply}]
    return fields_of(asked.row) | {"messages": messages, "split": asked.split, "distilled_from": model}


def fields_of(row: Conversation) -> dict[str, Any]:
    """What a row has beside its messages, but for scores and other replies, which are about the reply in the data."""
    return {name: value for name, value in row.metadata.items() if name not in (*REWARD_FIELDS, "id")}


def dataset_path(out: str) -> str:
    return quoted_override("dataset.path", out)
