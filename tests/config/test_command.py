"""A job ends with one line of JSON or one line of error, and the exit code says which."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from omegaconf import OmegaConf

from distmetric.config.command import run_command
from distmetric.config.compose import compose, groups, groups_of
from distmetric.errors import ConfigError, InputError, NonFiniteError, ResourceError, UserError

DOC = """Do something.

    python jobs/embed.py checkpoint=DIR
"""
REQUIRED = ["checkpoint=a", "source=b", "out=c"]


def never(overrides: list[str]) -> Mapping[str, Any]:
    raise AssertionError(f"the job was started with {overrides}")


def test_the_result_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    def job(overrides: list[str]) -> Mapping[str, Any]:
        print("something on the way")
        return {"overrides": overrides, "metrics": {"recall_at_1": 0.5}, "report": None}

    assert run_command("embed", DOC, job, ["out=x", "json=1", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {
        "overrides": ["out=x", "json=1", "json"],
        "metrics": {"recall_at_1": 0.5},
        "report": None,
    }
    assert out.endswith("}\n")
    assert err == ""


def test_the_command_line_is_that_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/embed.py", "out=x"])
    assert run_command("embed", DOC, lambda overrides: {"got": overrides}) == 0
    assert json.loads(capsys.readouterr().out) == {"got": ["out=x"]}


@pytest.mark.parametrize(
    ("kind", "code"), [(ConfigError, 2), (InputError, 2), (ResourceError, 3), (NonFiniteError, 4)]
)
def test_a_users_mistake_is_one_line_and_an_exit_code(
    kind: type[UserError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(overrides: list[str]) -> Mapping[str, Any]:
        raise kind("out=x is taken:\n   choose\tanother")

    assert run_command("embed", DOC, job, []) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: out=x is taken: choose another\n")


def test_settings_that_are_no_text_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def never(overrides: list[str]) -> Mapping[str, Any]:
        raise AssertionError(overrides)

    assert run_command("embed", DOC, never, ["out=e.arrow", "source=/tmp/\udcff"]) == 2
    assert (
        capsys.readouterr().err == "error: 'source=/tmp/\\udcff' is not UTF-8: rename that file or folder\n"
    )


def test_a_message_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def job(overrides: list[str]) -> Mapping[str, Any]:
        raise InputError("in.zip: the column \x1b[2J\x07ä\u202e is there twice")

    assert run_command("embed", DOC, job, []) == 2
    assert capsys.readouterr().err == "error: in.zip: the column \\x1b[2J\\x07ä\\u202e is there twice\n"


def test_anything_else_is_our_mistake_and_keeps_its_traceback() -> None:
    def job(overrides: list[str]) -> Mapping[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command("embed", DOC, job, [])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_the_job_and_its_choices(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("config", DOC, never, ["train.stepz=1", flag]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(DOC.strip())
    assert err == ""
    for name, choices in groups().items():
        assert (f"  {name:<12} {' | '.join(choices)}\n" in out) == (name in groups_of("config"))


def test_help_shows_no_choices_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("embed", DOC, never, ["--help"]) == 0
    assert "NAME=CHOICE" not in capsys.readouterr().out


def test_cfg_prints_the_composed_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*REQUIRED, "split=test"]
    expected = compose("embed", arguments)
    assert expected["split"] == "test"
    assert run_command("embed", DOC, never, [*arguments, "--cfg"]) == 0
    assert OmegaConf.create(capsys.readouterr().out) == expected
    assert run_command("embed", DOC, never, [*arguments, "--cfg", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_cfg_tells_mistakes_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("embed", DOC, never, ["--cfg", *REQUIRED, "splitt=test"]) == 2
    assert capsys.readouterr() == ("", "error: splitt is not a setting: did you mean split?\n")
