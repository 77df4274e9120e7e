"""The LLM as reward function, against a server on this machine."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from manners.data.types import Prompt
from manners.errors import MannersError
from manners.rewards import judge as module
from manners.rewards.combine import RewardLog, build_components, combine_rewards
from manners.rewards.judge import fill, judge, parse_score
from manners.tracking import llm_endpoint

KEY = "sk-very-secret"


class Server:
    """An endpoint that answers by ``respond(number, text)``: status, content, and seconds to wait before."""

    def __init__(self):
        self.requests, self.headers, self.raw, self.usage = [], [], None, {"total_tokens": 7}
        self.at_once = self.most_at_once = 0
        self.respond = lambda number, text: (200, "8", 0)
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append((self.path, body))
                    outer.headers.append(self.headers["Authorization"])
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                    number = len(outer.requests)
                status, content, seconds = outer.respond(number, body["messages"][0]["content"])
                time.sleep(seconds)
                answer = {"choices": [{"message": {"content": content}}], "usage": outer.usage}
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{outer.url}/elsewhere")
                self.end_headers()
                with lock:
                    outer.at_once -= 1
                if status == 401:
                    answer = {"error": f"no such key: {KEY}"}
                self.wfile.write(outer.raw or json.dumps(answer).encode())

            do_GET = do_POST

            def log_message(self, *_):
                pass

            def handle(self):
                with suppress(OSError):  # the other side has gone
                    super().handle()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(llm_endpoint, "PAUSE", 0.001)
    module.USAGE.clear()
    server = Server()
    yield server
    server.server.shutdown()


def restart():
    """What another process would know of this one."""
    module.USAGE.clear()


def grade(server, *replies, **options):
    """The grades of replies to one prompt, and what was logged."""
    logged = {}
    prompts = [[{"role": "user", "content": "Why is the sky blue?"}]] * len(replies)
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    scores = judge(prompts, completions, logged.__setitem__, "some-model", server.url, **options)
    return scores, logged


def test_each_reply_is_graded_by_the_rubric_over_its_best(server):
    server.respond = lambda number, text: (200, "9" if "scatters" in text else "Grade: 1/10", 0)
    scores, logged = grade(server, "Air scatters blue light.", "No idea.")
    assert scores == [0.9, 0.1]
    assert logged == {"judge/requests": 2, "judge/tokens": 14, "judge/abstained": 0}
    path, body = server.requests[0]
    assert path == "/v1/chat/completions" and body.keys() == {"model", "messages", "temperature"}
    assert (body["model"], body["temperature"]) == ("some-model", 0.0)
    assert "user: Why is the sky blue?" in body["messages"][0]["content"]
    assert server.headers == [f"Bearer {KEY}"] * 2


def test_rubric_scale_and_temperature_are_options(server):
    scores, _ = grade(server, "a", rubric="From 0 to 16: {reply}", max_score=16, temperature=None)
    assert scores == [0.5] and server.requests[0][1] == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "From 0 to 16: a"}],
    }


def test_grades_are_known_after_a_restart_and_cost_nothing(server, tmp_path):
    first, _ = grade(server, "a", "b", "a")
    assert len(server.requests) == 2  # equal replies are asked for once
    restart()
    server.respond = lambda number, text: (200, "0", 0)
    assert grade(server, "a", "b") == (first[:2], {"judge/requests": 0, "judge/tokens": 0, "judge/abstained": 0})
    assert grade(server, "a", temperature=1.0)[0] == [0.0]  # another question
    stored = [f.read_text() for f in tmp_path.rglob("*") if f.is_file()]
    assert len([text for text in stored if text]) == 3 and not any(KEY in text for text in stored)


def test_server_that_fails_twice_is_asked_again(server):
    server.respond = lambda number, text: (500 if number <= 2 else 200, "8", 0)
    assert grade(server, "a") == ([0.8], {"judge/requests": 3, "judge/tokens": 7, "judge/abstained": 0})


@pytest.mark.parametrize("status, requests", [(503, 5), (429, 5), (401, 1), (404, 1), (302, 1)])
def test_server_that_fails_ends_the_run_in_one_sentence(server, status, requests):
    """What will not pass is not tried again, no redirect followed, and no key shown, even if the server shows it."""
    server.respond = lambda number, text: (status, "8", 0)
    with pytest.raises(
        MannersError, match=rf"some-model at .* gave no answer \(HTTP Error {status}.*same command"
    ) as e:
        grade(server, "a")
    assert len(server.requests) == requests and KEY not in str(e.value)


def test_slow_server_times_out_and_is_asked_again(server):
    server.respond = lambda number, text: (200, "8", 1.0 if number == 1 else 0)
    assert grade(server, "a", timeout=0.2)[0] == [0.8] and len(server.requests) == 2
    server.respond = lambda number, text: (200, "8", 1.0)
    with pytest.raises(MannersError, match="timed out"):
        grade(server, "b", timeout=0.02)


def test_server_that_is_not_there_is_named(server):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(MannersError, match=r"gave no answer \(URLError"):
        grade(server, "a")


@pytest.mark.parametrize("raw", [b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}'])
def test_body_that_is_no_completion_ends_the_run(server, raw):
    server.raw = raw
    with pytest.raises(MannersError, match="gave no answer"):
        grade(server, "a")
    assert len(server.requests) == 5


def test_answer_without_a_grade_abstains_and_is_counted(server):
    server.respond = lambda number, text: (200, "Fine!" if "a b" in text else None if "c d" in text else "8", 0)
    scores, logged = grade(server, "a b", "c d", "e f", "a b")
    assert scores == [None, None, 0.8, None] and logged["judge/abstained"] == 3
    restart()
    assert grade(server, "a b", "c d", "e f", "a b")[0] == scores and len(server.requests) == 3


def test_judge_that_grades_nothing_ends_the_run(server):
    server.respond = lambda number, text: (200, "Fine!", 0)
    with pytest.raises(MannersError, match=r"none of 2 answers of .* has a grade.*remove .* to ask for them again"):
        grade(server, "a", "b")


def test_budget_of_requests_stops_and_a_restart_goes_on(server):
    match = r"method\.rewards\.nice\.max_requests=2 is used up \(2 requests, .*same command.*=4 begins a new"
    with pytest.raises(MannersError, match=match):
        grade(server, "a", "b", "c", max_requests=2, component="nice")
    assert len(server.requests) == 2
    restart()
    scores, _ = grade(server, "a", "b", "c", max_requests=2, component="nice")
    assert scores == [0.8] * 3 and len(server.requests) == 3


def test_failed_requests_count_against_the_budget(server):
    server.respond = lambda number, text: (500, "8", 0)
    with pytest.raises(MannersError, match="max_requests=3 is used up"):
        grade(server, "a", max_requests=3)
    assert len(server.requests) == 3


def test_budget_of_tokens_stops_and_needs_a_count(server):
    grade(server, "a", max_total_tokens=7)
    with pytest.raises(MannersError, match=r"max_total_tokens=7 is used up \(1 requests, 7 tokens\)"):
        grade(server, "b", max_total_tokens=7)
    server.usage = None
    with pytest.raises(MannersError, match="counts no tokens: remove max_total_tokens"):
        grade(server, "b", max_total_tokens=100)


def test_requests_are_concurrent(server):
    server.respond = lambda number, text: (200, "8", 0.2)
    grade(server, *"abcdefgh")
    assert server.most_at_once > 1


def test_component_reports_by_its_own_name(server):
    config = {"nice": {"_target_": "manners.rewards.judge.judge", "model": "m", "base_url": server.url}}
    prompts = [Prompt([{"role": "user", "content": "Hi"}], None, {"model": "gpt2"})]  # a field, not the option
    log = RewardLog()
    sums, _ = combine_rewards(build_components(config, None), prompts, ["Hello."], [[1]], [True], log=log)
    assert sums == [0.8] and dict(log.metrics) == {"nice/requests": [1], "nice/tokens": [7], "nice/abstained": [0]}
    assert server.requests[0][1]["model"] == "m"


@pytest.mark.parametrize(
    "answer, score",
    [
        *(("7", 0.7), ("Grade: 7.5", 0.75), ("7/10", 0.7), ("7 / 10.", 0.7), ("It is 3 years old.\nSo: 2\n", 0.2)),
        *(("", None), ("good", None), ("7 or 8", None), ("-3", None), ("11", None), ("7\nas I said", None), ("0", 0.0)),
    ],
)
def test_grade_is_the_one_number_of_the_last_line(answer, score):
    assert parse_score(answer, 10) == (score if score is None else pytest.approx(score))


def test_rubric_is_filled_once_and_misspelled_names_are_refused():
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "{reply}?"}]
    assert fill('{"a": {}} {prompt} {reply}', prompt, "{prompt}") == (
        '{"a": {}} system: Be kind.\nuser: {reply}? {prompt}'
    )
    with pytest.raises(MannersError, match=r"\{promt\}, .* Did you mean 'prompt'"):
        fill("{promt} {reply}", prompt, "a")
    with pytest.raises(MannersError, match=r"write \{reply\}"):
        fill("{prompt}", prompt, "a")


@pytest.mark.parametrize(
    "options, key, message",
    [
        ({"max_score": 0}, KEY, "max_score=0"),
        ({}, "two words", "OPENAI_API_KEY is no key"),
    ],
)
def test_settings_that_cannot_work_are_refused(server, monkeypatch, options, key, message):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(MannersError, match=message) as error:
        grade(server, "a", **options)
    assert server.requests == [] and "two words" not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp:" + "//localhost", "http:" + "//me:secret@localhost/v1"])
def test_address_that_is_none_is_refused(server, url):
    server.url = url
    with pytest.raises(MannersError, match="must be like http") as error:
        grade(server, "a")
    assert "secret" not in str(error.value)
