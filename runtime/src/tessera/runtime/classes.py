"""Build class and profile class of this machine, as text (docs/seams.md). Imports no backend: node agents use it too."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from functools import cache

from tessera.domain.ids import BuildClass, ProfileClass

_X86_LEVELS = (
    ("amx_int8", "amx_int8"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512f", "avx512"),
    ("avx_vnni", "avx_vnni"),
    ("avx2", "avx2"),
    ("avx", "avx"),
)
"""CPU flag -> name, best first. ONNX Runtime picks kernels and weight layouts by these."""
_ARM_LEVELS = (("sve2", "sve2"), ("sve", "sve"), ("i8mm", "i8mm"), ("bf16", "bf16"), ("asimddp", "dotprod"), ("asimd", "neon"))
_BFLOAT16 = ("amx_int8", "avx512_bf16", "i8mm", "bf16")
"""Every CPU that has AMX for int8 has it for bfloat16; on ARM `i8mm` and `bf16` came with one revision."""


def build_class(cpuinfo: str | None = None, machine: str | None = None, ort_version: str | None = None) -> BuildClass:
    """`<machine>-<isa>-ort<version>`: where a baked variant may run. Arguments are for tests; by default this machine's, found once."""
    if cpuinfo is None and machine is None and ort_version is None:
        return _this_build_class()
    return _build_class(cpuinfo, machine, ort_version)


@cache
def _this_build_class() -> BuildClass:
    return _build_class(None, None, None)


def _build_class(cpuinfo: str | None, machine: str | None, ort_version: str | None) -> BuildClass:
    machine = machine or platform.machine()
    flags = _flags(_cpuinfo() if cpuinfo is None else cpuinfo)
    levels = _ARM_LEVELS if machine in ("aarch64", "arm64") else _X86_LEVELS
    isa = next((name for flag, name in levels if flag in flags), "base")
    return BuildClass(f"{machine}-{isa}-ort{ort_version or _ort_version()}")


def has_bfloat16(build_class: BuildClass) -> bool:
    """Whether every CPU of the class multiplies bfloat16 in hardware."""
    return build_class.split("-")[1] in _BFLOAT16


def profile_class(cpuinfo: str | None = None, cores: int | None = None, build: BuildClass | None = None) -> ProfileClass:
    """Build class, CPU model and usable cores: where a profile holds."""
    text = _cpuinfo() if cpuinfo is None else cpuinfo
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    slug = re.sub(r"[^a-z0-9]+", "-", (found[1] if found else "unknown").lower()).strip("-")
    return ProfileClass(f"{build or build_class(text)}-{slug}-{cores or len(os.sched_getaffinity(0))}c")


def _cpuinfo() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return file.read()


def _flags(cpuinfo: str) -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _ort_version() -> str:
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return "none"
