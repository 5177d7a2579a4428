"""Package indexes: which one this machine uses, and where it keeps a given wheel.

The settings of pip and uv are honoured, so that a mirror or a company's index is used and nothing
else. Sources: PEP 503 (HTML pages), PEP 691 (JSON), pip's and uv's documentation of their settings.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

from powerserve.core.errors import DownloadError
from powerserve.storage.network import NETWORK_ERRORS, explain, http_opener

PYPI = "https://pypi.org/simple"
TIMEOUT_S = 30.0
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_PIP_SCOPES = (":env:", "download", "install", "global")  # the first one that is set counts


@dataclass(frozen=True)
class IndexSettings:
    """Where packages come from, in the order to try, and how to get there."""

    urls: tuple[str, ...] = (PYPI,)
    ca_bundle: str | None = None
    proxy: str | None = None

    def opener(self) -> urllib.request.OpenerDirector:
        """An opener with these certificates and this proxy."""
        return http_opener(ca_bundle=self.ca_bundle, proxy=self.proxy)


@dataclass(frozen=True)
class WheelLocation:
    """Where an index keeps a wheel. `headers` hold the index's credentials, if it has some."""

    url: str
    headers: Mapping[str, str]


def machine_settings() -> IndexSettings:
    """The settings of this machine's pip and uv, else PyPI. Takes about 0.5 s if pip is there."""
    return read_settings(os.environ, _pip_configuration(), _uv_configuration(os.environ))


def has_pip() -> bool:
    """Whether `python -m pip` works: environments made by uv have none."""
    return _run_pip("--version") is not None


def read_settings(
    environment: Mapping[str, str], pip: Mapping[str, str], uv: Mapping[str, object]
) -> IndexSettings:
    """Combine the environment, `pip config list` and uv.toml; pip's index comes first."""
    indexes = [
        environment.get("PIP_INDEX_URL") or _pip_option(pip, "index-url"),
        environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or _uv_default(uv),
    ]
    extra = environment.get("PIP_EXTRA_INDEX_URL") or _pip_option(pip, "extra-index-url") or ""
    no_index = environment.get("PIP_NO_INDEX") or _pip_option(pip, "no-index") or ""
    if no_index.lower() in ("1", "true", "yes", "on"):
        return IndexSettings(urls=())  # only pip itself knows what to do then
    urls = [url for url in indexes if url] or [PYPI]
    urls += [url for url in extra.split() if url.startswith(("http://", "https://"))]
    return IndexSettings(
        urls=tuple(dict.fromkeys(url.rstrip("/") for url in urls)),
        ca_bundle=environment.get("PIP_CERT") or _pip_option(pip, "cert"),
        proxy=environment.get("PIP_PROXY") or _pip_option(pip, "proxy"),
    )


def locate_wheel(
    index_url: str, package: str, wheel: str, opener: urllib.request.OpenerDirector
) -> WheelLocation:
    """Ask one index where `wheel` of `package` is. Raises DownloadError.

    A user name and password in `index_url` are sent to its host only.
    """
    bare, headers = _split_credentials(index_url)
    page = f"{bare}/{re.sub(r'[-_.]+', '-', package).lower()}/"
    request = urllib.request.Request(page, headers={"Accept": _ACCEPT, **headers})
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            address, kind, body = response.url, response.headers["Content-Type"], response.read()
        links = _json_links(body) if "json" in (kind or "") else _html_links(body)
    except NETWORK_ERRORS as error:
        raise DownloadError(f"cannot ask the package index: {explain(error, page)}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise DownloadError(f"{urlsplit(page).hostname} is no package index") from error
    for link in links:
        url = urldefrag(urljoin(address, link)).url
        if unquote(urlsplit(url).path.rpartition("/")[2]) == wheel:
            same_host = urlsplit(url).netloc == urlsplit(bare).netloc
            return WheelLocation(url, headers if same_host else {})
    raise DownloadError(f"the package index at {urlsplit(page).hostname} has no {wheel}")


def _split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """`https://user:password@host/simple` -> the bare address and a basic-auth header."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url.rstrip("/"), {}
    name, _, password = user.partition(":")
    secret = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    bare = urlunsplit(parts._replace(netloc=host)).rstrip("/")
    return bare, {"Authorization": f"Basic {secret}"}


def _json_links(body: bytes) -> list[str]:
    return [str(file["url"]) for file in json.loads(body)["files"]]


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for key, value in attrs if key == "href" and value]


def _html_links(body: bytes) -> list[str]:
    anchors = _Anchors()
    anchors.feed(body.decode("utf-8", "replace"))
    return anchors.links


def _pip_option(pip: Mapping[str, str], option: str) -> str | None:
    found = (pip.get(f"{scope}.{option}") for scope in _PIP_SCOPES)
    return next((value for value in found if value), None)


def _pip_configuration() -> dict[str, str]:
    return parse_pip_configuration((_run_pip("config", "list") or "").splitlines())


def parse_pip_configuration(lines: Iterable[str]) -> dict[str, str]:
    """`pip config list` prints `section.option='value'`, quoted as Python does."""
    settings = {}
    for line in lines:
        key, equals, value = line.partition("=")
        try:
            settings[key] = str(ast.literal_eval(value)) if equals else ""
        except (ValueError, SyntaxError):
            continue
    return settings


def _run_pip(*arguments: str) -> str | None:
    """What `python -m pip` prints, or None if there is no pip or it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _uv_configuration(environment: Mapping[str, str]) -> dict[str, object]:
    """The user's uv.toml; that of a project is none of our business."""
    folder = environment.get("XDG_CONFIG_HOME") or environment.get("APPDATA") or "~/.config"
    file = environment.get("UV_CONFIG_FILE") or f"{folder}/uv/uv.toml"
    try:
        return tomllib.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _uv_default(uv: Mapping[str, object]) -> str | None:
    """The default index in a uv.toml: `[[index]]` with `default = true`, or `index-url`."""
    indexes = uv.get("index")
    for index in indexes if isinstance(indexes, list) else []:
        if isinstance(index, dict) and index.get("default"):
            return str(index.get("url"))
    sections = (uv, uv.get("pip"))
    urls = (section.get("index-url") for section in sections if isinstance(section, dict))
    return next((str(url) for url in urls if url), None)
