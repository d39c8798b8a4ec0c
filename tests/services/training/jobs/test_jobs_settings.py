"""services.training.jobs.settings: what the environment may say, and what is not safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import RecipeError
from services.training.jobs.settings import read


def test_an_empty_environment_gives_the_defaults(home: Path) -> None:
    settings = read({})
    assert (settings.home, settings.jobs, settings.ray_address, settings.mlflow_ui) == (home, home / "jobs", None, None)
    assert (settings.queued, settings.losses, settings.grace_s, settings.at_once) == (1000, 3, 20.0, None)
    assert (settings.keep, settings.keep_days) == (1000, 90.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_on_loopback_nobody_needs_a_key(host: str) -> None:
    assert read({}, host=host).loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "training"])  # noqa: S104
def test_elsewhere_keys_are_required_unless_it_is_said_that_they_are_not(host: str, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=f"would listen on {host} and ask nobody for a key; set STRIDE_JOBS_KEYS_FILE"
    ):
        read({}, host=host)
    assert read({"STRIDE_JOBS_OPEN": "1"}, host=host).open
    keys = tmp_path / "keys"
    assert read({"STRIDE_JOBS_KEYS_FILE": str(keys)}, host=host).keys_file == keys


def test_keys_for_the_metrics_alone_are_refused_as_they_would_guard_nothing(tmp_path: Path) -> None:
    metrics = {"STRIDE_METRICS_KEYS_FILE": str(tmp_path / "metrics")}
    with pytest.raises(RecipeError, match="STRIDE_JOBS_KEYS_FILE is not"):
        read(metrics)
    both = read({**metrics, "STRIDE_JOBS_KEYS_FILE": str(tmp_path / "keys")})
    assert both.metrics_keys_file == tmp_path / "metrics"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIDE_JOBS_AT_ONCE", "0"),
        ("STRIDE_JOBS_AT_ONCE", "two"),
        ("STRIDE_JOBS_GPUS", "-1"),
        ("STRIDE_JOBS_GPUS", "1.5"),
        ("STRIDE_JOBS_GPUS", "0.001"),
        ("STRIDE_JOBS_KEEP", "0"),
        ("STRIDE_JOBS_KEEP_DAYS", "0.5"),
        ("STRIDE_JOBS_CPUS", "nan"),
        ("STRIDE_JOBS_GRACE_SECONDS", "0"),
        ("STRIDE_JOBS_QUEUED", "1e3"),
        ("STRIDE_JOBS_OPEN", "yes"),
        ("RAY_ADDRESS", "auto"),
        ("RAY_ADDRESS", "head:6379"),
    ],
)
def test_a_wrong_value_is_refused_with_its_variable(name: str, value: str) -> None:
    with pytest.raises(RecipeError, match=f"^{name} is "):
        read({name: value})


def test_links_lead_to_the_tracking_server_or_to_where_a_browser_finds_it() -> None:
    assert read({"MLFLOW_TRACKING_URI": "http://mlflow:5000"}).mlflow_ui == "http://mlflow:5000"
    both = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "STRIDE_MLFLOW_UI": "http://127.0.0.1:5000"}
    assert read(both).mlflow_ui == "http://127.0.0.1:5000"
    assert read({"MLFLOW_TRACKING_URI": "http://user:secret@mlflow:5000"}).mlflow_ui is None
