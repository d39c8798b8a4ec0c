"""pipelines.training_service as a command: what it refuses, and how it ends. No Ray is started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from pipelines.training_service import main


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "sentence"),
    [
        (["--host", "0.0.0.0"], {}, 2, "error: the training service would listen on 0.0.0.0 and ask nobody"),  # noqa: S104
        ([], {"STRIDE_JOBS_KEYS_FILE": "/nowhere"}, 2, "error: STRIDE_JOBS_KEYS_FILE is '/nowhere', which cannot be"),
        ([], {"RAY_ADDRESS": "auto"}, 2, "error: RAY_ADDRESS is 'auto'; the training service needs"),
        ([], {"STRIDE_JOBS_AT_ONCE": "none"}, 2, "error: STRIDE_JOBS_AT_ONCE is 'none'; set it to"),
        (
            ["--host", "192.0.2.1"],
            {"STRIDE_JOBS_OPEN": "1"},
            1,
            "error: the training service cannot listen on 192.0.2.1",
        ),
    ],
)
def test_a_service_that_cannot_start_says_why_in_one_sentence(
    arguments: list[str],
    variables: dict[str, str],
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith(sentence)
    assert error.count("\n") == 1


@pytest.mark.parametrize("port", ["0", "70000", "http"])
def test_what_is_no_port_is_bad_usage(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--port", port])
    assert ended.value.code == 2
    assert f"'{port}' is no port; give a number from 1 to 65535." in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_leave_the_end_out(home: Path, free_port: int) -> None:
    """Else Ray and its jobs would go on without their service."""
    environment = {**os.environ, "STRIDE_HOME": str(home), "RAY_ADDRESS": "http://127.0.0.1:9", "RAY_AUTH_TOKEN": "t"}
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines.training_service", "--port", str(free_port)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"http://127.0.0.1:{free_port}/livez", trust_env=False).status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.03)  # two of them at once are one
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert '"stopped"' in log.splitlines()[-1]
