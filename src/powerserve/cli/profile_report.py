"""Profiles of steps as tables or as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from powerserve.cli.markdown import markdown_table
from powerserve.evaluate.operation_profile import StepProfile


def profile_table(profile: StepProfile) -> str:
    """The kinds of operations, slowest first; then what shows how far to trust them."""
    return markdown_table(_rows(profile))


def profile_json(profile: StepProfile) -> dict[str, Any]:
    """Everything that was measured."""
    return {**asdict(profile), "total_s": profile.total_s}


def _rows(profile: StepProfile) -> Iterator[list[str]]:
    tokens = "1 token" if profile.num_tokens == 1 else f"{profile.num_tokens} tokens"
    yield [f"step of {tokens} after {profile.depth}", "count", "ms", "share"]
    total_s = profile.total_s
    for kind in profile.kinds:
        name = f"{kind.operation} {kind.weight}".rstrip()
        share = f"{kind.seconds / total_s:.1%}"
        yield [name, str(kind.count), f"{1000 * kind.seconds:.3f}", share]
    count = sum(kind.count for kind in profile.kinds)
    yield ["all", str(count), f"{1000 * total_s:.3f}", "100.0%"]
    yield ["fastest step, one by one", "", f"{1000 * profile.fastest_profile_s:.3f}", ""]
    yield ["fastest step, as it runs", "", f"{1000 * profile.fastest_step_s:.3f}", ""]
