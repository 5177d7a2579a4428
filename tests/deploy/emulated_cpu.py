"""Run programs for 64-bit ARM on an emulated processor, in a root folder like a phone's.

qemu-aarch64 runs the programs. A user and mount namespace of their own gives them a private
binfmt_misc, so that they can start each other, and a root without any library of the host: the
shell is mksh, as on Android, and the tools are busybox's, both statically linked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from powerserve.deploy.bundle import debian
from powerserve.storage.progress import SILENT

QEMU = "qemu-aarch64-static"
# Armv8.0; 8.2 with dot products; everything, with pointer authentication that is fast to emulate
CPUS = ("cortex-a57", "cortex-a76", "max,pauth-impdef=on")
DEVICE_ENVIRONMENT = {
    "PATH": "/system/bin",
    "HOME": "/",
    "ANDROID_ROOT": "/system",
    "ANDROID_DATA": "/data",
}
_MKSH = "usr/lib/aarch64-linux-musl/bin/mksh"
_BUSYBOX = "usr/bin/busybox"
_TOOLS = (
    *("awk", "basename", "cat", "chmod", "cp", "cut", "date", "dd", "df", "dirname", "du"),
    *("echo", "env", "expr", "false", "find", "grep", "gunzip", "gzip", "head", "id", "kill"),
    *("ln", "ls", "mkdir", "mktemp", "mv", "ps", "pwd", "readlink", "rm", "rmdir", "sed"),
    *("setsid", "sha256sum", "sleep", "sort", "stat", "tail", "tar", "tee", "test", "touch"),
    *("tr", "true", "uname", "wc", "which", "xargs", "zcat"),
)

# Magic and mask of aarch64 programs; F opens the emulator now, before the root changes; P keeps
# the program's own argv[0]. Source: Linux, Documentation/admin-guide/binfmt-misc.rst.
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_ENTER = """
set -e
mount --bind "$1" "$1" # so that df finds a file system there
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' "$2" > /proc/sys/fs/binfmt_misc/register
mount --rbind /proc "$1/proc"
for device in null zero random urandom; do mount --bind "/dev/$device" "$1/dev/$device"; done
root=$1
shift 2
exec chroot "$root" "$@"
"""


def run_on(
    cpu: str,
    argv: Sequence[str],
    root: Path,
    *,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout_s: float = 900,
) -> subprocess.CompletedProcess[bytes]:
    """Run `argv` (paths as the device sees them) on the emulated `cpu` below `root`."""
    return subprocess.run(
        command_on(argv, root),
        env=environment_on(cpu, environment),
        input=stdin,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )


def command_on(argv: Sequence[str], root: Path) -> list[str]:
    """The host's command that runs `argv` below `root`; start it with `environment_on(cpu)`."""
    register = f":qemu-aarch64:M::{_MAGIC}:{_MASK}:{shutil.which(QEMU)}:FP"
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    return [*unshare, "sh", "-c", _ENTER, "sh", str(root), register, *argv]


def environment_on(cpu: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process on the device, with the emulator's own setting.

    The PATH is the host's as well: the namespace is entered with its tools.
    """
    path = f"{DEVICE_ENVIRONMENT['PATH']}:{os.environ['PATH']}"
    return {**DEVICE_ENVIRONMENT, "PATH": path, "QEMU_CPU": cpu, **(more or {})}


def make_root(root: Path) -> None:
    """Fill the folder `root` with what a phone has: a shell, its tools, /data/local/tmp."""
    require_emulator()
    tools = root / "system/bin"
    tools.mkdir(parents=True)
    mksh, busybox = debian.fetch_packages(("mksh", "busybox-static"), "arm64", SILENT)
    _extract(mksh, _MKSH, tools / "sh")
    _extract(busybox, _BUSYBOX, tools / "busybox")
    for tool in _TOOLS:
        (tools / tool).symlink_to("busybox")
    (root / "data/local/tmp").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "dev").mkdir()
    for device in ("null", "zero", "random", "urandom"):
        (root / "dev" / device).touch()


def require_emulator() -> None:
    """Skip the test where programs for ARM cannot be run."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is missing (apt-get install qemu-user-static)")
    if shutil.which("dpkg-deb") is None:
        pytest.skip("the device's shell comes from Debian packages, and there is no dpkg-deb")
    probe = "mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "sh", "-c", probe], capture_output=True).returncode != 0:
        pytest.skip("this system gives no binfmt_misc to a user namespace (Linux 6.7 does)")


def _extract(package: Path, member: str, target: Path) -> None:
    for name, _, content in debian.files_in(package):
        if name == member:
            target.write_bytes(content)
            target.chmod(0o755)
            return
    raise LookupError(f"{package.name} has no {member}")
