"""The prompts that a search uses if it is given none."""

from __future__ import annotations

from pathlib import Path

from powerserve.core.errors import ConfigError

_PLACE = Path("assets", "prompts", "tree-search")
_PACKAGE = Path(__file__).parents[2]


def bundled_prompts() -> list[str]:
    """Texts about code, chat and summaries. Raises ConfigError if the installation lacks them."""
    for root in (_PACKAGE, _PACKAGE.parents[1]):  # an installed wheel, a checkout
        if texts := [path.read_text("utf-8") for path in sorted((root / _PLACE).glob("*.txt"))]:
            return texts
    raise ConfigError("this installation has no prompts of its own; name some with --prompt-file")
