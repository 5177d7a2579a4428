"""Serve models over HTTP, by the APIs of OpenAI, Anthropic and Ollama, for any number of users.

With -m one model is served; with -d (--work-folder) those of a workspace, or of a folder that holds
workspaces, model folders and GGUF files; the model store's are always there as well.
"""

from __future__ import annotations

import logging
import os
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.cli.speculation_flags import add_speculation_flags, with_draft
from powerserve.cli.trace import add_trace_flag, tracer_from_flags
from powerserve.core.errors import ConfigError, UsageError
from powerserve.storage.cache_folder import cache_folder

if TYPE_CHECKING:
    from powerserve.cache.prefix_store import PrefixFolder
    from powerserve.core.tracing import Tracer
    from powerserve.engine.loader import LoadedEngine
    from powerserve.server.catalogue import Catalogue
    from powerserve.server.settings import ServerSettings
    from powerserve.storage.resolve import ModelSource
    from powerserve.storage.store import ModelStore

DEFAULT_CHUNK = 256  # tokens: the largest step that a new request or a cancellation waits for
KEY_VARIABLE = "POWERSERVE_API_KEY"
MEBIBYTE, GIBIBYTE = 2**20, 2**30


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags."""
    _add_access_flags(parser)
    _add_limit_flags(parser)
    parser.add_argument(
        "--compat",
        action="store_true",
        help="the original server's flat error body, token counts and limits",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log every request")
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    add_speculation_flags(parser)
    add_trace_flag(parser)


def execute(arguments: Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    settings = server_settings(arguments)
    from powerserve.server.run import run_server

    _log(arguments.verbose)
    catalogue = _catalogue(arguments)
    preload = "" if arguments.model else None
    with tracer_from_flags(arguments) as tracer:
        run_server(settings, catalogue, partial(_load, arguments, settings, tracer), preload)
    return 0


def _load(
    arguments: Namespace, settings: ServerSettings, tracer: Tracer, source: ModelSource
) -> LoadedEngine:
    from powerserve.engine.loader import load_engine

    chosen = replace(
        options.load_options(arguments, source.hparams),
        batch_size=arguments.batch_size or DEFAULT_CHUNK,
        max_sequences=settings.limits.max_running,
        max_gap_s=arguments.max_gap,
        cache_size=arguments.cache_tokens,
    )
    return load_engine(with_draft(arguments, source), chosen, tracer=tracer)


def _log(verbose: bool) -> None:
    """Send the server's log to standard error."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("powerserve.server").setLevel(logging.INFO)
    logging.getLogger("powerserve.access").setLevel(logging.INFO if verbose else logging.WARNING)


def server_settings(arguments: Namespace) -> ServerSettings:
    """The settings that the flags name. Raises a PowerServeError."""
    from powerserve.server.settings import Access, Limits, ServerSettings, TlsFiles

    if (arguments.ssl_cert_file is None) != (arguments.ssl_key_file is None):
        raise UsageError("--ssl-cert-file and --ssl-key-file belong together")
    tls = None
    if arguments.ssl_cert_file is not None:
        tls = TlsFiles(arguments.ssl_cert_file, arguments.ssl_key_file)
    return ServerSettings(
        access=Access(
            host=arguments.host,
            port=arguments.port,
            api_keys=_api_keys(arguments),
            insecure=arguments.insecure,
            allowed_hosts=tuple(arguments.allowed_host),
            cors_origins=tuple(arguments.cors_origin),
            tls=tls,
            max_body_bytes=arguments.max_body_mib * MEBIBYTE,
        ),
        limits=Limits(
            max_running=arguments.parallel,
            max_queued=arguments.max_queue,
            request_timeout_s=arguments.timeout,
            shutdown_timeout_s=arguments.shutdown_timeout,
            max_tokens=arguments.max_tokens,
            memory_bytes=_bytes(arguments.memory_gib),
            keep_alive_s=arguments.keep_alive,
        ),
        compat=arguments.compat,
        allow_pull=arguments.allow_pull,
        prefixes=_prefix_folder(arguments),
    )


def _prefix_folder(arguments: Namespace) -> PrefixFolder | None:
    from powerserve.cache.prefix_store import PrefixFolder

    if arguments.save_prefixes is None:
        return None
    return PrefixFolder(arguments.save_prefixes, arguments.save_prefixes_mib * MEBIBYTE)


def _add_access_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("access")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on")
    group.add_argument("--port", type=options.whole_number, default=8080, help="0: any free one")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="one key in each line")
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"a key (others on this machine may see it; rather use a file, or {KEY_VARIABLE})",
    )
    group.add_argument(
        "--insecure", action="store_true", help="let other machines in without a key"
    )
    group.add_argument("--ssl-cert-file", type=Path, metavar="FILE", help="PEM; serves HTTPS")
    group.add_argument("--ssl-key-file", type=Path, metavar="FILE", help="PEM")
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept this name in the Host header too (repeatable)",
    )
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin in, beside those of localhost (repeatable; *: all)",
    )
    group.add_argument(
        "--allow-model-paths",
        action="store_true",
        help="let clients name any model file or folder of this machine",
    )
    group.add_argument(
        "--allow-pull",
        action="store_true",
        help="let clients have models downloaded into the store (/api/pull)",
    )


def _add_limit_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument(
        "-np",
        "--parallel",
        type=options.positive_number,
        default=16,
        metavar="N",
        help="answers of one model at once (default: 16)",
    )
    group.add_argument(
        "--max-queue",
        type=options.whole_number,
        default=64,
        metavar="N",
        help="answers that may wait beyond those (default: 64)",
    )
    group.add_argument(
        "--max-gap",
        type=options.seconds,
        default=0.2,
        metavar="S",
        help="how long a running answer waits for its next token while other requests' prompts "
        "are computed, if the machine can do that (default: 0.2)",
    )
    group.add_argument("--max-tokens", type=options.positive_number, metavar="N", help="per answer")
    group.add_argument("--max-body-mib", type=options.positive_number, default=16, metavar="MIB")
    group.add_argument(
        "--timeout",
        type=options.seconds,
        default=600.0,
        metavar="S",
        help="per request (default: 600)",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=options.seconds,
        default=30.0,
        metavar="S",
        help="for running requests to finish when the server is stopped (default: 30)",
    )
    group.add_argument(
        "--keep-alive",
        type=options.seconds,
        metavar="S",
        help="unload a model that is idle so long",
    )
    group.add_argument(
        "--cache-tokens",
        type=options.whole_number,
        default=0,
        metavar="N",
        help="tokens cached for all requests of a model together (default: one context)",
    )
    group.add_argument(
        "--save-prefixes",
        nargs="?",
        type=Path,
        const=cache_folder() / "prefixes",
        metavar="FOLDER",
        help="keep what is cached of prompts when the server ends (privately, in plain form)",
    )
    group.add_argument(
        "--save-prefixes-mib",
        type=options.positive_number,
        default=1024,
        metavar="MIB",
        help="for the saved prefixes of all models (default: 1024)",
    )
    group.add_argument("--memory-gib", type=float, metavar="GIB", help="for all loaded models")


def _catalogue(arguments: Namespace) -> Catalogue:
    from powerserve.server.catalogue import Catalogue
    from powerserve.storage.store import ModelStore

    if arguments.model:
        return Catalogue(fixed=options.find_model(arguments, ""))
    folder = arguments.work_folder
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--work-folder: there is no folder {folder}")
    store = ModelStore()
    if folder is None and not store.entries():
        _fetch_default(store)
    return Catalogue(work_folder=folder, store=store, allow_paths=arguments.allow_model_paths)


def _fetch_default(store: ModelStore) -> None:
    """Without any model, a server is of no use: get the built-in one."""
    from powerserve.storage.builtin import DEFAULT, ensure_builtin
    from powerserve.storage.progress import console_progress

    ensure_builtin(DEFAULT.name, store, progress=console_progress())


def _api_keys(arguments: Namespace) -> tuple[str, ...]:
    keys = list(arguments.api_key)
    if from_environment := os.environ.get(KEY_VARIABLE):
        keys.append(from_environment)
    if arguments.api_key_file is not None:
        keys += _keys_in(arguments.api_key_file)
    return tuple(keys)


def _keys_in(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ConfigError(f"--api-key-file {file} has no key in it")
    return keys


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIBIBYTE)
