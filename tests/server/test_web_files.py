"""The chat page's files as the server sends them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server_process import serving
from tiny_models import TinyModel, write_tiny_model

KEY = "a-key-for-this-test"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client without a key of a server that wants one."""
    model = write_tiny_model(tmp_path_factory.mktemp("web") / "tiny.gguf", TinyModel())
    with serving("-m", model, "--api-key", KEY) as server, server.client() as client:
        yield client


def referenced(text: str) -> set[str]:
    """Paths that a page or a script asks for."""
    paths = re.findall(r'(?:src|href)="([^"]+)"', text)
    return {*paths, *(f"web/{name}" for name in re.findall(r'from "\./([^"]+)"', text))}


def test_every_file_is_there_and_comes_from_here(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    waiting, seen = referenced(page.text), set()
    while waiting:
        path = waiting.pop()
        assert "://" not in path and not path.startswith("//")
        reply = http.get(f"/{path}")
        assert reply.status_code == 200, path
        seen.add(path)
        if path.endswith(".js"):
            assert reply.headers["content-type"].startswith("text/javascript")
            waiting |= referenced(reply.text) - seen
    files = Path(__file__).parents[2] / "src/powerserve/server/web/static"
    assert seen == {f"web/{file.name}" for file in files.iterdir()} - {"web/index.html"}


@pytest.mark.parametrize("path", ["/", "/web/app.js", "/web/style.css", "/web/icon.svg"])
def test_only_own_files_may_run_and_nobody_may_frame_them(http: httpx.Client, path: str) -> None:
    headers = http.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_has_nothing_inline(http: httpx.Client) -> None:
    page = http.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", page)


def test_no_script_parses_markup(http: httpx.Client) -> None:
    """The policy forbids it too; this says where."""
    scripts = [path for path in referenced(http.get("/").text) if path.endswith(".js")]
    modules = referenced(http.get("/web/app.js").text)
    for path in {*scripts, *modules}:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function",
            http.get(f"/{path}").text,
        ), path


def test_other_paths_are_not_files(http: httpx.Client) -> None:
    authorised = {"authorization": f"Bearer {KEY}"}
    for path in ("/web/", "/web/page.py", "/web/..%2fpage.py", "/web/static/app.js", "/index.html"):
        assert http.get(path, headers=authorised).status_code == 404, path


def test_the_api_behind_the_page_still_needs_the_key(http: httpx.Client) -> None:
    assert http.get("/v1/models").status_code == 401


def test_a_rebound_name_does_not_get_the_page(http: httpx.Client) -> None:
    assert http.get("/", headers={"host": "evil.example"}).status_code == 403
