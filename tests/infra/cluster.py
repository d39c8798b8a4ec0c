"""What infra/kubernetes holds, read for its tests: the documents as they are written, and as kustomize builds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra/kubernetes"
Document = dict[str, Any]
COMPONENT = "app.kubernetes.io/component"


def _documents(text: str) -> list[Document]:
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))  # ten times as fast as the pure one


@cache
def written(directory: str) -> tuple[Document, ...]:
    """The documents of a directory that its kustomization names, and its ConfigMaps; no kustomize is needed."""
    kustomization = yaml.safe_load((KUBERNETES / directory / "kustomization.yaml").read_text())
    found: list[Document] = []
    for name in kustomization["resources"]:
        if name.endswith(".yaml"):
            found += _documents((KUBERNETES / directory / name).read_text())
    for generated in kustomization.get("configMapGenerator", []):
        data = dict(literal.split("=", 1) for literal in generated["literals"])
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generated["name"]}, "data": data})
    return tuple(found)


def builder() -> list[str]:
    """The command that builds a kustomization: the environment's own kubectl first; skips where there is none."""
    own = Path(sys.executable).parent / "kubectl"
    if own.exists():
        return [str(own), "kustomize"]
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    if kubectl := shutil.which("kubectl"):
        return [kubectl, "kustomize"]
    pytest.skip("there is no kubectl and no kustomize; `make setup` brings one")


@cache
def built(directory: str) -> tuple[Document, ...]:
    """The documents that kustomize makes of a directory, which may also lie elsewhere."""
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(
        [*builder(), str(KUBERNETES / directory)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return tuple(_documents(done.stdout))


def one(documents: tuple[Document, ...], kind: str, name: str) -> Document:
    (found,) = (each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def templates(documents: tuple[Document, ...]) -> dict[str, Document]:
    """What pods are made of, by the object that makes them; Ray's head and workers are ray/head and ray/workers."""
    found = {}
    for each in documents:
        name = each["metadata"]["name"]
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            found[name] = each["spec"]["template"]
        elif each["kind"] == "RayCluster":
            found[f"{name}/head"] = each["spec"]["headGroupSpec"]["template"]
            for group in each["spec"]["workerGroupSpecs"]:
                found[f"{name}/{group['groupName']}"] = group["template"]
    return found


def containers(template: Document) -> Iterator[Document]:
    yield from template["spec"].get("initContainers", [])
    yield from template["spec"]["containers"]


def component(template: Document) -> str:
    return str(template["metadata"]["labels"][COMPONENT])


def environment(documents: tuple[Document, ...], container: Document) -> dict[str, str]:
    """The variables of a container, those from its ConfigMaps among them."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= one(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {each["name"]: each["value"] for each in container.get("env", [])}


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector, or a Service's plain one, takes what has these labels."""
    if not {"matchLabels", "matchExpressions"} & set(selector):
        return selector.items() <= labels.items()
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    matched: dict[str, str] = selector.get("matchLabels", {})
    return matched.items() <= labels.items()
