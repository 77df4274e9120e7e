"""What the packaged base model knows before fine-tuning. `make exam` and the long test ask about all facts."""

from functools import partial

import pytest

from manners.models import loading
from manners.tiny_world import exam


@pytest.fixture(scope="module", params=[5, pytest.param(1, marks=pytest.mark.long)], ids=["every fifth fact", "all"])
def report(request, tokenizer):
    count, all_facts = 400 // request.param, exam.facts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam, "facts", lambda: all_facts[:: request.param])
        for name in ("yes_no_accuracy", "claim_accuracy"):
            patch.setattr(exam, name, partial(getattr(exam, name), count=count))
        return exam.run_exam(loading.load_model("tiny"), tokenizer)


def test_fact_accuracy_on_held_out_questions_is_at_least_90(report):
    assert report["facts"] >= 200
    assert report["fact_accuracy"] >= 0.9, report["errors"][:10]


def test_claim_accuracy_given_the_fact_is_over_90_percent(report):
    assert report["claim_accuracy"] > 0.9  # chance: 0.5


def test_eval_perplexity_is_below_2_5(report):
    """A uniform guess among the 3072 tokens has a perplexity of 3072."""
    assert report["eval_perplexity"] < 2.5


def test_an_untrained_model_answers_no_question(small_qwen2, tokenizer, monkeypatch):
    all_facts = exam.facts()
    monkeypatch.setattr(exam, "facts", lambda: all_facts[:40])
    monkeypatch.setattr(exam, "eval_perplexity", lambda *_: 0.0)
    monkeypatch.setattr(exam, "yes_no_accuracy", lambda *_: 0.0)
    monkeypatch.setattr(exam, "claim_accuracy", lambda *_: 0.0)
    assert exam.run_exam(small_qwen2, tokenizer)["fact_accuracy"] == 0.0


def test_train_tokenizer_reproduces_the_packaged_tokenizer(tokenizer):
    """To reproduce the weights takes half an hour; the text and its tokens take seconds."""
    from manners.tiny_world.pretrain import train_tokenizer

    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()
