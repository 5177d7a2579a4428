"""Downloads that clients ask for, from a hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import pytest

from hub_server import Hub
from hub_server import serving as hub_serving
from server_process import ServerProcess, serving, wait_until
from tiny_models import TinyModel, write_tiny_model

REPO = "owner/Tiny-GGUF"
PULL = {"model": f"{REPO}:Q8_0"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    small = write_tiny_model(tmp_path / "small.gguf").read_bytes()
    large = write_tiny_model(tmp_path / "large.gguf", TinyModel(num_layers=40)).read_bytes()
    files = {"Tiny-Q4_0.gguf": small, "Tiny-Q8_0.gguf": large}
    with hub_serving(Hub({REPO: files})) as hub:
        yield hub


@pytest.fixture
def llama(server: ServerProcess) -> Iterator[ollama.Client]:
    with ollama.Client(server.url) as client:
        yield client


@pytest.fixture
def server(hub: Hub, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that may pull, with one model in its work folder."""
    (tmp_path / "work").mkdir()
    write_tiny_model(tmp_path / "work" / "own.gguf")
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "POWERSERVE_HOME": str(tmp_path / "store"),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    with serving("-d", tmp_path / "work", "--allow-pull", environment=environment) as process:
        yield process


def test_a_pulled_model_answers(llama: ollama.Client, hub: Hub) -> None:
    parts = list(llama.pull(f"hf.co/{REPO}:Q4_0", stream=True))
    assert parts[0].status == "pulling manifest" and parts[-1].status == "success"
    size = len(hub.repos[REPO]["Tiny-Q4_0.gguf"])
    transfers = [part for part in parts if part.total]
    assert transfers and {part.total for part in transfers} == {size}
    assert transfers[-1].completed == size
    assert all((part.digest or "").startswith("sha256:") for part in transfers)
    assert "Tiny-Q4_0:latest" in [model.model for model in llama.list().models]
    for name in ("Tiny-Q4_0", f"hf.co/{REPO}:Q4_0", f"{REPO}:latest"):
        answer = llama.generate(name, "x", options={"num_predict": 2})
        assert answer.eval_count == 2
    assert llama.pull(f"{REPO}:Q4_0").status == "success"  # there already, and not streamed


def test_what_the_hub_does_not_have(llama: ollama.Client, http: httpx.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="owner/other"):
        list(llama.pull("owner/other", stream=True))
    with pytest.raises(ollama.ResponseError, match=r"llama3\.2.*owner/repo") as caught:
        llama.pull("llama3.2")
    assert caught.value.status_code == 400
    reply = http.post("/api/pull", json={"stream": False})
    assert reply.status_code == 400 and "model is missing" in reply.json()["error"]


def test_a_client_that_leaves_ends_its_download(
    server: ServerProcess, hub: Hub, tmp_path: Path, http: httpx.Client
) -> None:
    hub.hold_after_bytes = 300_000
    with http.stream("POST", "/api/pull", json=PULL) as reply:
        lines = map(json.loads, reply.iter_lines())
        assert next(line for line in lines if line.get("total"))
    wait_until(lambda: '"/api/pull"' in http.get("/metrics").text)  # now that request has ended
    hub.go_on.set()
    blobs = tmp_path / "hf/hub/models--owner--Tiny-GGUF/blobs"
    whole = len(hub.repos[REPO]["Tiny-Q8_0.gguf"])
    hub.hold_after_bytes = None
    again = http.post("/api/pull", json=PULL).text.splitlines()  # waits for the first one's end
    assert json.loads(again[-1]) == {"status": "success"}
    assert any("bytes=" in request for request in hub.requests)  # it went on where that ended
    assert sorted(path.stat().st_size for path in blobs.iterdir()) == [whole]


@pytest.mark.parametrize("is_there", [True, False], ids=["client waits", "client left"])
def test_a_hub_that_is_silent_does_not_keep_the_server(
    server: ServerProcess, hub: Hub, is_there: bool
) -> None:
    """Its download would wait for the hub for minutes, longer than `stop` waits for the server."""
    hub.hold_after_bytes = 300_000  # for good
    with server.client() as http, http.stream("POST", "/api/pull", json=PULL) as reply:
        lines = map(json.loads, reply.iter_lines())
        assert next(line for line in lines if line.get("total"))
        if not is_there:
            reply.close()
        status, errors = server.stop()
    hub.go_on.set()
    assert status == 0 and "Traceback" not in errors, errors


def test_a_server_with_one_model_pulls_none(tmp_path: Path) -> None:
    tiny = write_tiny_model(tmp_path / "tiny.gguf")
    with serving("-m", tiny, "--allow-pull") as process, ollama.Client(process.url) as client:
        with pytest.raises(ollama.ResponseError, match="one model") as caught:
            client.pull(REPO)
        assert caught.value.status_code == 400
