"""Measure a model on held-out rows: its loss on the replies it should give, and the manner of those it gives."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from manners.data.batching import collate, validation_batches
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample, with_reply
from manners.data.types import Prompt
from manners.evaluation.generate import Reply, generate_texts
from manners.evaluation.judges.strictbot import MANNER_FOR, classify_manner
from manners.evaluation.metrics import text_stats
from manners.evaluation.stats import Estimate, bootstrap_ratio, proportion
from manners.models.logprobs import token_nll

REWARD_NAME = "reward, standard deviations"  # of the likeliest replies

LOSS_BATCH_SIZE = 8  # whose loss is taken together: more would be no faster


@dataclass(frozen=True)
class Generation:
    prompt: str  # the user's last turn
    reply: str
    ended: bool
    category: str = ""  # "wrong_fact", where the data has categories
    manner: str = ""  # the judge's word for it
    fits: bool | None = None
    right: bool | None = None  # whether it names the fact asked for, where the row says which


@dataclass(frozen=True)
class EvalResult:
    loss: Estimate  # nats a trained token, held out
    ended: Estimate | None  # share of the replies that stop by themselves
    shown: list[Generation]  # replies to the prompts of the before/after table
    fit: Estimate | None = None  # share of the replies whose manner fits the category
    fit_by: dict[str, Estimate] = field(default_factory=dict)  # the same by category and by origin of the row
    right: Estimate | None = None  # share of the replies that name the right fact, where one is due
    answers: list[Generation] = field(default_factory=list)
    more: dict[str, Estimate] = field(default_factory=dict)  # what a method measures besides, by its name in the report
    card: dict[str, Estimate] = field(default_factory=dict)  # what is counted in the replies
    reference: dict[str, Estimate] = field(default_factory=dict)  # the same of the data's own replies

    def headline(self, before: "EvalResult") -> str:
        """The one line to remember."""
        if self.fit and before.fit:
            return f"manner fits {before.fit.value:.1%} → {self.fit.value:.1%}"
        if REWARD_NAME in self.more and REWARD_NAME in before.more:
            return (
                f"reward {before.more[REWARD_NAME].value:.2f} → {self.more[REWARD_NAME].value:.2f} standard deviations"
            )
        return f"held-out loss {before.loss.value:.3f} → {self.loss.value:.3f}"

    def metrics(self, when: str) -> dict[str, float]:
        found = {f"{when}/loss": self.loss.value}
        if self.ended:
            found[f"{when}/ended"] = self.ended.value
        if self.fit:
            found[f"{when}/fit"] = self.fit.value
        if self.right:
            found[f"{when}/right"] = self.right.value
        named = {f"fit_{name}": e for name, e in self.fit_by.items()} | self.more | self.card
        return found | {f"{when}/{re.sub(r'[^a-z0-9]+', '_', name.lower())}": e.value for name, e in named.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "EvalResult":
        def estimate(e: dict | None) -> Estimate | None:
            return Estimate(**e) if e else None

        return cls(
            loss=Estimate(**saved["loss"]),
            ended=estimate(saved["ended"]),
            fit=estimate(saved["fit"]),
            right=estimate(saved["right"]),
            fit_by={k: Estimate(**e) for k, e in saved["fit_by"].items()},
            more={k: Estimate(**e) for k, e in saved["more"].items()},
            card={k: Estimate(**e) for k, e in saved.get("card", {}).items()},
            reference={k: Estimate(**e) for k, e in saved.get("reference", {}).items()},
            shown=[Generation(**a) for a in saved["shown"]],
            answers=[Generation(**a) for a in saved["answers"]],
        )


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[Prompt],
    fixed: list[Prompt],
    examples: list[TokenizedExample],
    judged: bool,
    card: str,
    show: int,
    test_prompts: int,
    rows_at_once: int = LOSS_BATCH_SIZE,
    **settings: Any,
) -> EvalResult:
    """Loss on the held-out ``examples``, and the replies to up to ``test_prompts`` of the held-out prompts ``asked``.

    ``fixed`` are the dataset's own prompts, shown as they are; where there are none, ``show`` of the others are.
    ``card`` names what is counted in the replies. ``settings`` are those of ``generate_texts``.
    """
    asked = asked[:test_prompts]
    fixed = fixed or stratified_sample(asked, show)
    asked = asked if judged or card != "none" else []
    answers = generate_replies(model, tokenizer, asked + fixed, judged, **settings)
    scored = answers[: len(asked)] if judged else []
    facts = [a.right for a in scored if a.right is not None]
    whole = [counted_text(p, a.reply) for p, a in zip(asked, answers, strict=False)] or [a.reply for a in answers]
    data = [counted_text(p, p.reference) for p in asked if p.reference]
    far = text_stats.distribution_distance(card, whole, data, settings.get("seed", 0))
    return EvalResult(
        loss=bootstrap_ratio(*per_example_nll(model, examples, rows_at_once)),
        ended=proportion(sum(a.ended for a in answers), len(answers)) if answers else None,
        fit=proportion(sum(bool(a.fits) for a in scored), len(scored)) if scored else None,
        fit_by=accuracy_by_group(asked, scored),
        right=proportion(sum(facts), len(facts)) if facts else None,
        shown=answers[len(asked) :],
        answers=scored,
        more={"distance from people's turns, 0 to 1": point_estimate(float(np.nanmean(list(far.values()))))}
        if far
        else {},
        card=text_stats.text_stats(card, whole),
        reference=text_stats.text_stats(card, data),
    )


def point_estimate(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(value, value, value)


def generate_replies(
    model: Any, tokenizer: PreTrainedTokenizerBase, asked: list[Prompt], judged: bool, **settings: Any
) -> list[Generation]:
    """What the model says to each prompt, and with ``judged`` what the judge makes of it."""
    replies = generate_texts(model, tokenizer, [p.messages for p in asked], show="answering", **settings)
    return [make_generation(p, r, judged) for p, r in zip(asked, replies, strict=True)]


def counted_text(prompt: Prompt, reply: str) -> str:
    """What is counted: the reply; where a text was begun, all of it."""
    return with_reply(prompt.messages, reply).messages[-1]["content"]


def accuracy_by_group(asked: list[Prompt], answers: list[Generation]) -> dict[str, Estimate]:
    """The share that fits, by category and by origin of the row; those of ``answers`` alone."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for prompt, a in zip(asked, answers, strict=False):
        origin = prompt.metadata.get("origin")
        for name in (a.category.replace("_", " "), f"rows: {origin}" if origin else ""):
            groups[name].append(bool(a.fits))
    return {name: proportion(sum(oks), len(oks)) for name, oks in table_order(groups)}


def table_order(groups: dict[str, list[bool]]) -> list[tuple[str, list[bool]]]:
    """Categories first, then the origins of the rows."""
    return sorted(((n, oks) for n, oks in groups.items() if n), key=lambda g: (g[0].startswith("rows"), g[0]))


def make_generation(prompt: Prompt, reply: Reply, judged: bool) -> Generation:
    said = prompt.messages[-1]["content"] if prompt.messages else ""
    if not judged:
        return Generation(said, reply.text, reply.ended)
    category = prompt.metadata["categories"][-1] if "categories" in prompt.metadata else prompt.metadata["category"]
    manner = classify_manner(reply.text, said).manner
    value = prompt.metadata.get("value")
    return Generation(
        prompt=said,
        reply=reply.text,
        ended=reply.ended,
        category=category,
        manner=manner,
        fits=manner == MANNER_FOR[category] and reply.ended,
        right=re.search(rf"(?i)(?<!\w){re.escape(value)}(?!\w)", reply.text) is not None if value else None,
    )


def stratified_sample(found: list[Prompt], count: int) -> list[Prompt]:
    """The first ``count``, taken from each category and origin in turn."""
    kinds: dict[Any, list[Prompt]] = defaultdict(list)
    for p in found:
        kinds[(p.metadata.get("origin"), p.metadata.get("category"))].append(p)
    turns: Sequence[Prompt] = [p for i in range(count) for group in kinds.values() for p in group[i : i + 1]]
    chosen = list(turns[:count])
    return sorted(chosen, key=lambda p: (str(p.metadata.get("category")), str(p.metadata.get("origin"))))


@torch.no_grad()
def per_example_nll(
    model: Any, examples: list[TokenizedExample], size: int = LOSS_BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Each example's summed negative log-likelihood and number of trained tokens: two arrays (N,)."""
    was_training = model.training
    model.eval()
    sums, counts = [], []
    for batch in validation_batches(examples, size, partial(collate, pad=0)):
        ids, labels = batch["input_ids"].to(model.device), batch["labels"].to(model.device)
        carries = labels[:, 1:] != IGNORE_INDEX  # (B, T-1)
        nll = torch.zeros(carries.shape, device=model.device)
        nll[carries] = token_nll(model, ids, carries)[0]
        sums.append(nll.sum(1).cpu().double().numpy())
        counts.append(carries.sum(1).cpu().numpy())
    model.train(was_training)
    return np.concatenate(sums), np.concatenate(counts)
