"""Evaluates the tiny base model before any fine-tuning: ``python -m manners.tiny_world.exam``.

Each fact is asked once with greedy decoding, in the question form that is held out from the training text. A reply is
correct if it contains the fact's value and no other value of the same column.
"""

import json
import math
import random
from collections import defaultdict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from manners.evaluation.generate import generate_texts
from manners.models.loading import load_model
from manners.models.reference_nll import reference_nll
from manners.models.tokenizer import load_tokenizer
from manners.tiny_world import compare
from manners.tiny_world.corpus import documents, yes_no_question
from manners.tiny_world.facts import facts, is_correct_answer
from manners.tiny_world.pretrain import EVAL_SEED, FOLDER, encode_documents


def run_exam(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Accuracy on facts, yes/no questions and claims, perplexity of unseen text, and the incorrect replies."""
    prompts = [[{"role": "user", "content": f.held_out_question()}] for f in facts()]
    replies = generate_texts(model, tokenizer, prompts, max_new_tokens=48)
    by_relation: dict[str, list[bool]] = defaultdict(list)
    errors = []
    for fact, reply in zip(facts(), replies, strict=True):
        correct = is_correct_answer(fact, reply.text) and reply.has_eos
        by_relation[f"{fact.subject.table}.{fact.relation}"].append(correct)
        if not correct:
            errors.append({"question": fact.held_out_question(), "expected": fact.value, "reply": reply.text})
    return {
        "facts": len(replies),
        "subjects": len({f.subject for f in facts()}),
        "fact_accuracy": 1 - len(errors) / len(replies),
        "fact_accuracy_by_relation": {name: round(sum(c) / len(c), 3) for name, c in by_relation.items()},
        "yes_no_accuracy": yes_no_accuracy(model, tokenizer),
        "claim_accuracy": claim_accuracy(model, tokenizer),
        "eval_perplexity": eval_perplexity(model, tokenizer),
        "errors": errors,
    }


def yes_no_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = 400) -> float:
    """The fraction of yes/no questions, half of them about false values, whose reply has the correct first word."""
    rng = random.Random(EVAL_SEED)
    turns = [yes_no_question(f, rng) for f in rng.sample(facts(), count)]
    replies = generate_texts(model, tokenizer, [[{"role": "user", "content": q}] for q, _ in turns], max_new_tokens=48)
    pairs = zip(turns, replies, strict=True)
    return sum(reply.text.split(",")[0] == answer.split(",")[0] for (_, answer), reply in pairs) / count


def claim_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int = 400) -> float:
    """The fraction of claims, half of them false, whose verdict is the more likely one after the claim and the fact."""
    rng = random.Random(EVAL_SEED)
    claims = [compare.claim_comparison(f, rng) for f in rng.sample(facts(), count)]
    texts = tokenizer([text for text, _ in claims])["input_ids"]
    verdicts = [tokenizer(" " + verdict)["input_ids"] for verdict in (compare.RIGHT, compare.WRONG)]
    right, wrong = (reference_nll(model, texts, [verdict] * count)[0] for verdict in verdicts)
    predicted = [compare.RIGHT if a < b else compare.WRONG for a, b in zip(right, wrong, strict=True)]
    return sum(p == verdict for p, (_, verdict) in zip(predicted, claims, strict=True)) / count


@torch.no_grad()
def eval_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequence_length: int = 256) -> float:
    """Perplexity per token of one round of documents, generated with a seed that is not used for training."""
    ids = torch.from_numpy(encode_documents(documents(EVAL_SEED, rounds=1), tokenizer).astype("int64"))
    rows = ids[: len(ids) // sequence_length * sequence_length].view(-1, sequence_length)  # (B, T)
    nats = [model(batch, labels=batch).loss.item() * len(batch) for batch in rows.split(32)]
    return math.exp(sum(nats) / len(rows))


if __name__ == "__main__":
    report = run_exam(load_model(str(FOLDER)), load_tokenizer(str(FOLDER)))
    errors = report.pop("errors")
    print(json.dumps(report, indent=1))
    for error in errors[:20]:
        print(f"{error['question']}  expected: {error['expected']}  got: {error['reply']}")
