"""nginx in front: one port, TLS, keys and passwords, limits, and one id a request from end to end."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.compose.running import Image, Restarted, predict, right
from tests.compose.stack import Stack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


@pytest.fixture
def fronted(restarted: Restarted) -> Stack:
    """It stands behind nginx."""
    return restarted.stack


def test_everything_answers_over_tls_on_one_port(fronted: Stack, digits: list[Image]) -> None:
    assert right(digits, predict(fronted, digits)) >= 0.9
    assert "experiments" in fronted.get("tracking", "/api/2.0/mlflow/experiments/search?max_results=1")
    assert "jobs" in fronted.get("training", "/v1/jobs")
    prometheus = ("127.0.0.1", fronted.ports["STRIDE_PROMETHEUS_PORT"])
    assert fronted.published() - {prometheus} == {("127.0.0.1", fronted.ports["STRIDE_EDGE_PORT"])}


def test_nginx_is_hardened_as_the_others_are(fronted: Stack) -> None:
    each = fronted.containers()["edge"]
    host = each["HostConfig"]
    assert (each["Config"]["User"], host["CapDrop"], host["ReadonlyRootfs"]) == ("10001:10001", ["ALL"], True)
    assert "no-new-privileges:true" in host["SecurityOpt"]


def test_who_has_no_key_or_password_is_refused(fronted: Stack, digits: list[Image]) -> None:
    image = digits[0][0]
    with pytest.raises(AssertionError, match="401"):
        fronted.ask("inference", "/v1/predict", image, key=False)
    with pytest.raises(AssertionError, match="401"):
        fronted.ask("inference", "/v1/predict", image, {"X-API-Key": fronted.read("inference", "/run/metrics/keys")})
    with pytest.raises(AssertionError, match="401"):
        fronted.ask("tracking", "/api/2.0/mlflow/experiments/search?max_results=1", key=False)
    with pytest.raises(AssertionError, match="401"):
        fronted.ask("training", "/v1/jobs", key=False)


def test_what_is_not_for_outside_and_what_is_too_large_ends_here(fronted: Stack) -> None:
    with pytest.raises(AssertionError, match="404"):
        fronted.ask("inference", "/metrics")
    with pytest.raises(AssertionError, match=r"413 .*'\{\"type\":\"about:blank\",\"status\":413"):
        fronted.ask("inference", "/v1/predict", bytes(33 * 2**20))


def test_a_changed_file_of_keys_is_followed_without_a_restart(fronted: Stack, digits: list[Image]) -> None:
    former, keys = fronted.api_key, Path(fronted.environment["STRIDE_API_KEYS"])
    (keys / "next").write_text("the-key-of-tomorrow\n")
    (keys / "next").replace(keys / "keys")  # another file in its place, as editors and deployments do it
    fronted.api_key = "the-key-of-tomorrow"
    deadline = time.monotonic() + 20
    while True:
        try:
            assert predict(fronted, digits[:1])
            break
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    with pytest.raises(AssertionError, match="401"):
        fronted.ask("inference", "/v1/models", headers={"X-API-Key": former})


def test_a_request_keeps_its_id_from_the_client_to_the_service_s_log(fronted: Stack, digits: list[Image]) -> None:
    ids = [f"a-clients-own-{number}" for number in range(200)]  # one in ten is kept in the log of predictions
    for request_id in ids:
        given = {"Content-Type": "image/png", "X-Request-ID": request_id}
        answer = fronted.ask("inference", "/v1/predict", digits[0][0], given)
        assert answer.headers["x-request-id"] == request_id
    made = fronted.ask(
        "training", "/v1/jobs", b'{"kind": "train", "recipe": "digits"}', {"X-Request-ID": "a-job-s-own"}
    )
    job = json.loads(made.body)["id"]
    fronted.ask("training", f"/v1/jobs/{job}", method="DELETE")

    kept = logged(fronted)
    assert kept & set(ids)
    assert set(ids) <= requests_of_nginx(fronted)
    lines = map(json.loads, fronted.log("training"))
    (queued,) = (line for line in lines if line["event"] == "job_queued" and line["job"] == job)
    assert queued["request_id"] == made.headers["x-request-id"] == "a-job-s-own"


@pytest.mark.parametrize("given", [None, "<script>", "x" * 129])
def test_without_a_harmless_id_a_request_gets_one(fronted: Stack, digits: list[Image], given: str | None) -> None:
    headers = {"Content-Type": "image/png", **({"X-Request-ID": given} if given is not None else {})}

    made = fronted.ask("inference", "/v1/predict", digits[0][0], headers).headers["x-request-id"]

    assert re.fullmatch("[0-9a-f]{32}", made)
    assert made in requests_of_nginx(fronted)


def requests_of_nginx(fronted: Stack) -> set[str]:
    """The ids of the requests in nginx's log, where its own errors stand as text."""
    return {json.loads(line)["request_id"] for line in fronted.log("edge") if line.startswith("{")}


def logged(fronted: Stack) -> set[str]:
    """The ids in inference's log of predictions, which is written in the background."""
    deadline = time.monotonic() + 20
    while True:
        code = "cat /var/lib/stride/predictions/*.jsonl"
        done = fronted.compose("exec", "-T", "inference", "sh", "-c", code, check=False)
        found = {json.loads(line)["request_id"] for line in done.stdout.splitlines()}
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)
