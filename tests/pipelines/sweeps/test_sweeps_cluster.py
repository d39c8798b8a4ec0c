from __future__ import annotations

import time

import pytest

from contracts.errors import DeviceError
from pipelines.sweeps import cluster


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "nowhere"])
def test_a_cluster_that_does_not_answer_is_told_at_once(
    address: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = address.format(port=free_port)
    monkeypatch.setenv("RAY_ADDRESS", given)
    started = time.monotonic()
    with pytest.raises(DeviceError, match="no Ray cluster answers there") as raised, cluster.running(cpus=1, gpus=None):
        pass
    assert repr(given) in raised.value.message
    assert "unset it for an embedded one" in raised.value.message
    assert time.monotonic() - started < 10
