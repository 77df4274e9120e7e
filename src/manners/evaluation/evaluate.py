"""Evaluate a language model on held-out rows: loss, style and fact accuracy, text statistics of its replies."""

import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from manners.data.batching import collate, validation_batches
from manners.data.clusters import cluster_ids
from manners.data.mixture import DATASET
from manners.data.ngrams import texts_with_commonest_sentence
from manners.data.tokenize import IGNORE_INDEX, TokenizedExample, with_reply
from manners.data.types import Prompt, has_category
from manners.evaluation.generate import Reply, generate_texts
from manners.evaluation.judges import PARTS, Judge, JudgedReply, Verdict
from manners.evaluation.judges.errors import JudgeErrors
from manners.evaluation.metrics.text_stats import count_text_stats, distribution_distance
from manners.evaluation.stats import Estimate, bootstrap_ratio, rate
from manners.models.logprobs import token_nll
from manners.models.lora import merged_for_generation

# Names in reports; ``metric_key`` has those of the metrics.
REWARD_NAME, SAMPLED_REWARD_NAME = "reward", "reward of sampled replies"  # the first is that of the replies shown
KL_NAME = "KL of sampled replies to the reference, nats per reply"
LOSS_NAME, EOS_NAME = "held-out loss, nats per token", "replies with EOS"
PART_NAMES = {part: f"replies: {name}" for part, name in PARTS.items() if part != "fact"}  # that has a line of its own
COMMONEST_NAME = "replies with the commonest sentence"  # and the category, where there are several
CORRECTED_NAME = "style accuracy, corrected for the judge's errors"
RATES = (
    EOS_NAME,
    "style accuracy",
    "fact accuracy",
    CORRECTED_NAME,
    COMMONEST_NAME,
    *PART_NAMES.values(),
)  # shown as percentages
NLL_NAME, REPETITION_NAME = "NLL under the base model, nats per token", "repeated 4grams"
RISE_OF_NLL, RISE_OF_REPETITION, RISE_OF_COMMONEST = 1.0, 0.2, 0.1  # above what any change of manner brings

LOSS_BATCH_SIZE = 8  # a larger batch is no faster
MAX_LOSS_LENGTH = 512  # tokens of a held-out row that count for the loss, unless the method has a length of its own


@dataclass(frozen=True)
class Generation:
    """One reply and its classification."""

    prompt: str  # the user's last turn
    reply: str
    has_eos: bool
    category: str = ""  # such as "wrong_fact", where the data has categories
    style: str = ""  # by the style judge
    matches_style: bool | None = None
    fact_correct: bool | None = None  # whether the reply names the fact of the row, where it has one
    parts: dict[str, bool] = field(default_factory=dict)  # what the verdict is made of: see ``judges.PARTS``


@dataclass(frozen=True)
class EvalResult:
    """A model on held-out rows, each number with its 95 % interval."""

    loss: Estimate  # nats per token that carries loss
    eos_rate: Estimate | None  # fraction of the replies that end with EOS
    shown_generations: list[Generation]  # of the before/after table
    style_accuracy: Estimate | None = None  # fraction of the replies with the style of their category
    style_accuracy_by_group: dict[str, Estimate] = field(default_factory=dict)  # by category, and by origin of the row
    fact_accuracy: Estimate | None = None  # fraction of the replies that name the fact of their row
    generations: list[Generation] = field(default_factory=list)
    extra_metrics: dict[str, Estimate] = field(default_factory=dict)  # of the method, by their name in the report
    text_stats: dict[str, Estimate] = field(default_factory=dict)
    reference_text_stats: dict[str, Estimate] = field(default_factory=dict)  # of the replies in the data
    replies: list[Reply] = field(default_factory=list)  # to the prompts that are counted; not saved
    num_prompts: int = 0  # that are counted
    num_clusters: int = 0  # of them, which intervals are over

    def headline(self, before: "EvalResult", rise_of_loss: float = 0.0) -> str:
        """The change in one line, which begins with what became worse: see ``worse_than``."""
        worse = self.worse_than(before, rise_of_loss)
        changes = [f"{name} {change}" for name, change in self.main_change(before).items() if name not in worse]
        warning = "; ".join(f"{name} {change}" for name, change in worse.items())
        return "; ".join([f"WORSE than before training: {warning}", *changes] if worse else changes)

    def main_change(self, before: "EvalResult") -> dict[str, str]:
        """Style accuracy where it was judged, else the reward, else the loss."""
        if self.style_accuracy and before.style_accuracy:
            return {RATES[1]: f"{before.style_accuracy.value:.1%} → {self.style_accuracy.value:.1%}"}
        rewards = [name for name in self.extra_metrics if name.startswith(REWARD_NAME) and name in before.extra_metrics]
        if rewards:
            return {n: f"{before.extra_metrics[n].value:.2f} → {self.extra_metrics[n].value:.2f}" for n in rewards}
        return {LOSS_NAME: f"{before.loss.value:.3f} → {self.loss.value:.3f}"}

    def worse_than(self, before: "EvalResult", rise_of_loss: float = 0.0) -> dict[str, str]:
        """What became worse beyond its interval: rates that fell; loss, NLL and repetition that rose, by so much."""
        rates = [(EOS_NAME, before.eos_rate, self.eos_rate), (RATES[1], before.style_accuracy, self.style_accuracy)]
        worse = {
            name: f"{old.value:.1%} → {new.value:.1%}"
            for name, old, new in [*rates, (RATES[2], before.fact_accuracy, self.fact_accuracy)]
            if old and new and new.high < old.low
        }
        found, were = (e.extra_metrics | e.text_stats | {LOSS_NAME: e.loss} for e in (self, before))
        limits = {LOSS_NAME: rise_of_loss, NLL_NAME: RISE_OF_NLL, REPETITION_NAME: RISE_OF_REPETITION}
        limits |= {name: RISE_OF_COMMONEST for name in found if name.startswith(COMMONEST_NAME)}
        for name, rise in limits.items():
            old, new = were.get(name), found.get(name)
            if old and new and new.low > old.high and new.value - old.value > rise:
                shown = [f"{e.value:.1%}" if is_rate(name) else f"{e.value:.2f}" for e in (old, new)]
                worse[name] = " → ".join(shown)
        return worse

    def metrics(self, prefix: str) -> dict[str, float]:
        """The values for MLflow, as ``prefix``/name."""
        named = {
            "loss": self.loss,
            "eos_rate": self.eos_rate,
            "style_accuracy": self.style_accuracy,
            "fact_accuracy": self.fact_accuracy,
            **{f"style_accuracy_{name}": e for name, e in self.style_accuracy_by_group.items()},
            **self.extra_metrics,
            **self.text_stats,
        }
        return {f"{prefix}/{metric_key(n)}": e.value for n, e in named.items() if e is not None}

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, replies=[]))

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "EvalResult":
        def estimate(value: dict | None) -> Estimate | None:
            return Estimate(**value) if value else None

        def estimates(values: dict) -> dict[str, Estimate]:
            return {name: Estimate(**value) for name, value in values.items()}

        return cls(
            loss=Estimate(**saved["loss"]),
            eos_rate=estimate(saved["eos_rate"]),
            shown_generations=[Generation(**g) for g in saved["shown_generations"]],
            style_accuracy=estimate(saved["style_accuracy"]),
            style_accuracy_by_group=estimates(saved["style_accuracy_by_group"]),
            fact_accuracy=estimate(saved["fact_accuracy"]),
            generations=[Generation(**g) for g in saved["generations"]],
            extra_metrics=estimates(saved["extra_metrics"]),
            text_stats=estimates(saved["text_stats"]),
            reference_text_stats=estimates(saved["reference_text_stats"]),
            num_prompts=saved.get("num_prompts", 0),
            num_clusters=saved.get("num_clusters", 0),
        )


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    fixed_prompts: list[Prompt],
    examples: list[TokenizedExample],
    style_judge: Judge | None,
    text_stats: str,
    num_shown: int,
    max_prompts: int,
    loss_batch_size: int = LOSS_BATCH_SIZE,
    example_clusters: np.ndarray | None = None,
    example_datasets: Sequence[str] = (),
    judge_errors: JudgeErrors | None = None,
    **generation: Any,
) -> EvalResult:
    """The loss on the held-out ``examples``, and metrics of the replies to up to ``max_prompts`` of ``prompts``.

    ``fixed_prompts`` are shown in the report; where there are none, ``num_shown`` of the others. ``text_stats`` names
    what is counted in the replies; ``judge_errors`` correct the rate of the judge. ``generation`` are keyword arguments
    of ``generate_texts``. Intervals are over clusters of prompts, and over ``example_clusters`` (N,). Of a mixture,
    ``example_datasets`` names the dataset of each example.
    """
    prompts = prompts[:max_prompts]
    clusters = cluster_ids(prompts)
    replies = answer(model, tokenizer, prompts + fixed_prompts, **generation)
    generations, shown = counted_and_shown(prompts, fixed_prompts, replies, num_shown, style_judge)
    classified = generations if style_judge else []
    by_row = per_example_nll(model, examples, loss_batch_size)
    texts = [counted_text(p, g.reply) for p, g in zip(prompts, generations, strict=True)]
    text_clusters = clusters if texts else None
    texts = texts or [g.reply for g in shown]
    with_reference = [p for p in prompts if p.reference]
    references = [counted_text(p, str(p.reference)) for p in with_reference]
    distances = distribution_distance(text_stats, texts, references, generation.get("seed", 0))
    extra = {"distance from people's turns, 0 to 1": float(np.nanmean(list(distances.values())))} if distances else {}
    return EvalResult(
        loss=bootstrap_ratio(*by_row, clusters=example_clusters),
        eos_rate=rate([g.has_eos for g in generations], clusters) if generations else None,
        shown_generations=shown,
        style_accuracy=style_accuracy(classified, clusters),
        style_accuracy_by_group=accuracy_by_group(prompts, classified),
        fact_accuracy=fact_accuracy(classified, clusters),
        generations=classified,
        extra_metrics=corrected_rate(classified, clusters, judge_errors)
        | rates_of_parts(classified, clusters)
        | commonest_sentence(generations, clusters)
        | eos_by_dataset(prompts, generations, clusters)
        | loss_by_dataset(*by_row, example_datasets, example_clusters)
        | {name: point_estimate(value) for name, value in extra.items()},
        text_stats=count_text_stats(text_stats, texts, text_clusters),
        reference_text_stats=count_text_stats(text_stats, references, cluster_ids(with_reference)),
        num_prompts=len(prompts),
        num_clusters=len(set(clusters)),
        replies=replies[: len(prompts)],
    )


def style_accuracy(generations: Sequence[Generation], clusters: np.ndarray) -> Estimate | None:
    """The share of the replies that fit, over the ``clusters`` (N,) of their prompts; None without judged replies."""
    judged = [i for i, g in enumerate(generations) if g.matches_style is not None]
    return rate([bool(generations[i].matches_style) for i in judged], clusters[judged]) if judged else None


def fact_accuracy(generations: Sequence[Generation], clusters: np.ndarray) -> Estimate | None:
    """The share of the replies that name the fact of their row, over ``clusters`` (N,); None where no row has one."""
    owed = [i for i, g in enumerate(generations) if g.fact_correct is not None]
    return rate([bool(generations[i].fact_correct) for i in owed], clusters[owed]) if owed else None


def corrected_rate(
    generations: Sequence[Generation], clusters: np.ndarray, errors: JudgeErrors | None
) -> dict[str, Estimate]:
    """Style accuracy corrected for the judge's errors on labeled replies, by its name; empty where it cannot be.

    Each of the ``clusters`` (N,) counts as one reply, as if all of its replies would fit or fail together.
    """
    judged = [i for i, g in enumerate(generations) if g.matches_style is not None]
    if errors is None or not judged:
        return {}
    independent = len(set(clusters[judged]))
    fitting = sum(bool(generations[i].matches_style) for i in judged) / len(judged)
    corrected = errors.corrected(fitting * independent, independent)
    return {CORRECTED_NAME: corrected} if corrected else {}


def rates_of_parts(generations: list[Generation], clusters: np.ndarray) -> dict[str, Estimate]:
    """How often each part of the judge's verdict was passed, over ``clusters`` (N,), by its name in the report."""
    rates = {}
    for part, name in PART_NAMES.items():
        judged = [i for i, g in enumerate(generations) if part in g.parts]
        if judged:
            rates[name] = rate([generations[i].parts[part] for i in judged], clusters[judged])
    return rates


def commonest_sentence(generations: Sequence[Generation], clusters: np.ndarray) -> dict[str, Estimate]:
    """The share of replies with one and the same sentence, for each category, over ``clusters`` (N,).

    A policy that answers every argument by one question would go unseen among the prompts of other categories.
    """
    by_category: dict[str, list[int]] = defaultdict(list)
    for i, generation in enumerate(generations):
        by_category[generation.category].append(i)
    shares = {}
    for category, members in sorted(by_category.items()):
        hits = texts_with_commonest_sentence([generations[i].reply for i in members])
        name = f"{COMMONEST_NAME}: {category.replace('_', ' ')}" if category else COMMONEST_NAME
        shares[name] = rate(hits, clusters[members])
    return shares


def eos_by_dataset(
    prompts: Sequence[Prompt], generations: Sequence[Generation], clusters: np.ndarray
) -> dict[str, Estimate]:
    """The share of replies with EOS for each dataset of a mixture, over ``clusters`` (N,); empty for one dataset."""
    names = [p.metadata.get(DATASET, "") for p in prompts]
    has_eos = np.array([g.has_eos for g in generations])
    members = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names) if name}
    return {f"{EOS_NAME}: {name}": rate(has_eos[of], clusters[of]) for name, of in members.items()}


def loss_by_dataset(
    nll: np.ndarray, num_tokens: np.ndarray, datasets: Sequence[str], clusters: np.ndarray | None
) -> dict[str, Estimate]:
    """The held-out loss of each dataset of a mixture, in nats per token.

    ``nll`` and ``num_tokens`` (N,) are sums over each example, ``datasets`` and ``clusters`` (N,) say where it is from.
    """
    of, names = np.array(datasets), dict.fromkeys(name for name in datasets if name)
    cluster = np.arange(len(nll)) if clusters is None else clusters
    parts = {name: np.flatnonzero(of == name) for name in names}
    return {
        f"{LOSS_NAME}: {name}": bootstrap_ratio(nll[part], num_tokens[part], clusters=cluster[part])
        for name, part in parts.items()
    }


def is_rate(name: str) -> bool:
    """Whether a report shows the metric as a percentage."""
    return name in RATES or name.startswith((RATES[1], COMMONEST_NAME, f"{EOS_NAME}:"))


def metric_key(name: str) -> str:
    """The name under which a run and evaluate.py log what a report calls ``name``."""
    named = {LOSS_NAME: "loss", EOS_NAME: "eos_rate", KL_NAME: "kl_to_the_reference_nats_per_reply"}
    return named.get(name) or re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def answer_prompts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    fixed_prompts: list[Prompt],
    num_shown: int,
    style_judge: Judge | None,
    **generation: Any,
) -> tuple[list[Generation], list[Generation]]:
    """The replies to ``prompts``, which are counted, and those that are shown.

    Shown are the replies to ``fixed_prompts``; where there are none, ``num_shown`` of the others.
    """
    replies = answer(model, tokenizer, prompts + fixed_prompts, **generation)
    return counted_and_shown(prompts, fixed_prompts, replies, num_shown, style_judge)


def counted_and_shown(
    prompts: list[Prompt], fixed_prompts: list[Prompt], replies: list[Reply], num_shown: int, style_judge: Judge | None
) -> tuple[list[Generation], list[Generation]]:
    """The ``replies`` to ``prompts`` and then to ``fixed_prompts`` as ``answer_prompts`` returns them."""
    generations = make_generations(prompts + fixed_prompts, replies, style_judge)
    counted, shown = generations[: len(prompts)], generations[len(prompts) :]
    if not fixed_prompts:
        by_prompt = {id(p): g for p, g in zip(prompts, counted, strict=True)}
        shown = [by_prompt[id(p)] for p in stratified_sample(prompts, num_shown)]
    return counted, shown


def point_estimate(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(value, value, value)


def generate_replies(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], style_judge: Judge | None, **generation: Any
) -> list[Generation]:
    """The reply to each prompt, with the verdict of ``style_judge``, where there is one."""
    return make_generations(prompts, answer(model, tokenizer, prompts, **generation), style_judge)


def answer(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], **generation: Any) -> list[Reply]:
    """The reply to each prompt: none without prompts, where plain texts are too short to be continued."""
    conversations = [p.messages for p in prompts]
    return generate_texts(model, tokenizer, conversations, show="generating", **generation) if prompts else []


def counted_text(prompt: Prompt, reply: str) -> str:
    """The text for the statistics: the reply, or prefix and continuation where a text was continued."""
    return with_reply(prompt.messages, reply).messages[-1]["content"]


def accuracy_by_group(prompts: list[Prompt], generations: list[Generation]) -> dict[str, Estimate]:
    """Style accuracy of the judged replies by category, then by origin or dataset of the row."""
    clusters = cluster_ids(prompts)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, (prompt, generation) in enumerate(zip(prompts, generations, strict=False)):
        if generation.matches_style is None:
            continue
        origins = [prompt.metadata[field] for field in ("origin", DATASET) if prompt.metadata.get(field)]
        for name in (generation.category.replace("_", " "), *(f"rows: {origin}" for origin in origins)):
            groups[name].append(i)
    named = sorted((name for name in groups if name), key=lambda name: (name.startswith("rows"), name))
    fits = np.array([bool(g.matches_style) for g in generations])
    return {name: rate(fits[groups[name]], clusters[groups[name]]) for name in named}


def make_generations(prompts: list[Prompt], replies: list[Reply], style_judge: Judge | None) -> list[Generation]:
    """The replies, each compared with the category and the fact of its row, where there are a judge and a category."""
    generations = [Generation(last_turn(p), r.text, r.has_eos) for p, r in zip(prompts, replies, strict=True)]
    if style_judge is None:
        return generations
    of = [i for i, prompt in enumerate(prompts) if has_category(prompt)]
    judged = [judged_reply(prompts[i], replies[i]) for i in of]
    for i, reply, verdict in zip(of, judged, style_judge(judged), strict=True):
        generations[i] = judged_generation(reply, verdict, replies[i].has_eos)
    return generations


def judged_reply(prompt: Prompt, reply: Reply) -> JudgedReply:
    metadata = prompt.metadata
    category = metadata["categories"][-1] if "categories" in metadata else metadata["category"]
    return JudgedReply(last_turn(prompt), reply.text, category, metadata.get("value") or None)


def last_turn(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"] if prompt.messages else ""


def judged_generation(judged: JudgedReply, verdict: Verdict, has_eos: bool) -> Generation:
    """The reply with its verdict. One that does not end by itself does not fit."""
    return Generation(
        prompt=judged.prompt,
        reply=judged.reply,
        has_eos=has_eos,
        category=judged.category,
        style=verdict.style,
        matches_style=verdict.fits and has_eos,
        fact_correct=verdict.fact,
        parts=verdict.parts(),
    )


def stratified_sample(prompts: list[Prompt], count: int) -> list[Prompt]:
    """The first ``count`` prompts, taken from each category and origin in turn, sorted by category."""
    groups: dict[Any, list[Prompt]] = defaultdict(list)
    for p in prompts:
        groups[(p.metadata.get("origin"), p.metadata.get("category"))].append(p)
    interleaved = [p for i in range(count) for group in groups.values() for p in group[i : i + 1]]
    return sorted(interleaved[:count], key=lambda p: (str(p.metadata.get("category")), str(p.metadata.get("origin"))))


@torch.no_grad()
def per_example_nll(
    model: Any, examples: list[TokenizedExample], batch_size: int = LOSS_BATCH_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Summed negative log-likelihood of each example, in nats, and its number of tokens with loss: (N,), (N,).

    They are in the order of ``examples``, which are read by length.
    """
    was_training = model.training
    model.eval()
    sums, counts = [], []
    # In bf16 on a CPU, one merged weight in bf16 is a third of the work of a LoRA whose base is cast at each pass.
    with merged_for_generation(model) if torch.is_autocast_enabled("cpu") else nullcontext():
        for batch in validation_batches(examples, batch_size, partial(collate, pad=0)):
            ids, labels = batch["input_ids"].to(model.device), batch["labels"].to(model.device)
            loss_mask = labels[:, 1:] != IGNORE_INDEX  # (B, T-1)
            nll = torch.zeros(loss_mask.shape, device=model.device)
            nll[loss_mask] = token_nll(model, ids, loss_mask, share_prefixes=True)[0]
            sums.append(nll.sum(1).cpu().double().numpy())
            counts.append(loss_mask.sum(1).cpu().numpy())
    model.train(was_training)
    place = np.argsort(np.argsort([e.length for e in examples], kind="stable"))  # of each example among the sorted
    return np.concatenate(sums)[place], np.concatenate(counts)[place]
