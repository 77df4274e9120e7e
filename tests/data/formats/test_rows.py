"""Fields beside the conversation: those that change it are read, and the names of the others are kept."""

import json
import string
from types import SimpleNamespace

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from manners.config.schema import DatasetConfig
from manners.data.formats.fields import InvalidRow
from manners.data.formats.rows import COLUMNS, LABEL_FIELDS, parse_row
from manners.data.loading import load_splits
from manners.data.types import labeled_replies
from manners.errors import MannersError
from tests.data.files import EXCHANGE, FORMATS, SYSTEM, assistant, config, read, user, write

SHAREGPT = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4."}]
BRIEF = "Be brief."


def only(folder, row, **options):
    (conversation,) = read(write(folder, row), **options).train
    return conversation


# --- System message, history, context ---


@pytest.mark.parametrize("field", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "text"])
def test_system_field_is_the_system_message(tmp_path, name, field):
    row, messages = FORMATS[name][0]
    assert only(tmp_path, row | {field: BRIEF}).messages == [SYSTEM, *messages]
    assert only(tmp_path, row | {field: " "}).messages == only(tmp_path, row | {field: None}).messages == messages
    with pytest.raises(MannersError, match=f"field '{field}' must be text, not list"):
        read(write(tmp_path, row | {field: ["Be brief."]}))


def test_system_field_beside_a_system_turn(tmp_path):
    row = {"system": BRIEF, "messages": [SYSTEM, *EXCHANGE]}
    assert only(tmp_path, row).messages == [SYSTEM, *EXCHANGE]
    with pytest.raises(MannersError, match="field 'system' and turn 1 are two different system messages"):
        read(write(tmp_path, row | {"system": "Be long."}))


@pytest.mark.parametrize("row", [{"instruction": "b", "output": "2"}, {"prompt": "b", "completion": "2"}])
def test_history_comes_before_the_instruction(tmp_path, row):
    expected = [user("a"), assistant("1"), user("b"), assistant("2")]
    for history in ([["a", "1"]], [user("a"), assistant("1")], [{"from": "human", "value": "a"}, assistant("1")]):
        assert only(tmp_path, row | {"history": history}).messages == expected
    assert len(only(tmp_path, row | {"history": []}).messages) == 2
    for history, message in ((["a"], r"field 'history\[0\]' must be a pair"), ("a", "field 'history' must be a list")):
        with pytest.raises(MannersError, match=message):
            read(write(tmp_path, row | {"history": history}))
    with pytest.raises(MannersError, match=r"field 'history\[0\]\[1\]' must be text, not int"):
        read(write(tmp_path, row | {"history": [["a", 1]]}))


@pytest.mark.parametrize("field", ["context", "input"])
@pytest.mark.parametrize("reply", ["completion", "response", "reply"])
def test_context_beside_a_prompt_is_part_of_it(tmp_path, field, reply):
    row = {"prompt": "Who?", reply: "Bob.", field: "Bob is tall."}
    assert only(tmp_path, row).messages == [user("Who?\n\nBob is tall."), assistant("Bob.")]
    with pytest.raises(
        MannersError, match=rf"field '{field}' must be text, not list \('dataset.columns={{{field}: null}}'"
    ):
        read(write(tmp_path, row | {field: ["Bob is tall."]}))
    left_out = only(tmp_path, row | {field: ["Bob is tall."]}, columns={field: None})
    assert left_out.messages == [user("Who?"), assistant("Bob.")]


# --- Labels ---


@pytest.mark.parametrize("label", ["label", "kto_tag"])
def test_replies_labeled_false_are_left_out_and_counted(tmp_path, label):
    rows = [{"prompt": f"{i}?", "completion": "x", label: i % 3 == 0} for i in range(9)]
    splits = read(write(tmp_path, *rows))
    assert [c.messages[0]["content"] for c in splits.train] == ["0?", "3?", "6?"]
    hint = f"'dataset.columns={{{label}: null}}' keeps them"
    assert splits.left_out == [f"left out: 6 rows: {label} is false ({hint})"]
    assert len(read(tmp_path / "data.jsonl", columns={label: None}).train) == 9


def test_labels_of_csv_cells_and_of_scored_rows(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion,label,score\na,b,True,1\nc,d,False,0\n")
    assert [c.messages[0]["content"] for c in read(path).train] == ["a"]
    scored = loading_for(path, "scored")
    assert [(c.metadata["label"], c.metadata["score"]) for c in scored] == [(True, 1.0), (False, 0.0)]


def loading_for(path, sample_type):
    return load_splits(config(path, validation_share=0.0, test_share=0.0), sample_type).train


@pytest.mark.parametrize("value", [0, 1, "0", 1.0, -1])
def test_label_of_0_or_1_needs_its_meaning(tmp_path, value):
    """OpenRLHF's are verdicts on the reply, FalseQA's are on the question."""
    path = write(tmp_path, {"prompt": "a", "completion": "b", "label": value}, {"prompt": "c", "completion": "d"})
    with pytest.raises(MannersError, match=r"data.jsonl:1: field 'label' is .*{kto_tag: label}'.*{label: null}'"):
        read(path)
    kept = [c.messages[0]["content"] for c in read(path, columns={"kto_tag": "label"}).train]
    assert kept == (["a", "c"] if float(value) > 0 else ["c"])
    assert len(read(path, columns={"label": None}).train) == 2


def test_a_tag_of_minus_one_is_undesirable(tmp_path):
    path = write(tmp_path, *[{"prompt": f"{tag}?", "completion": "b", "kto_tag": tag} for tag in (1, -1)])
    assert [reply.label for reply in labeled_replies(loading_for(path, "unpaired_preference"))] == [True, False]


def test_a_label_unlike_the_others_is_refused_with_its_line(tmp_path):
    """Half of the verdicts would be lost otherwise, and SFT would train on replies that are bad."""
    labels = [True, "false", "No", None]
    path = write(tmp_path, *[{"prompt": f"{i}?", "completion": "x", "label": v} for i, v in enumerate(labels)])
    with pytest.raises(MannersError, match=r"data\.jsonl:3: field 'label' is 'No', and that of other rows is true"):
        read(path)
    skipping = read(path, on_invalid_row="skip")
    assert [c.messages[0]["content"] for c in skipping.train] == ["0?", "3?"] and len(skipping.skipped) == 1
    assert len(read(path, columns={"label": None}).train) == 4
    with pytest.raises(MannersError, match=r"data\.jsonl:3: field 'kto_tag' is 'No': it is true or false"):
        read(path, columns={"kto_tag": "label"})


@pytest.mark.parametrize("value", [0.5, 2, "yes", ["a"], {"a": 1}])
def test_a_label_that_is_no_verdict_labels_no_reply(tmp_path, value):
    path = write(tmp_path, {"prompt": "a", "completion": "b", "label": value}, {"prompt": "c", "completion": "d"})
    assert labeled_replies(loading_for(path, "unpaired_preference")) == []


def test_label_of_another_meaning_is_named_as_not_used(tmp_path):
    splits = read(write(tmp_path, {"prompt": "a", "completion": "b", "label": 2}))
    assert (len(splits.train), splits.left_out) == (1, ["fields not used: label"])


def test_file_of_unwanted_replies_alone_is_refused(tmp_path):
    with pytest.raises(MannersError, match=r"no row has a turn that carries loss \(2 rows: label is false"):
        read(write(tmp_path, *[{"prompt": "a", "completion": "b", "label": False}] * 2))


def test_rows_whose_turns_all_have_weight_0_are_counted(tmp_path):
    rows = [{"messages": [user("a"), assistant("b") | {"weight": weight}]} for weight in (0, 1, 0)]
    splits = read(write(tmp_path, *rows))
    assert (len(splits.train), splits.left_out) == (1, ["left out: 2 rows: no turn carries loss"])


# --- Columns ---


def test_columns_have_the_names_that_the_config_gives(tmp_path):
    path = write(tmp_path, {"Question": "2 + 2?", "Best Answer": "4.", "stars": 3, "prompt": "another"})
    columns = {"prompt": "Question", "completion": "Best Answer", "score": "stars"}
    splits = read(path, columns=columns)
    hidden = "prompt (another is named so by dataset.columns)"
    assert (splits.train[0].messages, splits.train[0].metadata) == (EXCHANGE, {"score": 3.0, hidden: "another"})
    assert splits.left_out == [f"fields not used: {hidden}"]


def test_columns_keep_a_field_where_the_files_own_is_missing(tmp_path):
    rows = [{"prompt": "2 + 2?", "completion": "4.", name: "Be brief."} for name in ("sys", "system")]
    splits = read(write(tmp_path, *rows), columns={"system": "sys"})
    assert [row.messages for row in splits.train] == [[SYSTEM, *EXCHANGE]] * 2


def test_missing_column_is_refused_with_the_nearest(tmp_path):
    path = write(tmp_path, {"question": "2 + 2?", "answer": "4."})
    with pytest.raises(MannersError, match=r"'answr', which dataset.columns names \(Did you mean 'answer'\?\)\. Fix"):
        read(path, columns={"prompt": "question", "completion": "answr"})
    with pytest.raises(
        MannersError, match=r"dataset\.columns: no row has the field 'persona'. Known: answer, question"
    ):
        read(path, columns={"prompt": "question", "completion": "answer", "system": "persona"})


@pytest.mark.parametrize(
    ("row", "suggestion"),
    [
        ({"id": 1, "question": "a", "answer": "b"}, "{prompt: question, completion: answer}"),
        ({"input": "a", "output": "b"}, "{prompt: input, completion: output}"),
        ({"Question": "a", "Best Answer": "b"}, "{prompt: Question, completion: Best Answer}"),
        ({"conversation": EXCHANGE, "language": "en"}, "{messages: conversation}"),
        ({"source": "wikipedia", "question": "a", "answer": "b"}, "{prompt: question, completion: answer}"),
        ({"input": "A passage", "question": "a", "answer": "b"}, "{prompt: question, completion: answer}"),
        ({"question": "a", "completion": "b"}, "{prompt: question}"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "{prompt: question}"),
        ({"Conversation (en)": EXCHANGE}, '{messages: "Conversation (en)"}'),
    ],
)
def test_unknown_columns_are_answered_with_their_names(tmp_path, row, suggestion):
    path = write(tmp_path, row)
    with pytest.raises(MannersError) as error:
        read(path)
    assert f"(to name the columns: 'dataset.columns={suggestion}')" in str(error.value)
    assert len(read(path, columns=yaml.safe_load(suggestion)).train) == 1
    override = OverridesParser.create().parse_override(f"dataset.columns={suggestion}")
    assert str(override.value()) == str(yaml.safe_load(suggestion))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "c", "question": "a", "answers": {"text": ["b"]}}, "no known field"),
        ({"prompt": "a"}, "field 'completion' is missing"),
        ({"instruction": "a", "input": "b"}, "field 'output' is missing"),
        ({"conversation_a": EXCHANGE, "conversation_b": EXCHANGE, "winner": "model_b"}, "no known field"),
    ],
)
def test_columns_that_tell_nothing_are_not_suggested(tmp_path, row, message):
    with pytest.raises(MannersError, match=message) as error:
        read(write(tmp_path, row))
    assert "dataset.columns" not in str(error.value)


# --- Fields that nothing reads ---


def test_fields_not_used_are_named_once(tmp_path):
    call = assistant("4.") | {"tool_calls": [{"id": 1}], "name": None}
    rows = [{"messages": [user("2 + 2?"), call], "tools": [{"name": "sum"}], "images": ["a.png"], "empty": []}] * 2
    splits = read(write(tmp_path, *rows))
    assert splits.left_out == ["fields not used: tools, images, messages[].tool_calls"]


def test_category_is_used_by_a_style_judge_alone(tmp_path):
    path = write(tmp_path, {"messages": EXCHANGE, "category": "good_question", "split": "train", "score": 1})
    assert read(path).left_out == ["fields not used: category"]
    assert read(path, style_judge="rules").left_out == []


def options(**changes):
    return SimpleNamespace(**OmegaConf.to_container(OmegaConf.structured(DatasetConfig(path="x", **changes))))


NAMES = st.text(string.ascii_letters + "_", min_size=1, max_size=12) | st.sampled_from(sorted(COLUMNS))
WORDS = st.text(string.ascii_letters, min_size=1, max_size=8).map(lambda word: f"extra {word}")
VALUES = WORDS | st.integers() | st.booleans() | st.lists(WORDS, max_size=2) | st.dictionaries(WORDS, WORDS, max_size=2)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.dictionaries(NAMES, VALUES, max_size=4))
def test_extra_field_is_read_or_named_or_refused(name, extra):
    row = FORMATS[name][0][0]
    extra = {field: value for field, value in extra.items() if field not in row}
    try:
        conversation, unused = parse_row(row | extra, "f:1", name, options())
    except InvalidRow as error:
        assert any(field in str(error) for field in extra), error
        return
    told = json.dumps(conversation.messages)
    for field, value in extra.items():
        known = field in conversation.metadata and field in ("score", "mismatched", "rejected", "margin")
        verdict = field == next((name for name in LABEL_FIELDS if name in extra), "") and value in (0, 1)
        known |= verdict and conversation.messages[-1]["role"] == "assistant"
        used = known or field == "split" or (isinstance(value, str) and value in told) or value in ([], {})
        assert used != (field in unused), (field, value, unused)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_names_a_field_that_it_does_not_read(name):
    assert parse_row(FORMATS[name][0][0] | {"surplus": 1}, "f:1", name, options())[1] == ["surplus"]
