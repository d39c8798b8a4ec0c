"""services.inference.settings: the environment, checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import RecipeError
from services.inference import settings


def test_an_empty_environment_gives_the_defaults() -> None:
    read = settings.read({})
    assert (read.device, read.model, read.poll_s, read.workers, read.names) == ("auto", None, 2.0, 1, ())


def test_every_variable_reaches_its_setting(tmp_path: Path) -> None:
    env = {"STRIDE_HOME": str(tmp_path), "STRIDE_MODEL": "a", "STRIDE_MODELS": "b, a", "STRIDE_REQUIRE_GPU": "1"}
    read = settings.read({**env, "STRIDE_QUEUE_ROWS": "99", "MLFLOW_TRACKING_URI": "http://x"})
    assert (read.home, read.names, read.require_gpu) == (tmp_path, ("a", "b"), True)
    assert (read.queue_rows, read.tracking_uri) == (99, "http://x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STRIDE_DEVICE", "gpu"),
        ("STRIDE_REQUIRE_GPU", "perhaps"),
        ("STRIDE_POLL_SECONDS", "nan"),
        ("STRIDE_POLL_SECONDS", "-1"),
        ("STRIDE_QUEUE_ROWS", "many"),
        ("STRIDE_MAX_BATCH", "0"),
        ("STRIDE_WORKERS", "1.5"),
        ("STRIDE_DEADLINE_SECONDS", "60"),
        ("STRIDE_MAX_PARTS", "2000"),
        ("STRIDE_MAX_INFLIGHT_BYTES", "1000"),
        ("STRIDE_PREDICTION_LOG_SAMPLE", "1.5"),
        ("STRIDE_PREDICTION_LOG_SAMPLE", "nan"),
        ("STRIDE_PREDICTION_LOG_PIXELS", "some"),
        ("STRIDE_PREDICTION_LOG_BYTES", "1000"),
        ("STRIDE_DRIFT_WINDOW", "-1"),
    ],
)
def test_a_bad_value_is_refused_in_one_sentence_that_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(RecipeError) as refused:
        settings.read({name: value})
    assert name in refused.value.message
    assert value in refused.value.message
    assert "\n" not in refused.value.message


def test_a_gpu_cannot_be_required_of_the_cpu() -> None:
    with pytest.raises(RecipeError, match="STRIDE_DEVICE"):
        settings.read({"STRIDE_REQUIRE_GPU": "1", "STRIDE_DEVICE": "cpu"})


def test_keys_for_the_metrics_alone_are_refused_as_they_would_guard_nothing(tmp_path: Path) -> None:
    keys = {"STRIDE_METRICS_KEYS_FILE": str(tmp_path / "metrics")}
    with pytest.raises(RecipeError, match="STRIDE_API_KEYS_FILE is not"):
        settings.read(keys)
    both = settings.read({**keys, "STRIDE_API_KEYS_FILE": str(tmp_path / "keys")})
    assert both.metrics_keys_file == tmp_path / "metrics"
