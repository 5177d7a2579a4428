"""Comparisons of two models: the figures, recorded predictions, and the command."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from command_line import program, status_of
from powerserve import LLM
from powerserve.cli.divergence_report import report_lines
from powerserve.core.errors import ModelFileError, ModelNotFoundError
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.compare_models import compare_models, compare_with_file
from powerserve.evaluate.divergence import Comparison, compare, joined, log_probabilities
from powerserve.evaluate.estimate import mean_of
from powerserve.evaluate.log_probability_file import (
    decode_rows,
    encode_rows,
    open_log_probabilities,
    write_log_probabilities,
)
from powerserve.evaluate.scoring import StepSettings, window_logits
from powerserve.evaluate.windows import text_windows
from tiny_models import TinyModel, write_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog and on it goes. " * 8
FloatArray = npt.NDArray[np.float32]


def logits_of(seed: int, rows: int = 6, vocab: int = 11) -> FloatArray:
    return np.random.default_rng(seed).normal(0, 3, (rows, vocab)).astype(np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and itself in Q8_0."""
    folder = tmp_path_factory.mktemp("models")
    plain = write_tiny_model(folder / "plain.gguf", TinyModel())
    return plain, write_tiny_model(folder / "small.gguf", TinyModel(dtype="Q8_0"))


def test_figures_follow_their_definitions() -> None:
    """By the textbook, in Python's own floats."""
    own, base, targets = logits_of(1), logits_of(2), np.array([3, 0, 10, 5, 5, 7], np.int32)
    found = compare(own, log_probabilities(base), targets)
    for row, target in enumerate(targets):
        p, q = (
            [math.exp(x) / sum(map(math.exp, each[row].tolist())) for x in each[row].tolist()]
            for each in (base, own)
        )
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert found.divergence[row] == pytest.approx(divergence, rel=1e-4)
        assert found.nll[row] == pytest.approx(-math.log(q[target]), rel=1e-5)
        assert found.base_nll[row] == pytest.approx(-math.log(p[target]), rel=1e-5)
        assert found.same_best[row] == (p.index(max(p)) == q.index(max(q)))
        change = q[target] - p[target]
        assert found.probability_change[row] == pytest.approx(change, abs=1e-6)


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = logits_of(1)
    found = compare(logits, log_probabilities(logits), np.zeros(6, np.int32))
    np.testing.assert_allclose(found.divergence, 0, atol=1e-6)
    assert found.agreement.value == 1
    assert found.log_ratio.value == pytest.approx(0, abs=1e-7)
    assert found.correlation == pytest.approx(1)


def test_what_the_base_excludes_costs_nothing() -> None:
    base = np.array([[0, 0, -np.inf]], np.float32)
    found = compare(np.zeros((1, 3), np.float32), log_probabilities(base), np.zeros(1, np.int32))
    assert found.divergence[0] == pytest.approx(math.log(3 / 2), rel=1e-5)


def test_errors_are_those_of_means() -> None:
    """Against a bootstrap: the spread of the figures over resampled tokens."""
    rng = np.random.default_rng(7)
    base = rng.gamma(2, 1.5, 400)
    nll = base + rng.normal(0.1, 0.3, 400)
    sample = Comparison(nll, base, rng.exponential(0.1, 400), np.ones(400))
    resampled = [rng.integers(0, 400, 400) for _ in range(800)]
    ppl, base_ppl = (
        np.array([math.exp(values[rows].mean()) for rows in resampled]) for values in (nll, base)
    )
    assert sample.perplexity.error == pytest.approx(ppl.std(), rel=0.15)
    assert sample.difference.error == pytest.approx((ppl - base_ppl).std(), rel=0.15)
    ratio = sample.log_ratio.exponential()
    assert ratio.value == pytest.approx(sample.perplexity.value / sample.base_perplexity.value)
    assert ratio.error == pytest.approx((ppl / base_ppl).std(), rel=0.15)
    divergence = [sample.divergence[rows].mean() for rows in resampled]
    assert mean_of(sample.divergence).error == pytest.approx(np.std(divergence), rel=0.15)


def test_one_prediction_has_no_error() -> None:
    single = compare(logits_of(1, rows=1), log_probabilities(logits_of(2, rows=1)), np.array([0]))
    assert (single.perplexity.error, single.difference.error) == (0, 0)
    assert "± 0.000000" in "\n".join(report_lines(single, name="a", base="b"))


@pytest.mark.parametrize("vocab", [10, 11])
def test_recorded_rows_have_llama_cpps_layout(vocab: int) -> None:
    logits = logits_of(3, rows=2, vocab=vocab)
    logits[0, 4] = -100  # more than 16 nats below the best
    rows = encode_rows(logits)
    assert rows.shape == (2, 4 + vocab + vocab % 2)
    for row, values in zip(rows, logits.tolist(), strict=True):
        scale, least = struct.unpack("<ff", row[:4].tobytes())
        total = math.log(sum(map(math.exp, values)))
        floor = max(min(values), max(values) - 16)
        assert least == pytest.approx(floor - total, abs=1e-4)
        assert scale == pytest.approx((max(values) - floor) / 65535, rel=1e-5)
        for code, value in zip(row[4:].tolist(), values, strict=False):
            assert scale * code + least == pytest.approx(max(value, floor) - total, abs=2 * scale)
    np.testing.assert_allclose(decode_rows(rows, vocab)[1], log_probabilities(logits)[1], atol=1e-3)


def test_equal_logits_are_recorded() -> None:
    decoded = decode_rows(encode_rows(np.full((1, 4), 2.5, np.float32)), 4)
    np.testing.assert_allclose(decoded, math.log(1 / 4), rtol=1e-5)


def test_a_recorded_base_gives_the_figures_of_a_loaded_one(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    options = LoadOptions(context_size=64)
    with LLM(models[0], options) as plain, LLM(models[1], options) as small:
        windows = text_windows(plain.loaded.tokenizer, TEXT, 41)
        settings = StepSettings(batch_size=32)
        base, model = plain.loaded.model, small.loaded.model
        direct = joined(compare_models(model, base, windows, settings))
        path = tmp_path / "base.kld"
        logits = (rows for _, rows in window_logits(base, windows, settings))
        with path.open("wb") as file:
            vocab_size = plain.loaded.config.vocab_size
            *_, written = write_log_probabilities(file, windows, vocab_size, logits)
        recorded = open_log_probabilities(path)
        from_file = joined(compare_with_file(model, recorded, recorded.windows, settings))
    assert written == direct.num_tokens == from_file.num_tokens == len(windows) * 20
    np.testing.assert_array_equal(recorded.windows, windows)
    np.testing.assert_allclose(from_file.nll, direct.nll, atol=1e-4)
    np.testing.assert_allclose(from_file.base_nll, direct.base_nll, atol=1e-3)
    np.testing.assert_allclose(from_file.divergence, direct.divergence, atol=1e-3)
    assert 1e-6 < direct.divergence.mean() < 0.01  # rounded to 8 bits, and no more


def test_damaged_files_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        open_log_probabilities(tmp_path / "missing")
    with pytest.raises(ModelFileError, match="holds no log-probabilities"):
        open_log_probabilities(models[0])
    path = tmp_path / "x.kld"
    path.write_bytes(b"_logits_" + struct.pack("<iii", 8, 100, 1) + bytes(4 * 8 + 2 * 104 * 3 - 1))
    with pytest.raises(ModelFileError, match="cut off"):
        open_log_probabilities(path)
    path.write_bytes(b"_logits_" + struct.pack("<iii", 8, -1, 1) + bytes(1000))
    with pytest.raises(ModelFileError, match="its header makes no sense"):
        open_log_probabilities(path)


def test_the_command_compares_two_models(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, small = models
    text, record = tmp_path / "text.txt", tmp_path / "plain.kld"
    text.write_text(TEXT)
    assert status_of("perplexity", "-m", plain, "-f", text, "-c", 32, "--chunked") == 0
    perplexity = capsys.readouterr().out.split()[1]
    common = ("perplexity", "-m", small, "-c", 32)
    assert status_of(*common, "-f", text, "--compare-with", plain) == 0
    direct = capsys.readouterr().out
    base = re.search(r"^ +PPL\(base\) +(\S+)", direct, re.MULTILINE)
    assert base is not None
    assert float(base[1]) == pytest.approx(float(perplexity), abs=6e-5)  # printed to 4 places
    assert status_of("perplexity", "-m", plain, "-f", text, "-c", 32,
                     "--kl-divergence-base", record) == 0  # fmt: skip
    assert "plain.kld" in capsys.readouterr().out
    assert status_of(*common, "--kl-divergence", "--kl-divergence-base", record) == 0
    assert capsys.readouterr().out.splitlines()[3] == direct.splitlines()[3]  # PPL(Q)


def test_models_that_cannot_be_compared_are_refused(
    models: tuple[Path, Path], smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ("-p", TEXT, "-c", 32)
    assert status_of("perplexity", "-m", models[0], "--compare-with", smollm2, *prompt) == 2
    assert "only models of one vocabulary can be compared" in capsys.readouterr().err
    assert status_of("perplexity", "-m", models[0], "--kl-divergence", *prompt) == 2
    assert "--kl-divergence-base" in capsys.readouterr().err
    both = ("--compare-with", models[1], "--kl-divergence-base", "x")
    assert status_of("perplexity", "-m", models[0], *both, *prompt) == 2
    assert "either" in capsys.readouterr().err
    done = program("perplexity", "-m", models[0], "--kl-divergence-base", "/proc/x", *prompt)
    assert done.returncode == 2
    assert b"/proc/x cannot be written" in done.stderr
    assert status_of("perplexity", "-m", models[0], "--kl-divergence-base", models[0], *prompt) == 2
    assert "plain.gguf would be overwritten" in capsys.readouterr().err
