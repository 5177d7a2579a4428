"""What all tests share: the --require-all option and the real default model."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from powerserve.core.errors import DownloadError
from powerserve.storage.builtin import ensure_builtin
from powerserve.storage.store import ModelStore

if TYPE_CHECKING:
    from npu_conversions import Converted

# A busy machine may make any example slow.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare --require-all."""
    parser.addoption("--require-all", action="store_true", help="a skipped test is a failure")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under --require-all, a test that skips has failed."""
    report = yield
    _fail_if_skipped(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Under --require-all, a module that skips itself has failed."""
    report = yield
    _fail_if_skipped(report, collector.config)
    return report


@pytest.fixture(scope="session", autouse=True)
def own_cost_curves(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Curves that are measured beside other tests must not stay in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("powerserve.engine.speculator_loader.cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, fetched into the user's model store at first use."""
    try:
        return ensure_builtin("smollm2-135m", ModelStore())
    except DownloadError as error:
        pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(
    scope="session",
    params=[("llama", "8gen3"), ("qwen2", "8gen4")],
    ids=["llama-8gen3", "qwen2-8gen4"],
)
def npu_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    """A tiny model, converted for the NPU with Qualcomm's compiler: some ten seconds each."""
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")
    from npu_conversions import convert_tiny

    architecture, soc = request.param
    return convert_tiny(tmp_path_factory.mktemp(architecture), architecture, soc)


def _fail_if_skipped(
    report: pytest.TestReport | pytest.CollectReport, config: pytest.Config
) -> None:
    expected_failure = hasattr(report, "wasxfail")  # reported as skipped, but it did run
    if config.getoption("--require-all") and report.skipped and not expected_failure:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"--require-all is set, and this was skipped: {reason}"
