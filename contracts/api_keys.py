"""Files of API keys, as both servers read them: who may ask.

A line is one key, or `sha256:` and the sha256 of one in hexadecimal digits, so that the file need not hold the keys
themselves; what follows a `#` is a comment. A key has 16 to 256 characters of A-Z a-z 0-9 - . _ ~ + / =.

A client sends it as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Keys are kept and compared as digests, and
neither they nor what a client sent is ever told.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from contracts.errors import RecipeError

NOT_SENT: Final = "no API key was sent; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
NOT_KNOWN: Final = "the API key is not known here; ask who runs the service for one."

_KEY: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,256}={0,2}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_BEARER: Final = b"bearer "

Headers = Iterable[tuple[bytes, bytes]]


class KeyFile:
    """The keys of one file, which is read again once it changes. Not to be shared between threads.

    Args:
        path: Of the file.
        variable: The environment's variable that names it, for messages.
        changed: Told of every change: how many keys are in force now, and why the file could not be read, if so; the
            former keys then stay in force.
        look_s: Between two looks at the file, and so the longest that a withdrawn key still works.

    Raises (from the constructor):
        RecipeError: the file cannot be read, holds a line that is no key, or holds no key at all.
    """

    def __init__(
        self, path: Path, *, variable: str, changed: Callable[[int, RecipeError | None], None], look_s: float = 1.0
    ) -> None:
        self._path, self._variable, self._changed, self._look_s = path, variable, changed, look_s
        self._seen = _state(path)
        self._digests = read(path, variable)
        self._looked = time.monotonic()

    def knows(self, headers: Headers) -> bool | None:
        """Whether a key of the file is among a request's headers; None where they hold no key at all."""
        self._follow()
        given = _given(headers)
        if not given:
            return None
        known = False
        for key in given:
            digest = sha256(key).digest()
            for one in self._digests:  # all of them: the time taken must not tell where the search ended
                known |= hmac.compare_digest(digest, one)
        return known

    def _follow(self) -> None:
        now = time.monotonic()
        if now - self._looked < self._look_s:
            return
        self._looked = now
        seen = _state(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._digests = read(self._path, self._variable)
        except RecipeError as error:
            self._changed(len(self._digests), error)
        else:
            self._changed(len(self._digests), None)


def read(path: Path, variable: str) -> tuple[bytes, ...]:
    """The sha256 digests of a file's keys; `variable` names the file in messages.

    Raises:
        RecipeError: one sentence that names the line, and never what stands in it.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(
            f"{variable} is {str(path)!r}, which cannot be read ({reason}); give a file of keys, or unset it."
        ) from error
    digests = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if (hashed := _DIGEST.fullmatch(text)) is not None:
            digests.append(bytes.fromhex(hashed[1]))
        elif not text.startswith("sha256:") and _KEY.fullmatch(text):
            digests.append(sha256(text.encode()).digest())
        else:
            raise RecipeError(
                f"{variable}: line {number} of {str(path)!r} is no key; write one key of 16 to 256 letters, "
                "digits and -._~+/=, or sha256: and 64 hexadecimal digits."
            )
    if not digests:
        raise RecipeError(f"{variable}: {str(path)!r} holds no key; write one a line, or unset it.")
    return tuple(dict.fromkeys(digests))


def _given(headers: Headers) -> list[bytes]:
    given = []
    for name, value in headers:
        if name == b"x-api-key":
            given.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == _BEARER:
            given.append(value[7:].strip())
    # More than the two that are documented would be guessing at our cost.
    return given[:2]


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None when it is not there."""
    try:
        found = path.stat()  # of what a link leads to: a mounted secret is changed by changing a link
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
