"""Start a server on a device, and let a port of this machine lead to it.

It runs until `powerserve deploy stop`, even without the cable. When that is back, `powerserve
deploy status` makes the port lead there again. A server that runs already is replaced.

  powerserve deploy serve llama-3.2-1b
  curl http://127.0.0.1:8080/v1/models
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli import options
from powerserve.cli.deploy_flags import (
    add_device_flag,
    add_further_flags,
    add_model_flags,
    deploy_model,
)
from powerserve.core.errors import UsageError

DEFAULT_PORT = 8080
MAX_PORT = 65535


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    add_model_flags(parser)
    parser.add_argument(
        "--use-spec", action="store_true", help="guess tokens ahead with a draft model"
    )
    parser.add_argument(
        "--port",
        type=options.whole_number,
        default=DEFAULT_PORT,
        help=f"of this machine (default: {DEFAULT_PORT}; 0: any that is free)",
    )
    add_device_flag(parser, "-s")
    add_further_flags(parser, "serve")


def execute(arguments: Namespace) -> int:
    """Deploy, start, and say where the server is."""
    if arguments.port > MAX_PORT:
        raise UsageError(f"--port {arguments.port} is no port: they end at {MAX_PORT}")
    from powerserve.deploy.server import start_server, stop_server
    from powerserve.storage.progress import console_progress

    progress = console_progress()
    deployed = deploy_model(arguments, progress)
    device = deployed.device
    if stop_server(device):
        progress.note(f"stopped the server that ran on {device.serial}")
    flags = [*deployed.flags, *arguments.flags]
    server = start_server(device, deployed.program, flags, deployed.model, arguments.port, progress)
    print(f"{deployed.model} on {device.name()} is served at {server.url}")
    return 0
