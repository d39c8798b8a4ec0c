"""docs/scaling.md: what it names exists, and what it shows is taken by kustomize."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from tests.infra.cluster import ROOT, built, containers, one, templates, written
from tests.infra.schemas import VERSIONS

BASE = written("base")


def test_the_page_names_what_exists() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    sources = "".join(
        path.read_text() for room in ("contracts", "services", "pipelines") for path in (ROOT / room).rglob("*.py")
    )
    variables = set(re.findall(r"STRIDE_[A-Z_]+|OMP_NUM_THREADS", text))
    assert len(variables) >= 6
    assert [name for name in variables if f'"{name}"' not in sources] == []
    for target in re.findall(r"\]\((?!https)([^)#]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`?(infra/[a-z/.-]*[a-z])\b", text):
        assert (ROOT / path).exists(), path
    for directory in re.findall(r"`(base|overlays/\w+)`", text):
        assert (ROOT / "infra/kubernetes" / directory / "kustomization.yaml").exists(), directory
    assert f"Kubernetes {VERSIONS[0]} or later" in text
    autoscaler = one(BASE, "HorizontalPodAutoscaler", "inference")["spec"]
    share = autoscaler["metrics"][0]["resource"]["target"]["averageUtilization"]
    assert f"at {share}% of the\n  requested core" in text or f"at {share}% of the requested core" in text


def test_the_page_s_overlay_builds(tmp_path: Path) -> None:
    found = re.search(
        r"```yaml\n# house/kustomization.yaml\n(.*?)```", (ROOT / "docs/scaling.md").read_text(), re.DOTALL
    )
    assert found is not None
    overlay = yaml.safe_load(found[1])
    base = ROOT / overlay["resources"][0].removeprefix("../")
    overlay["resources"] = [os.path.relpath(base, tmp_path.resolve())]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))

    documents = built(str(tmp_path))

    images = {each["image"] for pod in templates(documents).values() for each in containers(pod)}
    assert images == {"postgres:17", *(f"{each['newName']}:{each['newTag']}" for each in overlay["images"])}
    assert one(documents, "PersistentVolumeClaim", "training")["spec"]["storageClassName"] == "nfs"
