"""The three judges behind one interface, and the command that prints their verdicts."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from omegaconf import OmegaConf

from manners.data.sources import CORPORA
from manners.errors import MannersError
from manners.evaluation.judges import JudgedReply, classifier, judge_by_rules, judge_reply, llm
from manners.evaluation.judges.__main__ import main
from manners.pipeline.style_judge import load_judge

PROBED = JudgedReply(
    "My uncle smoked and lived to 90, so smoking is safe.", "How many smokers died young?", "poor_logic"
)
BLUNT = JudgedReply(
    "The capital of Chile is Lima.", "Wrong. The capital of Chile is Santiago.", "wrong_fact", ["Santiago"]
)


def test_judge_by_rules_gives_the_verdict_on_each_reply():
    verdicts = judge_by_rules([PROBED, BLUNT])
    assert verdicts == [judge_reply(r.prompt, r.reply, r.category, r.fact) for r in (PROBED, BLUNT)]


def test_classifier_asks_for_manner_relevance_and_sense():
    asked = []

    def score(replies):
        asked.extend((messages[0]["content"], messages[1]["content"], reply) for messages, reply in replies)
        return [0.9 if "probe" in messages[0]["content"] else 0.2 for messages, _ in replies]

    [verdict] = classifier.make_judge(score)([PROBED])
    assert asked == [
        ("Does the reply probe the argument?", PROBED.prompt, PROBED.reply),
        ("Is the reply about what the user says?", PROBED.prompt, PROBED.reply),
        ("Does the reply make sense?", PROBED.prompt, PROBED.reply),
    ]
    assert verdict.manner and not verdict.relevance and not verdict.fits and verdict.style == "probing"
    assert verdict.reason == "manner 0.90, relevance 0.20, sense 0.20"


def test_reply_that_makes_no_sense_does_not_fit():
    judge = classifier.make_judge(lambda replies: [0.1 if "sense" in m[0]["content"] else 0.9 for m, _ in replies])
    [verdict] = judge([PROBED])
    assert verdict.manner and verdict.relevance and verdict.sense is False and not verdict.fits
    assert judge_by_rules([PROBED])[0].sense is None  # beyond rules


def test_sentence_said_twice_does_not_fit():
    twice = JudgedReply(PROBED.prompt, f"{PROBED.reply} {PROBED.reply}", PROBED.category)
    [verdict] = judge_by_rules([twice])
    assert verdict.manner and not verdict.words and not verdict.fits


def test_fact_and_words_are_judged_by_rules_whatever_the_judge():
    judge = classifier.make_judge(lambda replies: [1.0] * len(replies))
    [right, wrong, gibberish] = judge(
        [
            BLUNT,
            JudgedReply(BLUNT.prompt, "No, it is Buenos Aires.", "wrong_fact", ["Santiago"]),
            JudgedReply(PROBED.prompt, "Asdf qwer zxcv?", "poor_logic"),
        ]
    )
    assert right.fits and right.fact and not wrong.fits and wrong.fact is False
    assert not gibberish.words and not gibberish.fits


def test_labels_ask_the_questions_that_the_classifier_asks():
    rows = [json.loads(line) for line in (CORPORA / "style_labels" / "labels.jsonl").read_text("utf-8").splitlines()]
    questions = {(row["category"], row["messages"][0]["content"]) for row in rows}
    for category, question in classifier.MANNER_QUESTIONS.items():
        assert {q for c, q in questions if c == category} == {
            question,
            classifier.RELEVANCE_QUESTION,
            classifier.SENSE_QUESTION,
        }
    prompts = {split: {r["messages"][1]["content"].lower() for r in rows if r["split"] == split} for split in
               ("train", "validation", "test")}  # fmt: skip
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])


def test_labels_share_no_reply_with_what_reward_models_read():
    labels = [json.loads(line) for line in (CORPORA / "style_labels" / "labels.jsonl").read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in (CORPORA / "strictbot" / "hand.jsonl").read_text("utf-8").splitlines()]
    read = {
        text for row in rows for text in (row["messages"][-1]["content"], *(m["content"] for m in row["mismatched"]))
    }
    assert not read & {row["messages"][-1]["content"] for row in labels}


def test_missing_classifier_names_the_command_that_trains_it(tmp_path):
    cfg = OmegaConf.create({"output_dir": str(tmp_path), "evaluation": {"classifier": "latest"}})
    with pytest.raises(MannersError, match=r"python train\.py experiment=style_classifier"):
        load_judge("classifier", cfg)


class Endpoint(BaseHTTPRequestHandler):
    """Speaks OpenAI's protocol: yes to whatever asks about a probing reply, no to the rest."""

    requests: ClassVar[list[dict]] = []

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        answer = "probing" in json.dumps(request["messages"])
        message = {"role": "assistant", "content": json.dumps({"result": answer, "rationale": "as asked"})}
        body = json.dumps(
            {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
             "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
             "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
        ).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    Endpoint.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    server.shutdown()


def test_llm_is_asked_once_for_each_question(endpoint):
    judge = llm.make_judge("openai:/judge", endpoint)
    [verdict] = judge([PROBED])
    assert verdict.manner and not verdict.relevance and verdict.words
    assert len(Endpoint.requests) == 3
    assert PROBED.reply in json.dumps(Endpoint.requests[0]["messages"])
    [again] = llm.make_judge("openai:/judge", endpoint)([PROBED])
    assert again == verdict and len(Endpoint.requests) == 3  # from the cache


def test_llm_without_a_server_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MannersError, match=r"evaluation\.llm_base_url"):
        llm.make_judge("openai:/judge", "http://127.0.0.1:9/v1/chat/completions")([PROBED])


def test_command_prints_a_verdict_for_each_row(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": r.prompt, "reply": r.reply, "category": r.category} for r in (PROBED, BLUNT)]
    file.write_text("\n".join(map(json.dumps, rows)))
    main([str(file), "judge=rules"])
    printed = capsys.readouterr()
    assert [json.loads(line)["fits"] for line in printed.out.splitlines()] == [True, True]
    assert "of 2 fit" in printed.err


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"values": ["Santiago"]}, [], "Did you mean 'value'"),
        ({"category": "wrong_facts"}, [], "wrong_fact"),
        ({}, ["judge=rule"], "Did you mean 'rules'"),
        ({}, ["evaluation.clasifier=x"], "evaluation.classifier"),
    ],
)
def test_mistakes_in_a_command_are_named(tmp_path, row, options, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a", "reply": "b", "category": "wrong_fact"} | row))
    with pytest.raises(MannersError, match=message):
        main([str(file), *options])
