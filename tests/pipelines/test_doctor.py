"""What `stride doctor` finds, and what it says where something is wrong."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipelines import doctor
from pipelines.doctor import Check


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> list[Check]:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        port, free_port = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        return doctor.examine(port=port, mlflow_port=free_port)


def named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_complete_installation_has_no_failed_check(checks: list[Check]) -> None:
    assert [check for check in checks if check.status == "fail"] == []
    assert doctor.summary(checks)["ok"] is True


def test_everything_is_looked_at(checks: list[Check]) -> None:
    wanted = {"python", "packages", "torch", "onnxruntime", "cpu", "home", "tracking", "journal", "mlflow"}
    assert {check.name for check in checks} == wanted | {"inference", "data"}


def test_a_taken_port_is_a_warning_with_the_way_out(checks: list[Check]) -> None:
    found = named(checks, "inference")
    assert found.status == "warn"
    assert "--port" in found.remedy


def test_a_free_port_is_fine(checks: list[Check]) -> None:
    assert named(checks, "mlflow").status == "ok"


def test_every_check_that_is_not_ok_has_a_remedy(checks: list[Check]) -> None:
    assert [check for check in checks if check.status != "ok" and not check.remedy] == []


def test_a_tracking_server_that_is_away_fails(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    checks = doctor.examine(port=free_port, mlflow_port=free_port)
    assert named(checks, "tracking").status == "fail"
    assert named(checks, "packages").detail == "no-such-package not installed"
    assert doctor.summary(checks)["ok"] is False


def test_a_device_that_is_asked_for_and_not_there_is_found(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "gpu")
    found = named(doctor.examine(port=free_port, mlflow_port=free_port), "torch")
    assert found.status == "fail"
    assert found.detail == "STRIDE_DEVICE is 'gpu'"
    assert found.remedy == "set it to auto, cpu or cuda"


def test_a_home_that_cannot_be_made_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_port: int) -> None:
    monkeypatch.setattr("os.access", lambda _path, _mode: False)  # the tests may run as root, who may write anywhere
    found = named(doctor.examine(port=free_port, mlflow_port=free_port), "home")
    assert found.status == "fail"
    assert "STRIDE_HOME" in found.remedy


def test_data_sets_are_found_where_stride_data_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free_port: int
) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    monkeypatch.setenv("STRIDE_DATA", str(tmp_path))
    found = named(doctor.examine(port=free_port, mlflow_port=free_port), "data")
    assert found.detail.startswith("digits (embedded), mnist in")
    assert "fashion" in found.detail
