"""What `stride bench serve` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import servers
from contracts import places
from contracts.errors import RecipeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What was asked for."""

    quick: bool
    peers: tuple[str, ...]
    minutes: float | None
    output: Path
    command: str

    @classmethod
    def of(cls, *, quick: bool, peers: str | None, minutes: float | None, output: Path | None) -> Options:
        """Read the command line's words.

        Raises:
            RecipeError: no such peer.
        """
        known = [server.name for server in servers.PEERS]
        chosen = known if peers is None else [name.strip() for name in peers.split(",") if name.strip()]
        chosen = [] if chosen == ["none"] else chosen
        if unknown := next((name for name in chosen if name not in known), None):
            raise RecipeError(f"--peers: {unknown!r} is not known; name some of {', '.join(known)}, or none.")
        # Only a whole run replaces the report that the repository keeps.
        whole = not quick and peers is None
        place = Path(__file__).parent if whole else places.home() / "bench" / "serving"
        words = ["stride bench serve", *(["--quick"] if quick else [])]
        words += [f"--peers {peers}"] if peers is not None else []
        words += [f"--minutes {minutes:g}"] if minutes is not None else []
        return cls(
            quick=quick,
            peers=tuple(chosen),
            minutes=minutes,
            output=(output or place).absolute(),
            command=" ".join(words),
        )
