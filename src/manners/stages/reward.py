"""A reward model: learns to score replies, and is examined on held-out ones before anyone may use it."""

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from manners.data.corruptions import corrupt
from manners.data.passages import pair_passages, scored_passages
from manners.data.rows import Chat, Message, Scored, pairs, scored
from manners.data.siblings import Family, collate_families, families
from manners.evaluation import reward_report
from manners.evaluation import sanity as sanity_suite
from manners.evaluation.regression import Pairwise, Regression, pairwise, prompt_ids, regression
from manners.evaluation.sanity import Sanity
from manners.methods.reward import RewardModule, predict
from manners.models import reward as models
from manners.models.reward import Units
from manners.stages import show
from manners.stages.run import Outcome, Run, adapt, in_one, learn, load_settings, load_tokenizer, save_config
from manners.stages.show import Exam

SANE = "sanity.json"  # in the model's folder: what PPO looks at before it believes a score
Score = Callable[[Sequence[tuple[list[Message], str]]], list[float]]


def train(run: Run) -> Outcome:
    cfg, m = run.cfg, run.cfg.method
    tokenizer = load_tokenizer(cfg)
    make = partial(scorer, run, tokenizer)
    network = make()
    sanity_suite.good(*real_replies(run), cfg.seed)  # what would stop the examination stops the training
    units = Units() if m.loss == "pairwise" else Units.of([r.score for r in scored(run.splits.train)])
    share = models.shares_prompts(network)
    examples = lessons(run, run.splits.train, tokenizer, units, share)
    held_out = lessons(run, run.splits.validation or run.splits.test, tokenizer, units, share)
    together = partial(collate_families, pad=tokenizer.pad_token_id, share=share)
    fitted = learn(run, partial(RewardModule, network, m.loss, m.ranking), examples, held_out, together)

    if run.world.rank:
        return Outcome(fitted.best_loss, fitted.best_step, "")
    network = in_one(run, network, make)
    network.to(run.device.kind)  # Lightning leaves it on the CPU
    raw: Score = partial(predict, network, tokenizer, m.max_length)
    if m.loss == "pairwise":
        units = spread(run, raw)
    score: Score = lambda replies: [units.mean + units.scale * s for s in raw(replies)]  # noqa: E731
    exam, sane = examine(run, score), sanity_suite.check(score, *real_replies(run), cfg.seed)
    run.tracker.log(exam.quality.metrics("after") | sane.metrics("after"), fitted.steps)
    save(run, network, tokenizer, units, sane)
    show.reward(run, exam, sane, fitted.best_step)
    return Outcome(fitted.best_loss, fitted.best_step, headline(exam.quality, sane))


def scorer(run: Run, tokenizer: Any) -> Any:
    """The base with a head that scores, and its adapter, as training finds it."""
    cfg = run.cfg
    network: Any = models.load(
        cfg.model.name, tokenizer, cfg.model.revision, cfg.model.attn_implementation, **load_settings(cfg, run.device)
    )
    return adapt(cfg, network, run.device, task_type="SEQ_CLS")


def lessons(run: Run, chats: list[Chat], tokenizer: Any, units: Units, share: bool) -> list[Family]:
    """What the model reads, by prompt: pairs, or scored replies, of which some are spoilt in training."""
    m, decoder = run.cfg.method, run.cfg.model.decoder
    if m.loss == "pairwise":
        passages = pair_passages(pairs(chats), tokenizer, m.max_length, decoder)
    else:
        rows = scored(chats)
        if chats is run.splits.train and m.corrupted:
            rows = rows + spoilt(rows, m.corrupted, run.cfg.seed)
        passages = scored_passages(rows, tokenizer, m.max_length, decoder, units.mean, units.scale)
    return [Family([passages[i] for i in group], share) for group in families(passages, share)]


def spoilt(rows: list[Scored], share: float, seed: int) -> list[Scored]:
    """``share`` spoilt replies for each real one, every kind alike, made of replies above the mean."""
    mean = sum(r.score for r in rows) / len(rows)
    found = [bad for _, _, bad in corrupt([r for r in rows if r.score >= mean], rows, f"train/{seed}")]
    random.Random(f"{seed}/spoilt").shuffle(found)
    return found[: round(share * len(rows))]


def spread(run: Run, raw: Score) -> Units:
    """Scores learned from pairs have no units: these make their spread over training replies 1, and their mean 0."""
    sample = pairs(run.splits.train)[:500]
    values = raw([(p.messages, reply) for p in sample for reply in (p.chosen, p.rejected)])
    of = Units.of(values)
    return Units(-of.mean / of.scale, 1 / of.scale)


def examine(run: Run, score: Score) -> Exam:
    """The model on the test rows."""
    chats, seed = run.splits.test or run.splits.validation, run.cfg.seed
    if run.cfg.method.loss == "pairwise":
        rows = pairs(chats)
        chosen = score([(p.messages, p.chosen) for p in rows])
        rejected = score([(p.messages, p.rejected) for p in rows])
        ordered = pairwise(chosen, rejected, prompt_ids([p.messages for p in rows]), seed)
        return Exam(ordered, reward_report.pair_rows(rows, chosen, rejected))
    held_out, known = scored(chats), scored(run.splits.train)
    predicted, true = score([(r.messages, r.reply) for r in held_out]), [r.score for r in held_out]
    mean = sum(r.score for r in known) / len(known)
    groups, lengths = prompt_ids([r.messages for r in held_out]), [len(r.reply.split()) for r in held_out]
    quality = regression(predicted, true, groups, lengths, mean, seed)
    return Exam(quality, reward_report.rows(held_out, predicted), predicted, true)


def real_replies(run: Run) -> tuple[list[Scored], list[Scored]]:
    """Held-out replies to spoil, and those of the training, which lend their words. Of pairs, the chosen are good."""
    both = []
    for chats in (run.splits.test or run.splits.validation, run.splits.train):
        if run.cfg.method.loss == "pairwise":
            found = pairs(chats)
            both.append([Scored(p.messages, r, s) for p in found for r, s in ((p.chosen, 1.0), (p.rejected, 0.0))])
        else:
            both.append(scored(chats))
    return both[0], both[1]


def save(run: Run, network: Any, tokenizer: Any, units: Units, sane: Sanity) -> None:
    out = run.path / "model"
    network.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    units.save(out)
    (out / SANE).write_text(json.dumps(sane.to_json(), indent=1, ensure_ascii=False))
    save_config(run.cfg, out)


def headline(examined: Regression | Pairwise, sane: Sanity) -> str:
    if isinstance(examined, Pairwise):
        told = f"pair accuracy {examined.accuracy.value:.1%}"
    else:
        told = f"Spearman {examined.spearman.value:.2f}" if examined.spearman else f"MSE {examined.mse.value:.3f}"
        told += f", pair accuracy {examined.pair_accuracy.value:.1%}" if examined.pair_accuracy else ""
    return f"{told}, sanity {sane.passed.value:.1%}"
