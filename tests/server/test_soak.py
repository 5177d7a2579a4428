"""Good and bad clients together: no answer goes astray, and nothing is left behind."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from powerserve.evaluate.server_soak.plan import SoakPlan
from powerserve.evaluate.server_soak.report import as_data, findings
from powerserve.evaluate.server_soak.run import SoakResult, soak
from powerserve.storage.progress import SILENT

DURATION_S = 20


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the server in /proc")
def test_a_server_survives_its_clients(smollm2: Path, tmp_path: Path) -> None:
    """benchmarks/soak does the same for half an hour."""
    for name in ("first", "second"):
        shutil.copyfile(smollm2, tmp_path / f"{name}.gguf")
    result = SoakResult(SoakPlan(tmp_path, DURATION_S, phase_s=(2, 5)))
    asyncio.run(soak(result, SILENT))
    assert not findings(result), as_data(result)["problems"]
    assert result.outcomes["ask", "answered"] > 0
    assert result.outcomes["leave", "left"] > 0
    assert result.samples
