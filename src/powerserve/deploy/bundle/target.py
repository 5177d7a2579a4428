"""The kinds of devices that bundles are built for."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.core.errors import UsageError

MACHINE = "aarch64"  # all of them
ANDROID_PAGE_BYTES = 16384  # Android 15 devices may have pages of this size


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of device, and what a bundle for it is made of."""

    name: str
    title: str
    shell: str  # the device's own shell, for the first line of scripts
    has_python: bool = True  # whether the bundle brings Python (and glibc) along
    needs_ndk: bool = False  # built against Android's own C library, by the user's NDK
    has_npu: bool = False  # whether the NPU helper goes along where there is an NDK


_ANDROID_SHELL = "/system/bin/sh"
TARGETS = (
    Target("android-glibc", "Android, started through adb", _ANDROID_SHELL, has_npu=True),
    Target("linux-aarch64", "Linux on 64-bit ARM", "/bin/sh"),
    Target("harmonyos", "HarmonyOS NEXT (experimental)", _ANDROID_SHELL),
    Target(
        "android-ndk",
        "Android with Termux's Python (untested on hardware)",
        _ANDROID_SHELL,
        has_python=False,
        needs_ndk=True,
    ),
)
DEFAULT_TARGET = TARGETS[0]


def find_target(name: str) -> Target:
    """The target called `name`. Raises UsageError."""
    for target in TARGETS:
        if target.name == name:
            return target
    names = ", ".join(target.name for target in TARGETS)
    raise UsageError(f"there is no target {name!r}; choose one of: {names}")
