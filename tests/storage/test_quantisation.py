"""Which file of a repository is taken, and what its name tells."""

from __future__ import annotations

import pytest

from powerserve.core.errors import DownloadError
from powerserve.storage.quantisation import choose_files, model_stem, quantisation_label

REPO = "owner/repo-GGUF"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q8_0.gguf", "Q8_0"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Q8_0/big-Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Llama-3.2-1B-IQ3_XXS.gguf", "IQ3_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model-f16.gguf", "F16"),
        ("Qwen3-4B-BF16.gguf", "BF16"),
        ("QwQ-32B.gguf", None),
        ("Qwen2.5-3B.gguf", None),
    ],
)
def test_quantisation_in_file_names(name: str, label: str | None) -> None:
    assert quantisation_label(name) == label


def test_stem_has_no_folder_and_no_shard_number() -> None:
    assert model_stem("Q8_0/big.v1-Q8_0-00001-of-00003.gguf") == "big.v1-Q8_0"


def test_the_usual_quantisation_is_preferred() -> None:
    names = ["a-Q8_0.gguf", "a-Q2_K.gguf", "a-q4_k_m.gguf", "README.md"]
    assert choose_files(names, REPO, None) == ("a-q4_k_m.gguf",)
    assert choose_files(names[:2], REPO, None) == ("a-Q8_0.gguf",)


def test_the_only_file_is_taken_whatever_its_name() -> None:
    assert choose_files(["model.gguf", "mmproj-model-f16.gguf"], REPO, None) == ("model.gguf",)


def test_a_tag_is_matched_in_any_case_and_exactly() -> None:
    names = ["a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a-UD-Q4_K_M.gguf"]
    assert choose_files(names, REPO, "q4_k_m") == ("a-Q4_K_M.gguf",)
    assert choose_files(names, REPO, "ud-q4_k_m") == ("a-UD-Q4_K_M.gguf",)


def test_a_tag_may_be_a_file_with_or_without_its_folder() -> None:
    names = ["x/a-Q2_K.gguf", "mmproj-F16.gguf"]
    assert choose_files(names, REPO, "a-Q2_K.gguf") == ("x/a-Q2_K.gguf",)
    assert choose_files(names, REPO, "x/a-Q2_K.gguf") == ("x/a-Q2_K.gguf",)
    assert choose_files(names, REPO, "mmproj-F16.gguf") == ("mmproj-F16.gguf",)


def test_all_shards_come_in_order() -> None:
    shards = [f"Q8_0/big-Q8_0-0000{n}-of-00003.gguf" for n in (3, 1, 2)]
    assert choose_files(shards, REPO, "Q8_0") == tuple(sorted(shards))


def test_missing_shards_are_noticed_before_the_download() -> None:
    with pytest.raises(DownloadError, match="only 1 of the 2 parts"):
        choose_files(["a-Q8_0-00001-of-00002.gguf"], REPO, None)


def test_several_files_that_fit_are_listed() -> None:
    with pytest.raises(
        DownloadError, match=r"several files.*owner/repo-GGUF:NAME.*a\.gguf, b\.gguf"
    ):
        choose_files(["a.gguf", "b.gguf"], REPO, None)
    with pytest.raises(DownloadError, match=r"a-Q4_0\.gguf, b-Q4_0\.gguf"):
        choose_files(["a-Q4_0.gguf", "b-Q4_0.gguf"], REPO, "Q4_0")


def test_an_unknown_tag_lists_what_there_is() -> None:
    with pytest.raises(DownloadError, match=r"has no Q5_0; .* Q4_0, Q8_0$"):
        choose_files(["a-Q8_0.gguf", "a-Q4_0.gguf"], REPO, "Q5_0")


def test_a_repository_without_gguf_says_what_to_do() -> None:
    with pytest.raises(DownloadError, match="converted"):
        choose_files(["model.safetensors"], REPO, None)
