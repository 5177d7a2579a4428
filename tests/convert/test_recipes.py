"""The types that recipes give to matrices are those of llama.cpp's files."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from powerserve.convert.quantize_types import TypeChoices, plan_types
from powerserve.convert.recipes import find_recipe, fitting_dtype, recipe_names
from powerserve.core import dtypes
from powerserve.core.errors import UsageError
from powerserve.storage.gguf import GGUFFile, TensorInfo

REFERENCE = Path(__file__).parents[1] / "reference" / "quantisation"
NO_DATA = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Sizes:
    """A model of which only the header matters."""

    layers: int
    embed: int
    ffn: int
    heads: int
    kv_heads: int
    tied: bool = False


MODELS = {
    "smollm2-135m": Sizes(30, 576, 1536, 9, 3, tied=True),
    "qwen2.5-0.5b": Sizes(24, 896, 4864, 14, 2),
    "gqa4": Sizes(32, 256, 512, 8, 2),
    "gqa4-imatrix": Sizes(32, 256, 512, 8, 2),
    "80-layers": Sizes(80, 256, 256, 4, 2),
}


def header_only(sizes: Sizes) -> GGUFFile:
    """A model without data, its matrices in F16."""
    kv = sizes.embed // sizes.heads * sizes.kv_heads
    shapes = {"token_embd": (1000, sizes.embed)}
    if not sizes.tied:
        shapes["output"] = (1000, sizes.embed)
    for layer in range(sizes.layers):
        parts = {
            "attn_q": (sizes.embed, sizes.embed),
            "attn_k": (kv, sizes.embed),
            "attn_v": (kv, sizes.embed),
            "attn_output": (sizes.embed, sizes.embed),
            "ffn_gate": (sizes.ffn, sizes.embed),
            "ffn_up": (sizes.ffn, sizes.embed),
            "ffn_down": (sizes.embed, sizes.ffn),
            "attn_norm": (sizes.embed,),
        }
        shapes |= {f"blk.{layer}.{part}": shape for part, shape in parts.items()}
    metadata = {
        "general.architecture": "llama",
        "llama.attention.head_count": sizes.heads,
        "llama.attention.head_count_kv": sizes.kv_heads,
    }
    tensors = {
        f"{name}.weight": TensorInfo(f"{name}.weight", shape, dtypes.F16, 0, 0, NO_DATA)
        for name, shape in shapes.items()
    }
    return GGUFFile(Path("model.gguf"), metadata, tensors)


def planned(model: GGUFFile, recipe: str, *, has_importance: bool = False) -> dict[str, str]:
    """By part of the model, the types in the notation of the reference."""
    plan = plan_types(model, find_recipe(recipe), TypeChoices(), has_importance=has_importance)
    types = defaultdict(list)
    for tensor in plan:
        if len(tensor.source.shape) == 2:
            types[tensor.source.name.split(".")[-2]].append(tensor.dtype.name)
    return {
        part: " ".join(f"{len(list(run))}*{name}" for name, run in groupby(names))
        for part, names in types.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_gets_the_type_that_llama_cpp_gives_it(name: str) -> None:
    expected: dict[str, dict[str, str]] = defaultdict(dict)
    for line in (REFERENCE / f"{name}.txt").read_text().splitlines():
        recipe, part, types = line.split(" ", 2)
        expected[recipe][part] = types
    model = header_only(MODELS[name])
    has_importance = name.endswith("imatrix")
    found = {each: planned(model, each, has_importance=has_importance) for each in expected}
    assert found == expected


def test_the_reference_has_every_recipe() -> None:
    lines = (REFERENCE / "gqa4.txt").read_text().splitlines()
    assert {line.split()[0] for line in lines} == set(recipe_names())


def test_short_names_mean_the_medium_mixture_in_any_case() -> None:
    assert find_recipe("q4_k").name == "Q4_K_M"
    assert find_recipe("Q8_0").file_type == 7


def test_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'Q9_9'.*Q8_0.*Q4_K_M.*IQ4_XS"):
        find_recipe("Q9_9")


def test_rows_that_fit_no_block_become_f16() -> None:
    assert fitting_dtype(dtypes.Q6_K, 100) == dtypes.F16
    assert fitting_dtype(dtypes.Q4_0, 100) == dtypes.F16


def test_pure_leaves_out_all_rules_and_choices_come_first() -> None:
    model = header_only(MODELS["gqa4"])
    choices = TypeChoices(pure=True, output=dtypes.F16, embedding=dtypes.Q8_0)
    plan = plan_types(model, find_recipe("Q4_K_M"), choices, has_importance=False)
    types = {tensor.source.name: tensor.dtype.name for tensor in plan}
    assert types.pop("output.weight") == "F16"
    assert types.pop("token_embd.weight") == "Q8_0"
    matrices = {name: dtype for name, dtype in types.items() if "norm" not in name}
    assert set(matrices.values()) == {"Q4_K"}


def test_a_tied_table_takes_the_type_chosen_for_the_output() -> None:
    model = header_only(MODELS["smollm2-135m"])
    choices = TypeChoices(output=dtypes.BF16)
    plan = plan_types(model, find_recipe("Q4_0"), choices, has_importance=False)
    assert plan[0].source.name == "token_embd.weight"
    assert plan[0].dtype == dtypes.BF16


def test_a_chosen_type_must_fit_the_rows() -> None:
    model = header_only(MODELS["smollm2-135m"])
    with pytest.raises(UsageError, match=r"576 elements.*Q6_K blocks of 256"):
        plan_types(
            model, find_recipe("Q4_0"), TypeChoices(embedding=dtypes.Q6_K), has_importance=False
        )
