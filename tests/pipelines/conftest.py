"""Real, tiny runs for the tests of promotion: a convnet on the UCI digits, fitted once a session in a second or two."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from contracts.recipe import Recipe, parse

if TYPE_CHECKING:
    from pipelines.promotion import Promotion
    from services.training.data.dataset import Dataset

RunMaker = Callable[..., str]


def tiny_recipe(model: str = "tiny", **changes: Any) -> Recipe:
    """A recipe on the digits whose network has a few hundred parameters; keywords replace whole parts."""
    content: dict[str, Any] = {
        "model_name": model,
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {
            "kind": "convnet",
            "blocks": [{"filters": 8, "padding": "same", "norm": "batch", "dropout": 0.2}],
            "head": {"units": [16]},
        },
        "optimizer": {"name": "adam", "lr": 0.01},
        "fit": {"epochs": 2, "batch_size": 64, "precision": "fp32"},
        "export": {"batch_sizes": [1, 7, 64], "tolerance": 1e-4},
    }
    return parse({**content, **changes}, name="tiny")


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    return tiny_recipe


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    from services.training.data import load

    return load(tiny_recipe().data)


@pytest.fixture(scope="session")
def graphs(digits: Dataset) -> dict[str, Any]:
    """ServedGraphs by quality: `good` (about 95 % right), `worse` (less), `useless` (as initialised)."""
    return {name: _fitted(digits, steps) for name, steps in {"useless": 0, "worse": 20, "good": 120}.items()}


def _fitted(digits: Dataset, steps: int) -> Any:
    import torch

    from services.training.networks import ServedGraph, build

    recipe = tiny_recipe()
    torch.manual_seed(0)
    network = build(recipe.model, image=recipe.data.image, classes=len(digits.labels))
    graph = ServedGraph(network, output="softmax", mean=(0.0,), std=(1.0,))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    images, labels = torch.tensor(digits.train.images), torch.tensor(digits.train.labels)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        loss = torch.nn.functional.cross_entropy(network(graph.normalize(images[chosen])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return graph.eval()


def _make_run(digits: Dataset, graphs: dict[str, Any]) -> RunMaker:
    from services.training import runs
    from services.training.tracking import open_run

    def make(quality: str = "good", *, recipe: Recipe | None = None, graph: Any = None) -> str:
        recipe = recipe or tiny_recipe()
        tags = {
            "stride.data_fingerprint": digits.fingerprint,
            "stride.test_fingerprint": digits.test_fingerprint,
        }
        with open_run(recipe, tags=tags) as run:
            runs.save(run, recipe=recipe, labels=digits.labels, graph=graph or graphs[quality])
        return run.run_id

    return make


@pytest.fixture
def make_run(embedded_tracking: str, digits: Dataset, graphs: dict[str, Any]) -> RunMaker:
    """Makes a finished run as training leaves it: `make_run("good", model="tiny")` -> its id."""
    return _make_run(digits, graphs)


def _submit_run(make_run: RunMaker, digits: Dataset) -> Callable[..., Promotion]:
    from pipelines.export import export
    from pipelines.promotion import submit

    def run(quality: str, **options: Any) -> Promotion:
        run_id = make_run(quality)
        return submit(export(run_id, dataset=digits), run_id, dataset=digits, **options)

    return run


@pytest.fixture
def submit_run(make_run: RunMaker, digits: Dataset) -> Callable[..., Promotion]:
    """`submit_run("good")`: a run of that quality, exported and submitted."""
    return _submit_run(make_run, digits)


@pytest.fixture(scope="session")
def home_of_two(
    tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
    digits: Dataset,
    graphs: dict[str, Any],
    exported_graphs: dict[int, bytes],
) -> Path:
    """A STRIDE_HOME in which version 1, worse, is the champion again, and version 2 the better one, rolled back."""
    from pipelines.promotion import rollback

    home = tmp_path_factory.mktemp("two") / "home"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("STRIDE_HOME", str(home))
        _export_quickly(patched, graphs, exported_graphs)
        submit = _submit_run(_make_run(digits, graphs), digits)
        submit("worse")
        submit("good")
        rollback("tiny")
    return home


@pytest.fixture
def two(home: Path, embedded_tracking: str, home_of_two: Path, quick_export: None) -> None:
    """A copy of `home_of_two` is this test's home; MLflow's data base names its files by their whole paths."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # by the runs' ids, which are the same in every copy
    shutil.copytree(home_of_two, home, dirs_exist_ok=True)
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                if "CHAR" in kind or "TEXT" in kind:
                    change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'  # noqa: S608
                    database.execute(change, (str(home_of_two), str(home), str(home_of_two)))


@pytest.fixture(scope="session")
def exported_graphs(graphs: dict[str, Any]) -> dict[int, bytes]:
    """The ONNX file of each of `graphs`, by the identity of the network."""
    from pipelines import graph

    image = tiny_recipe().data.image
    return {id(network): graph.to_onnx(network, image=image, opset=20) for network in graphs.values()}


@pytest.fixture
def quick_export(graphs: dict[str, Any], exported_graphs: dict[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembers what torch's exporter made of `graphs`: it takes most of a test's time, and test_graph.py tests it."""
    _export_quickly(monkeypatch, graphs, exported_graphs)


def _export_quickly(patch: pytest.MonkeyPatch, graphs: dict[str, Any], exported_graphs: dict[int, bytes]) -> None:
    from pipelines import graph

    by_weights = {_weights(network): exported_graphs[id(network)] for network in graphs.values()}
    patch.setattr(graph, "to_onnx", lambda network, **_: by_weights[_weights(network)])


def _weights(network: Any) -> bytes:
    return b"".join(value.numpy().tobytes() for value in network.state_dict().values())
