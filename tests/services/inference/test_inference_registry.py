"""services.inference.registry: what it says of a registry that does not answer."""

from __future__ import annotations

import pytest

from contracts.errors import RegistryError
from services.inference.registry import Registry, shown


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("http://anna:hidden@127.0.0.1:9/x", "http://127.0.0.1:9/x"),
        ("postgresql+psycopg://anna:hidden@db/mlflow", "postgresql+psycopg://db/mlflow"),
        ("told of http://a:hidden@b and http://hidden@c.", "told of http://b and http://c."),
        ("sqlite:////home/anna@work/mlflow.db", "sqlite:////home/anna@work/mlflow.db"),
        ("http://mlflow:5000", "http://mlflow:5000"),
    ],
)
def test_an_address_is_shown_without_the_name_and_password_in_it(uri: str, wanted: str) -> None:
    assert shown(uri) == wanted


def test_a_registry_that_is_away_is_told_of_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError) as away:
        Registry("http://anna:hidden@127.0.0.1:9").look((), {})
    assert "127.0.0.1:9" in away.value.message
    assert "hidden" not in away.value.message
