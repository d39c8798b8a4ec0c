"""`stride challenge`: a version tried beside the champion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import RequestError
from pipelines.cli.console import Json, answer, answer_json, say, working

if TYPE_CHECKING:
    from pipelines.challenge import Challenge

_RUN = re.compile(r"[0-9a-f]{32}")


def register(app: typer.Typer) -> None:
    app.command("challenge")(challenge)


def challenge(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's id, or a registered model's name.")],
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="The version to try; who is tried now without it.")
    ] = None,
    percent: Annotated[
        float | None, typer.Option("--percent", help="Share of the requests it answers, 0 to 100; 10 without it.")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Also compare its answers with the champion's, unseen by clients.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Take the challenger away.")] = False,
    as_json: Json = False,
) -> None:
    """Try a version beside the champion.

    It answers a share of the requests (a canary, which the gate must let through), or is compared in the shadow, or
    both. `stride promote MODEL VERSION` makes it the champion and ends the trial; --stop ends it otherwise.

    \b
    Examples:
      stride challenge digits 5 --percent 10
      stride challenge digits 5 --percent 0 --shadow
      stride challenge digits
      stride challenge digits --stop
    """
    from pipelines import refusal

    is_run = version is None and _RUN.fullmatch(target) is not None
    begins = is_run or version is not None
    if (stop and begins) or (not begins and (percent is not None or shadow)):
        raise RequestError(
            f"challenge: {target!r} with these options is not understood; give MODEL VERSION or RUN with --percent and "
            "--shadow, or MODEL --stop."
        )
    share = 10.0 if percent is None else percent
    try:
        with working():
            from pipelines import challenge as challenges

            if stop:
                result = challenges.stop(target, say=say)
            elif is_run:
                from pipelines.export import export

                result = challenges.challenge_run(
                    export(target, say=say), target, percent=share, shadow=shadow, say=say
                )
            elif version is not None:
                result = challenges.challenge(target, version, percent=share, shadow=shadow, say=say)
            else:
                result = challenges.show(target)
    except refusal.Refused as refused:
        if as_json:
            answer_json({"action": "refuse", "reasons": refused.verdict.reasons, "version": refused.champion})
        raise
    _show(result, as_json=as_json)


def _show(result: Challenge, *, as_json: bool) -> None:
    if as_json:
        answer_json(result.to_json())
        return
    answer(f"champion       {_version(result.champion)}\nchallenger     {_version(result.challenger)}")
    if result.challenger is not None:
        answer(f"canary         {result.percent:g}% of the requests\nshadow         {'on' if result.shadow else 'off'}")
    if result.quarantine is not None:
        answer(f"quarantined    {result.quarantine}")
    if result.problem is not None:
        say(f"warning: {result.problem}")
    if result.action == "stop":
        say(f"version {result.former} is tried no more; a running service follows within seconds")
    elif result.action == "challenge":
        say(
            "a running service follows within seconds; /v1/models and the metrics stride_answers and stride_shadow tell"
        )


def _version(version: str | None) -> str:
    return f"version {version}" if version else "none"
