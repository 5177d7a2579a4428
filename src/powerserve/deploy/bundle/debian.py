"""Debian packages for any architecture, fetched by apt in a configuration of its own.

apt verifies the archive's signature and every package's checksum. Its lists and packages go to
our cache: the host's package state is neither read nor touched, only its proxies are taken over.
Source: apt.conf(5), sources.list(5).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from powerserve.core.errors import BundleError
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.progress import Progress

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"  # signed, so that plain HTTP is safe
SECURITY_MIRROR = "http://deb.debian.org/debian-security"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_HOST_SETTINGS = ("Acquire::http", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv")


def fetch_packages(names: tuple[str, ...], architecture: str, progress: Progress) -> list[Path]:
    """The `.deb` files of the named packages, fetched unless they are in the cache.

    Raises:
        BundleError: there is no apt, no network, or no such package.
    """
    root = _root()
    packages = root / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(root / "lock", waiting=lambda: progress.note("waiting for another build")):
        missing = [name for name in names if _find(packages, name, architecture) is None]
        if missing:
            progress.note(f"fetching {len(missing)} Debian packages ({SUITE}, {architecture})")
            _download(missing, architecture, root, packages)
    found = {name: _find(packages, name, architecture) for name in names}
    if absent := [name for name, path in found.items() if path is None]:
        raise BundleError(f"Debian {SUITE} gave no {', '.join(absent)} for {architecture}")
    return [path for path in found.values() if path is not None]


def forget_packages() -> None:
    """Delete the packages in the cache, so that the newest revisions are fetched."""
    shutil.rmtree(_root() / "packages", ignore_errors=True)


def files_in(package: Path) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """The files of a `.deb`: path without leading `./`, entry and content (none for links).

    Raises:
        BundleError: the package is damaged.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield from _files(archive)
        except tarfile.TarError:
            raise BundleError(f"{package} is damaged; `--force` fetches it again") from None


def version_of(package: Path) -> str:
    """`libc6_2.41-12_arm64.deb` -> `libc6 2.41-12`, without the epoch's escape."""
    name, version, _ = package.name.split("_")
    return f"{name} {version.replace('%3a', ':')}"


def _files(archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    for entry in archive:
        content = archive.extractfile(entry) if entry.isreg() else None
        if not entry.isdir():
            yield entry.name.removeprefix("./"), entry, b"" if content is None else content.read()


def _root() -> Path:
    return cache_folder() / "deploy" / "debian" / SUITE


def _find(folder: Path, name: str, architecture: str) -> Path | None:
    """The newest package of that name in the cache."""
    found = [*folder.glob(f"{name}_*_{architecture}.deb"), *folder.glob(f"{name}_*_all.deb")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _download(names: list[str], architecture: str, root: Path, packages: Path) -> None:
    _check_tools()
    configuration = _write_apt_configuration(root / f"apt-{architecture}", architecture)
    incoming = root / "incoming"  # a killed apt leaves half a package
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    _apt(["update"], configuration, incoming)
    _apt(["download", *(f"{name}:{architecture}" for name in names)], configuration, incoming)
    for package in incoming.glob("*.deb"):
        package.replace(packages / package.name)


def _check_tools() -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise BundleError(
                f"there is no {tool} here: bundles are built on Debian, Ubuntu or their relatives "
                "(a container will do)"
            )
    if not KEYRING.exists():
        raise BundleError(
            "Debian's keys are missing; get them with: "
            "sudo apt-get install -y debian-archive-keyring"
        )


def _write_apt_configuration(folder: Path, architecture: str) -> Path:
    """A configuration file under which apt knows nothing of this machine's packages."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    options = f"[arch={architecture} signed-by={KEYRING}]"
    sources = [f"deb {options} {MIRROR} {suite} main" for suite in (SUITE, f"{SUITE}-updates")]
    sources.append(f"deb {options} {SECURITY_MIRROR} {SUITE}-security main")
    (folder / "etc/sources.list").write_text("\n".join(sources) + "\n")
    settings = {
        "Dir": str(folder),
        "Dir::State": "state",
        "Dir::State::status": "state/status",
        "Dir::Cache": "cache",
        "Dir::Etc": "etc",
        "Dir::Etc::sourcelist": "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": architecture,
        "APT::Sandbox::User": "root",  # our own folders are closed to apt's user
        "APT::Update::Error-Mode": "any",
        "Acquire::Languages": "none",
    }
    lines = [f'{name} "{value}";' for name, value in settings.items()]
    lines.append(f'APT::Architectures {{"{architecture}";}};')
    file = folder / "apt.conf"
    file.write_text("\n".join([*_host_settings(), *lines]) + "\n")
    return file


def _host_settings() -> list[str]:
    """How the host's apt reaches its archives: proxies, certificates, clocks that are wrong."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.startswith(_HOST_SETTINGS)]


def _apt(arguments: list[str], configuration: Path, folder: Path) -> None:
    environment = os.environ | {"APT_CONFIG": str(configuration), "LC_ALL": "C"}
    done = subprocess.run(
        ["apt-get", "--quiet", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        errors = re.findall(r"^E: (.*)", done.stderr, re.MULTILINE) or ["apt gives no reason"]
        raise BundleError(f"Debian packages cannot be fetched: {errors[0]}")
