"""Secrets are masked wherever they stand, ordinary settings never, and what is masked is asked for again."""

from __future__ import annotations

import json
import logging
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmetric.config.compose import CONF_DIR, compose, resume
from distmetric.config.decode import leaves
from distmetric.errors import ConfigError
from distmetric.secrets import MASK, is_masked, mask_logs, masked

# Made up, in the forms that real ones have; put together here so that no scanner takes this file for a leak.
AWS_SECRET = "wJalrXUtnFEMI/" + "K7MDENG/bPxRfiCYEXAMPLEKEY"
SECRETS = {
    "AWS key": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS temporary key": "ASIA" + "Y34FZKBOKMUTVV7A",
    "AWS secret": AWS_SECRET,
    "Hugging Face": "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ0123",
    "GitHub": "ghp_" + "0123456789abcdefABCDEF0123456789abcd",
    "GitHub fine-grained": "github_pat_" + "11ABCDEFG0abcdefghij_klmnopqrstuv",
    "OpenAI": "sk-" + "proj-AbCdEfGhIjKlMnOpQrStUv12",
    "Anthropic": "sk-" + "ant-api03-AbCdEf_Gh-IjKlMnOp12",
    "JWT": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "Google": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "Slack": "xoxb-" + "123456789012-abcdefGHIJKL",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE KEY-----",
}
AROUND = (
    "{}",
    "error: {} is wrong",
    'python jobs/train.py "{}"',
    "a={}",
    "({})",
    '{{"x": "{}"}}',
    "first\n{}\nlast",
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_key_is_masked_wherever_it_stands_and_nothing_around_it_is(name: str) -> None:
    for around in AROUND:
        assert masked(around.format(SECRETS[name])) == around.format(MASK)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:hunter2@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("http://me:p@ss:word@host/a?b=c", "http://me:***@host/a?b=c"),
        ("https://b.s3/x?X-Amz-Signature=ab12&y=1", "https://b.s3/x?X-Amz-Signature=***&y=1"),
        ("https://b.s3/x?X-Amz-Credential=AK%2F2&y=1", "https://b.s3/x?X-Amz-Credential=***&y=1"),
        ("https://a.blob/x?sv=2020&sig=ab%2Bc%3D&se=1", "https://a.blob/x?sv=2020&sig=***&se=1"),
        ("curl -H 'Authorization: Bearer abcDEF123456'", "curl -H 'Authorization: Bearer ***'"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("model.kwargs.api_key=correcthorse model.norm=batch", "model.kwargs.api_key=*** model.norm=batch"),
        ('{"password": "correcthorse", "seed": 1}', '{"password": "***", "seed": 1}'),
        ("DB_PASSWORD=correcthorse;HOST=a", "DB_PASSWORD=***;HOST=a"),
        (f"aws_secret_access_key = {AWS_SECRET}", "aws_secret_access_key = ***"),
    ],
)
def test_what_a_place_says_to_be_secret_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(masked(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning",
        "http://[::1]:5000 and me@host",
        "15b0654c9e2f5d1a7b3e8f6047d2c1a9b8e7f605",  # a commit
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",  # a digest
        "/data/Cars196/Train/Images/Audi4/xyz12.jpg",
        "s3://bucket/embeddings/model.arrow",
        "model.token=cls was not stored because it is secret: give it again",
        "the token is in the environment, bearer authentication is off",
        "a-task-that-has-a-long-name-2024, disk-usage-of-the-machine-1",
        "RAY_AUTH_MODE=token",
        "GeneralizedLiftedStructureLossWithMargin1",
        "keyboard: qwertyuiop, monkey=chimpanzee",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *(
            (name, True)
            for name in ("MY_TOKEN", "HF_TOKEN", "db_password", "AWS_SECRET_ACCESS_KEY", "APIKEY")
        ),
        *((name, True) for name in ("OPENAI_API_KEY_2", "SERVICE_CREDENTIALS", "CI_SECRETS", "AZURE_SAS")),
        *((name, False) for name in ("RAY_AUTH_MODE", "TOKENIZERS_PARALLELISM", "KEYBOARD_LAYOUT", "MONKEY")),
        *((name, False) for name in ("RAY_AUTH_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE", "HOME", "PATH")),
    ],
)
def test_values_of_the_environment_are_masked_if_their_names_are_secret(
    name: str, is_secret: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "tr0ub4dor&3 horse")
    assert (
        masked("before tr0ub4dor&3 horse after")
        == f"before {MASK if is_secret else 'tr0ub4dor&3 horse'} after"
    )
    assert is_masked(masked("in a URI: tr0ub4dor%263%20horse")) == is_secret


def test_short_values_of_the_environment_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "triplet")
    assert masked("loss=triplet") == "loss=triplet"


def test_containers_are_masked_throughout_and_keep_their_form() -> None:
    key = SECRETS["GitHub"]
    value = {
        "a": [{"b": (key, 1, None, 2.5, True)}],
        key: {key},
        "c": {"password": "correcthorse", "token": "cls"},
    }
    found = masked(value)
    assert found == {
        "a": [{"b": (MASK, 1, None, 2.5, True)}],
        MASK: {MASK},
        "c": {"password": MASK, "token": "cls"},
    }
    assert value["a"][0]["b"][0] == key, "the original must stay usable"
    assert is_masked(found)
    assert is_masked([found])
    assert not is_masked(value)


WORDS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789_-. ", max_size=30)
PATHS = st.lists(st.text("abcdefghijXYZ0123456789_-.", min_size=1, max_size=12), max_size=6).map("/".join)


def test_no_file_of_conf_is_touched() -> None:
    for path in CONF_DIR.rglob("*.yaml"):
        assert masked(path.read_text(encoding="utf-8")) == path.read_text(encoding="utf-8")


@cache
def composed() -> str:
    return json.dumps(compose("config", ["model=custom", "model.target=a.b"]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_no_ordinary_setting_is_touched(data: st.DataObject) -> None:
    values = json.loads(composed())
    for key in ("name", "output_dir", "resume"):
        values[key] = data.draw(st.one_of(st.none(), WORDS, PATHS.map("s3://bucket/{}".format), PATHS))
    values["model"]["kwargs"] = data.draw(
        st.dictionaries(WORDS, st.integers() | st.floats() | PATHS, max_size=3)
    )
    values["train"]["steps"] = data.draw(st.integers())
    assert repr(masked(values)) == repr(values)


def test_texts_without_end_are_masked_in_linear_time() -> None:
    for piece in (
        "a_b-c.",
        "://a:",
        "token ",
        "sk-",
        "bearer ",
        "-----BEGIN PRIVATE KEY-----",
        "eyJ",
        "?key",
        "=",
    ):
        masked(piece * 50_000)  # the timeout of the test is the check: a quadratic pattern takes hours


@pytest.fixture
def _factory() -> Any:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("_factory")
def test_log_lines_and_their_tracebacks_are_masked(caplog: pytest.LogCaptureFixture) -> None:
    key, log = SECRETS["AWS key"], logging.getLogger("distmetric.some.module")
    mask_logs()
    mask_logs()
    try:
        raise ValueError(f"no access with {key}")
    except ValueError:
        log.exception("failed for %s and %d", key, 3)
    logging.getLogger("of.somebody.else").warning({"a": key})
    misfit = logging.getLogRecordFactory()("distmetric", logging.INFO, "", 1, "%d", (key,), None)
    assert misfit.args == (MASK,)
    assert "failed for *** and 3" in caplog.text
    assert "no access with ***" in caplog.text
    assert "Traceback" in caplog.text
    assert key not in caplog.text


def test_a_resumed_run_is_told_what_was_not_stored_and_takes_it_again() -> None:
    started = compose(
        "config", ["model=custom", "model.target=a.b", "model.kwargs={api_key: correcthorse, depth: 3}"]
    )
    stored = json.loads(json.dumps(masked(started)))
    assert stored["model"]["kwargs"] == {"api_key": MASK, "depth": 3}
    with pytest.raises(ConfigError) as caught:
        resume(stored, ["resume=x"])
    assert str(caught.value) == (
        "model.kwargs.api_key was not stored because it is secret: give it again as model.kwargs.api_key=..."
    )
    again = resume(stored, ["resume=x", "model.kwargs.api_key=correcthorse"])
    assert leaves(again) == leaves(started)
    with pytest.raises(ConfigError, match=r"^model.kwargs.depth=4 would make it another run"):
        resume(stored, ["resume=x", "model.kwargs.api_key=correcthorse", "model.kwargs.depth=4"])
