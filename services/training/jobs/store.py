"""Jobs in one SQLite file, $STRIDE_HOME/jobs/jobs.db: what they are survives a kill of the service, of Ray and of both.

One process at a time has a store open; a lock beside it says so. Its methods may be called from any thread.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from contracts.errors import Overloaded
from services.training.jobs.errors import KeyReused, StoreError
from services.training.jobs.job import ENDED, STATES, Job, Kind, Share, State, Work

_VERSION: Final = 1
_TABLE: Final = """
CREATE TABLE jobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    idempotency_key TEXT UNIQUE,
    digest TEXT NOT NULL,
    kind TEXT NOT NULL,
    work TEXT NOT NULL,
    share TEXT NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    attempt INTEGER NOT NULL DEFAULT 0,
    submission TEXT,
    losses INTEGER NOT NULL DEFAULT 0,
    cancelling INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    result TEXT,
    runs TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX jobs_by_state ON jobs (state, sequence);
"""
_COLUMNS: Final = (
    "id, sequence, kind, work, share, request, state, created, started, ended, attempt, submission, losses, "
    "cancelling, error, result, runs"
)
_ENDED: Final = ", ".join(f"'{state}'" for state in sorted(ENDED))


class Store:
    """The jobs of one STRIDE_HOME.

    Every method raises StoreError where the file cannot be read or written, with the reason.

    Raises (from the constructor):
        StoreError: the directory cannot be used, another service has it open, or a later version wrote it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._thread_lock = threading.Lock()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._alone = (directory / "lock").open("w")
        except OSError as error:
            advice = "set STRIDE_HOME to a directory that can be written"
            raise StoreError(f"jobs directory '{directory}': {error.strerror}; {advice}.") from error
        try:
            fcntl.flock(self._alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._alone.close()
            advice = "stop that one, or set another STRIDE_HOME"
            raise StoreError(f"jobs directory '{directory}': a training service has it open; {advice}.") from error
        try:
            self._open(directory / "jobs.db")
        except BaseException:
            self._alone.close()
            raise

    def _open(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous = FULL")  # a job that was answered with 201 is on the disk
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(f"BEGIN; {_TABLE} PRAGMA user_version = {_VERSION}; COMMIT;")
                path.chmod(0o600)
        except sqlite3.Error as error:
            advice = "restore a backup, or move it away to start with none"
            raise StoreError(f"jobs data base '{path}': it cannot be opened ({error}); {advice}.") from error
        if version > _VERSION:
            advice = "take the newer Stride, or move it away to start with none"
            raise StoreError(f"jobs data base '{path}': its version is {version}, this is for {_VERSION}; {advice}.")

    def close(self) -> None:
        with self._thread_lock:
            self._connection.close()
            self._alone.close()

    def check(self) -> None:
        """Raise StoreError unless a job could be written now."""
        with self._cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("UPDATE jobs SET attempt = attempt WHERE sequence = -1")
            cursor.execute("COMMIT")

    def create(
        self,
        *,
        kind: Kind,
        work: Work,
        share: Share,
        request: dict[str, Any],
        digest: str,
        key: str | None,
        most_waiting: int,
    ) -> tuple[Job, bool]:
        """Queue a job; with a key that came before, the job of then.

        Returns:
            The job, and whether it is new.

        Raises:
            KeyReused: the key came with a request of another digest.
            Overloaded: as many jobs wait already.
        """
        job_id = secrets.token_hex(8)
        with self._cursor() as cursor:  # one process, one lock: nothing comes between the question and the answer
            former = cursor.execute("SELECT id, digest FROM jobs WHERE idempotency_key = ?", (key,)).fetchone()
            if former is not None and former[1] != digest:
                raise KeyReused(
                    f"Idempotency-Key {key!r} came with another request before, which is job {former[0]}; "
                    "send a new key for a new job."
                )
            if former is not None:
                return _job(_select(cursor, "id = ?", former[0])[0]), False
            (waiting,) = cursor.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
            if waiting >= most_waiting:
                raise Overloaded(
                    f"the queue is full: {waiting:,} jobs wait; come again when some are done, or cancel some.",
                    retry_after_s=60,
                )
            cursor.execute(
                "INSERT INTO jobs (id, idempotency_key, digest, kind, work, share, request, state, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, 'queued', ?)",
                (job_id, key, digest, kind, _dump(work), _dump(share), json.dumps(request), time.time()),
            )
            return _job(_select(cursor, "id = ?", job_id)[0]), True

    def get(self, job_id: str) -> Job | None:
        with self._cursor() as cursor:
            rows = _select(cursor, "id = ?", job_id)
        return _job(rows[0]) if rows else None

    def page(self, *, state: State | None, before: int | None, limit: int) -> list[Job]:
        """Jobs, newest first; `before` is the sequence of the last one that is known already."""
        where, values = ["sequence < ?"], [before if before is not None else 2**62]
        if state is not None:
            where.append("state = ?")
            values.append(state)  # type: ignore[arg-type] # SQLite takes both
        with self._cursor() as cursor:
            rows = _select(cursor, f"{' AND '.join(where)} ORDER BY sequence DESC LIMIT {int(limit)}", *values)
        return [_job(row) for row in rows]

    def waiting(self, limit: int) -> list[Job]:
        """Jobs that are not with Ray, in the order in which they are to begin."""
        with self._cursor() as cursor:
            rows = _select(cursor, f"state = 'queued' AND submission IS NULL ORDER BY sequence LIMIT {int(limit)}")
        return [_job(row) for row in rows]

    def submitted(self) -> list[Job]:
        """Jobs that are with Ray, as far as is known."""
        with self._cursor() as cursor:
            rows = _select(cursor, "submission IS NOT NULL ORDER BY sequence")
        return [_job(row) for row in rows]

    def expired(self, *, most: int, before: float) -> list[str]:
        """The ids of jobs that have ended, beyond the newest `most` of them or before a time, the oldest first."""
        with self._cursor() as cursor:
            rows = cursor.execute(
                f"SELECT id FROM jobs WHERE state IN ({_ENDED}) AND (ended < ? OR sequence NOT IN "  # noqa: S608 - our own names
                f"(SELECT sequence FROM jobs WHERE state IN ({_ENDED}) ORDER BY ended DESC, sequence DESC LIMIT ?)) "
                "ORDER BY ended, sequence",
                (before, most),
            ).fetchall()
        return [job_id for (job_id,) in rows]

    def forget(self, job_ids: Sequence[str]) -> None:
        """Remove jobs; those that have not ended stay."""
        with self._cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")  # one write to the disk for all of them
            cursor.executemany(
                f"DELETE FROM jobs WHERE id = ? AND state IN ({_ENDED})",  # noqa: S608 - our own names
                [(job_id,) for job_id in job_ids],
            )
            cursor.execute("COMMIT")

    def counts(self) -> dict[State, int]:
        with self._cursor() as cursor:
            found = dict(cursor.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in STATES}

    def update(self, job: Job, **changes: Any) -> Job | None:
        """Change columns of a job that has not ended; None where it has, and then nothing is changed."""
        columns = ", ".join(f"{name} = ?" for name in changes)
        values = [json.dumps(value) if name in ("result", "runs") else value for name, value in changes.items()]
        with self._cursor() as cursor:
            cursor.execute(
                f"UPDATE jobs SET {columns} WHERE id = ? AND state NOT IN ({_ENDED})",  # noqa: S608 - our own names
                (*values, job.id),
            )
            if not cursor.rowcount:
                return None
            return _job(_select(cursor, "id = ?", job.id)[0])

    def cancel(self, job_id: str) -> bool:
        """End a job that waits, mark one that is with Ray to be stopped; whether it ended here and now."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE jobs SET state = 'cancelled', ended = ? "
                "WHERE id = ? AND state = 'queued' AND submission IS NULL",
                (time.time(), job_id),
            )
            if cursor.rowcount:
                return True
            cursor.execute("UPDATE jobs SET cancelling = 1 WHERE id = ? AND submission IS NOT NULL", (job_id,))
            return False

    def end(self, job: Job, state: State, **changes: Any) -> Job | None:
        """The job has come to its end; None where it had before."""
        return self.update(job, state=state, ended=time.time(), submission=None, cancelling=False, **changes)

    @contextmanager
    def _cursor(self) -> Iterator[sqlite3.Cursor]:
        with self._thread_lock:
            try:
                yield self._connection.cursor()
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.rollback()
                path = self.directory / "jobs.db"
                advice = "see the disk's free space and the access rights"
                raise StoreError(f"jobs data base '{path}': {error}; {advice}.") from error


def _select(cursor: sqlite3.Cursor, where: str, *values: Any) -> list[Sequence[Any]]:
    return cursor.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where}", values).fetchall()  # noqa: S608 - our own names


def _dump(part: Work | Share) -> str:
    return json.dumps({name: getattr(part, name) for name in part.__slots__})


def _job(row: Sequence[Any]) -> Job:
    found = dict(zip(_COLUMNS.split(", "), row, strict=True))
    work = json.loads(found.pop("work"))
    return Job(
        work=Work(**{**work, "command": tuple(work["command"])}),
        share=Share(**json.loads(found.pop("share"))),
        request=json.loads(found.pop("request")),
        result=json.loads(found.pop("result") or "null"),
        runs=tuple(json.loads(found.pop("runs"))),
        cancelling=bool(found.pop("cancelling")),
        **found,
    )
