"""Which server is measured."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from powerserve.core.errors import UsageError

CHAT_PATH = "/v1/chat/completions"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what it wants to be told. Raises UsageError for a URL that is none."""

    url: str  # of the server or of its /v1
    model: str = ""  # empty: the request names none
    api_key: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_sound = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_sound = False
        if not is_sound:
            raise UsageError(
                f"{self.url!r} is not the URL of a server, as in http://localhost:8080"
            )

    @property
    def host(self) -> str:
        """Name or address."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, if only by the scheme."""
        parts = urlsplit(self.url)
        return parts.port or _PORTS[parts.scheme]

    @property
    def chat_path(self) -> str:
        """Where chats are answered."""
        return urlsplit(self.url).path.rstrip("/").removesuffix("/v1") + CHAT_PATH

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What HTTPS needs; None for HTTP."""
        if urlsplit(self.url).scheme == "http":
            return None
        import ssl  # slow to import

        return ssl.create_default_context()

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Headers of every request."""
        headers = [("host", urlsplit(self.url).netloc), ("content-type", "application/json")]
        if self.api_key:
            headers.append(("authorization", f"Bearer {self.api_key}"))
        return headers
