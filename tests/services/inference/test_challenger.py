"""Challengers with a real MLflow server and the real service: canary, shadow, quarantine, and their end."""

from __future__ import annotations

import math
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.images import encode_png
from contracts.registry import CHALLENGER, QUARANTINED, Quarantine, Rollout
from services.inference.variants import draw

Images = Callable[[int], NDArray[np.uint8]]


@dataclass
class Trial:
    """A model of the test's own in the shared service: version 1 (seed 1) is its champion."""

    name: str
    http: httpx.Client
    mlflow: Any
    tiny: Any
    path: Path
    rollout: Rollout = field(default_factory=Rollout)

    def publish(self, seed: int, **options: Any) -> str:
        known = self.tiny(seed).bundle(self.path / f"bundle-{time.time_ns()}", name=self.name, **options)
        return str(self.mlflow.publish(known, name=self.name))

    def challenge(self, version: str, rollout: Rollout) -> None:
        """As `stride challenge` does: no part until the alias has moved, so that no earlier challenger takes it."""
        client = self.mlflow.client
        self.rollout = rollout
        for part in (Rollout(), rollout):
            for tag, value in part.tags().items():
                client.set_registered_model_tag(self.name, tag, value)
            client.set_registered_model_alias(self.name, CHALLENGER, version)

    def stop(self) -> None:
        self.mlflow.client.delete_registered_model_alias(self.name, CHALLENGER)

    def ask(self, content: bytes, **headers: str) -> httpx.Response:
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.http.post(f"/v1/models/{self.name}/predict", content=content, headers=headers)

    def entry(self) -> dict[str, Any]:
        models: list[dict[str, Any]] = self.http.get("/v1/models").json()["models"]
        return next((model for model in models if model["name"] == self.name), {})

    def challenger(self) -> dict[str, Any]:
        """Of /v1/models; empty without one."""
        return self.entry().get("challenger") or {}

    def until_tried(self, version: str) -> None:
        """Until it is served and takes the part that `challenge` gave it."""

        def tried() -> bool:
            found = self.challenger()
            part = Rollout(found.get("percent", 0.0), found.get("shadow", False))
            return (found.get("serving") or {}).get("version") == version and part == self.rollout

        until(tried)

    def counted(self, metric: str, **labels: str) -> float:
        found = 0.0
        for line in self.http.get("/metrics").text.splitlines():
            given = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if line.startswith(f"{metric}{{") and given.items() >= ({"model": self.name} | labels).items():
                found += float(line.rpartition(" ")[2])
        return found


def until(met: Callable[[], bool], timeout_s: float = 40) -> None:
    ends = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.fixture
def trial(
    request: pytest.FixtureRequest, http: httpx.Client, mlflow_server: Any, tiny: Any, tmp_path: Path
) -> Iterator[Trial]:
    name = f"trial-{zlib.crc32(request.node.name.encode()):08x}"
    made = Trial(name, http, mlflow_server, tiny, tmp_path)
    mlflow_server.promote(name, made.publish(1))
    until(lambda: bool(made.entry().get("serving")))
    yield made
    mlflow_server.promote("shapes", "1")  # the default model of the tests beside this one
    until(lambda: bool(http.get("/v1/models").json()["default"] == "shapes"))


def test_a_canary_answers_its_share_and_every_answer_names_its_version(trial: Trial, make_image: Images) -> None:
    version = trial.publish(2)
    trial.challenge(version, Rollout(25))
    trial.until_tried(version)
    images = [make_image(number) for number in range(8)]
    pngs = [encode_png(image) for image in images]
    answers = {
        variant: trial.tiny(seed).probabilities(np.stack(images))
        for variant, seed in (("champion", 1), ("challenger", 2))
    }
    fallen = 0
    for number in range(400):
        request_id = f"canary-{number}"
        response = trial.ask(pngs[number % 8], x_request_id=request_id)
        assert response.status_code == 200
        variant = response.headers["x-stride-variant"]
        assert variant == ("challenger" if draw(request_id.encode()) < 25 else "champion")
        model = response.json()["model"]
        assert model["version"] == response.headers["x-stride-version"] == ("1" if variant == "champion" else version)
        assert model.get("variant") == (None if variant == "champion" else "challenger")
        (prediction,) = response.json()["predictions"]
        wanted = answers[variant][number % 8]
        np.testing.assert_allclose([top["probability"] for top in prediction["top"]], np.sort(wanted)[::-1], atol=1e-5)
        fallen += variant == "challenger"
    assert abs(fallen - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)
    assert trial.counted("stride_answers_total", variant="challenger") == fallen
    assert trial.counted("stride_answers_total", variant="champion") == 400 - fallen


def test_a_client_chooses_by_header_and_the_end_of_the_trial_fails_nobody(trial: Trial, make_image: Images) -> None:
    png = encode_png(make_image(1))

    def asked(variant: str) -> tuple[str, str]:
        response = trial.ask(png, x_stride_variant=variant)
        assert response.status_code == 200
        return response.headers["x-stride-variant"], response.headers["x-stride-version"]

    assert asked("challenger") == ("champion", "1")
    version = trial.publish(2)
    trial.challenge(version, Rollout(0, shadow=True))
    trial.until_tried(version)
    assert asked("challenger") == ("challenger", version)
    assert asked("champion") == ("champion", "1")
    assert trial.ask(png).headers["x-stride-variant"] == "champion"
    refused = trial.ask(png, x_stride_variant="canary")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    trial.stop()
    until(lambda: trial.challenger() == {})
    assert asked("challenger") == ("champion", "1")
    assert trial.counted("stride_model_info", model=f"{trial.name}@challenger", version=version) == 0


def test_a_shadow_counts_where_two_nets_differ_and_answers_nobody(trial: Trial, make_image: Images) -> None:
    version = trial.publish(2)
    trial.challenge(version, Rollout(0, shadow=True))
    trial.until_tried(version)
    images = [make_image(number) for number in range(20)]
    for number, image in enumerate(images, start=1):
        assert trial.ask(encode_png(image)).headers["x-stride-version"] == "1"
        # One after the other, so that none finds the challenger busy.
        until(lambda wanted=number: trial.counted("stride_shadow_images_total") == wanted)  # type: ignore[misc]
    ours, theirs = (trial.tiny(seed).probabilities(np.stack(images)) for seed in (1, 2))
    differing = int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
    assert 0 < differing < 20
    assert trial.counted("stride_shadow_disagreements_total", challenger=version) == differing
    difference = float(np.abs(ours - theirs).mean(axis=1).sum())
    assert trial.counted("stride_shadow_difference_total") == pytest.approx(difference, abs=1e-3)
    assert trial.counted("stride_shadow_dropped_total") == 0
    assert trial.counted("stride_answers_total", variant="challenger") == 0


def test_a_broken_challenger_is_put_in_quarantine_while_the_champion_answers_everything(
    trial: Trial, make_image: Images
) -> None:
    version = trial.publish(2, wrong=0.1)
    trial.challenge(trial.publish(2), Rollout(0))  # a good one before it, which is not to take its part
    trial.until_tried("3")
    trial.challenge(version, Rollout(100, shadow=True))
    png = encode_png(make_image(1))
    asked = 0
    ends = time.monotonic() + 20
    while not trial.challenger().get("quarantined"):
        assert time.monotonic() < ends
        response = trial.ask(png)
        assert (response.status_code, response.headers["x-stride-version"]) == (200, "1")
        asked += 1
    assert asked
    assert trial.ask(png).headers["x-stride-version"] == "1"
    refused = trial.challenger()["quarantined"]
    assert (refused["version"], refused["step"], trial.entry()["quarantined"]) == (version, "load", None)
    assert trial.challenger()["serving"] is None
    assert trial.counted("stride_model_quarantined", model=f"{trial.name}@challenger") == 1
    until(lambda: QUARANTINED in trial.mlflow.client.get_model_version(trial.name, version).tags)
    mark = Quarantine.of(trial.mlflow.client.get_model_version(trial.name, version).tags)
    assert mark is not None
    assert mark.reason == refused["reason"]
    assert QUARANTINED not in trial.mlflow.client.get_model_version(trial.name, "1").tags

    good = trial.publish(3)
    trial.challenge(good, Rollout(100))
    trial.until_tried(good)
    assert trial.ask(png).headers["x-stride-version"] == good
    assert trial.challenger()["quarantined"] is None


def test_a_challenger_that_is_promoted_answers_as_the_champion_and_is_no_challenger(
    trial: Trial, make_image: Images
) -> None:
    version = trial.publish(2)
    trial.challenge(version, Rollout(50))
    trial.until_tried(version)
    trial.mlflow.promote(trial.name, version)  # the alias is left behind, as by a promotion in MLflow's own page
    until(lambda: bool(trial.entry()["serving"]["version"] == version and trial.challenger() == {}))
    response = trial.ask(encode_png(make_image(1)), x_stride_variant="challenger")
    assert (response.headers["x-stride-variant"], response.headers["x-stride-version"]) == ("champion", version)


def test_models_are_served_as_pinned_and_what_does_not_exist_is_said(
    start_service: Any, mlflow_server: Any, tiny: Any, make_image: Images, tmp_path: Path
) -> None:
    for name in ("by-alias", "by-number", "by-default", "not-listed"):
        for seed in (1, 2):
            mlflow_server.publish(tiny(seed).bundle(tmp_path / f"{name}-{seed}", name=name), name=name)
        mlflow_server.promote(name, "2")
    client = mlflow_server.client
    client.set_registered_model_alias("by-alias", "staging", "1")
    client.set_registered_model_alias("by-number", CHALLENGER, "2")
    service = start_service(
        MLFLOW_TRACKING_URI=mlflow_server.url,
        STRIDE_MODELS="by-alias@staging,by-number:1,by-default,not-there@staging,too-new:7",
    )
    mlflow_server.publish(tiny(1).bundle(tmp_path / "too-new", name="too-new"), name="too-new")
    service.wait()

    def entries() -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in httpx.get(f"{service.url}/v1/models").json()["models"]}

    def served(name: str) -> tuple[str | None, str | None]:
        found = entries().get(name, {})
        return (found.get("serving") or {}).get("version"), found.get("follows")

    until(lambda: served("by-default") == ("2", "@champion"))
    until(lambda: "too-new" in entries())
    assert served("by-alias") == ("1", "@staging")
    assert served("by-number") == ("1", ":1")
    assert entries()["by-number"]["challenger"] is None  # pinned, it has none
    assert "'not-there'" in entries()["not-there"]["missing"]
    assert "'too-new' has no version 7" in entries()["too-new"]["missing"]
    assert "not-listed" not in entries()

    png = encode_png(make_image(1))

    def status(name: str) -> tuple[int, str]:
        response = httpx.post(f"{service.url}/v1/models/{name}/predict", content=png)
        return response.status_code, response.json().get("code", "")

    assert status("by-number") == (200, "")
    assert status("too-new") == (503, "no_model")
    assert status("not-listed") == (404, "not_found")

    client.set_registered_model_alias("by-alias", "staging", "2")
    until(lambda: served("by-alias") == ("2", "@staging"))
    assert served("by-number") == ("1", ":1")

    # Without the registry, what is stored is served for the pin that it was served for, and for no other.
    assert service.terminate() == 0
    again = start_service(STRIDE_MODELS="by-alias,by-number:1,by-default:1")
    again.wait()
    names = {
        entry["name"]: entry["serving"]["version"] for entry in httpx.get(f"{again.url}/v1/models").json()["models"]
    }
    assert names == {"by-number": "1"}
