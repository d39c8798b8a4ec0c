"""services.training.helpers: what computes beside the fit takes no threads of OpenMP's from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, sys, torch
from pathlib import Path
from services.training.checkpoints import Checkpoints

def tasks():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
images = torch.ones(64, 64, 64, 64)
images.contiguous(memory_format=torch.channels_last)
with Checkpoints(Path(sys.argv[1]), "ours", every_s=60.0) as kept:
    before = tasks()
    kept._writer.submit(images.contiguous, memory_format=torch.channels_last).result()
    print(tasks() - before, torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_checkpoint_is_written_by_one_thread_and_the_fit_keeps_its_own(tmp_path: Path) -> None:
    """A second team of threads, and libgomp lets those of the fit sleep wherever they wait for each other."""
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]
