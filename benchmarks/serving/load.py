"""The load generator: one thread, one epoll, kept connections, requests that are bytes already. Linux only.

A request costs it some 20 to 40 us, so that one core has room beyond what one core of any server here can answer; how
much it used and how late it was itself stands in every measurement. In a closed loop it looks for answers without
pause: one that sleeps until they come has its own waking in every answer's time, and the server's core falls asleep
for it, too. In an open loop a request's time counts from when it was due, not from when it could be sent: what waits
behind a slow answer is late, and is seen to be.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from benchmarks.serving import wire
from benchmarks.serving.measured import LOST, Answer, Measured
from benchmarks.serving.timer import Timer

_READ: Final = 262_144
_SETTLE_S: Final = 0.3
"""For the server to take the connections that are open before the start: to the kernel they are before that."""
_REFUSALS: Final = 200
"""So many connections refused in a row, and nobody listens any more."""


class Nobody(Exception):
    """Nothing listens on the port."""


class _Connection:
    __slots__ = ("at", "buffer", "due", "index", "left", "ready", "sock", "used")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ready = False  # the handshake is done
        self.used = False  # has carried an answer before
        self.due: float | None = None
        self.index = 0
        self.buffer = b""
        self.left = b""  # of the request, not sent yet
        self.at = 0


class Load:
    """Sends `requests`, one after the other and from the beginning again, to a port of this machine."""

    def __init__(
        self, port: int, requests: Sequence[bytes], *, tag: re.Pattern[bytes] | None = None, keep: bool = False
    ) -> None:
        self._address = (wire.HOST, port)
        self._requests = requests
        self._tag = tag
        self._keep = keep
        self._next = 0
        self._closed_until: float | None = None

    def closed(self, connections: int, seconds: float, *, patience_s: float = 10.0) -> Measured:
        """Each connection asks again as soon as it is answered.

        Raises:
            Nobody: nothing listens.
        """
        with self._running(seconds) as measured:
            self._open_idle(connections)
            self._begin(measured)
            self._closed_until = ends = measured.started + seconds
            for _ in range(connections):
                self._dispatch(measured.started)
            self._busy_s = time.perf_counter() - measured.started
            until = ends + patience_s
            while self._outstanding and (now := time.perf_counter()) < until:
                if self._turn(0):
                    self._busy_s += time.perf_counter() - now
            return measured

    def open(
        self, schedule: Sequence[float], seconds: float, *, connections: int, warm: int = 1, patience_s: float = 2.0
    ) -> Measured:
        """Each request goes out when it is due, on a connection that is idle or, up to `connections`, a new one.

        Args:
            schedule: rising seconds from the start.
            seconds: what the schedule covers.
            warm: connections that are open before it starts.
            patience_s: how long to wait for answers once the schedule is over; what is missing then is lost.

        Raises:
            Nobody: nothing listens.
        """
        with self._running(seconds, limit=connections) as measured:
            self._open_idle(min(warm, connections))
            time.sleep(_SETTLE_S)
            started = self._begin(measured)
            until = started + seconds + patience_s
            at = 0
            while at < len(schedule) or self._outstanding:
                now = time.perf_counter()
                if now >= until:
                    break
                while at < len(schedule) and started + schedule[at] <= now:
                    due = started + schedule[at]
                    if self._dispatch(due):
                        measured.lateness.append(time.perf_counter() - due)
                    at += 1
                # Without a schedule any more, the timer only ends the patience.
                self._timer.set(started + schedule[at] if at < len(schedule) else until)
                self._turn(None)
            return measured

    @contextlib.contextmanager
    def _running(self, seconds: float, limit: int | None = None) -> Iterator[Measured]:
        self._limit = limit
        self._closed_until = None
        self._by_number: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._waiting: deque[float] = deque()
        self._outstanding = 0
        self._refused = 0
        self._measured = measured = Measured(seconds=seconds, started=time.perf_counter())
        self._poll = select.epoll()
        self._timer = Timer()
        self._poll.register(self._timer.number, select.EPOLLIN)
        self._cpu_s = time.process_time()
        self._busy_s = 0.0
        collecting = gc.isenabled()
        gc.disable()  # a collection over ten thousand answers would hold up the next ones
        try:
            yield measured
            self._give_up()
            looking = self._closed_until is not None  # without pause; what finds nothing is no work
            measured.client_cpu_s = self._busy_s if looking else time.process_time() - self._cpu_s
        finally:
            if collecting:
                gc.enable()
            self._poll.close()
            self._timer.close()
            for connection in self._by_number.values():
                connection.sock.close()

    def _begin(self, measured: Measured) -> float:
        """The connections are open; from here on it counts."""
        self._cpu_s = time.process_time()
        measured.started = time.perf_counter()
        return measured.started

    def _give_up(self) -> None:
        now = time.perf_counter()
        for connection in self._by_number.values():
            if connection.due is not None:
                self._record(connection, now, LOST, None)
        while self._waiting:
            self._measured.answers.append(Answer(self._waiting.popleft(), now, LOST, None, -1, None))

    def _turn(self, timeout: float | None) -> bool:
        """Take what has come, or comes in so many seconds; whether that is anything."""
        events = self._poll.poll(timeout)
        for number, event in events:
            if (connection := self._by_number.get(number)) is None:
                self._timer.clear()
            elif not connection.ready or event & select.EPOLLOUT:
                self._writable(connection)
            else:
                self._read(connection)
        return bool(events)

    def _open_idle(self, count: int) -> None:
        for _ in range(count):
            self._connect()
        until = time.perf_counter() + 10
        while not all(connection.ready for connection in self._by_number.values()):
            if (left := until - time.perf_counter()) <= 0:
                raise Nobody(f"{count} connections were not taken in 10 s")
            self._turn(left)
        self._idle = list(self._by_number.values())

    def _dispatch(self, due: float) -> bool:
        """Send a request, or have it wait for a connection; whether one was idle."""
        self._outstanding += 1
        if self._idle:
            self._send(self._idle.pop(), due, self._following())
            return True
        if self._limit is None or len(self._by_number) < self._limit:
            connection = self._connect()
            connection.due, connection.index = due, self._following()
        else:
            self._waiting.append(due)
        return False

    def _following(self) -> int:
        index = self._next
        self._next = (index + 1) % len(self._requests)
        return index

    def _connect(self) -> _Connection:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        status = sock.connect_ex(self._address)
        if status not in (0, errno.EINPROGRESS):
            sock.close()
            raise Nobody(f"port {self._address[1]}: {os.strerror(status)}")
        self._by_number[sock.fileno()] = connection
        self._poll.register(sock, select.EPOLLIN | select.EPOLLOUT)
        return connection

    def _writable(self, connection: _Connection) -> None:
        """The handshake has ended, one way or the other, or more of a large request can be sent."""
        sock = connection.sock
        if not connection.ready:
            if status := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._refused += 1
                if self._refused >= _REFUSALS:
                    raise Nobody(f"port {self._address[1]}: {os.strerror(status)}")
                return self._end(connection)
            self._refused = 0
            connection.ready = True
            self._poll.modify(sock, select.EPOLLIN)
            if connection.due is not None:
                self._send(connection, connection.due, connection.index)
            return None
        return self._push(connection)

    def _send(self, connection: _Connection, due: float, index: int) -> None:
        connection.due, connection.index = due, index
        request = self._requests[index]
        try:
            sent = connection.sock.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._end(connection)
        if sent < len(request):
            connection.left = request[sent:]
            self._poll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)
        return None

    def _push(self, connection: _Connection) -> None:
        try:
            connection.left = connection.left[connection.sock.send(connection.left) :]
        except BlockingIOError:
            return None
        except OSError:
            return self._end(connection)
        if not connection.left:
            self._poll.modify(connection.sock, select.EPOLLIN)
        return None

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(_READ)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            return self._end(connection)
        connection.buffer = data = connection.buffer + data if connection.buffer else data
        found = wire.frame(data)
        if found is None:
            return None
        if connection.due is None:  # nothing was asked: it says that it was idle for too long
            return self._end(connection)
        now = time.perf_counter()
        connection.buffer = data[found.end :]
        connection.used = True
        self._record(connection, now, found.status, data[: found.end])
        if found.close:
            self._forget(connection)
            connection = self._connect() if self._waiting or self._closed_until is not None else connection
        return self._answered(connection, now)

    def _answered(self, connection: _Connection, now: float) -> None:
        """The connection is free: for what waits, or in a closed loop for the next one."""
        alive = connection.sock.fileno() in self._by_number
        if self._closed_until is not None:
            if now >= self._closed_until:
                return
            self._outstanding += 1
            due = now
        elif self._waiting:
            due = self._waiting.popleft()
        else:
            if alive:
                self._idle.append(connection)
            return
        if connection.ready:
            self._send(connection, due, self._following())
        else:
            connection.due, connection.index = due, self._following()

    def _record(self, connection: _Connection, now: float, status: int, data: bytes | None) -> None:
        assert connection.due is not None
        tag = None
        if self._tag is not None and data is not None and (found := self._tag.search(data)):
            tag = found[1]
        kept = data if self._keep else None
        self._measured.answers.append(Answer(connection.due, now, status, tag, connection.index, kept))
        connection.due = None
        self._outstanding -= 1

    def _end(self, connection: _Connection) -> None:
        """The server closed it, or never took it."""
        self._forget(connection)
        if connection.due is None:
            if connection in self._idle:
                self._idle.remove(connection)
            return
        now = time.perf_counter()
        if connection.used and not connection.buffer:
            # It was closed while the request was on its way: a client asks again, and the time goes on counting.
            self._measured.resent += 1
            again = self._connect()
            again.due, again.index = connection.due, connection.index
            return
        self._record(connection, now, LOST, None)
        if self._closed_until is not None or self._waiting:
            self._answered(self._connect(), now)

    def _forget(self, connection: _Connection) -> None:
        self._by_number.pop(connection.sock.fileno(), None)
        connection.sock.close()
