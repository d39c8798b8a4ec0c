"""What the gate decides on: the facts of candidate and champion, measured on the same test images, and its verdict."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contracts import cpu
from contracts.bundle import MODEL, Bundle, Manifest
from contracts.errors import BundleError, DataError
from contracts.recipe import Gate, Recipe, parse
from contracts.registry import CHAMPION
from pipelines import graph, parity, registry
from pipelines.export import Say
from pipelines.gate import Facts, Verdict, decide
from pipelines.registry import Version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from services.training.data.dataset import Dataset


def load_recipe(run_id: str) -> Recipe:
    """The recipe of a run (RegistryError where there is no such run, or it does not hold one)."""
    from services.training.runs import RECIPE, read_artifacts
    from services.training.tracking import get_run

    get_run(run_id)  # an unknown run has another remedy than a lost artifact
    content = json.loads(read_artifacts(run_id, (RECIPE,))[RECIPE])
    return parse(content, name=content["name"])


def judge(
    client: MlflowClient,
    bundle: Bundle,
    champion: Version | None,
    recipe: Recipe,
    thresholds: Gate | None,
    allow_new_labels: bool,
    dataset: Dataset | None,
    say: Say,
) -> Verdict:
    """Judge a bundle against the champion (None: there is none) by `thresholds`, or else by those of its recipe.

    Args:
        recipe: Of the candidate's run: its data, where the champion has to be measured on them, and its thresholds.
        dataset: Those data, where they are loaded already.

    Raises:
        BundleError: the champion's bundle is broken. Nothing is let past a champion that cannot be compared with.
        RegistryError: the server is away.
    """
    candidate = Facts.of(bundle.manifest, who=f"run {bundle.manifest.provenance.run_id}")
    facts = None
    if champion is not None and champion.digest is None:
        say(f"{champion.who} is the champion but has no bundle, so no server serves it and nothing is compared with it")
    elif champion is not None:
        try:
            facts = Facts.of(registry.fetch_manifest(client, champion), who=champion.who)
            if facts.labels == candidate.labels and facts.test_fingerprint != candidate.test_fingerprint:
                say(f"measuring {champion.who} on the candidate's test images")
                facts = _measure_again(client, champion, facts, candidate, recipe, dataset, say)
        except BundleError as error:
            raise BundleError(
                f"{champion.who} is the champion and cannot be compared with ({error.message.rstrip('.')}); roll back "
                f"to a former one, or take the alias '{CHAMPION}' off it in MLflow to promote without a comparison."
            ) from error
    verdict = decide(candidate, facts, thresholds or recipe.gate, allow_new_labels=allow_new_labels)
    for reason in verdict.reasons:
        say(f"gate: {reason}")
    return verdict


def _measure_again(
    client: MlflowClient,
    champion: Version,
    facts: Facts,
    candidate: Facts,
    recipe: Recipe,
    dataset: Dataset | None,
    say: Say,
) -> Facts:
    """The champion's facts with its accuracy on the candidate's test images, at the champion's own image size.

    Where these cannot be had, the facts come back as they are and the gate refuses.
    """
    from services.training.data import load

    with tempfile.TemporaryDirectory() as directory:
        bundle = registry.fetch(client, champion.run_id, Path(directory), digest=champion.digest)
        try:
            own = dataset or load(recipe.data)
            spec = bundle.manifest.input
            # Splits depend on the seed and the labels alone: another size gives the same images in the same order.
            sized = own if spec == recipe.data.image else load(recipe.data.model_copy(update={"image": spec}))
        except DataError as error:
            say(f"the candidate's test images cannot be read: {error.message}")
            return facts
        if own.test_fingerprint != candidate.test_fingerprint or not np.array_equal(sized.test.labels, own.test.labels):
            say("the data set now holds other test images than the candidate was measured on")
            return facts
        session = graph.open_session(bundle.read(_served_here(bundle.manifest)))
        answers = graph.predict(session, sized.test.images, batch_size=64)
    accuracy = parity.accuracy(answers, sized.test.labels)
    return replace(facts, accuracy=accuracy, test_fingerprint=candidate.test_fingerprint)


def _served_here(manifest: Manifest) -> str:
    """The graph that a service on this machine would take: with products that saturate, int8 is not what it was."""
    serving = manifest.serving
    saturates = serving is not None and serving.exact_int8 and cpu.lacks_int8() is not None
    return MODEL if saturates else manifest.served_file


def record(client: MlflowClient, run_id: str, verdict: Verdict) -> None:
    """Write the verdict where the run is looked at: tags, a metric, and an artifact for people and for programs."""
    with registry.registry_errors(f"to log the verdict on run {run_id}"):
        client.set_tag(run_id, "stride.verdict", "accepted" if verdict.accepted else "refused")
        client.set_tag(run_id, "stride.verdict_reasons", "; ".join(verdict.reasons)[:5000])
        client.log_metric(run_id, "gate/accepted", float(verdict.accepted))
        client.log_text(run_id, json.dumps(verdict.to_json(), indent=2), "verdict/verdict.json")
        client.log_text(run_id, verdict.to_markdown(), "verdict/verdict.md")
