"""Qualcomm's compiler in child processes: one binary per job, shared weights, nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")

from powerserve.backend.qnn.inspect import inspect_binary
from powerserve.backend.qnn.libraries import find_libraries
from powerserve.backend.qnn.soc import find_soc, load_socs
from powerserve.convert.qnn.child import ChildProcesses
from powerserve.convert.qnn.compiler import CompileJob, CompileOptions, compile_binary, read_record
from powerserve.convert.qnn.onnx_graph import WeightFile
from powerserve.convert.qnn.simple_test import Perceptron
from powerserve.core.errors import BackendError

OPTIONS = CompileOptions(find_soc("8650", load_socs()), timeout_s=300)


@pytest.fixture
def children() -> Iterator[ChildProcesses]:
    with ChildProcesses() as children:
        yield children


@pytest.fixture
def job(tmp_path: Path) -> CompileJob:
    """Two batch sizes with the same weights, in one external file."""
    graphs = []
    with (tmp_path / "weights").open("wb") as file:
        weights = WeightFile(file, "weights")
        for batch_size in (1, 8):
            graphs.append(tmp_path / f"batch_{batch_size}.onnx")
            Perceptron(batch_size, 128, 512).graph(seed=0).save(graphs[-1], weights)
    return CompileJob(tuple(graphs), tmp_path / "both.bin")


def test_graphs_of_one_job_share_their_weights(job: CompileJob, children: ChildProcesses) -> None:
    both = compile_binary(job, OPTIONS, children)
    single = [
        compile_binary(CompileJob((graph,), graph.with_suffix(".bin")), OPTIONS, children)
        for graph in job.graphs
    ]
    weight_bytes = 2 * 128 * 512 * np.dtype(np.float16).itemsize
    assert both.size_bytes < sum(each.size_bytes for each in single) - 0.8 * weight_bytes
    assert len(set(both.graph_names)) == len(both.seconds) == 2
    assert both.peak_memory > 50_000_000
    names = {graph.name for graph in inspect_binary(job.binary, find_libraries()).graphs}
    assert names == set(both.graph_names)


def test_a_finished_binary_is_not_compiled_again(
    job: CompileJob, children: ChildProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_binary(job, OPTIONS, children)

    def refuse(*arguments: object, **named: object) -> object:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patched:
        patched.setattr(ChildProcesses, "run", refuse)
        assert compile_binary(job, OPTIONS, children) == first
        for other in (
            replace(OPTIONS, optimisation=1),
            CompileOptions(find_soc("8750", load_socs())),
        ):
            with pytest.raises(AssertionError, match="compiled again"):
                compile_binary(job, other, children)
        weights = job.graphs[0].with_name("weights")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        with pytest.raises(AssertionError, match="compiled again"):
            compile_binary(job, OPTIONS, children)


def test_a_cut_binary_is_not_taken_for_a_finished_one(
    job: CompileJob, children: ChildProcesses
) -> None:
    compile_binary(job, OPTIONS, children)
    job.binary.write_bytes(job.binary.read_bytes()[:-1])
    assert read_record(job.binary) is None
    assert compile_binary(job, OPTIONS, children).size_bytes == job.binary.stat().st_size


def test_what_a_killed_compilation_left_is_removed(
    job: CompileJob, children: ChildProcesses
) -> None:
    leftover = job.binary.with_name(f".{job.binary.name}.1234")
    leftover.mkdir()
    (leftover / "half.bin").write_bytes(b"half")
    compile_binary(job, OPTIONS, children)
    assert not leftover.exists()


def test_a_graph_that_onnx_cannot_read(tmp_path: Path, children: ChildProcesses) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"broken\.onnx"):
        compile_binary(CompileJob((broken,), tmp_path / "broken.bin"), OPTIONS, children)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


def test_an_soc_that_the_compiler_does_not_know(
    job: CompileJob, children: ChildProcesses, tmp_path: Path
) -> None:
    unknown = replace(OPTIONS.soc, model=9999, part="SM9999")
    with pytest.raises(BackendError, match=r"compiling both\.bin for SM9999 failed"):
        compile_binary(job, replace(OPTIONS, soc=unknown), children)
    assert not job.binary.exists()


@pytest.mark.parametrize("name", ["8gen3", "8gen4", "8295", "8sGen3", "8EliteGen5"])
def test_the_compiler_agrees_with_the_table_of_socs(
    name: str, tmp_path: Path, children: ChildProcesses
) -> None:
    soc = find_soc(name, load_socs())
    graph = tmp_path / "x.onnx"
    with (tmp_path / "weights").open("wb") as file:
        Perceptron(1, 32, 32).graph(seed=0).save(graph, WeightFile(file, "weights"))
    binary = tmp_path / "x.bin"
    compile_binary(CompileJob((graph,), binary), CompileOptions(soc), children)
    # The compiler writes its settings into the binary as text.
    settings = dict(
        part.split("=", 1)
        for part in binary.read_bytes().decode("ascii", "ignore").split(";")
        if part.count("=") == 1
    )
    compiled_as = next(each for each in load_socs() if each.model == soc.compiler_model)
    assert settings["soc_type"] == compiled_as.part
    assert int(settings["min_arch"]) == soc.htp_arch
    assert int(settings["vtcm_size"]) == soc.vtcm_mb << 20
    assert int(settings["hvx_threads"]) == soc.hvx_threads
