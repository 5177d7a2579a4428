"""Run PowerServe on a phone, or another device that adb or hdc reaches.

powerserve deploy run MODEL -p "…"    an answer from the device
powerserve deploy serve MODEL         a server there, and a port here that leads to it
powerserve deploy build               the bundle that is sent there
"""

from __future__ import annotations

from powerserve.cli.command_group import CommandGroup

_ACTIONS = CommandGroup(
    "deploy",
    {
        "run": "answer one prompt on the device",
        "serve": "start a server on the device",
        "status": "say what is on the device",
        "logs": "print the server's log",
        "stop": "stop the server",
        "clean": "delete everything that was deployed",
        "build": "build the bundle, without a device",
    },
)

configure = _ACTIONS.configure
execute = _ACTIONS.execute
