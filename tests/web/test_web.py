"""The page's server on the packaged model: what each address answers, and what votes leave on disk."""

import json
import os
import shlex
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from starlette.testclient import TestClient

from manners.chat.model import load_chat_model
from manners.config.schema import WebConfig
from manners.data.types import Prompt
from manners.errors import MannersError
from manners.evaluation.judges import judge_by_rules
from manners.evaluation.metrics.word_credit import word_credits
from manners.pipeline.model_ref import ModelRef
from manners.runtime.device import Device
from manners.tracking import store
from manners.web import ballots as ballots_module
from manners.web import results, training_commands, vote_file
from manners.web.app import MAX_BODY, make_app
from manners.web.ballots import Ballots
from manners.web.models import Models, ReplyOptions
from manners.web.vote_file import VoteFile
from tests.data.files import read

PROMPTS = [
    Prompt([{"role": "user", "content": text}], metadata={"category": "good_question"})
    for text in ("What would you feed to a hare?", "How do you mend a cart?", "Why does bread rise?")
]


def length_score(replies):
    """A reward model that counts words, and pays five more for "hay"."""
    return [float(len(text.split()) + 5 * ("hay" in text.split())) for _, text in replies]


@pytest.fixture(scope="module")
def chat_model():
    torch.set_num_threads(1)
    return load_chat_model(ModelRef("tiny", "tiny"), "cpu")


@pytest.fixture
def page(tmp_path, monkeypatch, chat_model):
    """A client of the server, with the same model under two names; and its vote file."""
    cfg = OmegaConf.structured(WebConfig(run="tiny", max_new_tokens=8, temperature=1.5))
    models = Models({"one": chat_model, "two": chat_model}, "", {"two": "abc"}, Device("cpu", "32"), length_score,
                    judge_by_rules, threading.Lock())  # fmt: skip
    monkeypatch.setattr(ballots_module, "held_out_prompts", lambda _cfg, _dataset: list(PROMPTS))
    votes = VoteFile(tmp_path / "votes.jsonl")
    ballots = Ballots(cfg, None, models, votes)
    client = TestClient(make_app(cfg, models, ballots, votes), base_url="http://127.0.0.1")
    return SimpleNamespace(client=client, ballots=ballots, votes=votes)


def ballot(page, annotator="ann", **more):
    body = {"annotator": annotator, "pair": ["one", "two"]} | more
    return page.client.post("/api/ballot", json=body).json()["ballot"]


def cast(page, ballot, verdict, annotator="ann", **more):
    return page.client.post(
        "/api/vote", json={"ballot": ballot["id"], "verdict": verdict, "annotator": annotator} | more
    )


def rows(page):
    return [json.loads(line) for line in page.votes.path.read_text().splitlines()]


def test_a_reply_streams_and_its_seed_repeats_it(page):
    body = {"model": "one", "messages": PROMPTS[0].messages, "temperature": 0.9}
    lines = [json.loads(line) for line in page.client.post("/api/reply", json=body).text.splitlines()]
    seed, text = lines[0]["seed"], "".join(line["text"] for line in lines[1:])
    again = page.client.post("/api/reply", json=body | {"seed": seed}).text.splitlines()
    assert text and "".join(json.loads(line)["text"] for line in again[1:]) == text


def test_runs_on_one_base_do_not_mix(page):
    """Two adapters on the weights of one base: while one replies, the scale of the other is 0."""
    scales = {}

    def model(name, scale_of):
        return replace(page.ballots.models.by_name["one"], name=name, set_scale=lambda s: scales.update({scale_of: s}))

    loras = {"base": model("base", "one"), "one": model("one", "one"), "two": model("two", "two")}
    models = replace(page.ballots.models, by_name=loras, base="base")
    options = ReplyOptions(1, 0.0, 2)
    for name, expected in (("one", {"one": 1.0, "two": 0.0}), ("two", {"one": 0.0, "two": 1.0})):
        models.reply(name, PROMPTS[0].messages, options)
        assert scales == expected
    models.reply("base", PROMPTS[0].messages, options)
    assert scales == {"one": 0.0, "two": 0.0}


def test_a_reply_that_the_context_cannot_hold_says_so(page):
    body = {"model": "one", "messages": [{"role": "user", "content": "hare " * 5000}]}
    last = json.loads(page.client.post("/api/reply", json=body).text.splitlines()[-1])
    assert "shorten it" in last["error"]


def test_a_ballot_and_its_vote_hide_whose_replies_are_whose(page):
    dealt = ballot(page)
    assert dealt.keys() == {"id", "messages", "replies"} and len(set(dealt["replies"])) == 2
    answer = cast(page, dealt, "first").json()
    [row] = rows(page)
    assert [r["text"] for r in row["replies"]] == dealt["replies"]
    assert answer == {"votes": 1, "mine": 1} and sorted(r["model"] for r in row["replies"]) == ["one", "two"]
    of_two = next(r for r in row["replies"] if r["model"] == "two")
    assert of_two["run_id"] == "abc" and of_two.keys() >= {"seed", "temperature", "scale", "max_new_tokens"}
    assert row["annotator"] == "ann" and row["time"].endswith("Z")


def test_both_orders_are_shown(page):
    """Of twenty comparisons by twenty people, each order comes up but for a chance of 2 in a million."""
    orders = set()
    for number in range(20):
        cast(page, ballot(page, f"person {number}"), "tie", f"person {number}")
        orders.add(rows(page)[-1]["replies"][0]["model"])
    assert orders == {"one", "two"}


def test_everybody_judges_the_same_pairs_once(page):
    shown = {}
    for annotator in ("ann", "bob"):
        while dealt := ballot(page, annotator):
            shown.setdefault(annotator, []).append((dealt["messages"][0]["content"], sorted(dealt["replies"])))
            cast(page, dealt, "second", annotator)
    assert shown["ann"] == shown["bob"] and len(shown["ann"]) == len(PROMPTS)


def test_undo_appends_and_the_prompt_comes_again(page):
    dealt = ballot(page)
    cast(page, dealt, "first")
    answer = page.client.post("/api/undo", json={"annotator": "ann", "pair": ["one", "two"]}).json()
    assert answer == {"undone": "first", "votes": 0, "mine": 0}
    assert [row["vote"] for row in rows(page)] == ["first", "undo"]
    assert ballot(page)["messages"] == dealt["messages"]
    again = page.client.post("/api/undo", json={"annotator": "ann", "pair": ["one", "two"]})
    assert again.status_code == 409 and "no vote of yours" in again.json()["detail"]


def test_an_edited_reply_is_what_training_would_read(page):
    dealt = ballot(page)
    cast(page, dealt, "edit", side=1, edited=" Hay, and clover. ")
    splits = read(page.votes.path)
    [row] = splits.train
    assert row.messages[-1]["content"] == "Hay, and clover."
    assert row.metadata["rejected"] == dealt["replies"][1]


def test_labels_of_one_reply_are_votes_too(page):
    reply = {"text": "Hay.", "model": "two", "seed": 3, "temperature": 0.7, "scale": 1.0}
    body = {
        "annotator": "ann",
        "verdict": "good",
        "messages": PROMPTS[0].messages,
        "system": "Be brief.",
        "reply": reply,
    }
    assert page.client.post("/api/label", json=body).json() == {"votes": 1, "mine": 1}
    [row] = read(page.votes.path).train
    assert [m["content"] for m in row.messages] == ["Be brief.", PROMPTS[0].messages[0]["content"], "Hay."]
    assert row.metadata["label"] is True


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/vote", {"ballot": "none", "verdict": "first"}, 409),
        ("/api/reply", {"model": "three", "messages": PROMPTS[0].messages}, 422),
        ("/api/ballot", {"pair": ["one", "three"]}, 422),
        (
            "/api/label",
            {"verdict": "good", "messages": PROMPTS[0].messages, "reply": {"model": "one"}},
            422,
        ),
        ("/api/label", {"verdict": "good", "messages": [{}], "reply": {"model": "one", "text": "a"}}, 422),
        (
            "/api/label",
            {"verdict": "tie", "messages": [{"role": "user", "content": "a"}], "reply": {"model": "one"}},
            422,
        ),
    ],
)
def test_mistakes_are_refused_and_write_nothing(page, path, body, status):
    answer = page.client.post(path, json=body)
    assert answer.status_code == status and isinstance(answer.json()["detail"], str)
    assert page.votes.path.read_text() == ""


def test_a_verdict_that_is_none_and_an_empty_edit_are_refused(page):
    dealt = ballot(page)
    assert cast(page, dealt, "frist").status_code == 422
    assert cast(page, dealt, "edit", edited="  ").status_code == 422
    assert cast(page, dealt, "first").status_code == 200  # the comparison still stands
    assert len(rows(page)) == 1


def test_a_comparison_counts_once(page):
    dealt = ballot(page)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: cast(page, dealt, "first").status_code, range(4)))
    assert sorted(answers) == [200, 409, 409, 409] and len(rows(page)) == 1


def test_a_comparison_on_two_pages_of_one_person_counts_once(page):
    first, second = ballot(page), ballot(page)
    assert first["messages"] == second["messages"] and cast(page, first, "first").status_code == 200
    again = cast(page, second, "second")
    assert again.status_code == 409 and "already" in again.json()["detail"] and len(rows(page)) == 1
    assert cast(page, ballot(page, "bob"), "second", "bob").status_code == 200
    typed = page.client.post(
        "/api/ballot", json={"annotator": "ann", "pair": ["one", "two"], "typed": first["messages"][0]["content"]}
    )
    assert typed.status_code == 422 and "already" in typed.json()["detail"]


def test_the_later_label_of_a_reply_counts(page):
    reply = {"text": "Hay.", "model": "two", "seed": 3}
    body = {"annotator": "ann", "messages": PROMPTS[0].messages, "reply": reply}
    for more in ({"verdict": "good"}, {"verdict": "bad"}, {"verdict": "edit", "edited": "Grass."}):
        assert page.client.post("/api/label", json=body | more).status_code == 200
    page.client.post("/api/label", json=body | {"verdict": "good", "annotator": "bob"})
    assert [(v.annotator, v.verdict) for v in page.votes.standing()] == [
        ("ann", "bad"),
        ("ann", "edit"),
        ("bob", "good"),
    ]
    unchanged = page.client.post("/api/label", json=body | {"verdict": "edit", "edited": "Hay. "})
    assert unchanged.status_code == 422 and "as it was" in unchanged.json()["detail"]


def test_a_file_whose_last_line_has_no_end_loses_no_vote(page):
    cast(page, ballot(page), "first")
    page.votes.path.write_text(page.votes.path.read_text().rstrip("\n"))
    cast(page, ballot(page), "second")
    assert [row["vote"] for row in rows(page)] == ["first", "second"]


def test_a_row_that_is_no_vote_stops_the_voting(page):
    """As a start would be refused: what is not read is not passed over in silence."""
    dealt = ballot(page)
    with page.votes.path.open("a") as file:
        file.write("{}\n")
    for answer in (cast(page, dealt, "first"), page.client.get("/api/results")):
        assert answer.status_code == 409 and "votes.jsonl:1" in answer.json()["detail"]
    assert page.votes.path.read_text() == "{}\n"


def test_a_file_that_is_gone_is_missed_and_not_begun_anew(page):
    dealt = ballot(page)
    page.votes.path.unlink()
    label = {"verdict": "good", "messages": PROMPTS[0].messages, "reply": {"model": "one", "text": "a"}}
    for answer in (
        cast(page, dealt, "first"),
        page.client.post("/api/label", json=label),
        page.client.get("/api/results"),
    ):
        assert answer.status_code == 507 and "votes.jsonl cannot be" in answer.json()["detail"]
    assert not page.votes.path.exists()


def test_requests_of_other_pages_and_huge_ones_are_refused(page):
    body = {"pair": ["one", "two"]}
    assert page.client.post("/api/ballot", json=body, headers={"origin": "http://localhost"}).status_code == 403
    assert page.client.post("/api/ballot", json=body, headers={"origin": "http://127.0.0.1"}).status_code == 200
    assert page.client.post("/api/ballot", json=body | {"typed": "a" * MAX_BODY}).status_code == 413
    assert page.client.post("/api/ballot", content=iter([b"{}"])).status_code == 413  # it does not say how long it is


def test_a_value_out_of_its_range_is_named(page):
    headers = {"content-type": "application/json"}
    for number in ("-3", "NaN"):
        body = '{"model": "one", "messages": [{"role": "user", "content": "a"}], "temperature": ' + number + "}"
        answer = page.client.post("/api/reply", content=body, headers=headers)
        assert answer.status_code == 422 and answer.json()["detail"].startswith("temperature: ")


def test_commands_on_the_page_are_those_of_its_run(tmp_path):
    model = {"name": "tiny", "chat_template": "chatml"}
    run = SimpleNamespace(config=OmegaConf.create({"model": model, "method": {"name": "sft"}}))
    ref = SimpleNamespace(name="my-run", path="folder", config=run.config)
    out = tmp_path / "my outputs"
    (out / "runs" / "my-run").mkdir(parents=True)
    cfg = WebConfig(run="my-run", output_dir=str(out))
    dpo, kto, reward = training_commands(cfg, ref, tmp_path / "votes.jsonl")
    given = ["dataset=jsonl", f"dataset.path={tmp_path}/votes.jsonl", f"output_dir='{out}'", "model=tiny"]
    assert shlex.split(dpo)[2:] == [*given, "method=dpo", "policy_from=my-run"]
    assert shlex.split(reward)[2:-1] == [*given, "method=reward", "method.loss=pairwise"] and "kto" in kto
    elsewhere = training_commands(WebConfig(run="x"), ref, tmp_path)[0]
    assert elsewhere.endswith("policy_from=folder") and "output_dir" not in elsewhere
    other = SimpleNamespace(name="me/model", path="me/model", config=None)
    assert "model.name=me/model" in training_commands(WebConfig(run="x"), other, tmp_path)[0]


def test_a_vote_that_a_full_disk_takes_half_of_is_no_vote(page, monkeypatch):
    dealt, write = ballot(page), os.write
    monkeypatch.setattr(vote_file.os, "write", lambda descriptor, line: write(descriptor, line[:9]))
    assert cast(page, dealt, "first").status_code == 507
    assert page.votes.path.read_text() == ""
    monkeypatch.undo()
    assert cast(page, dealt, "first").status_code == 200  # the comparison still stands


def test_results_count_what_was_cast(page):
    for _ in range(3):
        cast(page, ballot(page), "tie")
    found = page.client.get("/api/results").json()
    [comparison] = found["results"]["comparisons"]
    assert (comparison["wins"], comparison["ties"], comparison["losses"]) == (0, 3, 0)
    assert "| two | one | 0 | 3 | 0 | 50.0 %" in found["markdown"]


def test_words_are_credited_with_what_they_add(page):
    body = {"messages": PROMPTS[0].messages, "reply": "Fresh hay, hay  always.", "category": "good_question"}
    answer = page.client.post("/api/score", json=body).json()
    assert answer["credit"] == {"score": 9.0, "words": ["Fresh", "hay,", "hay", "always."], "credits": [1, 1, 6, 1]}
    assert answer["verdict"]["style"] and isinstance(answer["verdict"]["fits"], bool)


def test_word_credits_take_out_one_word_and_its_space():
    seen = []

    def score(replies):
        seen.extend(text for _, text in replies)
        return [0.0] * len(replies)

    word_credits(score, [], "one two\nthree")
    assert seen == ["one two\nthree", "two\nthree", "one\nthree", "one two"]


def test_the_page_talks_with_this_machine_alone(page):
    answer = page.client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for name in ("app.js", "style.css"):
        text = page.client.get(f"/static/{name}").text
        assert "http://" not in text and "https://" not in text
    assert page.client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert page.client.get("/static/..%2fapp.py").status_code == 404


def test_a_file_with_a_row_that_is_no_vote_is_refused(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text('{"vote": "first", "id": "a", "prompt": "q"}\n')
    with pytest.raises(MannersError, match=r"votes\.jsonl:1: .*mend or remove that line"):
        VoteFile(path)
    with pytest.raises(MannersError, match=r"rows of a \.jsonl file"):
        VoteFile(tmp_path / "votes.csv")


def test_results_of_a_file_are_printed_and_logged(tmp_path, capsys):
    row = {"prompt": PROMPTS[0].messages, "replies": [{"text": "a", "model": "one"}, {"text": "b", "model": "two"}]}
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row | {"vote": "second", "id": str(i)}) + "\n" for i in range(3)))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    results.main([str(path), f"output_dir={tmp_path}", f"tracking.uri={uri}"])
    assert "| two | one | 3 | 0 | 0 | 100.0 %" in capsys.readouterr().out
    [folder] = (tmp_path / "evaluations").iterdir()
    assert (folder / "votes.jsonl").read_text() == path.read_text()
    client = store.mlflow_client(uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    [run] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    of_models = {run.info.run_name: run for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert of_models.keys() == {"one", "two"}
    [trace] = client.search_traces(locations=[run.info.experiment_id], run_id=of_models["two"].info.run_id)
    assert [(a.name, a.value) for a in trace.info.assessments] == [("vote", "better")] * 3
    assert run.data.metrics["win_rate"] == 1.0 and run.data.metrics["votes"] == 3


def test_results_of_no_file_say_what_to_type():
    with pytest.raises(MannersError, match=r"outputs/votes\.jsonl"):
        results.main(["output_dir=x"])
    with pytest.raises(MannersError, match="is no file of votes"):
        results.main(["nothing.jsonl"])


def test_a_prompt_that_no_model_can_read_is_passed_over(page):
    long = Prompt([{"role": "user", "content": "hare " * 5000}], metadata={"category": "good_question"})
    page.ballots.prompts.insert(0, long)
    assert ballot(page)["messages"] != long.messages
    body = {"annotator": "ann", "pair": ["one", "two"], "typed": long.messages[0]["content"]}
    answer = page.client.post("/api/ballot", json=body)
    assert answer.status_code == 422 and "shorten it" in answer.json()["detail"]
