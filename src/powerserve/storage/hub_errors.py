"""huggingface_hub's exceptions as one sentence each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from powerserve.core.errors import DownloadError
from powerserve.storage.hub_reference import HubReference


@contextmanager
def plain_errors(wanted: HubReference) -> Iterator[None]:
    """Turn huggingface_hub's exceptions into one DownloadError sentence each."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{wanted.repo}"
    token = "set HF_TOKEN to an access token of your account (or run `hf auth login`)"
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{wanted.repo} is gated: accept its terms at {page}, then {token}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"there is no repository {wanted.repo} at {constants.ENDPOINT}, or it is private; "
            f"check the spelling, and for a private one {token}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{wanted.repo} has no revision {wanted.revision!r}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise DownloadError(_not_cached(wanted, error)) from error
    except errors.HfHubHTTPError as error:
        raise DownloadError(_refused(wanted, error.response.status_code, token)) from error
    except _transport_error() as error:
        raise DownloadError(
            f"{constants.ENDPOINT} cannot be reached ({error}): check the network, the proxy "
            "(HTTPS_PROXY) and HF_ENDPOINT"
        ) from error


def _transport_error() -> type[Exception]:
    """The base of the HTTP client's errors: httpx or httpx2, as huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def _not_cached(wanted: HubReference, error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            f"HF_HUB_OFFLINE is set and {wanted.repo} (revision {wanted.revision}) is not in the "
            f"cache {constants.HF_HUB_CACHE}; unset it to download"
        )
    return f"{constants.ENDPOINT} cannot be reached for {wanted.repo}: {error.__cause__ or error}"


def _refused(wanted: HubReference, status: int, token: str) -> str:
    from huggingface_hub import constants

    match status:
        case 401 | 403:
            return f"{constants.ENDPOINT} refuses access to {wanted.repo} ({status}): {token}"
        case 429:
            return f"{constants.ENDPOINT} asks to slow down ({status}): wait a while, or {token}"
        case _:
            return f"{constants.ENDPOINT} answered {status} for {wanted.repo}; try again later"
