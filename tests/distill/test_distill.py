"""Prompt distillation: which replies are kept, what a row is, and that a killed command goes on to the same file."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from manners import distill
from manners.config.compose import compose, register
from manners.data.loading import Splits, load_splits
from manners.data.types import Conversation, Prompt
from manners.distill import samples
from manners.errors import MannersError
from manners.evaluation.evaluate import Generation
from tests.data.files import config, write


def conversation(*contents, **metadata):
    roles = ("user", "assistant")
    return Conversation([{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)], metadata=metadata)


def generation(reply, has_eos=True, fits=None):
    return Generation("?", reply, has_eos, matches_style=fits)


@pytest.mark.parametrize(
    ("reply", "fate"),
    [
        (generation("Yes.", fits=True), "accepted"),
        (generation("Yes.", fits=False), "does not fit"),
        (generation("Yes.", has_eos=False, fits=False), "does not end"),
        (generation(""), "empty"),
    ],
)
def test_only_replies_that_end_and_fit_are_kept(reply, fate):
    assert samples.fate_of(reply, must_fit=True) == fate
    assert samples.fate_of(reply, must_fit=False) == fate


def test_a_reply_without_category_needs_a_reward_model():
    assert samples.fate_of(generation("Yes."), must_fit=True) == "its row has no category to judge it by"
    assert samples.fate_of(generation("Yes."), must_fit=False) == "accepted"


def test_a_file_of_the_user_is_not_replaced(command, stubbed, tmp_path):
    mine = write(tmp_path, {"prompt": "Why?", "completion": "So."}, name="out.jsonl")
    before = mine.read_bytes()
    with pytest.raises(MannersError, match="is no file of a distillation"):
        distill.write_distilled(command())
    assert mine.read_bytes() == before
    mine.unlink()
    distill.write_distilled(command())
    distill.write_distilled(command("seed=2"))  # its own file is replaced


def test_the_reward_model_chooses_among_them():
    prompt = Prompt([{"role": "user", "content": "Hi"}])

    def score(replies):
        assert all(messages == prompt.messages for messages, _ in replies)  # it reads no system message
        return [float(len(reply)) for _, reply in replies]

    assert samples.best_reply(prompt, ["b", "ccc", "aa"], score, None) == "ccc"
    assert samples.best_reply(prompt, ["b", "ccc"], score, 4.0) is None
    assert samples.best_reply(prompt, ["b", "ccc"], None, None) == "b"
    assert samples.best_reply(prompt, [], score, None) is None


def test_test_rows_are_not_asked_and_equal_prompts_once():
    row = conversation("Why?", "So.")
    unanswered = replace(row, messages=[*row.messages, {"role": "user", "content": "And then?"}])
    splits = Splits(
        train=[unanswered, row, conversation("Why?", "No.")], validation=[conversation("How?", "Thus.")], test=[row]
    )
    assert [(a.split, a.prompt.messages[-1]["content"]) for a in distill.asked_prompts(splits)] == [
        ("train", "Why?"),
        ("validation", "How?"),
    ]


def test_a_row_has_the_prompt_alone_and_no_scores(tmp_path):
    row = conversation("Why?", "So.", category="good_question", score=0.9, mismatched=[{"content": "x"}], id="a")
    held_out = conversation("When?", "Now.", category="good_question", score=0.5)
    file = tmp_path / "d.jsonl"
    distill.write_rows(file, Splits(test=[held_out]), [(samples.Asked("train", row), "Because.")], "tiny")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    assert rows[0] == {"category": "good_question", "messages": messages, "split": "train", "distilled_from": "tiny"}
    assert rows[1] == {"category": "good_question", "messages": held_out.messages, "split": "test"}
    splits = load_splits(config(file))
    assert (splits.train[0].messages, splits.test[0].messages) == (messages, held_out.messages)


def test_half_a_batch_of_a_killed_command_is_sampled_again(tmp_path):
    path = tmp_path / "d.jsonl.samples"
    file = samples.SampleFile(path, "abc")
    file.append({"kept": [[0, "ä"]], "fates": ["accepted"]})
    file.append({"kept": [], "fates": ["empty"]})
    complete = path.read_bytes()
    path.write_bytes(complete + b'{"kept": [[1, "')
    assert samples.SampleFile(path, "abc").batches == file.batches
    assert path.read_bytes() == complete
    assert samples.SampleFile(path, "other command").batches == []
    assert path.read_bytes() == b"other command\n"


@pytest.fixture
def command(tmp_path):
    """The config of a command on two prompts, two replies each, of the packaged toy."""
    register()
    rows = [{"prompt": f"What colour is {x}?", "completion": "Red.", "split": "train"} for x in ("a rose", "a fox")]
    rows += [{"prompt": f"{split}?", "completion": "So.", "split": split} for split in ("validation", "test")]
    data = write(tmp_path, *rows)

    def composed(*overrides):
        given = ["run=tiny", f"dataset.path={data}", "system='Answer.'", "reward_from=REWARD", "num_generations=2"]
        given += ["batch_size=2", "max_new_tokens=4", f"out={tmp_path}/out.jsonl", "dataset=jsonl", *overrides]
        return compose("distill", given)

    return composed


@pytest.fixture
def stubbed(monkeypatch):
    """Sampling and scoring without a model: replies are numbered by the seed of their batch."""
    seeds = []

    def generate(model, tokenizer, conversations, *args, seed, **kwargs):
        assert all(c[0] == {"role": "system", "content": "Answer."} for c in conversations)
        seeds.append(seed)
        return [SimpleNamespace(text=f"seed {seed}, reply {i}", has_eos=True) for i in range(len(conversations))]

    monkeypatch.setattr(samples, "generate_texts", generate)
    monkeypatch.setattr(samples.model_ref, "load_model_ref", lambda *_: SimpleNamespace(model=None, tokenizer=None))
    monkeypatch.setattr(samples.model_ref, "resolve_reward_model", lambda *_: samples.ModelRef("reward", "tiny"))
    monkeypatch.setattr(samples.model_ref, "load_scorer", lambda *_: lambda pairs: [float(r[-1]) for _, r in pairs])
    return seeds


def test_a_killed_command_goes_on_to_the_same_file(command, stubbed, tmp_path, monkeypatch):
    whole = distill.write_distilled(command()).read_text()
    assert [json.loads(row)["messages"][-1]["content"] for row in whole.splitlines()] == [
        "seed 1, reply 1",
        "seed 2, reply 1",
        "seed 3, reply 1",
        "So.",
    ]
    append = samples.SampleFile.append

    def killed(self, batch):
        append(self, batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(samples.SampleFile, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        distill.write_distilled(command())
    monkeypatch.setattr(samples.SampleFile, "append", append)
    stubbed.clear()
    assert distill.write_distilled(command()).read_text() == whole
    assert stubbed == [2, 3]
    assert [p.name for p in tmp_path.glob("out*")] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("system=null", "has no system message of its own: system="),
        ("reward_from=none", "nothing chooses among the replies"),
        ("out=rows.csv", "written to a .jsonl file"),
        ("out=/dev/null/rows.jsonl", r"out=/dev/null cannot be written .* another place: out=FOLDER/FILE.jsonl"),
        ("max_new_tokens=600", "max_new_tokens=600 leaves no room for prompts in the 512 tokens"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(command, override, says):
    with pytest.raises(MannersError, match=says):
        distill.write_distilled(command(override))


def test_a_least_score_needs_a_reward_model(command):
    cfg = command("min_reward=0.5")
    OmegaConf.update(cfg, "reward_from", "none")
    OmegaConf.update(cfg, "dataset.style_judge", "rules")
    with pytest.raises(MannersError, match=r"min_reward=0\.5 needs a reward model"):
        distill.write_distilled(cfg)


def test_nothing_is_written_where_no_reply_is_accepted(command, stubbed, tmp_path):
    with pytest.raises(MannersError, match=r"no reply .* was accepted: .*num_generations=4"):
        distill.write_distilled(command("min_reward=99"))
    assert not (tmp_path / "out.jsonl").exists()
