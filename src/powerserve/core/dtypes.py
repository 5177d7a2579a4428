"""Tensor element types, by their GGUF numbers.

Source: the GGUF specification and ggml's `enum ggml_type`. A quantised type stores `block_size`
elements in `block_bytes` bytes; a plain type has blocks of one element.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: its name, GGUF number and block geometry."""

    name: str
    ggml_id: int
    block_size: int  # elements
    block_bytes: int

    @property
    def is_quantised(self) -> bool:
        """Whether elements are stored in blocks."""
        return self.block_size > 1

    def size_bytes(self, num_elements: int) -> int:
        """Bytes of `num_elements` elements, which must be a whole number of blocks."""
        if num_elements % self.block_size:
            raise ValueError(
                f"{num_elements} elements are not a whole number of {self.name} blocks"
            )
        return num_elements // self.block_size * self.block_bytes

    def __str__(self) -> str:
        return self.name


F32 = DType("F32", 0, 1, 4)
F16 = DType("F16", 1, 1, 2)
Q4_0 = DType("Q4_0", 2, 32, 18)
Q4_1 = DType("Q4_1", 3, 32, 20)
Q5_0 = DType("Q5_0", 6, 32, 22)
Q5_1 = DType("Q5_1", 7, 32, 24)
Q8_0 = DType("Q8_0", 8, 32, 34)
Q2_K = DType("Q2_K", 10, 256, 84)
Q3_K = DType("Q3_K", 11, 256, 110)
Q4_K = DType("Q4_K", 12, 256, 144)
Q5_K = DType("Q5_K", 13, 256, 176)
Q6_K = DType("Q6_K", 14, 256, 210)
IQ2_XXS = DType("IQ2_XXS", 16, 256, 66)
IQ2_XS = DType("IQ2_XS", 17, 256, 74)
IQ3_XXS = DType("IQ3_XXS", 18, 256, 98)
IQ1_S = DType("IQ1_S", 19, 256, 50)
IQ4_NL = DType("IQ4_NL", 20, 32, 18)
IQ3_S = DType("IQ3_S", 21, 256, 110)
IQ2_S = DType("IQ2_S", 22, 256, 82)
IQ4_XS = DType("IQ4_XS", 23, 256, 136)
I8 = DType("I8", 24, 1, 1)
I16 = DType("I16", 25, 1, 2)
I32 = DType("I32", 26, 1, 4)
I64 = DType("I64", 27, 1, 8)
F64 = DType("F64", 28, 1, 8)
IQ1_M = DType("IQ1_M", 29, 256, 56)
BF16 = DType("BF16", 30, 1, 2)
TQ1_0 = DType("TQ1_0", 34, 256, 54)
TQ2_0 = DType("TQ2_0", 35, 256, 66)
MXFP4 = DType("MXFP4", 39, 32, 17)

ALL = (
    F32, F16, BF16, F64, I8, I16, I32, I64,
    Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K,
    IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4,
)  # fmt: skip
BY_ID = {dtype.ggml_id: dtype for dtype in ALL}
BY_NAME = {dtype.name: dtype for dtype in ALL}
