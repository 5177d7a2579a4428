"""HTTP as downloads need it: proxies, certificates, redirects, and errors as sentences.

Proxies come from the environment (HTTPS_PROXY, NO_PROXY, …) or the system's settings;
certificates from the system, from SSL_CERT_FILE, and from the bundles that pip and requests use.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO
from urllib.parse import urlsplit

from powerserve import __version__

USER_AGENT = f"powerserve/{__version__}"
NETWORK_ERRORS = (OSError, http.client.HTTPException)
_BUNDLE_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but shows credentials to the host they are for and to no other."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and _origin(following.full_url) != _origin(req.full_url):
            following.remove_header("Authorization")
        return following


def http_opener(
    *, ca_bundle: str | None = None, proxy: str | None = None
) -> urllib.request.OpenerDirector:
    """An opener with this machine's proxies and certificates.

    `ca_bundle` is a PEM file that is trusted as well; `proxy` (a URL) replaces the environment's.
    """
    proxies = {"http": proxy, "https": proxy} if proxy else None
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPSHandler(context=_ssl_context(ca_bundle, os.environ)),
        _SafeRedirects(),
    )
    opener.addheaders = [("User-Agent", USER_AGENT)]
    return opener


def explain(error: BaseException, url: str) -> str:
    """Why a request failed, as a fragment of a sentence that names the host only.

    The whole address might hold a password or a signature.
    """
    host = urlsplit(url).hostname or url
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    match cause:
        case _ if isinstance(error, urllib.error.HTTPError):
            return f"{host} answered {error.code} {error.msg}"
        case ssl.SSLCertVerificationError():
            return (
                f"the certificate of {host} is not trusted (set SSL_CERT_FILE to the file with "
                "your network's certificates)"
            )
        case socket.gaierror():
            return f"{host} cannot be found (is the network up, or a proxy needed?)"
        case TimeoutError():
            return f"{host} does not answer"
        case ConnectionRefusedError():
            return f"{host} refused the connection"
        case ConnectionError() | http.client.IncompleteRead():
            return f"{host} cut the connection"
        case _:
            return f"{host} cannot be reached ({cause})"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _ssl_context(ca_bundle: str | None, environment: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    bundles = [ca_bundle, *(environment.get(name) for name in _BUNDLE_VARIABLES)]
    chosen = [bundle for bundle in bundles if bundle and os.path.isfile(bundle)]
    for bundle in chosen:
        context.load_verify_locations(cafile=bundle)
    if not chosen and "SSL_CERT_FILE" not in environment:
        _add_packaged_certificates(context)
    return context


def _add_packaged_certificates(context: ssl.SSLContext) -> None:
    """Python from python.org has no certificates on macOS; certifi comes with huggingface_hub."""
    try:
        import certifi
    except ImportError:
        return
    context.load_verify_locations(cafile=certifi.where())
