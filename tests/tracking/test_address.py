"""Addresses of tracking servers: mistakes are told at once, credentials are shown to nobody."""

from __future__ import annotations

import pytest

from distmetric.errors import ConfigError, ResourceError
from distmetric.tracking.address import database_path, tracking_uri, without_credentials


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost:5000", r"did you mean http://localhost:5000\?"),
        ("10.0.0.1:5000/mlflow", r"did you mean http://10\.0\.0\.1:5000/mlflow\?"),
        ("ftp://server", "MLflow has no such servers"),
        ("mlruns", "MLflow has no such servers"),
        ("./mlruns", "MLflow has no such servers"),
        ("file:///tmp/mlruns", "MLflow has no such servers"),
        ("http://", "give http://HOST:PORT"),
        ("http:///path", "give http://HOST:PORT"),
        ("http:server", "give http://HOST:PORT"),
        ("http://server:port", "give http://HOST:PORT"),
        ("http://server:99999", "give http://HOST:PORT"),
        ("http://[::1", "give http://HOST:PORT"),
        ("http://ser ver", "no spaces"),
        ("sqlite:mlflow.db", "give sqlite:///FILE"),
        ("://", "MLflow has no such servers"),
    ],
)
def test_what_cannot_be_an_address_is_one_line(uri, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tracking_uri(uri, "/tmp")
    assert str(caught.value).startswith(f"tracking.uri={uri} is wrong")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "http://server",
            "http://server:5000",
            "https://a.b/c?d=e",
            "http://[::1]:5000",
            "http://me:pw@server",
        ),
        *("postgresql://u@host/db", "mysql+pymysql://u:p@host:3306/db", "databricks", "databricks://profile"),
    ],
)
def test_what_can_be_one_is_taken_as_it_is(uri) -> None:
    assert tracking_uri(uri, "/tmp") == uri


def test_a_database_that_cannot_be_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "mlflow.db"):
        with pytest.raises(ResourceError, match=r"tracking.uri=sqlite:///.* cannot be written"):
            tracking_uri(f"sqlite:///{path}", "/tmp")
    deep = f"sqlite:///{tmp_path}/not/yet/there.db"
    assert tracking_uri(deep, "/tmp") == deep
    assert not (tmp_path / "not").exists()


def test_remote_runs_need_a_server() -> None:
    with pytest.raises(ResourceError, match="output_dir=s3://bucket/runs is not a local folder"):
        tracking_uri(None, "s3://bucket/runs")
    assert tracking_uri("http://server", "s3://bucket/runs") == "http://server"


def test_the_environment_names_the_server_of_new_runs_and_may_be_mistaken(monkeypatch, tmp_path) -> None:
    assert tracking_uri(None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(None, str(tmp_path)) == "http://server:5000"
    assert tracking_uri("http://other", str(tmp_path)) == "http://other"
    assert tracking_uri(None, str(tmp_path), "http://where-it-was") == "http://where-it-was"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "server")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI=server is wrong"):
        tracking_uri(None, str(tmp_path))
    with pytest.raises(ConfigError, match=r"^tracking_uri=x is wrong"):
        tracking_uri("x", str(tmp_path), key="tracking_uri")


def test_a_resumed_run_finds_its_credentials_where_they_were(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@server:5000")
    assert tracking_uri(None, "/tmp", "http://server:5000") == "http://me:pw@server:5000"
    assert (
        tracking_uri("http://you:pw@server:5000", "/tmp", "http://server:5000") == "http://you:pw@server:5000"
    )
    assert tracking_uri("http://server:5000", "/tmp", "http://server:5000") == "http://me:pw@server:5000"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:pw@server:5000/x?y=1", "http://server:5000/x?y=1"),
        ("https://token@server", "https://server"),
        ("http://server/a@b", "http://server/a@b"),
        ("postgresql://me:pw@host/db", "postgresql://me@host/db"),
        ("mysql+pymysql://me:p%40w@host/db", "mysql+pymysql://me@host/db"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
        ("http://server?token=correct-horse", "http://server?token=***"),
        ("databricks", "databricks"),
    ],
)
def test_credentials_are_not_shown(uri, shown) -> None:
    assert without_credentials(uri) == shown
    assert without_credentials(shown) == shown


def test_only_databases_of_one_file_have_a_path() -> None:
    assert str(database_path("sqlite:////a/mlflow.db")) == "/a/mlflow.db"
    assert str(database_path("sqlite:////a/mlflow.db?timeout=5")) == "/a/mlflow.db"
    assert database_path("http://server") is None
    assert database_path("postgresql://host/db") is None
