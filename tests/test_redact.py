"""Passwords in URLs do not reach a message, whatever they are made of."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manners.errors import MannersError
from manners.redact import redact_secrets

WEB = "https:" + "//"  # no address of the project
URL_CHARACTERS = st.characters(categories=["L", "N"], include_characters="-._~!$&()*+,;=%/@:?#")


@given(st.text(URL_CHARACTERS, min_size=1), st.sampled_from(["postgresql", "mysql+pymysql", "http", "https"]))
@settings(max_examples=80, deadline=None)
@example("p@ss", "postgresql")
@example("p:a/s?s", "https")
def test_redact_secrets_leaves_nothing_of_it(password, scheme):
    url = f"{scheme}://me:{password}@host:5000/db"
    for before, after in (("tracking.uri=", ""), ("'tracking.uri=", "' seed=1"), ("uri: ", "\nseed: 1")):
        assert redact_secrets(before + url + after) == f"{before}{scheme}://me:***@host:5000/db{after}"


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"{WEB}hf_token@host/x", f"{WEB}***@host/x"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=me&password=***&ssl=1"),
        (f"{WEB}host:5000/?token=secret'", f"{WEB}host:5000/?token=***'"),
        (f"{WEB}host/?API_KEY=a&x=1&access_token=b&Sig=c", f"{WEB}host/?API_KEY=***&x=1&access_token=***&Sig=***"),
    ],
)
def test_redact_secrets_knows_tokens_and_parameters(text, shown):
    assert redact_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("http://127.0.0.1:5000", "sqlite:///outputs/mlflow.db", "sqlite:////tmp/a@b/x:y.db", "models:/mine@champion"),
        *("postgresql://me@host/db", f"{WEB}host:5000 or mail me@host", "time 10:30, a@b"),
    ],
)
def test_redact_secrets_leaves_other_text_alone(text):
    assert redact_secrets(text) == text


def test_error_shows_no_password():
    assert str(MannersError("tracking.uri=mlflow://me:secret@host: no")) == "tracking.uri=mlflow://me:***@host: no"
