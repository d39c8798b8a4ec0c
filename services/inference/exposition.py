"""All workers' metrics as one page, whichever worker is asked; and what becomes of a dead worker's.

prometheus_client keeps each worker's values in files of a directory that BentoML makes and names. A killed worker
leaves its files behind: its gauges would be shown for ever, so they are removed; its counts must stay, or they would
run backwards, and are added up in one file, so that a worker that dies again and again does not fill the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from contracts.registry import CHALLENGER
from services.inference import logs

_BURIED: Final = 0
"""Stands for the process id in the name of the file of what dead workers counted; no worker has it."""
_CHALLENGERS: Final = 10
"""Versions of each model whose comparison is shown, beside the served one's; the files keep every one that ever was,
and without a bound each of them would be a series for ever."""
_HIDDEN: Final[dict[str, Callable[[float], bool]]] = {
    # The files cannot forget a series, so a value says that it is no more.
    "stride_model_info": lambda value: value == 0,
    "stride_drift_psi": lambda value: value < 0,
}


def expose(*, gpu: bool = False) -> tuple[bytes, str]:
    """All of this service's metrics in Prometheus' text format, and its media type. Reads files: not for the loop.

    Args:
        gpu: tell of the GPUs' memory too.
    """
    import prometheus_client as prom
    from prometheus_client import multiprocess

    if (directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) is None:
        return prom.generate_latest(_Shown(prom.REGISTRY.collect, gpu=gpu)), prom.CONTENT_TYPE_LATEST
    with _alone(Path(directory)):
        bury(Path(directory))
        collector = multiprocess.MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        return prom.generate_latest(_Shown(collector.collect, gpu=gpu)), prom.CONTENT_TYPE_LATEST


def bury(directory: Path) -> None:
    """Remove the gauges of dead workers, and take their counts into one file."""
    from prometheus_client.mmap_dict import MmapedDict

    dead: dict[str, list[Path]] = defaultdict(list)
    lives = functools.cache(_lives)
    for path in directory.glob("*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdecimal() and int(pid) != _BURIED and not lives(int(pid)):
            dead[path.name.partition("_")[0]].append(path)
    for path in dead.pop("gauge", []):
        path.unlink(missing_ok=True)
    for kind, paths in dead.items():
        grave = directory / f"{kind}_{_BURIED}.db"
        counts: dict[str, float] = defaultdict(float)
        for path in (*paths, *([grave] if grave.exists() else [])):
            # A worker that was killed while it made its file may leave one that cannot be read.
            with contextlib.suppress(RuntimeError, ValueError, struct.error):
                values = list(MmapedDict.read_all_values_from_file(str(path)))  # type: ignore[no-untyped-call]
                for key, value, *_ in values:
                    counts[key] += value
        staged = directory / f"{kind}.staged"
        staged.unlink(missing_ok=True)
        kept = MmapedDict(str(staged))  # type: ignore[no-untyped-call]
        for key, value in counts.items():
            kept.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
        kept.close()  # type: ignore[no-untyped-call]
        staged.replace(grave)
        for path in paths:
            path.unlink(missing_ok=True)


@functools.cache
def begin(pid: int) -> None:
    """Put the files of dead workers in order when a worker starts, so that they do not wait for somebody who looks.

    The gauges of an earlier process of this number go too, before they are taken for our own: once a process, since
    afterwards they are.
    """
    directory = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR") or "")
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ and directory.is_dir():
        with _alone(directory):
            for path in directory.glob(f"gauge_*_{pid}.db"):
                path.unlink(missing_ok=True)
            bury(directory)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One worker at a time: between the burying of counts and the removal of their files, a reader would see both."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, also by a crash
        yield


def last(samples: list[Any], served: Collection[tuple[str, str]]) -> list[Any]:
    """Those of the challengers that are served, and of the last ones of each model, which have the highest numbers."""
    versions: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        versions[sample.labels["model"]].add(sample.labels["challenger"])
    kept = {(model, one) for model, all_ in versions.items() for one in sorted(all_, key=_number)[-_CHALLENGERS:]}
    return [one for one in samples if (one.labels["model"], one.labels["challenger"]) in kept.union(served)]


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0


class _Shown:
    """A registry's metrics without the series that are no more, and with the GPUs' memory."""

    def __init__(self, collect: Callable[[], Iterable[Any]], *, gpu: bool) -> None:
        self._collect = collect
        self._gpu = gpu

    def collect(self) -> Iterator[Any]:
        metrics = list(self._collect())
        served = {
            (sample.labels["model"].removesuffix(f"@{CHALLENGER}"), sample.labels["version"])
            for metric in metrics
            for sample in metric.samples
            if metric.name == "stride_model_info" and sample.value
        }
        for metric in metrics:
            if (hidden := _HIDDEN.get(metric.name)) is not None:
                metric.samples = [sample for sample in metric.samples if not hidden(sample.value)]
            elif metric.samples and "challenger" in metric.samples[0].labels:
                metric.samples = last(metric.samples, served)
            yield metric
        if self._gpu:
            yield _gpu_memory()


def _gpu_memory() -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily("stride_gpu_memory_bytes", "Memory of the GPUs, whoever uses it", labels=["gpu", "kind"])
    nvml = _nvml()
    if nvml is None:
        return family
    for gpu in range(nvml.nvmlDeviceGetCount()):
        memory = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(gpu))
        family.add_metric([str(gpu), "used"], float(memory.used))
        family.add_metric([str(gpu), "total"], float(memory.total))
    return family


@functools.cache
def _nvml() -> Any | None:
    """NVIDIA's management library, started; None where it is not here."""
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - a missing library, driver or right: the page must come all the same
        logs.warning("gpu_memory_unknown", reason=str(error))
        return None
    return pynvml


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process has the number by now; no worker of ours does
        return False
    return True
