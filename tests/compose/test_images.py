"""What is in the images, and what is not."""

from __future__ import annotations

import pytest

from tests.compose.stack import Stack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def importable(stack: Stack, service: str, *modules: str) -> set[str]:
    """Those of the modules that can be imported in the service's container."""
    code = f"""
import importlib
for name in {modules!r}:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    print(name)
"""
    return set(stack.compose("exec", "-T", service, "python", "-c", code).stdout.splitlines()) & set(modules)


@pytest.mark.parametrize("service", ["inference", "tracking", "training"])
def test_an_image_holds_no_build_tools(stack: Stack, service: str) -> None:
    tools = stack.compose("exec", "-T", service, "sh", "-c", "command -v gcc cc g++ make ld uv pip", check=False).stdout
    assert tools.replace("/usr/bin/pip", "").replace("/usr/local/bin/pip", "").strip() == ""  # the base image's own


def test_inference_holds_onnxruntime_and_nothing_of_training(stack: Stack) -> None:
    wanted, refused = {"onnxruntime", "bentoml"}, {"torch", "mlflow.pytorch", "services.training", "pipelines"}
    assert importable(stack, "inference", *wanted, *refused) == wanted


def test_mlflow_s_image_holds_no_torch(stack: Stack) -> None:
    assert importable(stack, "tracking", "mlflow", "psycopg2", "torch") == {"mlflow", "psycopg2"}
