"""The environments that the other servers live in: made on demand from hash-pinned locks, under $STRIDE_HOME/bench."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from contracts import places
from contracts.errors import StrideError

LOCKS: Final = {
    "peers": Path(__file__).with_name("requirements.txt"),
    "mlserver": Path(__file__).with_name("requirements-mlserver.txt"),
    "training": Path(__file__).parents[1] / "training" / "requirements.txt",
}
_DONE: Final = ".complete"
_VERSIONS: Final = """
import json, sys
from importlib import metadata
print(json.dumps({name: metadata.version(name) for name in sys.argv[1:]}))
"""


class NoEnvironment(StrideError):
    """An environment cannot be made; the servers in it are left out, with this reason."""

    code = "no_environment"


def python(name: str, *, say: Callable[[str], None]) -> Path:
    """The interpreter of an environment, which is made where it does not exist for this lock yet.

    Raises:
        NoEnvironment: a package cannot be had.
    """
    lock = LOCKS[name]
    root = places.home() / "bench" / "environments"
    # By content: a changed lock gets an environment of its own, so that what was measured stays explained.
    directory = root / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    interpreter = directory / "bin" / "python"
    if (directory / _DONE).exists():
        return interpreter
    for old in root.glob(f"{name}-*"):
        shutil.rmtree(old)
    say(f"installing {lock.name} into {directory} (once)")
    _make(directory, interpreter, lock)
    (directory / _DONE).touch()
    return interpreter


def versions(interpreter: Path, packages: Sequence[str]) -> dict[str, str]:
    """The installed versions of these packages."""
    done = _run([str(interpreter), "-c", _VERSIONS, *packages])
    if done.returncode:
        raise NoEnvironment(f"{interpreter} does not say what is installed: {_last(done)}.")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _make(directory: Path, interpreter: Path, lock: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = _run([sys.executable, "-m", "venv", str(directory)])
    if made.returncode:
        raise NoEnvironment(f"{directory} cannot be made: {_last(made)}; install Python's venv.")
    # As infra/setup.sh does: uv because it is fast, and pip, whose configuration it does not read, where uv fails.
    uv = Path(sys.executable).with_name("uv")
    if uv.exists():
        fast = ["pip", "install", "--quiet", "--compile-bytecode", "--python", str(interpreter), "--require-hashes"]
        if _run([str(uv), *fast, "--requirement", str(lock)]).returncode == 0:
            return
    slow = ["-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(lock)]
    done = _run([str(interpreter), *slow])
    if done.returncode:
        raise NoEnvironment(f"{lock.name} cannot be installed: {_last(done)}; is a package index within reach?")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command lines
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return (lines or [f"exit {done.returncode}"])[-1].strip().rstrip(".")[:300]
