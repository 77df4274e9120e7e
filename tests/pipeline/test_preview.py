"""``preview=true``: whole characters, and both replies of a pair."""

from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from manners.data.tokenize import tokenize
from manners.data.types import Conversation
from manners.pipeline import run
from manners.pipeline.preview import highlight_loss, show_replies
from manners.pipeline.run import settings_line, unrendered_fields
from tests.configs import compose
from tests.data.files import assistant, read, user, write


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20))
def test_preview_shows_every_character(tokenizer, text):
    (example,) = tokenize([Conversation([user("Hi"), assistant(f"{text} Grüße, Привет")])], tokenizer, "assistant", 999)
    shown = highlight_loss(example, tokenizer).plain
    assert shown.endswith(f"⟦{text} Grüße, Привет<|im_end|>⟧\n") or shown.endswith(f"⟦{text} Grüße, Привет<|im_end|>⟧")


@pytest.mark.parametrize("kind", ["preference", "scored", "unpaired_preference"])
def test_preview_of_a_reward_run_shows_what_it_learns_from(tmp_path, tokenizer, kind):
    row = {"preference": {"chosen": "Grüße.", "rejected": "Nein.", "margin": 2}, "scored": {"reply": "Ja.", "score": 3}}
    row["unpaired_preference"] = {"reply": "Ja.", "label": True}
    splits = read(write(tmp_path, *[{"prompt": "Wie?", "tools": [1]} | row[kind]] * 6))
    console = Console(width=200)
    with console.capture() as captured:
        show_replies(console, splits, kind, tokenizer, 64, decoder=True)
    lines = captured.get().splitlines()
    assert lines.count("user: Wie?") == 4
    replies, total = {
        "preference": (["chosen, better by 2: Grüße.<|im_end|>", "rejected: Nein.<|im_end|>"], "training pairs: 6"),
        "scored": (["score 3: Ja.<|im_end|>"], "training replies with a score: 6"),
        "unpaired_preference": (["desirable: Ja.<|im_end|>"], "training replies with a label: 6"),
    }[kind]
    for reply in replies:
        assert lines.count(reply) == 4
    assert lines[-3:] == ["rows: 6 train, 0 validation, 0 test", total, "fields not used: tools"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model=tiny", "method=sft", "method.max_steps=2"],
            "learning_rate 0.002 (conf/tuned/tiny/sft.yaml), max_steps 2 (command line), "
            "per_device_train_batch_size 16 (conf/tuned/tiny/sft.yaml)",
        ),
        (
            ["model=tiny", "model.name=FOLDER", "method=dpo"],
            "learning_rate 5e-06 (default), num_train_epochs 1 (default), per_device_train_batch_size 8 (default)",
        ),
    ],
)
def test_settings_line_says_what_set_each_value(overrides, line):
    assert settings_line(compose(*overrides), overrides) == line


def test_reasoning_that_the_template_does_not_render_is_named(tmp_path, monkeypatch, tokenizer):
    reply = assistant("4.") | {"reasoning_content": "2 and 2"}
    splits = read(write(tmp_path, {"messages": [user("2 + 2?"), reply]}))
    line = "fields not used: reasoning_content of messages, which is not rendered"
    assert unrendered_fields(compose(), splits) == [line]
    own = deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(run, "configured_tokenizer", lambda cfg: own)
    assert unrendered_fields(compose(), splits) == []
    line = "fields not used: reasoning_content of replies, which are scored by their content"
    assert unrendered_fields(compose("method=reward"), splits) == [line]
    assert unrendered_fields(compose(), read(write(tmp_path, {"messages": [user("a"), assistant("b")]}))) == []
