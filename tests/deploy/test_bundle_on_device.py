"""The bundle on emulated phones: three generations of processors, Android's shell, no libraries."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from command_line import program
from deploy.bundles import real_bundle
from deploy.emulated_cpu import CPUS, make_root, run_on
from powerserve.backend.ggml import kernel_check
from powerserve.backend.ggml.locate import ENVIRONMENT_VARIABLE, wheel_folder
from powerserve.backend.reference.dequantise import dequantise
from powerserve.core import dtypes
from quantised import MemoryTensor, quantised_tensor
from tiny_models import TinyModel, write_tiny_model

LEVELS = dict(zip(CPUS, ("armv8.0", "armv8.2", "armv8.6"), strict=True))
DATA = Path("data/local/tmp")
INSTALLED = DATA / "power serve/versions/1"
POWERSERVE = f"/{INSTALLED}/bin/powerserve"
PYTHON = f"/{INSTALLED}/bin/python3"
HOSTILE = ["it's", '"$HOME"', "`id`", "a\nb", "\\", "*", "😀 é", "-n", ""]
ONE_THREAD = ("-t", "1")  # emulated threads wait for each other by spinning
TEXT = (
    "The harbour lay still in the early light. Two boats had come in during the night, and their "
    "crews were asleep on the coiled ropes. A dog walked along the quay and looked at the gulls."
)
pytestmark = pytest.mark.timeout(1800)  # the first use of the bundle compiles ggml three times


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phone's root folder with the bundle, unpacked by the phone's own tools."""
    root = tmp_path_factory.mktemp("phone") / "root"
    make_root(root)
    (root / INSTALLED).mkdir(parents=True)
    shutil.copy(real_bundle(), root / DATA / "bundle.tar.gz")
    script = f'cd "/{INSTALLED}" && tar xzf /{DATA}/bundle.tar.gz && rm /{DATA}/bundle.tar.gz'
    done = run_on(CPUS[0], ["/system/bin/sh", "-c", script], root)
    assert done.returncode == 0, done.stderr
    return root


def on_device(
    root: Path, *argv: str | Path, cpu: str = CPUS[1], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the bundle with the phone's shell."""
    argv = ("/system/bin/sh", *map(str, argv))
    done = run_on(cpu, argv, root, environment=environment)
    return subprocess.CompletedProcess(
        argv, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


# ---- arithmetic ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights() -> dict[str, MemoryTensor]:
    """One matrix of each type that models for phones have."""
    values = np.random.default_rng(5).normal(
        0, 0.1, (kernel_check.NUM_OUT, kernel_check.NUM_IN)
    ).astype(np.float32)  # fmt: skip
    half = values.astype(np.float16)
    return {
        "F16": MemoryTensor(values.shape, dtypes.F16, half.view(np.uint8).ravel()),
        **{
            dtype.name: quantised_tensor(values, dtype)
            for dtype in dtypes.ALL
            if dtype.name in ("Q4_0", "Q8_0", "Q4_K")
        },
    }


@pytest.mark.parametrize("cpu", CPUS)
def test_each_processor_gets_its_kernels_and_they_multiply_right(
    root: Path, weights: dict[str, MemoryTensor], cpu: str
) -> None:
    """Compared with numpy; the difference is ggml's rounding of activations to 8 bits."""
    rows = max(kernel_check.BATCHES)
    table = np.random.default_rng(6).normal(size=(rows, kernel_check.NUM_IN)).astype(np.float32)
    np.savez(
        root / DATA / "in.npz", table=table, **{name: each.data for name, each in weights.items()}
    )
    shutil.copy(Path(__file__).with_name("device_products.py"), root / DATA)
    files = [f"/{DATA}/{name}" for name in ("device_products.py", "in.npz", "out.npz")]
    done = on_device(root, PYTHON, *files, cpu=cpu)
    assert (done.returncode, done.stdout.strip()) == (0, LEVELS[cpu]), done.stderr
    products = np.load(root / DATA / "out.npz")
    assert len(products.files) == len(weights) * len(kernel_check.BATCHES)
    for case in products.files:
        name, num_tokens = case.split("/")
        expected = table[: int(num_tokens)] @ dequantise(weights[name]).T
        assert relative_error(products[case], expected) < 0.015, case


def relative_error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("cpu", CPUS)
def test_a_model_predicts_as_on_the_host(root: Path, cpu: str) -> None:
    path = root / DATA / "tiny.gguf"
    if not path.exists():
        write_tiny_model(path, TinyModel("qwen2", dtype="Q8_0"))
    assert device_nll(root, path, cpu) == pytest.approx(host_nll(path), abs=0.02)


def test_smollm2_predicts_as_on_the_host(root: Path, smollm2: Path) -> None:
    path = root / DATA / "smollm2.gguf"
    path.symlink_to(f"/{DATA}/{smollm2.name}")
    shutil.copyfile(smollm2, root / DATA / smollm2.name)
    by_ggml = device_nll(root, path, CPUS[2], "--kernels", "ggml")
    assert by_ggml == pytest.approx(host_nll(smollm2, "--kernels", "ggml"), abs=0.02)
    # On so few tokens, ggml's rounding differs from ours by more than ours from exact arithmetic.
    by_ours = device_nll(root, path, CPUS[2], "--kernels", "native")
    assert by_ours == pytest.approx(host_nll(smollm2, "--backend", "reference"), abs=0.02)


def device_nll(root: Path, model: Path, cpu: str, *flags: str) -> float:
    """Mean negative log-likelihood of TEXT, in nats per token, on the emulated device."""
    arguments = ("perplexity", "-m", f"/{model.relative_to(root)}", "-p", TEXT, "-b", "1", *flags)
    done = on_device(root, POWERSERVE, *arguments, *ONE_THREAD, cpu=cpu)
    assert done.returncode == 0, done.stderr
    return nll_in(done.stdout)


def host_nll(model: Path, *flags: str) -> float:
    """The same by the prebuilt ggml, whatever else this machine has."""
    arguments = ("perplexity", "-m", model, "-p", TEXT, "-b", "1", *flags)
    done = program(*arguments, environment={ENVIRONMENT_VARIABLE: str(wheel_folder())})
    assert done.returncode == 0, done.stderr
    return nll_in(done.stdout.decode())


def nll_in(output: str) -> float:
    """From the last of the lines `ppl <tokens>: <value>`."""
    return math.log(float(re.findall(r"ppl \d+: (\S+)", output)[-1]))


def test_an_answer_is_the_hosts(root: Path) -> None:
    path = write_tiny_model(root / DATA / "exact.gguf", TinyModel(dtype="F32", seed=4))
    arguments = ("-p", "Once upon", "-n", "12", "--temperature", "0", "-q")
    found = on_device(root, POWERSERVE, "run", "-m", f"/{DATA}/exact.gguf", *arguments, *ONE_THREAD)
    expected = program("run", "-m", path, *arguments)
    assert found.returncode == expected.returncode == 0, found.stderr
    assert found.stdout == expected.stdout.decode()


# ---- starting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", [("sh",), ("busybox", "sh")], ids=["mksh", "ash"])
def test_arguments_arrive_as_they_are(root: Path, shell: tuple[str, ...]) -> None:
    argv = [*shell, PYTHON, "-c", "import sys; print(sys.argv[1:])", *HOSTILE]
    done = run_on(CPUS[0], [f"/system/bin/{argv[0]}", *argv[1:]], root)
    assert done.stdout.decode() == f"{HOSTILE}\n", done.stderr


def test_errors_are_sentences_with_their_status(root: Path) -> None:
    done = on_device(root, POWERSERVE, "run", "-m", "/no such.gguf", "-p", "Hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("powerserve run: error: ")
    assert len(done.stderr.splitlines()) == 1


def test_processes_of_its_own_and_links_to_it_work(root: Path) -> None:
    """`doctor` loads ggml in a child process, which `sys.executable` must be able to start."""
    link = root / DATA / "ps"
    link.symlink_to(POWERSERVE)
    done = on_device(root, f"/{DATA}/ps", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"/{INSTALLED}/ggml/{LEVELS[CPUS[1]]}" in done.stdout


def test_without_a_home_files_are_kept_in_the_bundle(root: Path) -> None:
    code = "import pathlib, tempfile; print(pathlib.Path.home(), tempfile.gettempdir())"
    done = on_device(root, PYTHON, "-c", code, HOME="/nowhere", TMPDIR="/nowhere")
    assert done.stdout == f"/{INSTALLED}/home /{INSTALLED}/tmp\n"


def test_the_host_and_its_settings_do_not_leak_in(root: Path) -> None:
    code = "import os, sys; print(sys.version_info[:2], *sys.path, 'LD_PRELOAD' in os.environ)"
    surroundings = {"PYTHONPATH": "/elsewhere", "PYTHONHOME": "/elsewhere", "LD_PRELOAD": "/x.so"}
    done = on_device(root, PYTHON, "-c", code, **surroundings)
    assert done.stdout.startswith("(3, 13)"), done.stderr
    assert "/elsewhere" not in done.stdout
    assert done.stdout.endswith("False\n")
