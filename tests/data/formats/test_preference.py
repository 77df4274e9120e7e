"""Preference pairs, in all the forms that datasets have them in."""

import pytest

from manners.data.types import PreferencePair, preference_pairs
from manners.errors import MannersError
from tests.data.files import EXCHANGE, SYSTEM, assistant, read, user, write

MORE = [SYSTEM, *EXCHANGE, user("And 3 + 3?")]
GOOD = {
    "texts": ({"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}, EXCHANGE),
    "messages": (
        {"prompt": [user("2 + 2?")], "chosen": [assistant("4.")], "rejected": [assistant("5.")]},
        EXCHANGE,
    ),
    "a prompt of several turns": (
        {"prompt": MORE, "chosen": "6.", "rejected": "5."},
        [*MORE, assistant("6.")],
    ),
    "replies of several turns": (
        {
            "prompt": "2 + 2?",
            "chosen": [*EXCHANGE[1:], user("And 3 + 3?"), assistant("6.")],
            "rejected": [*EXCHANGE[1:], user("And 3 + 3?"), assistant("5.")],
        },
        [*EXCHANGE, user("And 3 + 3?"), assistant("6.")],
    ),
    "conversations": ({"chosen": EXCHANGE, "rejected": [EXCHANGE[0], assistant("5.")]}, EXCHANGE),
    "conversations, and no prompt on the hub": (
        {"prompt": None, "chosen": EXCHANGE, "rejected": [EXCHANGE[0], assistant("5.")]},
        EXCHANGE,
    ),
    "conversations beside their prompt": (  # UltraFeedback, which has the better one as messages too
        {"prompt": "2 + 2?", "messages": EXCHANGE, "chosen": EXCHANGE, "rejected": [EXCHANGE[0], assistant("5.")]},
        EXCHANGE,
    ),
    "a system message that the prompt lacks": (
        {"prompt": "2 + 2?", "chosen": [SYSTEM, *EXCHANGE], "rejected": [SYSTEM, EXCHANGE[0], assistant("5.")]},
        [SYSTEM, *EXCHANGE],
    ),
    "marked": ({"chosen": "<|user|>2 + 2?<|assistant|>4.", "rejected": "<|user|>2 + 2?<|assistant|>5."}, EXCHANGE),
    "Human and Assistant": (
        {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4.", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5."},
        EXCHANGE,
    ),
    "Human and Assistant, several turns": (
        {
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4.\n\nHuman: Sure?\nReally?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 4.\n\nHuman: Sure?\nReally?\n\nAssistant: 5.",
        },
        [*EXCHANGE, user("Sure?\nReally?"), assistant("Yes.")],
    ),
    "replies that repeat the prompt's last turn": (
        {"prompt": MORE, "chosen": [user("And 3 + 3? "), assistant("6.")], "rejected": [MORE[-1], assistant("5.")]},
        [*MORE, assistant("6.")],
    ),
    "replies without the prompt's system message": (
        {"prompt": MORE, "chosen": [*MORE[1:], assistant("6.")], "rejected": [*MORE, assistant("5.")]},
        [*MORE, assistant("6.")],
    ),
    "a prompt with Human and Assistant": (
        {
            "prompt": "\n\nHuman: 2 + 2?\n\nAssistant: 4.\n\nHuman: Sure?\n\nAssistant:",
            "chosen": " Yes.",
            "rejected": "5.",
        },
        [*EXCHANGE, user("Sure?"), assistant(" Yes.")],
    ),
    "an instruction with input and history": (
        {"instruction": "And", "input": "3 + 3?", "history": [["2 + 2?", "4."]], "chosen": "6.", "rejected": "5."},
        [*EXCHANGE, user("And\n\n3 + 3?"), assistant("6.")],
    ),
    "whole texts beside their prompt": (
        {
            "prompt": "\n\nHuman: 2 + 2?\n\nAssistant:",
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4.",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5.",
        },
        EXCHANGE,
    ),
    "a prompt that ends with a reply, repeated": (
        {
            "prompt": EXCHANGE,
            "chosen": [*EXCHANGE, user("Sure?"), assistant("Yes.")],
            "rejected": [*EXCHANGE, user("Sure?"), assistant("5.")],
        },
        [*EXCHANGE, user("Sure?"), assistant("Yes.")],
    ),
    "a conversation and single replies": (  # LLaMA-Factory
        {"conversations": [EXCHANGE[0]], "chosen": EXCHANGE[1], "rejected": assistant("5.")},
        EXCHANGE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("given", [True, False], ids=["given", "auto"])
@pytest.mark.parametrize("name", GOOD)
def test_pair_is_read_as_a_conversation_and_a_preference(tmp_path, name, given):
    row, messages = GOOD[name]
    format = "preference" if given else "auto"
    conversations = read(write(tmp_path, row), format=format, sample_types=["conversation", "preference"]).train
    assert [c.messages for c in conversations] == [messages]
    assert conversations[0].metadata == {"rejected": "5.", "margin": 0.0}
    assert preference_pairs(conversations) == [
        PreferencePair(messages[:-1], messages[-1]["content"], "5.", 0.0, "data.jsonl:1")
    ]


@pytest.mark.parametrize("margin", [0.5, 2, None])
def test_margin_becomes_a_number_and_other_fields_are_kept(tmp_path, margin):
    row = {"prompt": "2 + 2?", "chosen": "4.", "rejected": "5.", "margin": margin, "id": 7}
    [conversation] = read(write(tmp_path, row)).train
    assert conversation.metadata == {"id": 7, "rejected": "5.", "margin": float(margin or 0)}
    assert isinstance(conversation.metadata["margin"], float)


def test_pairs_with_one_prompt_go_to_one_split(tmp_path):
    rows = [{"prompt": f"What is {i % 50}?", "chosen": "A", "rejected": f"{i}"} for i in range(200)]
    splits = read(write(tmp_path, *rows), validation_share=0.3, test_share=0.3)
    seen = [{c.messages[0]["content"] for c in s} for s in (splits.train, splits.validation, splits.test)]
    assert all(seen) and sum(map(len, seen)) == 50


HH = "\n\nHuman: 2 + 2?\n\nAssistant: "
BAD = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "field 'rejected' is missing"),
    "no chosen": ({"prompt": "a", "rejected": "b"}, "field 'chosen' is missing"),
    "empty": ({"prompt": "a", "chosen": "b", "rejected": ""}, "field 'rejected' is empty"),
    "number": ({"prompt": "a", "chosen": 1, "rejected": "b"}, "field 'chosen' must be text, not int"),
    "number in a turn": (
        {"prompt": "a", "chosen": "b", "rejected": [assistant(3)]},
        "field 'rejected[0].content' must be text, not int",
    ),
    "empty list": ({"prompt": "a", "chosen": [], "rejected": "b"}, "field 'chosen' must be a list with entries"),
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "fields 'chosen' and 'rejected' are the same"),
    "equal conversations": ({"chosen": EXCHANGE, "rejected": EXCHANGE}, "fields 'chosen' and 'rejected' are the same"),
    "nothing shared": (
        {"chosen": EXCHANGE, "rejected": [user("3 + 1?"), assistant("4.")]},
        "fields 'chosen' and 'rejected' have no prompt in common, and there is no field 'prompt'",
    ),
    "replies alone": (
        {"chosen": [assistant("4.")], "rejected": [assistant("5.")]},
        "fields 'chosen' and 'rejected' have no prompt in common, and there is no field 'prompt'",
    ),
    "plain texts": (
        {"chosen": "4.", "rejected": "5."},
        "field 'chosen' has no turns, and there is no field 'prompt'",
    ),
    "different earlier turns": (
        {"chosen": [*EXCHANGE, user("a"), assistant("b")], "rejected": [*EXCHANGE, user("c"), assistant("d")]},
        "fields 'chosen' and 'rejected' differ before their last replies: they answer different turns",
    ),
    "another system message": (
        {"prompt": "2 + 2?", "chosen": [SYSTEM, *EXCHANGE], "rejected": [EXCHANGE[0], assistant("5.")]},
        "fields 'chosen' and 'rejected' differ before their last replies: they answer different turns",
    ),
    "no reply": (
        {"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("b"), user("c")]},
        "field 'rejected' must end with a turn by 'assistant', not by 'user'",
    ),
    "an empty turn": ({"chosen": HH + "4.", "rejected": HH}, "turn 2 of field 'rejected' is empty"),
    "margin": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": True},
        "field 'margin' must be a finite number, not True",
    ),
    "wrong order": (
        {"prompt": [assistant("a")], "chosen": "b", "rejected": "c"},
        "turn 1 has the role 'assistant': expected 'user'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_invalid_pair_is_refused_with_file_line_and_field(tmp_path, name):
    row, expected = BAD[name]
    path = write(tmp_path, GOOD["texts"][0], row)
    with pytest.raises(MannersError) as error:
        read(path, format="preference")
    assert str(error.value).startswith(f"data.jsonl:2: {expected}. Fix the row, or skip such rows")
    splits = read(path, format="preference", on_invalid_row="skip")
    assert (len(splits.train), splits.skipped) == (1, [f"data.jsonl:2: {expected}"])


def test_replies_of_pairs_are_not_joined_with_the_prompt(tmp_path):
    """The rejected reply would lack what is joined to the chosen one."""
    row = {"prompt": [user("Hi"), assistant("It is")], "chosen": [assistant("four")], "rejected": [assistant("five")]}
    with pytest.raises(MannersError, match="the last reply cannot be joined with the turn before it"):
        read(write(tmp_path, row), merge_turns=True)


def test_label_of_a_pair_needs_no_meaning(tmp_path):
    row = {"prompt": "2 + 2?", "chosen": "4.", "rejected": "5.", "label": 0}
    assert read(write(tmp_path, row)).left_out == ["fields not used: label"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "chosen": [SYSTEM], "rejected": "No"}, "field 'chosen' must end with a turn by 'assistant'"),
        ({"chosen": "<|system|></s>", "rejected": "No"}, "field 'chosen' has no turn with words"),
        ({"prompt": [SYSTEM], "chosen": [SYSTEM, *EXCHANGE], "rejected": "No"}, "differ before their last replies"),
    ],
)
def test_pair_without_a_turn_is_refused(tmp_path, row, reason):
    with pytest.raises(MannersError, match=reason):
        read(write(tmp_path, row))


def test_reply_that_quotes_markers_is_one_reply(tmp_path):
    quoted = "Write ### Human: hello ### Assistant: hi"
    row = {"prompt": "How?", "chosen": quoted, "rejected": "5."}
    assert read(write(tmp_path, row)).train[0].messages == [user("How?"), assistant(quoted)]
