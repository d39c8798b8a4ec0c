"""`stride doctor`: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from contracts import places
from contracts.errors import StrideError

Status = Literal["ok", "warn", "fail"]

PACKAGES: Final = ("torch", "torchvision", "mlflow", "bentoml", "onnx", "numpy", "pydantic")
_DATA_SETS: Final = {
    "mnist": ("MNIST/raw",),
    "fashion": ("FashionMNIST/raw",),
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar10-jpeg.tar.gz"),
}
_GIB: Final = 2**30
# As the kernel spells them in /proc/cpuinfo (x86 | Arm), and what each is good for.
_CPU_FEATURES: Final = {
    "bf16": (("avx512_bf16", "amx_bf16", "bf16"), "fits in bf16 on the CPU are fast"),
    "int8": (("avx512_vnni", "avx_vnni", "asimddp"), "int8 graphs on the CPU are fast"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, how it is, and what to do where it is not ok."""

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def examine(*, port: int = 3000, mlflow_port: int = 5000) -> list[Check]:
    """Look at everything; a look that itself fails is a failed check, not an error."""
    looks: tuple[tuple[str, Callable[[], Iterable[Check]]], ...] = (
        ("python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("onnxruntime", _onnxruntime),
        ("cpu", _cpu),
        ("home", _home),
        ("tracking", _tracking),
        ("journal", _journal),
        ("mlflow", lambda: _address("mlflow", mlflow_port, "/health")),
        ("inference", lambda: _address("inference", port, "/readyz")),
        ("data", _data),
    )
    checks: list[Check] = []
    for name, look in looks:
        try:
            checks += look()
        except StrideError as error:
            detail, _, remedy = error.message.rstrip(".").partition("; ")
            checks.append(Check(name, "fail", detail, remedy))
        except Exception as error:  # noqa: BLE001 - a broken installation raises anything, and that is the finding
            reason = (str(error).splitlines() or [""])[0]
            checks.append(Check(name, "fail", f"{type(error).__name__}: {reason}", "install again with 'make setup'"))
    return checks


def summary(checks: list[Check]) -> dict[str, Any]:
    """What `--json` prints: `ok` is false where a check failed, warnings leave it true."""
    return {"ok": all(check.status != "fail" for check in checks), "checks": [check.to_json() for check in checks]}


def _python() -> Iterable[Check]:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Check("python", "ok", f"{version}, {platform.platform(terse=True)}")
    else:
        yield Check("python", "fail", f"{version}, Stride is tested with 3.11", "make .venv with Python 3.11")


def _packages() -> Iterable[Check]:
    found: dict[str, str] = {}
    missing: list[str] = []
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Check("packages", "fail", f"{', '.join(missing)} not installed", "install with 'make setup'")
    else:
        yield Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in found.items()))


def _torch() -> Iterable[Check]:
    import torch

    from services.training.device import choose_device

    kind, name, reason = choose_device()
    detail = f"fits run on {kind}: {name} ({reason})"
    if kind == "cpu" and torch.version.cuda is not None and Path("/dev/nvidiactl").exists():
        yield Check("torch", "warn", detail, "a GPU seems to be there; compare `nvidia-smi` with torch's CUDA version")
    else:
        yield Check("torch", "ok", detail)


def _onnxruntime() -> Iterable[Check]:
    import onnxruntime

    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]  # type: ignore[attr-defined]
    # What it was built with, not what will load: only a session shows that, and the service says it in /readyz.
    yield Check("onnxruntime", "ok", f"{onnxruntime.__version__}, built with {', '.join(providers)}")


def _cpu() -> Iterable[Check]:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    flags = _cpu_flags()
    has = [name for name, (spellings, _) in _CPU_FEATURES.items() if flags.intersection(spellings)]
    lacks = [name for name in _CPU_FEATURES if name not in has]
    detail = f"{cores} cores; " + "; ".join(f"{name}: {_CPU_FEATURES[name][1]}" for name in has)
    if lacks and flags:
        detail += f"; no {', '.join(lacks)} instructions"
    yield Check("cpu", "ok", detail.strip("; "))


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":")[1].split()}


def _home() -> Iterable[Check]:
    home = places.home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield Check("home", "fail", f"{home} cannot be written", "set STRIDE_HOME to a directory that can")
        return
    free = shutil.disk_usage(existing).free / _GIB
    if free < 2:
        yield Check("home", "warn", f"{home}, {free:.1f} GiB free", "free some space or set STRIDE_HOME elsewhere")
    else:
        yield Check("home", "ok", f"{home}, {free:.0f} GiB free")


def _tracking() -> Iterable[Check]:
    uri = places.tracking_uri()
    if uri.startswith("sqlite"):
        yield Check("tracking", "ok", f"embedded: {uri.removeprefix('sqlite:///')}")
        return
    from pipelines.processes import answers

    if answers(uri.rstrip("/") + "/health"):
        yield Check("tracking", "ok", f"{uri} answers")
    else:
        yield Check("tracking", "fail", f"{uri} does not answer", "start it, or unset MLFLOW_TRACKING_URI")


def _journal() -> Iterable[Check]:
    from services.training import journal_sync

    waiting = [one for one in journal_sync.kept() if one.waits]
    if not waiting:
        yield Check("journal", "ok", "MLflow has all that was logged")
        return
    size = sum(one.bytes for one in waiting) / 2**20
    runs = ", ".join(one.run_id for one in waiting[:3]) + (", …" if len(waiting) > 3 else "")
    detail = f"MLflow does not have all of {len(waiting)} runs ({runs}), {size:.1f} MiB are kept"
    yield Check("journal", "warn", detail, "send it with 'stride sync', unless a fit is just running")


def _address(name: str, port: int, health: str) -> Iterable[Check]:
    from pipelines.processes import answers

    url = f"http://127.0.0.1:{port}"
    if answers(url + health):
        yield Check(name, "ok", f"{url} answers")
        return
    with socket.socket() as probe:
        probe.settimeout(1)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    if taken and name == "inference" and answers(url + "/livez"):
        yield Check(name, "warn", f"{url} runs but is not ready", "promote a model with 'stride ship digits'")
    elif taken:
        option = "--port" if name == "inference" else "--mlflow-port"
        yield Check(name, "warn", f"port {port} is taken by another program", f"choose another port with {option}")
    else:
        yield Check(name, "ok", f"not running; port {port} is free")


def _data() -> Iterable[Check]:
    root = places.data()
    found = [name for name, files in _DATA_SETS.items() if any((root / file).exists() for file in files)]
    missing = [name for name in _DATA_SETS if name not in found]
    detail = f"digits (embedded){''.join(f', {name}' for name in found)} in {root}"
    if not missing:
        yield Check("data", "ok", detail)
        return
    remedy = "they are downloaded on first use; or set STRIDE_DATA to where they are"
    yield Check("data", "ok" if found else "warn", f"{detail}; not there: {', '.join(missing)}", remedy)
