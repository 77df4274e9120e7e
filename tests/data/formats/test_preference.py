"""Pairs of replies, in the forms that people have them."""

import pytest

from manners.data.types import PreferencePair, preference_pairs
from manners.errors import MannersError
from tests.data.files import ASKED, SYSTEM, assistant, read, user, write

MORE = [SYSTEM, *ASKED, user("And 3 + 3?")]
GOOD = {
    "texts": ({"prompt": "2 + 2?", "chosen": "4.", "rejected": "5."}, ASKED),
    "messages": (
        {"prompt": [user("2 + 2?")], "chosen": [assistant("4.")], "rejected": [assistant("5.")]},
        ASKED,
    ),
    "a prompt of several turns": (
        {"prompt": MORE, "chosen": "6.", "rejected": "5."},
        [*MORE, assistant("6.")],
    ),
    "replies of several turns": (
        {
            "prompt": "2 + 2?",
            "chosen": [*ASKED[1:], user("And 3 + 3?"), assistant("6.")],
            "rejected": [*ASKED[1:], user("And 3 + 3?"), assistant("5.")],
        },
        [*ASKED, user("And 3 + 3?"), assistant("6.")],
    ),
    "conversations": ({"chosen": ASKED, "rejected": [ASKED[0], assistant("5.")]}, ASKED),
    "conversations, and no prompt on the hub": (
        {"prompt": None, "chosen": ASKED, "rejected": [ASKED[0], assistant("5.")]},
        ASKED,
    ),
    "conversations beside their prompt": (  # UltraFeedback, which holds the better one a third time
        {"prompt": "2 + 2?", "messages": ASKED, "chosen": ASKED, "rejected": [ASKED[0], assistant("5.")]},
        ASKED,
    ),
    "a system message that the prompt lacks": (
        {"prompt": "2 + 2?", "chosen": [SYSTEM, *ASKED], "rejected": [SYSTEM, ASKED[0], assistant("5.")]},
        [SYSTEM, *ASKED],
    ),
    "marked": ({"chosen": "<|user|>2 + 2?<|assistant|>4.", "rejected": "<|user|>2 + 2?<|assistant|>5."}, ASKED),
    "Human and Assistant": (
        {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4.", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5."},
        ASKED,
    ),
    "Human and Assistant, several turns": (
        {
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4.\n\nHuman: Sure?\nReally?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 4.\n\nHuman: Sure?\nReally?\n\nAssistant: 5.",
        },
        [*ASKED, user("Sure?\nReally?"), assistant("Yes.")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("told", [True, False], ids=["told", "auto"])
@pytest.mark.parametrize("name", GOOD)
def test_a_pair_is_read_and_its_chosen_conversation_is_one_to_learn_from(tmp_path, name, told):
    row, messages = GOOD[name]
    chats = read(write(tmp_path, row), format="preference" if told else "auto", sample_types=["conversation", "pairs"]).train
    assert [c.messages for c in chats] == [messages]
    assert chats[0].metadata == {"rejected": "5.", "margin": 0.0}
    assert preference_pairs(chats) == [
        PreferencePair(messages[:-1], messages[-1]["content"], "5.", 0.0, "data.jsonl:1")
    ]


@pytest.mark.parametrize("margin", [0.5, 2, None])
def test_a_margin_is_kept_as_a_number_and_other_fields_beside_it(tmp_path, margin):
    row = {"prompt": "2 + 2?", "chosen": "4.", "rejected": "5.", "margin": margin, "id": 7}
    [chat] = read(write(tmp_path, row)).train
    assert chat.metadata == {"id": 7, "rejected": "5.", "margin": float(margin or 0)}
    assert isinstance(chat.metadata["margin"], float)


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
    "equal conversations": ({"chosen": ASKED, "rejected": ASKED}, "fields 'chosen' and 'rejected' are the same"),
    "nothing shared": (
        {"chosen": ASKED, "rejected": [user("3 + 1?"), assistant("4.")]},
        "fields 'chosen' and 'rejected' share no beginning, and there is no field 'prompt'",
    ),
    "replies alone": (
        {"chosen": [assistant("4.")], "rejected": [assistant("5.")]},
        "fields 'chosen' and 'rejected' share no beginning, and there is no field 'prompt'",
    ),
    "plain texts": (
        {"chosen": "4.", "rejected": "5."},
        "field 'chosen' must begin with <|user|> or <|system|>, or there must be a field 'prompt'",
    ),
    "parted early": (
        {"chosen": [*ASKED, user("a"), assistant("b")], "rejected": [*ASKED, user("c"), assistant("d")]},
        "fields 'chosen' and 'rejected' differ before their last replies, which so answer different turns",
    ),
    "another system message": (
        {"prompt": "2 + 2?", "chosen": [SYSTEM, *ASKED], "rejected": [ASKED[0], assistant("5.")]},
        "fields 'chosen' and 'rejected' differ before their last replies, which so answer different turns",
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
        "turn 1 is by 'assistant' where 'user' must speak",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_pair_is_refused_with_file_line_and_field(tmp_path, name):
    row, says = BAD[name]
    path = write(tmp_path, GOOD["texts"][0], row)
    with pytest.raises(MannersError) as refused:
        read(path, format="preference")
    assert str(refused.value).startswith(f"data.jsonl:2: {says}. Mend the row, or leave such rows out")
    splits = read(path, format="preference", on_invalid_row="skip")
    assert (len(splits.train), splits.skipped) == (1, [f"data.jsonl:2: {says}"])
