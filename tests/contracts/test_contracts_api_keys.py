"""contracts.api_keys: what a request's headers may hold, and what follows a change of the file."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from contracts.api_keys import Headers, KeyFile, read
from contracts.errors import RecipeError

KEY, OTHER = "a-key-of-the-web-shop", "a-key-of-the-nightly-job"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}  # the shop\n\nsha256:{sha256(OTHER.encode()).hexdigest()}\n")
    return path


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ([(b"authorization", f"Bearer {KEY}".encode())], True),
        ([(b"authorization", f"bearer   {OTHER} ".encode())], True),
        ([(b"x-api-key", KEY.encode())], True),
        ([(b"x-api-key", b"unknown-unknown-unknown")], False),
        ([(b"x-api-key", sha256(OTHER.encode()).hexdigest().encode())], False),
        ([(b"authorization", b"Basic abc")], None),
        ([], None),
        ([(b"x-api-key", b"x")] * 2 + [(b"x-api-key", KEY.encode())], False),  # two are looked at, not any number
    ],
)
def test_a_key_is_known_not_known_or_not_sent(file: Path, headers: Headers, known: bool | None) -> None:
    keys = KeyFile(file, variable="KEYS", changed=lambda *_: None)
    assert keys.knows(headers) is known


def test_a_change_is_followed_and_told_and_a_broken_one_leaves_the_keys(file: Path) -> None:
    told: list[tuple[int, RecipeError | None]] = []
    keys = KeyFile(file, variable="KEYS", changed=lambda *change: told.append(change), look_s=0)
    headers = [(b"x-api-key", KEY.encode())]
    file.write_text("short")
    assert keys.knows(headers)
    file.write_text(f"{OTHER}\n")
    assert not keys.knows(headers)
    (broken, error), (count, none) = told
    assert (broken, count, none) == (2, 1, None)
    assert error is not None
    assert "KEYS: line 1" in error.message


def test_messages_name_the_variable_and_the_line_and_never_what_stands_there(file: Path) -> None:
    file.write_text(f"{KEY}\nmy secret\n")
    with pytest.raises(RecipeError, match=r"^KEYS: line 2 of '.*' is no key; write one key") as refused:
        read(file, "KEYS")
    assert "secret" not in refused.value.message
