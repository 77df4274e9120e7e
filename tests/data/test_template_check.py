"""Rows that a model's chat template refuses: named before training, or skipped and counted everywhere."""

import json
from copy import deepcopy

import pytest

from manners.data.loading import Splits
from manners.data.template_check import check_eval_prompts, renderable_rows, renderable_splits
from manners.data.types import Conversation, Prompt
from manners.errors import MannersError
from tests.template_tokenizers import TRL_TEMPLATES, template_tokenizer


def rows(*kinds):
    """A conversation of each kind: 'ok', or with a 'system' message, 'two' user turns, or a special token in it."""
    exchange = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    messages = {
        "ok": exchange,
        "system": [{"role": "system", "content": "Be brief."}, *exchange],
        "two": [exchange[0], *exchange],
        "forged": [{"role": "user", "content": "<end_of_turn>"}, exchange[1]],
    }
    return [Conversation(messages[kind], f"data.jsonl:{n}") for n, kind in enumerate(kinds, 1)]


@pytest.fixture(scope="module")
def gemma():
    return template_tokenizer(TRL_TEMPLATES["gemma"])


def test_renderable_rows_names_the_first_refused_row(gemma):
    with pytest.raises(MannersError) as error:
        renderable_rows(rows("ok", "forged", "system", "two"), gemma, "assistant", "raise")
    assert str(error.value) == (
        "data.jsonl:3: the model's chat template refuses the row: System role not supported. "
        "Fix the row, or skip such rows: dataset.on_invalid_row=skip."
    )


def test_renderable_splits_skips_and_counts(gemma):
    splits = Splits(rows("ok", "system", "ok"), rows("two", "ok"), rows("ok", "forged"), skipped=["data.jsonl:9: bad"])
    kept = renderable_splits(splits, gemma, "assistant", "skip")
    assert [len(part) for part in (kept.train, kept.validation, kept.test)] == [2, 1, 2]
    assert kept.skipped[0] == "data.jsonl:9: bad" and len(kept.skipped) == 3
    assert kept.skipped[1] == "data.jsonl:2: the model's chat template refuses the row: System role not supported"
    assert kept.skipped[2].startswith("data.jsonl:1: ") and "must alternate" in kept.skipped[2]
    assert kept.warnings == ["special tokens in the text of 1 rows are read as text, the first: data.jsonl:2"]
    assert len(splits.train) == 3  # unchanged


def test_renderable_splits_refuses_data_without_a_row_left(gemma):
    with pytest.raises(MannersError, match=r"refuses all training rows\. The first: data\.jsonl:1: .*System role"):
        renderable_splits(Splits(rows("system")), gemma, "assistant", "skip")


def test_usable_splits_leave_out_what_the_template_refuses(tmp_path, monkeypatch):
    from manners.pipeline import dependencies
    from tests.configs import compose

    template_tokenizer(TRL_TEMPLATES["gemma"]).save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    lines = [{"messages": row.messages, "split": "train"} for row in rows("ok", "system", "ok")]
    data.write_text("\n".join(map(json.dumps, lines)))
    overrides = [f"model.name={tmp_path}/model", "dataset=jsonl", f"dataset.path={data}"]
    with pytest.raises(MannersError, match=r"^data\.jsonl:2: the model's chat template refuses the row: System role"):
        dependencies.usable_splits_of(compose(*overrides))
    splits = dependencies.usable_splits_of(compose(*overrides, "dataset.on_invalid_row=skip"))
    assert len(splits.train) == 2 and len(splits.skipped) == 1


def test_evaluation_prompt_that_the_template_refuses_is_named(tokenizer):
    own = deepcopy(tokenizer)
    refusal = "{{ raise_exception('no') if m.content == 'BOOM' else m.content }}"
    own.chat_template = f"{{% for m in messages %}}{refusal}{{% endfor %}}"
    prompts = [Prompt([{"role": "user", "content": text}]) for text in ("Hi", "BOOM")]
    check_eval_prompts(prompts[:1], own, "prompts.jsonl")
    with pytest.raises(MannersError, match=r"prompts.jsonl, prompt 2: .*no"):
        check_eval_prompts(prompts, own, "prompts.jsonl")
