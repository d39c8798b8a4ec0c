"""The initial weights of a backbone, from every place they can be in, and every way they can be wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import save_file
from torch import nn

from contracts import places
from contracts.errors import DataError, RegistryError
from contracts.recipe import Backbone, Normalize, Recipe, Weights, parse
from services.training import weights
from services.training.data import load as load_data
from services.training.initial_graph import make_graph
from services.training.networks import ServedGraph, build
from services.training.optimizers import make_optimizer
from services.training.runs import load_run
from services.training.train import train
from services.training.train_result import TrainResult

LABELS = ("a", "b", "c")


def recipe(given: Any = "none", *, channels: int = 3, side: int = 32, name: str = "transfer", **model: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": {"dataset": "digits", "image": {"height": side, "width": side, "channels": channels}},
        "model": {"kind": "backbone", "name": "squeezenet1_1", "weights": given, "head": {"pool": "average"}, **model},
        "fit": {"epochs": 1, "batch_size": 64, "precision": "fp32"},
        "optimizer": {"lr": 1e-3},
    }
    return parse(content, name=name)


def network_of(of: Recipe, classes: int = 3) -> nn.Module:
    return build(of.model, image=of.data.image, classes=classes)


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file with SqueezeNet's features alone, and what is in it."""
    torch.manual_seed(1)
    state = {key: value for key, value in network_of(recipe()).state_dict().items() if key.startswith("features.")}
    save_file(state, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors", state


def test_random_weights_are_left_as_they_are() -> None:
    network = network_of(recipe())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert weights.load(network, recipe(), labels=LABELS) is None
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint"])
def test_a_file_fills_the_base_and_leaves_the_head(
    base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, kind: str
) -> None:
    path, state = base
    if kind != "safetensors":
        path = tmp_path / "base.pth"
        torch.save(state if kind == "pth" else {"epoch": 3, "state_dict": state}, path)
    network = network_of(recipe())
    head = {key: value.clone() for key, value in network.state_dict().items() if key.startswith("classifier.")}
    own = weights.load(network, recipe({"file": str(path)}), labels=LABELS)
    assert own == Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in (state | head).items())


def test_the_initial_head_is_the_same_with_and_without_pretrained_weights(
    base: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    heads = []
    for given in ("none", {"file": str(base[0])}):
        torch.manual_seed(0)
        network = network_of(recipe(given))
        weights.load(network, recipe(given), labels=LABELS)
        heads.append(network.get_parameter("classifier.output.weight").detach())
    assert torch.equal(*heads)


def test_color_weights_answer_a_gray_image_as_the_same_image_in_rgb(base: tuple[Path, dict[str, torch.Tensor]]) -> None:
    color, gray = recipe({"file": str(base[0])}), recipe({"file": str(base[0])}, channels=1)
    networks = []
    for each in (color, gray):
        torch.manual_seed(0)
        network = network_of(each)
        torch.manual_seed(0)
        nn.init.normal_(network.get_parameter("classifier.output.weight"))
        own = weights.load(network, each, labels=LABELS)
        assert own is not None
        assert len(own.mean) == each.data.image.channels
        networks.append(network.eval())
    image = torch.rand(2, 1, 32, 32)
    # The biases of the two heads were drawn apart.
    answers = [
        network.get_submodule("features")(image.expand(-1, c, -1, -1))
        for network, c in zip(networks, (3, 1), strict=True)
    ]
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


def test_weights_of_another_shape_are_refused_with_the_layer_both_shapes_and_the_file(
    base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    state = base[1] | {"features.3.squeeze.weight": torch.zeros(8, 64, 1, 1)}
    save_file(state, tmp_path / "other.safetensors")
    sentence = (
        r"other\.safetensors: layer 'features\.3\.squeeze\.weight' has shape 8x64x1x1, this network needs 16x64x1x1"
    )
    with pytest.raises(DataError, match=sentence):
        weights.load(network_of(recipe()), recipe({"file": str(tmp_path / "other.safetensors")}), labels=LABELS)


def test_a_layer_that_is_missing_is_named_with_its_shape_and_the_file(
    base: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    state = {key: value for key, value in base[1].items() if key != "features.4.squeeze.weight"}
    save_file(state, tmp_path / "less.safetensors")
    sentence = r"less\.safetensors: layer 'features\.4\.squeeze\.weight' of shape 16x128x1x1 is missing"
    with pytest.raises(DataError, match=sentence):
        weights.load(network_of(recipe()), recipe({"file": str(tmp_path / "less.safetensors")}), labels=LABELS)


def test_weights_of_a_network_with_other_names_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.safetensors")
    with pytest.raises(
        DataError, match=r"'features\.0\.weight' .* is missing, what is there begins with 'conv1\.weight'"
    ):
        weights.load(network_of(recipe()), recipe({"file": str(tmp_path / "resnet.safetensors")}), labels=LABELS)


def test_a_part_that_the_file_lacks_may_start_at_random_if_it_is_trained_and_not_if_it_is_held(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def alexnet(**parts: Any) -> Recipe:
        return recipe({"file": str(tmp_path / "f.safetensors")}, side=64, name="a", **{"head": "linear"} | parts)

    linear = parse(
        {**alexnet().model_dump(), "model": {"kind": "backbone", "name": "alexnet", "weights": "none"}}, name="a"
    )
    network = network_of(linear)
    save_file({k: v for k, v in network.state_dict().items() if k.startswith("features.")}, tmp_path / "f.safetensors")
    given = Weights(file=str(tmp_path / "f.safetensors"))
    trained = linear.model_copy(update={"model": Backbone(name="alexnet", weights=given)})
    weights.load(network, trained, labels=LABELS)
    assert "has no classifier.*; those layers start from random values" in caplog.text
    held = trained.model_copy(update={"model": Backbone(name="alexnet", weights=given, frozen=("base",))})
    with pytest.raises(DataError, match=r"layer 'classifier\.1\.weight' .* is missing"):
        weights.load(network_of(held), held, labels=LABELS)


def test_a_pinned_file_says_its_sha256_and_another_content_is_refused(
    base: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    pinned = weights.pin(recipe({"file": str(base[0])}))
    assert isinstance(pinned.model, Backbone)
    assert isinstance(pinned.model.weights, Weights)
    assert len(pinned.model.weights.sha256 or "") == 64
    assert weights.pin(pinned) == pinned
    save_file({key: value + 1 for key, value in base[1].items()}, base[0])
    with pytest.raises(DataError, match=r"has sha256 .*, expected"):
        weights.pin(pinned)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> tuple[Path, TrainResult]:
    """A run of a held random base with a trained head on the digits, in a home of its own."""
    home = tmp_path_factory.mktemp("transfer")
    shutil.copy(migrated_database, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIDE_HOME", str(home))
        patch.setenv("STRIDE_DEVICE", "cpu")
        first = recipe(channels=1, side=24, name="first", frozen=["base"])
        normalize = first.data.model_copy(update={"normalize": "standard"})
        return home, train(first.model_copy(update={"data": normalize}), progress=False)


@pytest.fixture
def first(first_stage: tuple[Path, TrainResult], monkeypatch: pytest.MonkeyPatch) -> TrainResult:
    monkeypatch.setenv("STRIDE_HOME", str(first_stage[0]))
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    return first_stage[1]


def second(given: dict[str, Any], **model: Any) -> Recipe:
    return recipe(given, channels=1, side=24, name="second", **model)


@pytest.mark.parametrize("how", ["run", "recipe", "version", "alias"])
def test_a_second_stage_starts_where_the_first_one_ended(first: TrainResult, how: str) -> None:
    client = MlflowClient(places.tracking_uri())
    if how in ("version", "alias"):
        name = f"first-by-{how}"
        client.create_registered_model(name)
        version = client.create_model_version(name, source=f"runs:/{first.run_id}/x", run_id=first.run_id)
        client.set_registered_model_alias(name, "champion", version.version)
        given: dict[str, Any] = {"model": name, **({"version": 1} if how == "version" else {})}
    else:
        given = {"run": first.run_id} if how == "run" else {"recipe": "first"}
    stage = second({**given, "include": "all"})
    pinned = weights.pin(stage)
    assert isinstance(pinned.model, Backbone)
    assert pinned.model.weights == Weights(run=first.run_id, include="all")
    dataset = load_data(stage.data)
    graph = make_graph(stage, dataset)
    # normalisation, base and head are the run's, so the logits are too
    images = torch.from_numpy(dataset.test.images[:8])
    with torch.no_grad():
        logits = [each.network(each.normalize(images)) for each in (graph.eval(), load_run(first.run_id).graph)]
    assert torch.equal(*logits)


def test_a_run_that_was_fine_tuned_says_which_run_it_started_from_and_is_rebuilt(first: TrainResult) -> None:
    result = train(second({"recipe": "first", "include": "all"}, trainable_from="features.12"), progress=False)
    run = load_run(result.run_id)
    assert isinstance(run.recipe.model, Backbone)
    assert run.recipe.model.weights == Weights(run=first.run_id, include="all")
    before, after = load_run(first.run_id).graph.network.state_dict(), run.graph.network.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert "classifier.output.weight" in changed
    assert {name.split(".")[1] for name in changed if name.startswith("features.")} == {"12"}
    again = train(second({"run": first.run_id, "include": "all"}, trainable_from="features.12"), progress=False)
    assert (again.reused, again.run_id) == (True, result.run_id)


def test_a_head_for_other_classes_is_refused(first: TrainResult) -> None:
    stage = second({"run": first.run_id, "include": "all"})
    with pytest.raises(
        DataError, match=r"its head tells 0, 1, 2, 3, 4 … apart, the data has a, b, c; .*include to base"
    ):
        weights.load(network_of(stage), stage, labels=LABELS)
    weights.load(network_of(stage), second({"run": first.run_id}), labels=LABELS)


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"recipe": "nobody"}, r"recipe 'nobody' has no finished run .*stride train nobody"),
        ({"model": "nobody"}, "model 'nobody' @champion: the registry holds no such version"),
        ({"model": "nobody", "version": "7"}, "model 'nobody' version 7: the registry holds no such version"),
        ({"run": "0" * 32}, "0{32}"),
    ],
)
def test_what_the_tracking_server_does_not_hold_is_told_before_any_epoch(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(RegistryError, match=sentence):
        train(second(given), progress=False)


@pytest.mark.data
def test_pretrained_features_beat_random_ones_on_photographs(data_root: Path) -> None:
    # 160 pixels a side and a head on features that are computed once: seconds where a fit takes minutes
    accuracy: dict[str, float] = {}
    for given in ("imagenet", "none"):
        of = parse(
            {
                "data": {
                    "dataset": "folder",
                    "path": str(data_root / "hymenoptera"),
                    "image": {"height": 160, "width": 160, "channels": 3},
                },
                "model": {
                    "kind": "backbone",
                    "name": "squeezenet1_1",
                    "weights": given,
                    "frozen": ["base"],
                    "head": {"pool": "average"},
                },
                "optimizer": {"name": "adam", "lr": 3e-3},
            },
            name="hymenoptera",
        )
        dataset = load_data(of.data)
        torch.manual_seed(0)
        graph = make_graph(of, dataset).eval()
        accuracy[given] = _fitted_head(graph, of, dataset)
    assert accuracy["imagenet"] > 0.82
    assert accuracy["imagenet"] > accuracy["none"] + 0.15


def _fitted_head(graph: ServedGraph, of: Recipe, dataset: Any) -> float:
    """Test accuracy after 150 steps of the head on all training images at once."""

    def features(images: Any) -> torch.Tensor:
        parts = torch.split(torch.from_numpy(images), 32)
        with torch.no_grad():
            maps = [graph.network.get_submodule("features")(graph.normalize(part)).mean((2, 3)) for part in parts]
        return torch.cat(maps)[:, :, None, None]

    train_features, test_features = features(dataset.train.images), features(dataset.test.images)
    labels = torch.from_numpy(dataset.train.labels)
    head = graph.network.get_submodule("classifier")
    optimizer = make_optimizer(of.optimizer, graph.network)
    assert {id(p) for p in head.parameters()} == {id(p) for g in optimizer.param_groups for p in g["params"]}
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(train_features), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    right = head(test_features).argmax(1) == torch.from_numpy(dataset.test.labels)
    return float(right.float().mean())
