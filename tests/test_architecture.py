"""The rules of the house, read from the sources: who may import whom, no pickle, no addresses in locks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("contracts", "services", "pipelines", "infra")
CONTRACTS_MAY = {"numpy", "PIL", "pydantic", "contracts"} | set(sys.stdlib_module_names)
LOCKS = (
    "requirements-dev.txt",
    "infra/requirements-uv.txt",
    *(f"services/{service}/requirements.txt" for service in ("training", "inference", "tracking")),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "benchmarks").glob("*/requirements*.txt"))),
)


def sources(*directories: str) -> list[Path]:
    return sorted(path for directory in directories for path in (ROOT / directory).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who is imported"
            # `from services.training import runs` names a module in its second half.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def offenders(directories: tuple[str, ...], *, refused: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(*directories)
        for module in imports(path)
        if within(module, *refused) and not within(module, *but)
    ]


def test_the_sources_are_found() -> None:
    assert len(sources("contracts")) >= 6
    assert len(sources("services/training")) >= 8
    assert len(sources("services/inference")) >= 8
    assert len(sources("pipelines")) >= 8


def test_contracts_depend_on_numpy_pillow_and_pydantic_only() -> None:
    found = {(path.name, module) for path in sources("contracts") for module in imports(path)}
    assert [item for item in sorted(found) if item[1].split(".")[0] not in CONTRACTS_MAY] == []


def test_training_imports_no_other_room() -> None:
    refused = ("services.inference", "services.tracking", "pipelines", "infra")
    assert offenders(("services/training",), refused=refused) == []


def test_inference_imports_no_torch_no_training_and_no_pipelines() -> None:
    refused = ("torch", "torchvision", "mlflow.pytorch", "services.training", "services.tracking", "pipelines", "infra")
    assert offenders(("services/inference",), refused=refused) == []


def test_tracking_is_configuration_and_imports_contracts_only() -> None:
    assert offenders(("services/tracking",), refused=OURS, but=("contracts", "services.tracking")) == []


def test_pipelines_reach_inference_over_http_alone() -> None:
    allowed = ("contracts", "pipelines", "services.training", "services.tracking")
    assert offenders(("pipelines",), refused=OURS, but=allowed) == []


def test_nothing_imports_pipelines_or_infra() -> None:
    assert offenders(("contracts", "services"), refused=("pipelines", "infra")) == []


def test_nothing_is_pickled_and_torch_loads_weights_only() -> None:
    refused = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    assert offenders(("contracts", "services", "pipelines"), refused=refused) == []
    unsafe = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sources("contracts", "services", "pipelines")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and _unpickles(call)
    ]
    assert unsafe == []


def _unpickles(call: ast.Call) -> bool:
    """torch.load without weights_only=True, torch.save, numpy.load with allow_pickle=True."""
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}

    def is_true(key: str) -> bool:
        value = given.get(key)
        return isinstance(value, ast.Constant) and value.value is True

    if name == "torch.load":
        return not is_true("weights_only")
    return name == "torch.save" or (name in ("np.load", "numpy.load") and is_true("allow_pickle"))


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=True)", False),
        ("torch.save(state, path)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
    ],
)
def test_the_rule_on_pickles_tells_calls_apart(source: str, refused: bool) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _unpickles(call) is refused


def test_no_module_uses_print() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("contracts", "services", "pipelines")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def packages(lock: str) -> dict[str, str]:
    """The pinned packages of a lock: name -> version."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_inference_lock_holds_nothing_of_the_fit() -> None:
    found = packages("services/inference/requirements.txt")
    assert {"bentoml", "onnxruntime-gpu"} <= set(found)
    assert set(found).isdisjoint({"torch", "torchvision", "mlflow", "scikit-learn", "matplotlib", "stride"})


@pytest.mark.parametrize("service", ["training", "inference", "tracking"])
def test_a_service_runs_the_versions_that_are_tested(service: str) -> None:
    tested = packages("requirements-dev.txt")
    found = packages(f"services/{service}/requirements.txt")
    assert found
    assert {name: version for name, version in found.items() if tested.get(name) != version} == {}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_package_by_hash_and_holds_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert re.findall(r"\w+://\S+|--(?:extra-)?index-url|--find-links|--trusted-host|(?<![\w.])/\w+/", text) == []


def test_contracts_are_imported_quickly_and_without_the_frameworks() -> None:
    code = "import sys, time, contracts.recipe, contracts.bundle; print(time.process_time(), *sys.modules)"
    seconds, *loaded = _run(code)
    assert not {"torch", "mlflow", "onnxruntime", "bentoml", "sklearn"} & set(loaded)
    assert float(seconds) < 3  # 0.3 on an idle machine; processor time, with room for slow ones


def test_the_help_imports_nothing_heavy() -> None:
    code = """
import contextlib, io, sys
from pipelines.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
print(*sys.modules)
"""
    loaded = set(_run(code))
    assert "pipelines.cli.models" in loaded
    assert not {"torch", "mlflow", "httpx", "sklearn", "numpy", "onnxruntime", "bentoml", "psutil", "yaml"} & loaded


def _run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()
