"""The worker process of ONNX Runtime: what it computes, and every way in which it can end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from powerserve.backend.qnn.config_file import CPU_FOLDER, EMULATOR_FOLDER, QnnFolder
from powerserve.backend.qnn.runtime.base import GraphRequest
from powerserve.backend.qnn.runtime.buffers import InputBuffers, allocate, stacked
from powerserve.backend.qnn.runtime.cpu import CpuRuntime
from powerserve.backend.qnn.runtime.process import COMMAND, ProcessRuntime
from powerserve.backend.qnn.tensors import F16, F32, GraphSpec, TensorSpec, lm_head_spec
from powerserve.core.config import ModelConfig
from powerserve.core.errors import BackendError
from powerserve.model.config import config_from_metadata
from powerserve.storage.gguf import GGUFFile

if TYPE_CHECKING:
    from npu_conversions import Converted

SPEC = GraphSpec((TensorSpec("x", F32, (2, 4)),), (TensorSpec("y", F32, (2, 3)),))
REQUEST = GraphRequest("graph", SPEC)
READ = """
import json, sys, time

def read():
    return json.loads(sys.stdin.readline())["number"]

def done(number, **reply):
    print(json.dumps({"number": number} | reply), flush=True)

"""


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"nothing")
    return path


def runtime(script: str, time_limit_s: float = 60) -> ProcessRuntime:
    """A runtime whose worker is a stand-in."""
    command = (sys.executable, "-c", READ + script)
    return ProcessRuntime("NPU", command=command, time_limit_s=time_limit_s)


def failure(worker: ProcessRuntime, binary: Path, request: GraphRequest = REQUEST) -> str:
    with pytest.raises(BackendError) as caught:
        worker.load(binary, [request])
    worker.close()
    return str(caught.value)


def config_of(converted: Converted) -> ModelConfig:
    file = GGUFFile.open(converted.conversion.source)
    return config_from_metadata(file.metadata, file.tensors)


def test_a_worker_that_dies_is_one_sentence(binary: Path) -> None:
    answer_twice = "for _ in range(2): done(read())\n"
    script = answer_twice + "read(); print('too much', file=sys.stderr); import os; os.abort()"
    expected = f"the NPU process crashed (SIGABRT) while loading {binary}: too much"
    assert failure(runtime(script), binary) == expected


def test_a_worker_that_ends_is_one_sentence(binary: Path) -> None:
    script = "read(); sys.exit(3)"
    assert failure(runtime(script), binary) == (
        "the NPU process ended with status 3 while sharing memory"
    )


def test_a_worker_that_hangs_is_stopped(binary: Path) -> None:
    worker = runtime("time.sleep(60)", time_limit_s=0.3)
    message = failure(worker, binary)
    assert message == "sharing memory took more than 0.3 seconds and was stopped"


def test_after_a_crash_every_request_fails(binary: Path) -> None:
    script = "for _ in range(3): done(read())\n"
    worker = runtime(script + "read(); import os; os.kill(os.getpid(), 9)")
    (graph,) = worker.load(binary, [REQUEST])
    for _ in range(2):
        with pytest.raises(BackendError, match=r"SIGKILL.* while running graph"):
            graph.run()
    worker.close()


def test_a_refusal_is_passed_on(binary: Path) -> None:
    script = "for _ in range(2): done(read())\ndone(read(), error='no room'); read()"
    assert failure(runtime(script), binary) == "no room"


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    message = failure(runtime("read()"), tmp_path / "none.bin")
    assert message == f"there is no context binary {tmp_path / 'none.bin'}"


def test_ctrl_c_leaves_the_worker_at_work(binary: Path) -> None:
    """The late reply is not taken for that to the next request."""
    script = "for _ in range(3): done(read())\n"
    script += "late = read(); time.sleep(1); done(late, error='late'); done(read())\n"
    worker = runtime(script + "done(read(), error='third'); read()")
    (graph,) = worker.load(binary, [REQUEST])

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            graph.run()
    finally:
        signal.signal(signal.SIGALRM, before)
    graph.run()
    with pytest.raises(BackendError, match="third"):
        graph.run()
    worker.close()


def test_the_worker_ends_with_its_parent() -> None:
    """Whose end of the pipe the system closes."""
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


def test_real_binaries_are_executed(npu_model: Converted) -> None:
    """Two LM heads of different sizes in two binaries, beside the quantised graphs on the CPU."""
    config = config_of(npu_model)
    results = []
    for path, device in (
        (npu_model.folder / EMULATOR_FOLDER, ProcessRuntime("emulator")),
        (npu_model.folder / CPU_FOLDER, CpuRuntime(1)),
    ):
        folder = QnnFolder.read(path)
        for head in folder.files.embeddings:
            request = GraphRequest(head.graph_name, lm_head_spec(config, head.batch_size))
            (graph,) = device.load(folder.path / head.model_path, [request])
            graph.inputs["x"][:] = np.random.default_rng(head.batch_size).normal(
                size=graph.inputs["x"].shape
            )
            graph.run()
            results.append(graph.outputs["logits"].copy())
        device.close()
    for emulated, expected in zip(results[:2], results[2:], strict=True):
        assert np.abs(emulated - expected).max() < 0.01 * np.abs(expected).max()


def test_a_graph_with_other_tensors_is_refused(npu_model: Converted) -> None:
    """ONNX Runtime itself looks neither at the graph's name nor at those of its tensors."""
    folder = QnnFolder.read(npu_model.folder / EMULATOR_FOLDER)
    head = folder.files.embeddings[0]
    spec = lm_head_spec(config_of(npu_model), head.batch_size)
    renamed = GraphSpec(spec.inputs, (TensorSpec("other", F32, spec.outputs[0].shape),))
    for request, message in (
        (GraphRequest("another", spec), "has no graph another; it has"),
        (GraphRequest(head.graph_name, renamed), "has no tensor other"),
    ):
        assert message in failure(
            ProcessRuntime("emulator"), folder.path / head.model_path, request
        )


def test_random_bytes_are_refused(binary: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")
    binary.write_bytes(np.random.default_rng(0).bytes(5000))
    message = failure(ProcessRuntime("emulator"), binary)
    assert message.startswith(f"{binary} cannot be inspected: ")


def test_a_folder_without_libraries_is_named(binary: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")
    message = failure(ProcessRuntime("emulator", tmp_path), binary)
    assert message == f"{tmp_path} lacks libQnnHtp.so or libQnnSystem.so"


def test_an_onnx_file_with_other_tensors_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "graph.onnx"
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    tensors = [helper.make_tensor_value_info(name, number, [2, 4]) for name in ("x", "y")]
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:])
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    for output, message in (
        (TensorSpec("y", F32, (2, 3)), "no tensor y of type float32 and shape [2, 3]"),
        (TensorSpec("y", F16, (2, 4)), "no tensor y of type float16 and shape [2, 4]"),
        (TensorSpec("z", F32, (2, 4)), "no tensor z"),
    ):
        request = GraphRequest("graph", GraphSpec((TensorSpec("x", F32, (2, 4)),), (output,)))
        with pytest.raises(BackendError) as caught:
            CpuRuntime(1).load(path, [request])
        assert message in str(caught.value)
    with pytest.raises(BackendError, match=r"none\.onnx cannot be loaded"):
        CpuRuntime(1).load(tmp_path / "none.onnx", [REQUEST])


def test_like_inputs_share_memory_and_heads_lie_at_equal_distances() -> None:
    def request(batch_size: int, layers: Sequence[int]) -> GraphRequest:
        caches = [
            TensorSpec(f"{kind}_{layer}", F16, shape)
            for layer in layers
            for kind, shape in (("key", (5, 7)), ("value", (7, 5)))
        ]
        hidden = TensorSpec("x", F32, (batch_size, 3))
        return GraphRequest("graph", GraphSpec((hidden, *caches), ()))

    buffers = InputBuffers()
    small, large = buffers.of(request(1, range(3))), buffers.of(request(4, range(3)))
    large["key_1"][2, 3] = 7
    assert small["key_1"][2, 3] == 7
    assert not np.shares_memory(small["x"], large["x"])
    keys = stacked([small[f"key_{layer}"] for layer in range(3)])
    keys[2, 1] = 9
    assert keys.shape == (3, 5, 7) and keys[1, 2, 3] == 7
    assert (large["key_2"][1] == 9).all() and not large["value_2"].any()
    one = allocate([TensorSpec("a", F16, (5, 7)), TensorSpec("b", F16, (2, 2))])
    other = allocate([TensorSpec("a", F16, (5, 7))])
    assert stacked([one["a"]]).shape == (1, 5, 7)
    with pytest.raises(ValueError, match="equal distances"):
        stacked([one["a"], other["a"], one["a"]])
