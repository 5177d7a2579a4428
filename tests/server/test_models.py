"""Several models: names, work folders, loading on demand, and which one has to go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from command_line import status_of
from powerserve import LLM, LoadOptions
from server_process import ServerProcess, serving, wait_until
from tiny_models import TinyModel, write_tiny_model

CHAT = "/v1/chat/completions"
GREEDY = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
ENDLESS = GREEDY | {"max_tokens": None, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two GGUF files, and a workspace made by `powerserve create`."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b", "c")):
        write_tiny_model(folder / f"{name}.gguf", TinyModel(seed=seed, context_length=20_000))
    status_of("create", "-m", folder / "c.gguf", "-o", folder / "x", "--no-extract-qnn")
    (folder / "c.gguf").unlink()
    (folder / "notes").mkdir()
    write_tiny_model(folder.parent / "secret.gguf")
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of that folder, with an empty store."""
    home = {"POWERSERVE_HOME": str(tmp_path_factory.mktemp("home"))}
    with serving("-d", models, "-c", "16384", environment=home) as process:
        yield process


def ask(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post(CHAT, json=GREEDY | fields)


def text(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    content: str = reply.json()["choices"][0]["message"]["content"]
    return content


def loaded(http: httpx.Client) -> list[str]:
    return sorted(model["id"] for model in http.get("/v1/models").json()["data"] if model["loaded"])


def test_the_folder_s_models_are_known(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["a", "b", "x"]
    assert all(model["created"] > 0 for model in listed)


def test_each_name_is_another_model(http: httpx.Client) -> None:
    texts = [text(ask(http, model=name)) for name in ("a", "b", "x")]
    assert len(set(texts)) == 3
    assert text(ask(http, model="a.gguf")) == texts[0]
    assert text(ask(http, model="x/c")) == texts[2]  # the model folder inside the workspace
    assert loaded(http) == ["a", "b", "x"]


def test_two_names_make_a_pair(http: httpx.Client) -> None:
    assert text(ask(http, model="a+b")) == text(ask(http, model="a"))
    reply = ask(http, model="a+nothing")
    assert reply.status_code == 404


def test_without_a_name_the_choice_is_the_client_s(http: httpx.Client) -> None:
    reply = ask(http)
    assert reply.status_code == 400 and "a, b, x" in reply.json()["error"]["message"]


def gib(models: Path, context: int, count: float) -> str:
    """The memory that so many of the models take, with the server's usual batch."""
    with LLM(models / "a.gguf", LoadOptions(context_size=context, batch_size=256)) as llm:
        return str(count * llm.loaded.plan.total_bytes / 2**30)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.gguf",
        "../secret",
        "x/../../secret.gguf",
        "/etc/passwd",
        "..",
        ".",
        "notes",
        "a\0",
        "x" * 5000,
        "C:\\secret.gguf",
        "a+../secret.gguf",
        "..%2fsecret.gguf",
        "%2e%2e/secret.gguf",
        "..\\secret.gguf",
        "~/secret.gguf",
    ],
)
def test_no_name_leads_out_of_the_folder(http: httpx.Client, name: str) -> None:
    reply = ask(http, model=name)
    assert reply.status_code == 404, reply.text
    assert reply.json()["error"]["code"] == "model_not_found"


def test_links_in_the_folder_are_the_operator_s(http: httpx.Client, models: Path) -> None:
    """What they lead to is served, by their name; what lies beside that is not."""
    (models / "link.gguf").symlink_to(models.parent / "secret.gguf")
    (models / "beside").symlink_to(models.parent)
    assert ask(http, model="link").status_code == 200
    for name in ("link/../../secret", "beside/../secret.gguf", "link.gguf/../secret.gguf"):
        assert ask(http, model=name).status_code == 404, name
    (models / "link.gguf").unlink()
    (models / "beside").unlink()


def test_paths_need_an_option(models: Path) -> None:
    with serving("-d", models, "--allow-model-paths") as process, process.client() as http:
        text(ask(http, model=str(models.parent / "secret.gguf")))


def test_a_broken_model_is_said_to_be_broken(http: httpx.Client, models: Path) -> None:
    (models / "broken.gguf").write_bytes((models / "a.gguf").read_bytes()[:5000])
    reply = ask(http, model="broken")
    (models / "broken.gguf").unlink()
    assert reply.status_code == 500 and "broken.gguf" in reply.json()["error"]["message"]
    assert http.get("/health").status_code == 200
    text(ask(http, model="a"))


def test_create_then_serve_as_the_readme_says(tmp_path: Path) -> None:
    """The two commands in sequence: a workspace below ./models, then the server on ./models."""
    write_tiny_model(tmp_path / "tiny.gguf")
    out = tmp_path / "models/x"
    status_of("create", "-m", tmp_path / "tiny.gguf", "-o", out, "--no-extract-qnn")
    home = {"POWERSERVE_HOME": str(tmp_path / "home")}
    with (
        serving("--work-folder", out.parent, environment=home) as process,
        process.client() as http,
    ):
        assert text(ask(http, model="x")) == text(ask(http))  # the only one: no name needed
    original = (out / "bin/powerserve-server",)  # as the workspace has it
    server = serving("--work-folder", out, environment=home, program=original)
    with server as process, process.client() as http:
        assert text(ask(http)) == text(ask(http, model="tiny"))
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny"]


def test_hparams_are_the_defaults_and_requests_overrule_them(tmp_path: Path) -> None:
    """`powerserve create` writes greedy sampling with a fixed seed."""
    write_tiny_model(tmp_path / "tiny.gguf")
    status_of("create", "-m", tmp_path / "tiny.gguf", "-o", tmp_path / "w", "--no-extract-qnn")
    with serving("-d", tmp_path / "w") as process, process.client() as http:
        body = {**GREEDY, "temperature": None}
        greedy = text(http.post(CHAT, json=body))
        assert greedy == text(http.post(CHAT, json=body)) == text(ask(http))
        hot = {text(ask(http, temperature=3, seed=seed)) for seed in range(4)}
        assert len(hot) > 1


def test_the_longest_unused_model_goes_first(models: Path) -> None:
    flags = ("-d", models, "-c", "512", "--memory-gib", gib(models, 512, 2.5))
    with serving(*flags) as process, process.client() as http:
        first = text(ask(http, model="a"))
        ask(http, model="b")
        ask(http, model="a")
        before = loaded(http)
        ask(http, model="x")
        assert "x" in loaded(http) and "b" not in loaded(http), before
        assert text(ask(http, model="a")) == first


def test_a_model_in_use_is_never_dropped(models: Path) -> None:
    flags = ("-d", models, "-c", "16384", "--memory-gib", gib(models, 16384, 1.5))
    with serving(*flags) as process, process.client() as http:
        with http.stream("POST", CHAT, json=ENDLESS | {"model": "a"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            with process.client() as other:
                reply = ask(other, model="b")
            assert reply.status_code == 503 and "retry-after" in reply.headers
            assert next(line for line in lines if line).startswith("data: {")  # goes on
        wait_until(lambda: ask(http, model="b").status_code == 200)
        assert loaded(http) == ["b"]


def test_an_idle_model_is_unloaded_and_comes_back(models: Path) -> None:
    with serving("-d", models, "--keep-alive", "0.2") as process, process.client() as http:
        first = text(ask(http, model="a"))
        wait_until(lambda: not loaded(http))
        assert text(ask(http, model="a")) == first


def test_a_model_that_was_deleted(tmp_path: Path, models: Path) -> None:
    shutil.copy(models / "a.gguf", tmp_path / "a.gguf")
    with serving("-d", tmp_path) as process, process.client() as http:
        (tmp_path / "a.gguf").unlink()
        assert ask(http, model="a").status_code == 404


def test_a_model_beyond_the_memory_allowed(models: Path) -> None:
    flags = ("-d", models, "-c", "512", "--memory-gib", gib(models, 512, 0.9))
    with serving(*flags) as process, process.client() as http:
        reply = ask(http, model="a")
        assert reply.status_code == 503 and "--memory-gib" in reply.json()["error"]["message"]
        assert not loaded(http)
