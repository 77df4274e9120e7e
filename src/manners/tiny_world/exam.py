"""What the tiny base knows before it is taught any manner: ``python -m manners.tiny_world.exam``.

Each fact is asked once, greedily, in the question form that no training text used for it. A reply is right when it
names the fact's value and no other value of the same column.
"""

import json
import math
import random
from collections import defaultdict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manners.evaluation.generate import generate_texts
from manners.evaluation.metrics.reference_nll import reference_nll
from manners.models.loading import load_model, load_tokenizer
from manners.tiny_world import compare
from manners.tiny_world.corpus import documents, yes_no_question
from manners.tiny_world.facts import answers, facts
from manners.tiny_world.pretrain import FOLDER, HELD_OUT_SEED, encode_documents


def run_exam(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """The shares of facts and of yes/no questions answered rightly, the perplexity of unseen text, the mistakes."""
    asked = [[{"role": "user", "content": f.held_out_question()}] for f in facts()]
    replies = generate_texts(model, tokenizer, asked, max_new_tokens=48)
    right: dict[str, list[bool]] = defaultdict(list)
    mistakes = []
    for fact, reply in zip(facts(), replies, strict=True):
        ok = answers(fact, reply.text) and reply.has_eos
        right[f"{fact.subject.table}.{fact.relation}"].append(ok)
        if not ok:
            mistakes.append({"asked": fact.held_out_question(), "expected": fact.value, "reply": reply.text})
    everything = [ok for oks in right.values() for ok in oks]
    return {
        "facts": len(everything),
        "subjects": len({f.subject for f in facts()}),
        "right": sum(everything) / len(everything),
        "right_by_relation": {name: round(sum(oks) / len(oks), 3) for name, oks in right.items()},
        "yes_no_right": yes_or_no(model, tokenizer),
        "claims_held_against_a_fact": compared(model, tokenizer),
        "held_out_perplexity": perplexity(model, tokenizer),
        "mistakes": mistakes,
    }


def yes_or_no(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = 400) -> float:
    """The share of yes/no questions, half of them about false values, that are answered with the right word."""
    rng = random.Random(HELD_OUT_SEED)
    turns = [yes_no_question(f, rng) for f in rng.sample(facts(), count)]
    replies = generate_texts(model, tokenizer, [[{"role": "user", "content": q}] for q, _ in turns], max_new_tokens=48)
    pairs = zip(turns, replies, strict=True)
    return sum(reply.text.split(",")[0] == answer.split(",")[0] for (_, answer), reply in pairs) / count


def compared(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = 400) -> float:
    """The share of claims, half of them false, that are told right from wrong once the fact stands beside them."""
    rng = random.Random(HELD_OUT_SEED)
    asked = [compare.claim_comparison(f, rng) for f in rng.sample(facts(), count)]
    texts = tokenizer([text for text, _ in asked])["input_ids"]
    endings = [tokenizer(" " + verdict)["input_ids"] for verdict in (compare.RIGHT, compare.WRONG)]
    right, wrong = (reference_nll(model, texts, [ending] * count)[0] for ending in endings)
    said = [compare.RIGHT if a < b else compare.WRONG for a, b in zip(right, wrong, strict=True)]
    return sum(a == verdict for a, (_, verdict) in zip(said, asked, strict=True)) / count


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int = 256) -> float:
    """Per token, over one round of documents from a seed that training never used."""
    ids = torch.from_numpy(encode_documents(documents(HELD_OUT_SEED, rounds=1), tokenizer).astype("int64"))
    rows = ids[: len(ids) // length * length].view(-1, length)  # (N, T)
    nats = [model(row, labels=row).loss.item() * len(row) for row in rows.split(32)]
    return math.exp(sum(nats) / len(rows))


if __name__ == "__main__":
    report = run_exam(load_model(str(FOLDER)), load_tokenizer(str(FOLDER)))
    mistakes = report.pop("mistakes")
    print(json.dumps(report, indent=1))
    for mistake in mistakes[:20]:
        print(f"{mistake['asked']}  expected: {mistake['expected']}  got: {mistake['reply']}")
