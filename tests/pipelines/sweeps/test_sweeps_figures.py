from __future__ import annotations

import numpy as np

from pipelines.sweeps import figures, parent, space
from pipelines.sweeps.ledger import Trial
from services.training.drawing import to_png

SPACE = space.parse(
    ["optimizer.lr=loguniform(1e-4, 1e-1)", "optimizer.name=choice(adam, sgd)", "fit.epochs=randint(1, 9)"]
)


def trial(number: int, value: float | None, *, state: str = "finished") -> Trial:
    values = {"optimizer.lr": 10 ** (-1 - number), "optimizer.name": "sgd", "fit.epochs": 1 + number}
    return Trial(
        number,
        values,
        {**values, "optimizer.name": '"sgd"'},
        state=state,  # type: ignore[arg-type]
        value=value if state == "finished" else None,
        epochs={1: value} if value is not None else {},
        run_id=f"r{number}" if state == "finished" else None,
    )


TRIALS = [trial(0, 0.9), trial(1, 0.5, state="stopped"), trial(2, None, state="failed"), trial(3, 0.95)]


def test_parallel_coordinates_have_a_line_a_trial_and_mark_the_best() -> None:
    figure = figures.parallel_coordinates(TRIALS, SPACE, metric="validation/accuracy", mode="max")
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if np.size(line.get_xdata()) == 4]
    assert len(drawn) == 3  # the one that failed has nothing to show
    assert [line.get_label() for line in drawn if not str(line.get_label()).startswith("_")] == ["best: trial 3"]
    best = next(line for line in drawn if line.get_label() == "best: trial 3")
    assert list(best.get_ydata()) == [0.0, 1.0, 3 / 8, 1.0]  # type: ignore[arg-type]
    assert to_png(figure).startswith(b"\x89PNG")


def test_where_less_is_better_the_lowest_is_marked() -> None:
    figure = figures.parallel_coordinates(TRIALS, SPACE, metric="validation/loss", mode="min")
    labels = {str(line.get_label()) for line in figure.axes[0].lines}
    assert "best: trial 1" in labels


def test_a_sweep_without_any_result_can_be_drawn() -> None:
    nothing = [trial(0, None, state="failed")]
    assert to_png(figures.parallel_coordinates(nothing, SPACE, metric="validation/accuracy", mode="max"))
    assert to_png(figures.history(nothing, metric="validation/accuracy", mode="max"))


def test_the_page_names_the_best_trial_and_every_trial_in_order() -> None:
    text = parent.page(
        TRIALS,
        SPACE,
        metric="validation/accuracy",
        mode="max",
        best=TRIALS[3],
        importance={"optimizer.lr": 0.75, "fit.epochs": 0.25},
    )
    assert "**4 trials**: 2 finished, 1 stopped, 1 failed." in text
    assert "Best validation/accuracy: **0.9500**, trial 3, run `r3`" in text
    assert "| `optimizer.lr` | loguniform(0.0001, 0.1) | 0.75 |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [row.split(" | ")[0] for row in rows] == ["| 3", "| 0", "| 1", "| 2"]


def test_the_table_has_a_column_a_key() -> None:
    table = parent.table(TRIALS, SPACE, metric="validation/accuracy", mode="max")
    assert table["columns"] == ["trial", "state", "validation/accuracy", "epochs reported", *SPACE, "run", "problem"]
    assert all(len(row) == len(table["columns"]) for row in table["data"])
