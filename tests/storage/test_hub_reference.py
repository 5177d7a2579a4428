"""What names a model on the hub."""

from __future__ import annotations

import pytest

from powerserve.core.errors import UsageError
from powerserve.storage.hub_reference import HubReference, parse_reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Owner/Repo-GGUF", HubReference("Owner/Repo-GGUF")),
        ("o/r:Q4_K_M", HubReference("o/r", "Q4_K_M")),
        ("o/r:dir/f.gguf", HubReference("o/r", "dir/f.gguf")),
        ("o/r/dir/f.gguf", HubReference("o/r", "dir/f.gguf")),
        ("hf.co/o/r:Q8_0", HubReference("o/r", "Q8_0")),
        ("hf://o/r", HubReference("o/r")),
        ("https://huggingface.co/o/r/", HubReference("o/r")),
        ("https://huggingface.co/o/r?not-for-all-audiences=true", HubReference("o/r")),
        ("https://huggingface.co/o/r/tree/dev", HubReference("o/r", None, "dev")),
        (
            "https://huggingface.co/o/r/blob/v1/x/f%20g.gguf",
            HubReference("o/r", "x/f g.gguf", "v1"),
        ),
        (
            "https://huggingface.co/o/r/resolve/main/f.gguf?download=true",
            HubReference("o/r", "f.gguf"),
        ),
    ],
)
def test_accepted_names(text: str, expected: HubReference) -> None:
    assert parse_reference(text) == expected


def test_the_flag_wins_over_the_revision_in_an_address() -> None:
    assert parse_reference("https://hf.co/o/r/tree/dev", "v2").revision == "v2"


@pytest.mark.parametrize(
    "text",
    ["", "repo", "o/r:", "../r", "o/../r", "o/r:../../etc/passwd", "o/r:/f.gguf", "o/r--s", "ö/r"],
)
def test_refused_names(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)
