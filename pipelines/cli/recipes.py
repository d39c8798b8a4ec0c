"""`stride recipes` and `stride data`: what can be fitted, and on what."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.console import Json, Overrides, RecipeName, answer, answer_json, table, working

if TYPE_CHECKING:
    from contracts.recipe import Recipe
    from services.training.data import Dataset, Split

# How many classes the data sets have that are known before they are read.
_CLASSES = {"digits": 10, "mnist": 10, "fashion": 10, "cifar10": 10}


def register(app: typer.Typer) -> None:
    app.command("recipes")(recipes)
    app.command("data")(data)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="One recipe instead of all.")] = None,
    overrides: Overrides = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the whole recipe, defaults included.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipe files.")] = False,
    as_json: Json = False,
) -> None:
    """List the recipes, or show one.

    \b
    Examples:
      stride recipes
      stride recipes fashion --yaml > mine.yaml
      stride recipes --schema > recipe.schema.json
    """
    from contracts.recipe import json_schema
    from pipelines import recipe_files

    if schema:
        answer(json.dumps(json_schema(), indent=2))
        return
    if as_yaml and name is None:
        raise typer.BadParameter("--yaml shows one recipe; name it, as in `stride recipes digits --yaml`.")
    if as_yaml and name is not None:
        answer(recipe_files.dump(recipe_files.load(name, overrides or ())).rstrip())
        return
    names = recipe_files.names() if name is None else [name]
    described = [describe(recipe_files.load(each, overrides or ())) for each in names]
    if as_json:
        answer_json(described)
        return
    rows = [
        (each["name"], each["dataset"], each["classes"], each["parameters"], each["published"]["test_accuracy"])
        for each in described
    ]
    answer(table(rows, ("recipe", "data set", "classes", "parameters", "published accuracy")))
    if name is not None:
        answer(f"\n{described[0]['description']}")


def describe(recipe: Recipe) -> dict[str, Any]:
    """A recipe's facts; the parameter counts are None where the number of classes is known only from the images."""
    import torch

    from services.training.networks import build, count_parameters

    classes = len(recipe.data.classes) if recipe.data.classes else _CLASSES.get(recipe.data.dataset)
    parameters = trainable = None
    if classes is not None:
        try:
            with torch.device("meta"):  # shapes without memory or initial values: milliseconds even for a large net
                network = build(recipe.model, image=recipe.data.image, classes=classes)
        except NotImplementedError:  # torchvision's RegNets compute their widths with tensors that hold values
            network = build(recipe.model, image=recipe.data.image, classes=classes)
        parameters, trainable = count_parameters(network)
    return {
        "name": recipe.name,
        "model_name": recipe.model_name,
        "description": recipe.description,
        "dataset": recipe.data.dataset,
        "classes": classes,
        "parameters": parameters,
        "trainable_parameters": trainable,
        "published": recipe.published.model_dump(mode="json"),
    }


def data(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Load a recipe's data set and say what is in it.

    \b
    Examples:
      stride data digits
      stride data folder --set data.path=pictures
    """
    from pipelines import recipe_files
    from services.training.data import load

    loaded = recipe_files.load(recipe, overrides or ())
    with working():
        dataset = load(loaded.data)
    report = _report(dataset)
    if as_json:
        answer_json(report)
        return
    shape = "x".join(str(side) for side in loaded.data.image.shape)
    answer(f"{dataset.name}: {len(dataset.labels)} classes, images of {shape} (height x width x channels)\n")
    splits = report["splits"]
    rows = [(label, *(splits[split]["per_class"][label] for split in splits)) for label in dataset.labels]
    rows.append(("all", *(splits[split]["images"] for split in splits)))
    answer(table(rows, ("class", *splits)))
    answer(f"\nfingerprint       {dataset.fingerprint}\ntest fingerprint  {dataset.test_fingerprint}")
    answer(f"in test and elsewhere too: {dataset.overlap} images")
    answer(f"in two classes: {dataset.contradictions} images")
    answer(f"left out: {len(dataset.skipped)} files")  # loading has named them on standard error


def _report(dataset: Dataset) -> dict[str, Any]:
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {
        "name": dataset.name,
        "labels": list(dataset.labels),
        "splits": {name: _counts(split, dataset.labels) for name, split in splits.items()},
        "fingerprint": dataset.fingerprint,
        "test_fingerprint": dataset.test_fingerprint,
        "overlap": dataset.overlap,
        "contradictions": dataset.contradictions,
        "skipped": [{"path": skipped.path, "reason": skipped.reason} for skipped in dataset.skipped],
    }


def _counts(split: Split, labels: tuple[str, ...]) -> dict[str, Any]:
    import numpy as np

    counts = np.bincount(split.labels, minlength=len(labels))
    return {"images": len(split), "per_class": {label: int(n) for label, n in zip(labels, counts, strict=True)}}
