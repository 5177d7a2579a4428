"""Run llm-comply against a server of this checkout, and write what it found as Markdown.

python run.py --llm-comply PROGRAM MODEL.gguf … > results.md
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

FORMATS = ("openai-chat", "open-responses", "anthropic")
READY = "powerserve is listening on "
LIMIT_S = 1800


def main() -> None:
    """Test every model by every format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--llm-comply", type=Path, required=True, metavar="PROGRAM")
    arguments = parser.parse_args()
    version = subprocess.check_output([arguments.llm_comply, "--version"], text=True).strip()
    print(f"# What {version} finds\n\n{date.today()}, Python {platform.python_version()}\n")
    for model in arguments.models:
        with server(model) as url:
            for name in FORMATS:
                print_table(f"{model.stem}, {name}", report(arguments.llm_comply, url, model, name))


@contextmanager
def server(model: Path) -> Iterator[str]:
    """A server of this model; its address."""
    command = [sys.executable, "-m", "powerserve", "serve", "-m", str(model), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix(READY).strip()
    finally:
        process.terminate()
        process.wait()


def report(program: Path, url: str, model: Path, name: str) -> dict[str, Any]:
    """What llm-comply says; it ends with an error if a test fails."""
    command = [str(program), "-u", f"{url}/v1", "-k", "none", "-m", model.stem]
    done = subprocess.run(
        [*command, "--format", name, "--timeout", "300", "--json"],
        stdout=subprocess.PIPE,
        timeout=LIMIT_S,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def print_table(title: str, report: dict[str, Any]) -> None:
    """A line for each test."""
    counts = report["summary"]
    print(f"## {title}\n\n{counts['passed']} of {counts['total']} passed\n")
    print("| test | | |\n|---|---|---|")
    for result in report["results"]:
        reasons = "; ".join(dict.fromkeys(result.get("errors", ()))).replace("|", "\\|")
        print(f"| {result['name']} | {result['status']} | {reasons} |")
    print()


if __name__ == "__main__":
    main()
