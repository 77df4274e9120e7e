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

from manners.data.batches import collate, in_order
from manners.data.encode import IGNORE, Example, replied
from manners.data.rows import Prompt
from manners.evaluation import cards
from manners.evaluation.generate import Reply, generate
from manners.evaluation.judge import MANNER_FOR, judge
from manners.evaluation.stats import Estimate, ratio, share
from manners.models.loss import token_nll

REWARD = "reward, standard deviations"  # of the likeliest replies

ROWS_AT_ONCE = 8  # whose loss is taken together: more would be no faster


@dataclass(frozen=True)
class Answer:
    prompt: str  # the user's last turn
    reply: str
    ended: bool
    category: str = ""  # "wrong_fact", where the data has categories
    manner: str = ""  # the judge's word for it
    fits: bool | None = None
    right: bool | None = None  # whether it names the fact asked for, where the row says which


@dataclass(frozen=True)
class Measured:
    loss: Estimate  # nats a trained token, held out
    ended: Estimate | None  # share of the replies that stop by themselves
    shown: list[Answer]  # replies to the prompts of the before/after table
    fit: Estimate | None = None  # share of the replies whose manner fits the category
    fit_by: dict[str, Estimate] = field(default_factory=dict)  # the same by category and by origin of the row
    right: Estimate | None = None  # share of the replies that name the right fact, where one is due
    answers: list[Answer] = field(default_factory=list)
    more: dict[str, Estimate] = field(default_factory=dict)  # what a method measures besides, by its name in the report
    card: dict[str, Estimate] = field(default_factory=dict)  # what is counted in the replies
    reference: dict[str, Estimate] = field(default_factory=dict)  # the same of the data's own replies

    def headline(self, before: "Measured") -> str:
        """The one line to remember."""
        if self.fit and before.fit:
            return f"manner fits {before.fit.value:.1%} → {self.fit.value:.1%}"
        if REWARD in self.more and REWARD in before.more:
            return f"reward {before.more[REWARD].value:.2f} → {self.more[REWARD].value:.2f} standard deviations"
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
    def from_json(cls, saved: dict[str, Any]) -> "Measured":
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
            shown=[Answer(**a) for a in saved["shown"]],
            answers=[Answer(**a) for a in saved["answers"]],
        )


def measure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[Prompt],
    fixed: list[Prompt],
    examples: list[Example],
    judged: bool,
    card: str,
    show: int,
    test_prompts: int,
    rows_at_once: int = ROWS_AT_ONCE,
    **settings: Any,
) -> Measured:
    """Loss on the held-out ``examples``, and the replies to up to ``test_prompts`` of the held-out prompts ``asked``.

    ``fixed`` are the dataset's own prompts, shown as they are; where there are none, ``show`` of the others are.
    ``card`` names what is counted in the replies. ``settings`` are those of ``generate``.
    """
    asked = asked[:test_prompts]
    fixed = fixed or evenly(asked, show)
    asked = asked if judged or card != "none" else []
    answers = listen(model, tokenizer, asked + fixed, judged, **settings)
    scored = answers[: len(asked)] if judged else []
    facts = [a.right for a in scored if a.right is not None]
    whole = [whole_text(p, a.reply) for p, a in zip(asked, answers, strict=False)] or [a.reply for a in answers]
    data = [whole_text(p, p.reference) for p in asked if p.reference]
    far = cards.apart(card, whole, data, settings.get("seed", 0))
    return Measured(
        loss=ratio(*losses(model, examples, rows_at_once)),
        ended=share(sum(a.ended for a in answers), len(answers)) if answers else None,
        fit=share(sum(bool(a.fits) for a in scored), len(scored)) if scored else None,
        fit_by=fit_by(asked, scored),
        right=share(sum(facts), len(facts)) if facts else None,
        shown=answers[len(asked) :],
        answers=scored,
        more={"distance from people's turns, 0 to 1": exactly(float(np.nanmean(list(far.values()))))} if far else {},
        card=cards.count(card, whole),
        reference=cards.count(card, data),
    )


def exactly(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(value, value, value)


def listen(
    model: Any, tokenizer: PreTrainedTokenizerBase, asked: list[Prompt], judged: bool, **settings: Any
) -> list[Answer]:
    """What the model says to each prompt, and with ``judged`` what the judge makes of it."""
    replies = generate(model, tokenizer, [p.messages for p in asked], show="answering", **settings)
    return [answer(p, r, judged) for p, r in zip(asked, replies, strict=True)]


def whole_text(prompt: Prompt, reply: str) -> str:
    """What is counted: the reply; where a text was begun, all of it."""
    return replied(prompt.messages, reply).messages[-1]["content"]


def fit_by(asked: list[Prompt], answers: list[Answer]) -> dict[str, Estimate]:
    """The share that fits, by category and by origin of the row; those of ``answers`` alone."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for prompt, a in zip(asked, answers, strict=False):
        origin = prompt.extra.get("origin")
        for name in (a.category.replace("_", " "), f"rows: {origin}" if origin else ""):
            groups[name].append(bool(a.fits))
    return {name: share(sum(oks), len(oks)) for name, oks in in_table_order(groups)}


def in_table_order(groups: dict[str, list[bool]]) -> list[tuple[str, list[bool]]]:
    """Categories first, then the origins of the rows."""
    return sorted(((n, oks) for n, oks in groups.items() if n), key=lambda g: (g[0].startswith("rows"), g[0]))


def answer(prompt: Prompt, reply: Reply, judged: bool) -> Answer:
    said = prompt.messages[-1]["content"] if prompt.messages else ""
    if not judged:
        return Answer(said, reply.text, reply.ended)
    category = prompt.extra["categories"][-1] if "categories" in prompt.extra else prompt.extra["category"]
    manner = judge(reply.text, said).manner
    value = prompt.extra.get("value")
    return Answer(
        prompt=said,
        reply=reply.text,
        ended=reply.ended,
        category=category,
        manner=manner,
        fits=manner == MANNER_FOR[category] and reply.ended,
        right=re.search(rf"(?i)(?<!\w){re.escape(value)}(?!\w)", reply.text) is not None if value else None,
    )


def evenly(found: list[Prompt], count: int) -> list[Prompt]:
    """The first ``count``, taken from each category and origin in turn."""
    kinds: dict[Any, list[Prompt]] = defaultdict(list)
    for p in found:
        kinds[(p.extra.get("origin"), p.extra.get("category"))].append(p)
    turns: Sequence[Prompt] = [p for i in range(count) for group in kinds.values() for p in group[i : i + 1]]
    chosen = list(turns[:count])
    return sorted(chosen, key=lambda p: (str(p.extra.get("category")), str(p.extra.get("origin"))))


@torch.no_grad()
def losses(model: Any, examples: list[Example], size: int = ROWS_AT_ONCE) -> tuple[np.ndarray, np.ndarray]:
    """Each example's summed negative log-likelihood and number of trained tokens: two arrays (N,)."""
    was_training = model.training
    model.eval()
    sums, counts = [], []
    for batch in in_order(examples, size, partial(collate, pad=0)):
        ids, labels = batch["input_ids"].to(model.device), batch["labels"].to(model.device)
        carries = labels[:, 1:] != IGNORE  # (B, T-1)
        nll = torch.zeros(carries.shape, device=model.device)
        nll[carries] = token_nll(model, ids, carries)[0]
        sums.append(nll.sum(1).cpu().double().numpy())
        counts.append(carries.sum(1).cpu().numpy())
    model.train(was_training)
    return np.concatenate(sums), np.concatenate(counts)
