"""What a user may write to mean a model on the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from powerserve.core.errors import UsageError

DEFAULT_REVISION = "main"
_PREFIX = re.compile(r"(?:hf://|(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/)", re.I)
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*", re.ASCII)
_PAGE = re.compile(r"(?P<kind>blob|resolve|tree)/(?P<revision>[^/]+)(?:/(?P<file>.+))?")


@dataclass(frozen=True)
class HubReference:
    """A repository, and what to take from it.

    `tag` is a quantisation (`Q4_K_M`) or the name of a GGUF file; None lets us choose.
    """

    repo: str
    tag: str | None = None
    revision: str = DEFAULT_REVISION


def parse_reference(text: str, revision: str | None = None) -> HubReference:
    """`owner/repo`, `owner/repo:Q4_K_M`, `owner/repo:file.gguf`, or an address of the hub's pages.

    `hf.co/`, `https://huggingface.co/` and `hf://` may stand before it. `revision` (a branch, tag
    or commit) replaces the one in the address. Raises UsageError.
    """
    bare = _PREFIX.sub("", text.strip(), count=1)
    bare = re.split(r"[?#]", bare, maxsplit=1)[0].rstrip("/")
    repo, tag, of_page = _split(bare)
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UsageError(
            f"{text!r} does not name a model: write owner/repo, owner/repo:Q4_K_M or "
            "owner/repo:file.gguf, as on huggingface.co"
        )
    if tag is not None and (not tag or ".." in tag.split("/") or tag.startswith("/")):
        raise UsageError(f"{text!r} names no file: write a quantisation or a file after the colon")
    return HubReference(repo, tag, revision or of_page or DEFAULT_REVISION)


def _split(bare: str) -> tuple[str, str | None, str | None]:
    """Repository, tag, revision."""
    repo, colon, tag = bare.partition(":")
    parts = repo.split("/", maxsplit=2)
    if len(parts) < 3:
        return repo, tag if colon else None, None
    page = _PAGE.fullmatch(parts[2])
    if page is None:  # owner/repo/file.gguf
        return "/".join(parts[:2]), parts[2], None
    file = unquote(page["file"]) if page["file"] and page["kind"] != "tree" else None
    return "/".join(parts[:2]), file, unquote(page["revision"])
