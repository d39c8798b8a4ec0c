from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import RecipeError
from services.tracking.__main__ import main, server_of, with_password

ROOT = Path(__file__).resolve().parents[3]


def test_the_server_of_a_container_is_proxied_and_known_by_its_service_name(home: Path) -> None:
    server = server_of({})

    assert server.backend == "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
    assert server.proxied == str(home / "artifacts")
    assert "tracking:5000" in server.command()[server.command().index("--allowed-hosts") + 1].split(",")
    assert server.url == "http://127.0.0.1:5000"


def test_names_are_added_to_its_own_and_workers_taken_from_the_environment() -> None:
    server = server_of({"STRIDE_TRACKING_HOSTS": "mlflow.example:443, tracking:5000,", "STRIDE_TRACKING_WORKERS": "3"})

    assert server.names == ("tracking:5000", "mlflow.example:443")
    assert server.workers == 3


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("STRIDE_DATABASE", "postgresql://mlflow:secret@postgres/mlflow", "holds a password"),
        ("STRIDE_TRACKING_WORKERS", "many", "'many'; set it to a whole number from 1 to 64"),
        ("STRIDE_TRACKING_WORKERS", "0", "'0'; set it to a whole number"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        server_of({name: value})
    assert "secret" not in caught.value.message


def test_the_password_is_handed_over_in_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a:b\\c\n")
    given = {"STRIDE_DATABASE_PASSWORD_FILE": str(tmp_path / "password"), "LANG": "C"}

    environment = with_password(given, directory=tmp_path)
    again = with_password(given, directory=tmp_path)

    path = Path(environment["PGPASSFILE"])
    assert path.read_text() == "*:*:*:*:a\\:b\\\\c\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert again == environment
    assert not [value for value in environment.values() if "a:b" in value]


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_password_that_is_not_there_is_said_with_its_path(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_text(content)

    with pytest.raises(RecipeError, match=str(path)):
        with_password({"STRIDE_DATABASE_PASSWORD_FILE": str(path)}, directory=tmp_path)


@pytest.mark.parametrize("arguments", [[], ["run"], ["serve", "now"]])
def test_other_arguments_are_refused_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments, {}) == 2
    assert "usage:" in capsys.readouterr().err


def test_without_a_server_it_is_not_healthy() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.tracking", "healthy"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "STRIDE_DATABASE": "postgresql://mlflow@nowhere.invalid/mlflow"},
    )  # fmt: skip

    if done.returncode == 0:
        pytest.skip("another MLflow answers on port 5000 of this machine")
    assert done.returncode == 1
    assert done.stderr.startswith("not healthy: ")
