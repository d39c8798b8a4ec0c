"""The stack's secrets: made once, each in a file of a volume of its own, so that a container sees only what it needs.

| file | who reads it |
|---|---|
| postgres/password | Postgres and MLflow |
| jobs/keys | the training service: its API keys |
| metrics/keys | inference, the training service and Prometheus: opens /metrics alone |
| grafana/password | Grafana: of its user `admin` |
| edge/tls.key, tls.crt | nginx; self-signed for localhost until they are replaced by one's own |
| edge/users, password | nginx: basic authentication before MLflow and the training service, of the user `stride` |
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from contracts.errors import StrideError

_DAYS: Final = "3650"


def make(root: Path) -> list[str]:
    """Make what is missing below `root`; the names of what was made.

    Raises:
        StrideError: a file cannot be written, or openssl failed.
    """
    made = []
    try:
        for name, content in _MAKERS.items():
            if (root / name).parent.is_dir() and not (root / name).exists():
                _write(root / name, content(root))
                made.append(name)
    except OSError as error:
        raise StrideError(f"secrets: {error.filename} cannot be written ({error.strerror}); see its owner.") from error
    return made


def _password(_root: Path) -> bytes:
    return secrets.token_urlsafe(32).encode()


def _users(root: Path) -> bytes:
    """A line for nginx: its C library reads the SHA-512 form of crypt."""
    hashed = _openssl("passwd", "-6", "-stdin", given=(root / "edge/password").read_bytes())
    return b"stride:" + hashed


def _certificate(root: Path) -> bytes:
    names = "subjectAltName=DNS:localhost,DNS:*.localhost,IP:127.0.0.1"
    key = str(root / "edge/tls.key")
    return _openssl("req", "-x509", "-key", key, "-days", _DAYS, "-subj", "/CN=localhost", "-addext", names)


def _key(_root: Path) -> bytes:
    return _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


# In the order in which they need each other.
_MAKERS: Final[dict[str, Callable[[Path], bytes]]] = {
    "postgres/password": _password,
    "jobs/keys": _password,
    "metrics/keys": _password,
    "grafana/password": _password,
    "edge/password": _password,
    "edge/users": _users,
    "edge/tls.key": _key,
    "edge/tls.crt": _certificate,
}


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=False)  # noqa: S603, S607
    if done.returncode:
        reason = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
        raise StrideError(f"secrets: openssl {arguments[0]} failed ({reason}); is it installed?")
    return done.stdout


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all. Other images' accounts may read it: a volume is mounted only where it is needed."""
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
