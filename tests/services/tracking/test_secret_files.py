from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from contracts import api_keys
from contracts.errors import StrideError
from services.tracking import secret_files

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("postgres", "jobs", "metrics", "grafana", "edge"):
        (tmp_path / name).mkdir()
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_each_secret_is_made_once_and_differs(root: Path) -> None:
    made = secret_files.make(root)
    first = contents(root)

    assert set(made) == set(first)
    assert len(set(first.values())) == len(first)
    assert secret_files.make(root) == []
    assert contents(root) == first
    assert all(stat.S_IMODE((root / name).stat().st_mode) == 0o444 for name in first)


def test_one_that_is_lost_is_made_again_and_the_others_stay(root: Path) -> None:
    secret_files.make(root)
    first = contents(root)
    (root / "jobs/keys").unlink()

    assert secret_files.make(root) == ["jobs/keys"]
    assert {name for name, content in contents(root).items() if content != first[name]} == {"jobs/keys"}


def test_only_what_has_a_directory_is_made(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()

    assert secret_files.make(tmp_path) == ["postgres/password"]


def test_the_keys_are_such_as_the_services_take(root: Path) -> None:
    secret_files.make(root)

    for name in ("jobs/keys", "metrics/keys"):
        (digest,) = api_keys.read(root / name, "STRIDE_JOBS_KEYS_FILE")
        assert digest == sha256((root / name).read_bytes()).digest()


def test_the_certificate_is_for_localhost_and_belongs_to_its_key(root: Path) -> None:
    secret_files.make(root)

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(root / "edge/tls.crt", root / "edge/tls.key")
    shown = subprocess.run(
        ["openssl", "x509", "-in", root / "edge/tls.crt", "-noout", "-ext", "subjectAltName"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "DNS:localhost, DNS:*.localhost, IP Address:127.0.0.1" in shown


def test_the_user_of_the_edge_has_the_password_beside_it(root: Path) -> None:
    secret_files.make(root)

    user, _, hashed = (root / "edge/users").read_text().strip().partition(":")
    _, algorithm, salt, _ = hashed.split("$")
    again = subprocess.run(
        ["openssl", "passwd", f"-{algorithm}", "-salt", salt, "-stdin"],
        input=(root / "edge/password").read_text(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert (user, again.strip()) == ("stride", hashed)


def test_a_place_that_cannot_be_written_is_named(root: Path) -> None:
    (root / "postgres").rmdir()
    (root / "postgres").symlink_to("/proc/sys")  # a directory in which nobody makes files

    with pytest.raises(StrideError, match="cannot be written"):
        secret_files.make(root)
