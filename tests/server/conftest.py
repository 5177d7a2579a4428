"""A server with the real model, started once for all tests that do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server_process import ServerProcess, serving


@pytest.fixture(scope="session")
def server(smollm2: Path) -> Iterator[ServerProcess]:
    """Room for four answers at once, and four that wait."""
    # ggml's kernels, whatever was compiled here, give the same numbers in steps of any size.
    flags = ("-c", "2048", "--parallel", "4", "--max-queue", "4", "--kernels", "ggml")
    with serving("-m", smollm2, *flags) as process:
        yield process


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    """A plain HTTP client of that server."""
    with server.client() as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of that server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client
