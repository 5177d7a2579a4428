"""What the person who starts the server may choose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from powerserve.cache.prefix_store import PrefixFolder
from powerserve.core.errors import UsageError

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for HTTPS."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Access:
    """Who may talk to the server, and how. Times in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any that is free
    api_keys: tuple[str, ...] = ()
    insecure: bool = False  # allow other machines without a key
    allowed_hosts: tuple[str, ...] = ()  # in the Host header, beside the server's own names
    cors_origins: tuple[str, ...] = ()  # beside localhost; "*": any
    tls: TlsFiles | None = None
    max_body_bytes: int = 16 * MEBIBYTE
    body_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if any(not key for key in self.api_keys):
            raise UsageError("an API key must not be empty")
        if not self.is_local and not self.api_keys and not self.insecure:
            raise UsageError(
                f"--host {self.host} lets other machines in, so an API key is needed: give one "
                "with --api-key-file, or --insecure to let everyone in"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the server takes on. Times in seconds."""

    max_running: int = 16  # generations of one model in a step
    max_queued: int = 64  # generations that wait beyond those
    request_timeout_s: float = 600.0
    shutdown_timeout_s: float = 30.0  # for running requests to finish
    max_tokens: int | None = None  # of one answer, whatever the client asks for
    memory_bytes: int | None = None  # for all loaded models; None: what the machine has
    keep_alive_s: float | None = None  # until an idle model is unloaded; None: never


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All of them."""

    access: Access = Access()
    limits: Limits = Limits()
    compat: bool = False  # the original server's error body and counting
    allow_pull: bool = False  # clients may have models downloaded
    prefixes: PrefixFolder | None = None  # None: none outlives the process
