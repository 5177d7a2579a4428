"""Which type each matrix of a model gets when it is quantised.

A recipe has one type for most matrices and rules that give some of them more bits. The mixtures are
llama.cpp's (src/llama-quant.cpp and its `llama_ftype`, as of ggml 0.25): where it names a file
Q4_K_M, ours has the same types. Of its special cases those for Falcon and Mixtral are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a model a matrix is, as far as rules ask."""

    layer: int
    num_layers: int
    query_heads_per_kv_head: int
    has_importance: bool = False  # an importance matrix is used


@dataclass(frozen=True, slots=True)
class Rule:
    """A type for the matrices for which a condition holds."""

    dtype: DType
    applies: Callable[[Place], bool]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`rules` by part of a layer (`attn_v`, …); of a part's rules the first that applies counts."""

    name: str
    file_type: int  # general.file_type: llama.cpp's `llama_ftype`
    dtype: DType
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)


def _always(place: Place) -> bool:
    return True


def _first_layers(count: int) -> Callable[[Place], bool]:
    return lambda place: place.layer < count


def _first_part(divisor: int) -> Callable[[Place], bool]:
    return lambda place: place.layer < place.num_layers // divisor


def _first_eighth_with(*, importance: bool) -> Callable[[Place], bool]:
    first_eighth = _first_part(8)
    return lambda place: place.has_importance is importance and first_eighth(place)


def _shared_by_four(place: Place) -> bool:
    """Few keys and values serve many queries, so that their matrices are small and matter much."""
    return place.query_heads_per_kv_head >= 4


def _sensitive(place: Place) -> bool:
    """The first and the last eighth of the layers, and every third between (`use_more_bits`)."""
    eighth = place.num_layers // 8
    in_last = place.layer >= 7 * place.num_layers // 8
    return place.layer < eighth or in_last or (place.layer - eighth) % 3 == 2


def _each(dtype: DType) -> tuple[Rule, ...]:
    return (Rule(dtype, _always),)


_MORE_FOR_SENSITIVE = (Rule(dtypes.Q6_K, _sensitive),)
_IQ4_RULES = {
    "attn_v": (Rule(dtypes.Q5_K, _shared_by_four),),
    "ffn_down": (Rule(dtypes.Q5_K, _first_eighth_with(importance=False)),),
}

_RECIPES: Final = (
    Recipe("F32", 0, dtypes.F32),
    Recipe("F16", 1, dtypes.F16),
    Recipe("BF16", 32, dtypes.BF16),
    Recipe("Q8_0", 7, dtypes.Q8_0),
    Recipe(
        *("Q4_0", 2, dtypes.Q4_0),
        {"ffn_down": (Rule(dtypes.Q4_1, _first_eighth_with(importance=True)),)},
    ),
    Recipe("Q4_1", 3, dtypes.Q4_1),
    Recipe(
        *("Q5_0", 8, dtypes.Q5_0),
        {"ffn_down": (Rule(dtypes.Q5_1, _first_eighth_with(importance=True)),)},
    ),
    Recipe("Q5_1", 9, dtypes.Q5_1),
    Recipe(
        *("Q2_K", 10, dtypes.Q2_K),
        {
            "attn_v": (Rule(dtypes.Q4_K, _shared_by_four), Rule(dtypes.Q3_K, _always)),
            "attn_output": _each(dtypes.Q3_K),
            "ffn_down": _each(dtypes.Q3_K),
        },
    ),
    Recipe("Q3_K_S", 11, dtypes.Q3_K),
    Recipe(
        *("Q3_K_M", 12, dtypes.Q3_K),
        {
            "attn_v": (Rule(dtypes.Q5_K, _first_layers(2)), Rule(dtypes.Q4_K, _always)),
            "attn_output": _each(dtypes.Q4_K),
            "ffn_down": (Rule(dtypes.Q5_K, _first_part(16)), Rule(dtypes.Q4_K, _always)),
        },
    ),
    Recipe(
        *("Q3_K_L", 13, dtypes.Q3_K),
        {part: _each(dtypes.Q5_K) for part in ("attn_v", "attn_output", "ffn_down")},
    ),
    Recipe(
        *("Q4_K_S", 14, dtypes.Q4_K),
        {
            "attn_v": (Rule(dtypes.Q5_K, _first_layers(4)),),
            "ffn_down": (Rule(dtypes.Q5_K, _first_part(8)),),
        },
    ),
    Recipe(
        *("Q4_K_M", 15, dtypes.Q4_K),
        {"attn_v": _MORE_FOR_SENSITIVE, "ffn_down": _MORE_FOR_SENSITIVE},
    ),
    Recipe("Q5_K_S", 16, dtypes.Q5_K),
    Recipe(
        *("Q5_K_M", 17, dtypes.Q5_K),
        {"attn_v": _MORE_FOR_SENSITIVE, "ffn_down": _MORE_FOR_SENSITIVE},
    ),
    Recipe("Q6_K", 18, dtypes.Q6_K),
    Recipe("IQ4_NL", 25, dtypes.IQ4_NL, _IQ4_RULES),
    Recipe("IQ4_XS", 30, dtypes.IQ4_XS, _IQ4_RULES),
)
_BY_NAME: Final = {recipe.name: recipe for recipe in _RECIPES}
_ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# What a matrix gets whose rows are not a whole number of its type's blocks.
_FALLBACKS: Final = {
    dtypes.Q2_K: dtypes.Q4_0,
    dtypes.Q3_K: dtypes.Q4_0,
    dtypes.Q4_K: dtypes.Q5_0,
    dtypes.Q5_K: dtypes.Q5_1,
    dtypes.Q6_K: dtypes.Q8_0,
    dtypes.IQ4_XS: dtypes.IQ4_NL,
}


def recipe_names() -> tuple[str, ...]:
    """The names of all recipes."""
    return tuple(_BY_NAME)


def element_types() -> tuple[DType, ...]:
    """The element types that matrices can get."""
    return tuple(dict.fromkeys(recipe.dtype for recipe in _RECIPES))


def find_recipe(name: str) -> Recipe:
    """The recipe called `name` in any case. Raises UsageError, which lists them."""
    upper = name.upper()
    recipe = _BY_NAME.get(_ALIASES.get(upper, upper))
    if recipe is None:
        raise UsageError(f"there is no type {name!r}; choose one of {', '.join(_BY_NAME)}")
    return recipe


def matrix_dtype(recipe: Recipe, part: str, place: Place) -> DType:
    """The type of the matrix that is `part` (`attn_v`, `ffn_down`, …) of the layer at `place`."""
    # Models that fuse V into another matrix treat that matrix as V.
    part = "attn_v" if part in ("attn_qkv", "attn_kv_b") else part
    rules = recipe.rules.get(part, ())
    dtype = next((rule.dtype for rule in rules if rule.applies(place)), recipe.dtype)
    if part == "attn_v" and _is_70b(place) and dtype in (dtypes.Q3_K, dtypes.Q4_K):
        return dtypes.Q5_K
    return dtype


def output_dtype(recipe: Recipe, num_columns: int) -> DType:
    """The type of the output layer, whose rows have `num_columns` elements."""
    if not recipe.dtype.is_quantised:
        return recipe.dtype
    if num_columns % recipe.dtype.block_size or recipe.dtype == dtypes.Q8_0:
        return dtypes.Q8_0
    return dtypes.Q6_K


def fitting_dtype(dtype: DType, num_columns: int) -> DType:
    """`dtype`, or the next best if rows of `num_columns` are not a whole number of its blocks."""
    if num_columns % dtype.block_size:
        dtype = _FALLBACKS.get(dtype, dtypes.F16)
    return dtypes.F16 if num_columns % dtype.block_size else dtype


def _is_70b(place: Place) -> bool:
    """Llama 70B and its likes: 8 heads share a V matrix that is small beside the others."""
    return place.num_layers == 80 and place.query_heads_per_kv_head > 1
