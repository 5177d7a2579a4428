"""The machine: its cores, memory and CPU features, as this process may use them."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Two words that the kernel hands to every process, and the names of their bits from the lowest
# on, as /proc/cpuinfo has them. Source: getauxval(3); Linux, arch/arm64/include/uapi/asm/hwcap.h.
AT_HWCAP, AT_HWCAP2 = 16, 26
_ARM64_HWCAPS = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32"),
    *("atomics", "fphp", "asimdhp", "cpuid", "asimdrdm", "jscvt", "fcma", "lrcpc"),
    *("dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm"),
    *("dit", "uscat", "ilrcpc", "flagm", "ssbs", "sb", "paca", "pacg"),
)
_ARM64_HWCAPS2 = (
    *("dcpodp", "sve2", "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2"),
    *("frint", "svei8mm", "svef32mm", "svef64mm", "svebf16", "i8mm", "bf16", "dgh"),
    *("rng", "bti", "mte", "ecv", "afp", "rpres", "mte3", "sme"),
)


def default_threads() -> int:
    """Threads worth using: the smallest of physical cores, CPU affinity and cgroup quota."""
    limits = [physical_cores(), allowed_cpus()]
    if (quota := cgroup_cpu_quota()) is not None:
        limits.append(max(1, int(quota)))
    return min(limits)


def allowed_cpus() -> int:
    """Logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Cores, not counting the extra hardware threads of a core; logical CPUs where unknown."""
    cores = set()
    for topology in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology"):
        package, core = _read(topology / "physical_package_id"), _read(topology / "core_id")
        if package is not None and core is not None:
            cores.add((package, core))
    return len(cores) or os.cpu_count() or 1


def cgroup_cpu_quota() -> float | None:
    """CPUs' worth of time that a container grants, or None if unlimited (cgroup v2, then v1)."""
    if (limit := _read(CGROUP / "cpu.max")) is not None:
        quota, _, period = limit.partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    quota_us, period_us = (
        _read(CGROUP / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period")
    )
    if quota_us is None or period_us is None or int(quota_us) <= 0:
        return None
    return int(quota_us) / int(period_us)


def available_memory() -> int | None:
    """Bytes that can be used without swapping, or None if the system does not say."""
    limits = [_meminfo("MemAvailable"), _cgroup_memory_left()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def total_memory() -> int | None:
    """Bytes of physical memory."""
    return _meminfo("MemTotal")


def cpu_name() -> str:
    """The CPU's name as the system prints it."""
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """The CPU features that the kernel lists (Linux; empty elsewhere).

    On ARM they come from what the kernel told this process: that holds in an emulator as well,
    where /proc/cpuinfo describes the machine below.
    """
    if platform.machine().lower() == "aarch64" and (flags := _arm64_flags()):
        return flags
    for line in _lines("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _arm64_flags() -> frozenset[str]:
    import ctypes  # slow to import

    try:
        auxiliary_value = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):
        return frozenset()
    auxiliary_value.restype = ctypes.c_ulong
    words = ((_ARM64_HWCAPS, AT_HWCAP), (_ARM64_HWCAPS2, AT_HWCAP2))
    values = ((names, auxiliary_value(ctypes.c_ulong(key))) for names, key in words)
    return frozenset(
        name for names, value in values for bit, name in enumerate(names) if value >> bit & 1
    )


def load_average() -> float:
    """Runnable processes, averaged over one minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def peak_memory() -> int:
    """Bytes of physical memory that this process has held at most."""
    if sys.platform == "win32":
        return 0
    for line in _lines("/proc/self/status"):
        # Not ru_maxrss, which counts what the parent held when it started this process.
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_memory() -> tuple[int, int]:
    """(virtual, resident) bytes of this process now; zeros where the system does not say."""
    text = _read(Path("/proc/self/statm"))
    if text is None:
        return (0, 0)
    virtual, resident = (int(pages) for pages in text.split()[:2])
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return (virtual * page_bytes, resident * page_bytes)


def _cgroup_memory_left() -> int | None:
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _read(CGROUP / limit_name), _read(CGROUP / used_name)
        if limit is not None and used is not None and limit != "max":
            return max(0, int(limit) - int(used))
    return None


def _meminfo(key: str) -> int | None:
    for line in _lines("/proc/meminfo"):
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def _lines(path: str) -> list[str]:
    text = _read(Path(path))
    return [] if text is None else text.splitlines()


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
