"""A benchmark's figures as a markdown table, or as JSON with every sample."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from powerserve.cli.markdown import markdown_table
from powerserve.cli.profile_report import profile_json, profile_table
from powerserve.cli.show import describe
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.benchmark import BenchmarkPlan, BenchmarkResult, Measurement
from powerserve.evaluate.conditions import Kernels, Machine, disturbances
from powerserve.evaluate.operation_profile import StepProfile
from powerserve.evaluate.overhead import StepTime
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.progress import format_bytes
from powerserve.storage.resolve import ModelSource

_PARTS = ("total", "compute", "sampling", "python")  # of a decode step
_MODEL_FIELDS = ("name", "architecture", "parameters", "size_bytes", "tensor_types")


@dataclass(frozen=True)
class Report:
    """What was measured, on what, and how."""

    machine: Machine
    kernels: Kernels
    source: ModelSource
    options: LoadOptions
    num_threads: int
    plan: BenchmarkPlan
    result: BenchmarkResult
    overhead: list[StepTime] | None
    profiles: list[StepProfile]

    @property
    def measurements(self) -> list[Measurement]:
        """Tests and points of the curve."""
        return [*self.result.tests, *self.result.curve.values()]

    @property
    def warnings(self) -> list[str]:
        """Why the figures may be too low."""
        cpus = [measurement.cpus for measurement in self.measurements]
        return disturbances(self.machine, self.num_threads, cpus)

    @cached_property
    def model(self) -> dict[str, Any]:
        """Name, sizes and types of the model."""
        with (
            GGUFFile.open(self.source.weights) as weights,
            GGUFFile.open(self.source.vocab) as vocab,
        ):
            described = describe(self.source, weights, vocab)
        return {field: described[field] for field in _MODEL_FIELDS}

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen about how it runs."""
        return {
            "threads": self.num_threads,
            "batch_size": self.options.batch_size,
            "kv_type": str(self.options.kv_dtype),
            "mmap": self.options.use_mmap,
            "repeats": self.plan.repeats,
            "depth": self.plan.depth,
        }


def as_json(report: Report) -> dict[str, Any]:
    """Everything as plain data."""
    answer = {
        "machine": asdict(report.machine),
        "kernels": asdict(report.kernels),
        "model": report.model,
        "settings": report.settings,
        "warnings": report.warnings,
        "tests": [_test_json(test) for test in report.result.tests],
        "batch_curve": [
            {
                "batch_size": size,
                "relative_step": _relative(report, size),
                **_test_json(measurement),
            }
            for size, measurement in report.result.curve.items()
        ],
    }
    if report.overhead is not None:
        answer["overhead"] = _overhead_json(report.overhead)
    if report.profiles:
        answer["profiles"] = [profile_json(profile) for profile in report.profiles]
    return answer


def as_markdown(report: Report) -> str:
    """The conditions as a list, then tables."""
    parts = [_list(_conditions(report))]
    if report.result.tests:
        parts.append(markdown_table(_speed_rows(report.result.tests)))
    if report.result.curve:
        parts.append(markdown_table(_curve_rows(report)))
    if report.overhead is not None:
        parts.append(markdown_table(_overhead_rows(report.overhead)))
    parts += [profile_table(profile) for profile in report.profiles]
    return "\n\n".join(parts)


def _test_json(test: Measurement) -> dict[str, Any]:
    return {
        "name": test.name,
        "num_tokens": test.num_tokens,
        "tokens_per_s": {
            "mean": statistics.mean(test.rates),
            "stddev": test.deviation,
            "median": statistics.median(test.rates),
        },
        "median_step_s": test.median_step_s,
        "cpus": test.cpus,
        "samples": [{"steps_s": list(s.steps_s), "cpu_s": s.cpu_s} for s in test.samples],
    }


def _overhead_json(overhead: list[StepTime]) -> dict[str, Any]:
    medians = {part: _median_s(overhead, part) for part in _PARTS}
    return {"median_s": medians, "steps": [asdict(step) for step in overhead]}


def _conditions(report: Report) -> dict[str, str]:
    machine, kernels, model, settings = (
        report.machine,
        report.kernels,
        report.model,
        report.settings,
    )
    memory = f", {format_bytes(machine.memory_bytes)} of memory" if machine.memory_bytes else ""
    origin = f" ({kernels.origin})" if kernels.origin else ""
    own = f"; own kernels: {' '.join(kernels.own)}" if kernels.own else ""
    types = ", ".join(f"{count} × {name}" for name, count in model["tensor_types"].items())
    return {
        "machine": f"{machine.cpu}, {machine.num_cpus} CPUs{memory}; {machine.system}; "
        f"load average {machine.load_average:.2f}",
        "backend": " ".join([kernels.backend, kernels.version]).strip()
        + f"{origin}: {' '.join(kernels.features) or 'no CPU features listed'}{own}",
        "model": f"{model['name']}: {model['architecture']}, {model['parameters'] / 1e6:,.0f} M "
        f"parameters, {format_bytes(model['size_bytes'])}; {types}",
        "settings": f"{settings['threads']} threads, batches of {settings['batch_size']}, "
        f"KV cache {settings['kv_type']}{', mmap' if settings['mmap'] else ''}; "
        f"{settings['repeats']} repetitions",
    }


def _speed_rows(tests: Iterable[Measurement]) -> Iterator[list[str]]:
    yield ["test", "tokens/s", "median", "ms per token", "CPUs used"]
    for test in tests:
        median = statistics.median(test.rates)
        yield [
            test.name,
            f"{statistics.mean(test.rates):.2f} ± {test.deviation:.2f}",
            f"{median:.2f}",
            f"{1000 / median:.3f}",
            f"{test.cpus:.2f}",
        ]


def _curve_rows(report: Report) -> Iterator[list[str]]:
    curve = report.result.curve
    yield ["tokens in a step", *(str(size) for size in curve)]
    yield ["ms", *(f"{1000 * point.median_step_s:.2f}" for point in curve.values())]
    yield ["relative to 1", *(f"{_relative(report, size):.2f}" for size in curve)]
    rates = (size / point.median_step_s for size, point in curve.items())
    yield ["tokens/s", *(f"{rate:.1f}" for rate in rates)]


def _relative(report: Report, size: int) -> float:
    curve = report.result.curve
    return curve[size].median_step_s / curve[1].median_step_s


def _overhead_rows(overhead: list[StepTime]) -> Iterator[list[str]]:
    yield ["decode step (median)", "µs"]
    for part in _PARTS:
        yield [part, f"{1e6 * _median_s(overhead, part):,.1f}"]


def _median_s(overhead: list[StepTime], part: str) -> float:
    seconds: list[float] = [getattr(step, f"{part}_s") for step in overhead]
    return statistics.median(seconds)


def _list(items: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in items.items())
