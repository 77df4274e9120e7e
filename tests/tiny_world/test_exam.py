"""What the packaged base knows, before it is taught any manner. `make exam` and the long form ask all."""

from functools import partial

import pytest

from manners.models import loading
from manners.tiny_world import exam


@pytest.fixture(scope="module", params=[5, pytest.param(1, marks=pytest.mark.long)], ids=["every fifth fact", "all"])
def report(request, tokenizer):
    few, every = 400 // request.param, exam.facts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam, "facts", lambda: every[:: request.param])
        for name in ("yes_no_accuracy", "claim_accuracy"):
            patch.setattr(exam, name, partial(getattr(exam, name), count=few))
        return exam.run_exam(loading.load_model("tiny"), tokenizer)


def test_its_world_is_not_small():
    assert len(exam.facts()) >= 1000 and len({f.subject for f in exam.facts()}) >= 300


def test_it_knows_nine_facts_in_ten_in_a_question_form_it_never_saw_for_them(report):
    assert report["facts"] >= 200
    assert report["fact_accuracy"] >= 0.9, report["errors"][:10]


def test_it_tells_right_claims_from_wrong_ones_once_it_sees_the_fact(report):
    assert report["claim_accuracy"] > 0.9  # a coin gives 0.5


def test_unseen_text_of_its_world_is_plain_to_it(report):
    """A guess among the 3072 tokens would have a perplexity of 3072."""
    assert report["eval_perplexity"] < 2.5


def test_a_model_that_learned_nothing_fails_the_exam(small_qwen2, tokenizer, monkeypatch):
    every = exam.facts()

    monkeypatch.setattr(exam, "facts", lambda: every[:40])
    monkeypatch.setattr(exam, "eval_perplexity", lambda *_: 0.0)
    monkeypatch.setattr(exam, "yes_no_accuracy", lambda *_: 0.0)
    monkeypatch.setattr(exam, "claim_accuracy", lambda *_: 0.0)
    assert exam.run_exam(small_qwen2, tokenizer)["fact_accuracy"] == 0.0


def test_the_packaged_tokenizer_is_the_one_that_the_project_makes(tokenizer):
    """The weights take half an hour to make again; that the text and its tokens are the same takes seconds."""
    from manners.tiny_world.pretrain import train_tokenizer

    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()
