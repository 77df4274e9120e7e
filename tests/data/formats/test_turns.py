"""One turn as OpenAI, ShareGPT, axolotl and others write it, and the order of the turns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manners.data.formats.conversations import check_messages
from manners.data.formats.fields import InvalidRow
from manners.data.formats.turns import MASKED, ROLE_ALIASES, parse_turn
from manners.data.types import ROLES
from manners.errors import MannersError
from tests.data.files import EXCHANGE, SYSTEM, assistant, read, user, write


def turns(*roles):
    return [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles, 1)]


def error_of(tmp_path, *messages, **options):
    with pytest.raises(MannersError) as error:
        read(write(tmp_path, {"messages": list(messages)}), **options)
    return str(error.value)


# --- Roles and content ---


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*ROLES, *ROLE_ALIASES]), st.sampled_from([str, str.upper, str.title, "  {} ".format]))
def test_role_is_read_in_any_spelling(name, spelling):
    expected = ROLE_ALIASES.get(name, name)
    for keys in (("role", "content"), ("from", "value"), ("role", "value"), ("from", "content")):
        entry = dict(zip(keys, (spelling(name), "Hi"), strict=True)) | {"unset": None}
        assert parse_turn(entry, "messages[0]") == {"role": expected, "content": "Hi"}


def test_conversations_may_have_roles_and_contents(tmp_path):
    rows = [{"conversations": EXCHANGE}, {"messages": [{"from": "human", "value": "2 + 2?"}, assistant("4.")]}]
    for row in rows:
        assert read(write(tmp_path, row)).train[0].messages == EXCHANGE


def test_text_parts_are_joined_and_others_are_refused_by_name(tmp_path):
    text = [
        {"type": "text", "text": "Hi", "image": None},
        {"type": "input_text", "text": "there"},
        "you",
        {"text": "!"},
    ]
    assert read(write(tmp_path, {"messages": [user(text), assistant("Yo")]})).train[0].messages[0] == user(
        "Hithereyou!"
    )
    for part, message in (
        ({"type": "image_url", "image_url": {}}, "'messages[0].content[1]' is a part of type 'image_url', and only"),
        ({"type": "text"}, "field 'messages[0].content[1].text' is missing"),
        (3, "field 'messages[0].content[1]' must be an object with 'type' and 'text'"),
    ):
        assert message in error_of(tmp_path, user([*text[:1], part]), assistant("Yo"))
    assert "field 'messages[0].content' must be a list with entries" in error_of(tmp_path, user([]), assistant("Yo"))


def test_tool_call_without_text_is_refused(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}
    assert "field 'messages[1].content' is empty, and tool calls cannot" in error_of(tmp_path, user("a"), call)


def test_reasoning_is_kept_in_its_message(tmp_path):
    reply = assistant("4.") | {"reasoning_content": "2 and 2", "thinking": ""}
    (row,) = read(write(tmp_path, {"messages": [user("2 + 2?"), reply]})).train
    assert row.messages[1] == assistant("4.") | {"reasoning_content": "2 and 2"}


# --- Loss ---


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"weight": 1, "trainable": False}, {"loss": False}]
)
def test_turn_without_weight_carries_no_loss(tmp_path, mark):
    messages = [SYSTEM, user("a") | {"weight": 1}, assistant("b") | mark, user("c"), assistant("d") | {"train": True}]
    (row,) = read(write(tmp_path, {"messages": messages})).train
    assert row.masked_turns == (2,)
    assert row.messages == [SYSTEM, user("a"), assistant("b"), user("c"), assistant("d")]


def test_masked_turns_count_a_system_message_of_a_field(tmp_path):
    row = {"system": "Be brief.", "messages": [user("a"), assistant("b") | {"weight": 0}, user("c"), assistant("d")]}
    assert read(write(tmp_path, row)).train[0].masked_turns == (2,)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"weight": 0.5}, "field 'messages[1].weight' must be 0 or 1, not 0.5"),
        ({"weight": "0"}, "field 'messages[1].weight' must be 0 or 1, not '0'"),
        ({"mask": True}, "field 'messages[1].mask' may say what carries loss: name it 'weight', 0 or 1"),
        ({"Loss_Weight": 0}, "field 'messages[1].Loss_Weight' may say what carries loss"),
        ({"train_detail": [{"begin": 0}]}, "field 'messages[1].train_detail' may say what carries loss"),
        ({"train": "no"}, "field 'messages[1].train' must be true or false"),
    ],
)
def test_weight_of_another_kind_is_refused(tmp_path, mark, message):
    assert message in error_of(tmp_path, user("a"), assistant("b") | mark)


# --- Order ---


def test_turn_numbers_are_those_of_the_file(tmp_path):
    assert "turn 3 has the role 'user' like the turn before it (dataset.merge_turns=true joins" in error_of(
        tmp_path, SYSTEM, user("a"), user("b"), assistant("c")
    )
    assert "turn 2 has the role 'assistant': expected 'user'" in error_of(tmp_path, SYSTEM, *EXCHANGE[::-1])
    assert "turn 1 has the role 'assistant': expected 'user'" in error_of(tmp_path, *EXCHANGE[::-1])
    row = {"system": "Be brief.", "messages": [user("a"), user("b"), assistant("c")]}
    with pytest.raises(MannersError, match=r"data\.jsonl:1: turn 2 has the role 'user' like"):
        read(write(tmp_path, row))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(ROLES), min_size=1, max_size=6))
def test_merged_turns_alternate_and_lose_no_word(roles):
    messages = turns(*roles)
    try:
        merged = check_messages(messages, "all", merge_turns=True)
    except InvalidRow as error:
        once = [role for i, role in enumerate(roles) if i == 0 or roles[i - 1] != role]
        others = once[1:] if once[0] == "system" else once
        assert "system" in others or others[0] == "assistant", error
        return
    assert "\n\n".join(m["content"] for m in merged) == "\n\n".join(m["content"] for m in messages)
    once = [role for i, role in enumerate(roles) if i == 0 or roles[i - 1] != role]
    assert [m["role"] for m in merged] == once
    if once == roles:
        assert check_messages(messages, "all") == messages
    else:
        with pytest.raises(InvalidRow, match="like the turn before it"):
            check_messages(messages, "all")


def test_turns_of_different_weight_are_not_joined(tmp_path):
    messages = [user("a"), assistant("b") | {"weight": 0}, assistant("c")]
    assert "turns 2 and 3 cannot be joined" in error_of(tmp_path, *messages, merge_turns=True)
    (row,) = read(write(tmp_path, {"messages": [user("a"), user("b"), assistant("c")]}), merge_turns=True).train
    assert row.messages == [user("a\n\nb"), assistant("c")]


def test_parsed_turn_marks_its_mask_for_the_row():
    assert MASKED in parse_turn(assistant("a") | {"weight": 0}, "messages[0]")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            user([{"text": "Hi", "image": "a.png"}]),
            "field 'messages[0].content[0]' has 'image' beside its text",
        ),
        (user([{"type": "text", "text": " "}]), "field 'messages[0].content' is empty"),
        (user("Hi") | {"from": "gpt"}, "field 'messages[0].role' and its 'from' differ"),
        (user("Hi") | {"value": "Ho"}, "field 'messages[0].content' and its 'value' differ"),
    ],
)
def test_turn_of_two_meanings_is_refused(tmp_path, message, reason):
    with pytest.raises(MannersError) as error:
        read(write(tmp_path, {"messages": [message, assistant("Yo")]}))
    assert str(error.value).startswith(f"data.jsonl:1: {reason}")


def test_empty_system_turns_and_text_parts_are_left_out(tmp_path):
    parts = [{"type": "text", "text": ""}, {"type": "text", "text": "2 + 2?", "image_url": None}]
    path = write(tmp_path, {"messages": [{"role": "system", "content": ""}, user(parts), assistant("4.")]})
    assert read(path).train[0].messages == EXCHANGE


# --- Turns in one text ---


@pytest.mark.parametrize(
    "text",
    [
        "<|user|>\n2 + 2?</s>\n<|assistant|>\n4.</s>\n",  # Zephyr, TinyLlama
        "<s><|user|>2 + 2?<|end|>\n<|assistant|>4.<|end|>\n<|endoftext|>",  # Phi-3
        "### Human: 2 + 2?### Assistant: 4.</s>",
        "\n\nHuman: 2 + 2?\n\nAssistant: 4.",
    ],
)
def test_markers_of_turns_are_no_words(tmp_path, text):
    assert read(write(tmp_path, {"text": text})).train[0].messages == EXCHANGE


def test_markers_of_another_kind_are_words(tmp_path):
    text = "### Human: Say <|assistant|> and </s> here\n\nHuman: or there### Assistant: Done."
    messages = read(write(tmp_path, {"text": text})).train[0].messages
    assert messages == [user("Say <|assistant|> and </s> here\n\nHuman: or there"), assistant("Done.")]


@pytest.mark.parametrize(
    "text", ["### Human: a### Assistant: b", "<|user|>a<|assistant|>b", "Human: a\n\nAssistant: b"]
)
def test_file_of_plain_and_marked_texts_is_refused(tmp_path, text):
    path = write(tmp_path, {"text": "Once upon a time."}, {"text": text})
    with pytest.raises(MannersError, match=r"data.jsonl:2: field 'text' has turns, and the file begins with a plain"):
        read(path)
    assert len(read(path, format="text").train) == 2


@pytest.mark.parametrize(
    "prompt",
    [
        "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: Bye\n\nAssistant:",
        "### Human: Hi### Assistant: Yo### Human: Bye### Assistant:",
        "<|user|>\nHi</s>\n<|assistant|>\nYo</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n",
    ],
)
def test_prompt_that_asks_by_a_marker_has_turns(tmp_path, prompt):
    messages = read(write(tmp_path, {"prompt": prompt, "completion": "So long"})).train[0].messages
    assert messages == [user("Hi"), assistant("Yo"), user("Bye"), assistant("So long")]


def test_prompt_that_only_quotes_markers_is_one_turn(tmp_path):
    prompt = "Human: thinks so.\n\nAssistant: a tool. Summarize both."
    assert read(write(tmp_path, {"prompt": prompt, "completion": "No"})).train[0].messages[0] == user(prompt)


def test_completion_alone_carries_loss_after_messages(tmp_path):
    """As in TRL."""
    prompt = [user("Hi"), assistant("Yo"), user("Bye")]
    (row,) = read(write(tmp_path, {"prompt": prompt, "completion": [assistant("So long")]})).train
    assert row.masked_turns == (1,)


def test_first_line_of_code_keeps_its_indentation(tmp_path):
    text = "<|system|>\n</s><|user|>Go<|assistant|>\n    x = 1\n    y = 2</s>"
    assert read(write(tmp_path, {"text": text})).train[0].messages == [user("Go"), assistant("    x = 1\n    y = 2")]
