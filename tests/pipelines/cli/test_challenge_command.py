"""`stride challenge`, from trial to its end."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pipelines.challenge import Challenge
from pipelines.cli.main import main
from pipelines.promotion import Promotion
from tests.pipelines.trials import refuse

Submit = Callable[..., Promotion]
pytestmark = pytest.mark.usefixtures("quick_export")


def stride(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.usefixtures("two")
def test_the_command_from_trial_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("challenge", "tiny", "2", "--percent", "20", "--shadow", "--json") == 0
    begun = json.loads(capsys.readouterr().out)
    assert begun == Challenge(
        action="challenge", model="tiny", champion="1", challenger="2", percent=20.0, shadow=True, former=None,
        quarantine=None, problem=None,
    ).to_json()  # fmt: skip

    refuse("2")
    assert stride("challenge", "tiny") == 0
    shown = capsys.readouterr().out
    assert "challenger     version 2\ncanary         20% of the requests\nshadow         on" in shown
    assert "quarantined    its golden images are wrong." in shown

    assert stride("history", "tiny") == 0
    listed = capsys.readouterr().out
    assert "challenge" in listed
    assert listed.count("in quarantine: tiny version 2, a service refuses it: its golden images are wrong.") == 1

    assert stride("challenge", "tiny", "--stop") == 0
    assert "challenger     none" in capsys.readouterr().out
    assert stride("challenge", "tiny", "--stop") == 1
    assert capsys.readouterr().err == "error: model 'tiny' has no challenger, so there is nothing to stop.\n"
    assert stride("challenge", "tiny", "2", "--json") == 2
    assert json.loads(capsys.readouterr().out)["action"] == "refuse"


@pytest.mark.parametrize("arguments", [["--stop", "2"], ["--shadow"], ["--percent", "5"]])
def test_options_that_do_not_go_together_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("challenge", "tiny", *arguments) == 2
    assert "give MODEL VERSION or RUN" in capsys.readouterr().err
