"""contracts.cpu: what a processor says of itself."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from contracts import cpu


def told(tmp_path: Path, flags: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: Test 9000\nflags\t\t: {flags}\n")
    return path


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni"])
def test_vnni_makes_int8_products_exact(tmp_path: Path, flag: str) -> None:
    assert cpu.lacks_int8(told(tmp_path, f"fpu avx2 {flag} sse2")) is None


@pytest.mark.usefixtures("x86")
@pytest.mark.parametrize("flags", ["fpu avx2 avx512f", ""])
def test_x86_without_vnni_is_told_to_lack_it(tmp_path: Path, flags: str) -> None:
    assert cpu.lacks_int8(told(tmp_path, flags)) == "this x86_64 processor has no VNNI instructions"


@pytest.mark.usefixtures("x86")
def test_a_processor_that_nothing_is_known_of_is_not_trusted(tmp_path: Path) -> None:
    assert "does not say" in str(cpu.lacks_int8(tmp_path / "missing"))


def test_arm_adds_products_in_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert cpu.lacks_int8(tmp_path / "missing") is None


def test_the_processor_is_called_by_its_name(tmp_path: Path) -> None:
    assert cpu.name(told(tmp_path, "")) == "Test 9000"
    assert cpu.name(tmp_path / "missing")
