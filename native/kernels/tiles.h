// bfloat16 tiles of 16 rows x 64 bytes, for files that are compiled for AVX-512 with bfloat16.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace psk {
namespace {

constexpr int64_t TILE_BYTES = 1024;

// 32 numbers in their order.
inline __m512i row_of(__m512 first, __m512 second) {
    return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

inline void store_row(uint8_t * target, __m512 first, __m512 second) {
    _mm512_storeu_si512(target, row_of(first, second));
}

// 16 pairs of numbers.
inline void store_pair(uint8_t * target, __m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(target, _mm512_permutexvar_epi16(order, row_of(first, second)));
}

}  // namespace
}  // namespace psk
