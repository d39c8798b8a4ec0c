"""infra/up.sh with a docker that only writes down what it is asked; tests/compose brings the stack up for real."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
case "$*" in
    info*--format*) echo '{"runc":{}%s}' ;;
    *" up "*) echo "$*" >> "$ASKED"; exit %d ;;
esac
"""
Up = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def up(tmp_path: Path) -> Up:
    """Runs the script; returns what it printed, and as `stdout` the compose files and options that it asked for."""

    def run(
        *, runtime: bool = False, gpus: int | None = None, fails: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "docker").write_text(DOCKER % (',"nvidia":{}' if runtime else "", 1 if fails else 0))
        if gpus is not None:
            (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n" + "echo 'GPU 0: one'\n" * gpus)
        for tool in tmp_path.iterdir():
            tool.chmod(0o755)
        asked = tmp_path / "asked"
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ASKED": str(asked), "HOME": str(tmp_path), **settings}
        done = subprocess.run(
            [ROOT / "infra/up.sh"], env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        done.stdout = asked.read_text() if asked.exists() else ""
        return done

    return run


def test_without_the_runtime_the_cpu_is_taken_and_the_reason_said(up: Up) -> None:
    done = up()

    assert "on the CPU: Docker has no NVIDIA runtime" in done.stderr
    assert done.stdout == "compose -f docker-compose.yml up --detach --build --wait\n"


def test_with_the_runtime_the_gpu_is_taken(up: Up) -> None:
    done = up(runtime=True, gpus=1)

    assert "on the GPU: Docker has NVIDIA's runtime" in done.stderr
    assert "-f docker-compose.yml -f infra/compose.gpu.yml up" in done.stdout


def test_a_runtime_without_a_gpu_is_no_gpu(up: Up) -> None:
    done = up(runtime=True, gpus=0)

    assert "on the CPU: Docker has NVIDIA's runtime, but nvidia-smi lists no GPU" in done.stderr
    assert "compose.gpu.yml" not in done.stdout


def test_a_gpu_that_is_there_can_be_left_alone(up: Up) -> None:
    assert "on the CPU: STRIDE_GPU is 0" in up(runtime=True, gpus=1, STRIDE_GPU="0").stderr


def test_a_gpu_that_is_insisted_on_and_missing_stops_it(up: Up) -> None:
    done = up(STRIDE_GPU="1")

    assert done.returncode == 1
    assert "STRIDE_GPU is 1, but Docker has no NVIDIA runtime" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"STRIDE_GPU": "yes"}, "STRIDE_GPU is 'yes'; set it to auto, 0 or 1."),
        ({"STRIDE_IMAGES": "photos"}, "STRIDE_IMAGES is 'photos'; write a directory as ./photos"),
        ({"STRIDE_IMAGES": "/nowhere/at/all"}, "which is no directory"),
        ({"STRIDE_API_KEYS": "keys"}, "STRIDE_API_KEYS is 'keys'; write a directory as ./keys"),
        ({"STRIDE_API_KEYS": "/etc"}, "STRIDE_API_KEYS is '/etc', which holds no file 'keys'"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused(up: Up, settings: dict[str, str], message: str) -> None:
    done = up(**settings)

    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_stack_that_does_not_become_ready_is_a_failure(up: Up) -> None:
    done = up(fails=True)

    assert done.returncode == 1
    assert "the stack is not ready; 'make logs' says why." in done.stderr
