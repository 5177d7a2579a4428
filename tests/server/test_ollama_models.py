"""Lists of models, what a model is, what is loaded and for how long."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gguf
import httpx
import ollama
import pytest

from command_line import status_of
from server_process import ServerProcess, serving, wait_until
from tiny_models import TinyModel, write_tiny_model

QWEN = TinyModel("qwen2", dtype="Q8_0", seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two GGUF files, a workspace and a broken file."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder / "a.gguf")
    write_tiny_model(folder / "b.gguf", QWEN)
    status_of("create", "-m", folder / "a.gguf", "-o", folder / "w", "--no-extract-qnn")
    (folder / "broken.gguf").write_bytes((folder / "a.gguf").read_bytes()[:5000])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of that folder, with an empty store."""
    home = {"POWERSERVE_HOME": str(tmp_path_factory.mktemp("home"))}
    with serving("-d", folder, "-c", "256", environment=home) as process:
        yield process


@pytest.fixture
def llama(server: ServerProcess) -> Iterator[ollama.Client]:
    """Ollama's own client of the server, which has no model in memory."""
    with ollama.Client(server.url) as client:
        for model in client.ps().models:
            client.generate(model.model or "", keep_alive=0)
        yield client


def loaded(client: ollama.Client) -> list[str | None]:
    return [model.model for model in client.ps().models]


def test_models_are_listed_with_what_they_are(llama: ollama.Client, folder: Path) -> None:
    models = {model.model: model for model in llama.list().models}
    assert list(models) == ["a:latest", "b:latest", "w:latest"]
    model = models["b:latest"]
    tensors = gguf.GGUFReader(folder / "b.gguf").tensors
    assert model.size == sum(tensor.n_bytes for tensor in tensors)
    parameters = sum(int(tensor.n_elements) for tensor in tensors)
    assert model.details is not None and model.modified_at is not None
    assert model.details.family == "qwen2" and model.details.format == "gguf"
    assert model.details.quantization_level == "Q8_0"
    assert model.details.parameter_size == f"{parameters / 1e6:.2f}M"
    assert abs(model.modified_at - datetime.now(UTC)) < timedelta(hours=1)
    assert len({each.digest for each in models.values()}) == 3


def test_a_file_that_changes_gets_another_description(llama: ollama.Client, folder: Path) -> None:
    path = folder / "changing.gguf"
    write_tiny_model(path)
    before = llama.list().models[2]
    write_tiny_model(path, QWEN)
    after = llama.list().models[2]
    path.unlink()
    assert before.model == after.model == "changing:latest"
    assert before.digest != after.digest
    assert before.details and before.details.family == "llama"
    assert after.details and after.details.family == "qwen2"


@pytest.mark.parametrize("name", ["b", "b:latest"])
def test_a_model_in_detail(llama: ollama.Client, name: str) -> None:
    shown = llama.show(name)
    assert shown.details is not None and shown.details.family == "qwen2"
    assert shown.modelinfo is not None and shown.template
    assert shown.modelinfo["general.architecture"] == "qwen2"
    assert shown.modelinfo["qwen2.block_count"] == QWEN.num_layers
    assert shown.modelinfo["tokenizer.ggml.tokens"] is None
    assert shown.capabilities == ["completion", "tools"]


def test_long_metadata_is_shown_if_asked_for(http: httpx.Client) -> None:
    shown = http.post("/api/show", json={"name": "b", "verbose": True}).json()
    tokens = shown["model_info"]["tokenizer.ggml.tokens"]
    assert len(tokens) == QWEN.vocab_size and "<|im_end|>" in tokens


def test_unknown_and_broken_models(llama: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"model not found.*a, b") as caught:
        llama.show("nothing")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"broken\.gguf") as caught:
        llama.show("broken")
    assert caught.value.status_code == 500


def test_a_request_without_a_prompt_loads(llama: ollama.Client) -> None:
    assert loaded(llama) == []
    assert llama.generate("a").done_reason == "load"
    answer = llama.chat("b:latest", [])
    assert answer.done and answer.done_reason == "load" and answer.message.content == ""
    (a, b) = llama.ps().models
    assert (a.model, b.model) == ("a:latest", "b:latest")
    assert a.context_length == 256 and (a.size or 0) > 0 and a.size_vram == 0
    assert a.expires_at is not None and a.expires_at.year > 2100  # for ever


def test_keep_alive_says_until_when(llama: ollama.Client) -> None:
    llama.generate("a", keep_alive="1h30m")
    (model,) = llama.ps().models
    assert model.expires_at is not None
    remaining = model.expires_at - datetime.now(UTC)
    assert timedelta(minutes=85) < remaining < timedelta(minutes=91)
    llama.chat("a", [{"role": "user", "content": "x"}], options={"num_predict": 1}, keep_alive=-1)
    (model,) = llama.ps().models
    assert model.expires_at is not None and model.expires_at.year > 2100


def test_keep_alive_zero_unloads(llama: ollama.Client) -> None:
    llama.generate("a")
    assert llama.generate("a", keep_alive=0).done_reason == "unload"
    assert loaded(llama) == []
    assert llama.chat("b", [], keep_alive="0s").done_reason == "unload"  # loads nothing for that
    assert loaded(llama) == []
    llama.generate("a", "x", options={"num_predict": 1}, keep_alive=0)
    wait_until(lambda: loaded(llama) == [])


def test_unloading_waits_for_those_who_use_the_model(llama: ollama.Client) -> None:
    options = {"num_predict": 100, "temperature": 0}
    stream = llama.generate("a", "x", options=options, stream=True)
    next(stream)
    assert llama.generate("a", keep_alive=0).done_reason == "unload"
    *_, last = stream
    assert last.done
    wait_until(lambda: loaded(llama) == [])


def test_embedding_nothing_loads_the_model(llama: ollama.Client) -> None:
    assert llama.embed("a", "", keep_alive="1h").embeddings == []
    assert llama.embeddings("b", "").embedding == []
    assert loaded(llama) == ["a:latest", "b:latest"]
    llama.embed("b", "x", keep_alive=0)
    wait_until(lambda: loaded(llama) == ["a:latest"])


def test_long_texts_to_embed_lose_their_end_unless_refused(llama: ollama.Client) -> None:
    text = "many words " * 200  # more than the context of 256 tokens
    assert llama.embed("a", text + "and this").embeddings == llama.embed("a", text).embeddings
    with pytest.raises(ollama.ResponseError, match="the context holds 256") as caught:
        llama.embed("a", text, truncate=False)
    assert caught.value.status_code == 400
