"""PowerServe's server among good and bad clients for a long time.

    python soak.py FOLDER --minutes 30 > results.md

See README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from powerserve.cli.markdown import markdown_table
from powerserve.core.machine import cpu_name, load_average
from powerserve.evaluate.server_soak.plan import SoakPlan
from powerserve.evaluate.server_soak.report import (
    as_data,
    findings,
    memory_rows,
    outcome_rows,
    state_rows,
)
from powerserve.evaluate.server_soak.run import SoakResult, soak
from powerserve.storage.progress import console_progress


def main() -> int:
    """Print the results as markdown; 1 if something is wrong."""
    arguments = parse_arguments()
    plan = SoakPlan(
        arguments.folder,
        60 * arguments.minutes,
        num_clients=arguments.clients,
        seed=arguments.seed,
        memory_gib=arguments.memory_gib,
    )
    print(f"{', '.join(plan.models)}; {arguments.minutes:g} minutes, {plan.num_clients} clients,")
    print(f"seed {plan.seed}; {cpu_name()}, load average {load_average():.1f} before.\n")
    result = SoakResult(plan)
    try:
        asyncio.run(soak(result, console_progress()))
    except KeyboardInterrupt:
        print("Interrupted.\n")
    print_result(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_data(result), indent=1) + "\n")
    if arguments.log:
        arguments.log.write_text(result.log)
    return 1 if findings(result) else 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds two models or more, as GGUF files")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory-gib", type=float, help="for models, so that they take turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures as JSON")
    parser.add_argument("--log", type=Path, metavar="FILE", help="the server's log")
    return parser.parse_args()


def print_result(result: SoakResult) -> None:
    """Tables, then what is wrong."""
    for rows in (outcome_rows(result), state_rows(result), memory_rows(result)):
        print(markdown_table(rows) + "\n")
    wrong = findings(result)
    print("\n".join(f"* {each}" for each in wrong) if wrong else "Nothing was wrong.")
    for problem in result.problems:
        print(f"  * second {problem.at_s:.1f}, {problem.action}: {problem.text}")


if __name__ == "__main__":
    sys.exit(main())
