// 512-bit registers with VNNI: a register holds 16 rows x 4 features.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace psk {
namespace {

struct Avx512 {
    using Bytes = __m512i;
    using Ints = __m512i;
    using Floats = __m512;
    static constexpr int LANES = 16, PARTS = 1;
    static constexpr int OFFSET_8 = 128;  // vpdpbusd wants unsigned weights

    static Bytes load(const uint8_t * p) { return _mm512_loadu_si512(p); }
    static Bytes load_8(const uint8_t * p) {
        return _mm512_xor_si512(load(p), _mm512_set1_epi8(char(-128)));
    }
    static Bytes low_4(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
    static Bytes high_4(Bytes x) { return low_4(_mm512_srli_epi16(x, 4)); }
    // x with `mask` of plane >> shift (to the left if negative).
    static Bytes add_bits(Bytes x, Bytes plane, int shift, char mask) {
        const Bytes moved =
            shift < 0 ? _mm512_slli_epi16(plane, -shift) : _mm512_srli_epi16(plane, shift);
        return _mm512_ternarylogic_epi32(x, moved, _mm512_set1_epi8(mask), 0xf8);  // x | (b & c)
    }
    static Ints zero() { return _mm512_setzero_si512(); }
    static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static Ints dot(Ints sum, Bytes w, const int8_t * x) {
        int32_t four;
        __builtin_memcpy(&four, x, 4);
        return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
    }
    static Ints dot_8(Ints sum, Bytes w, const int8_t * x) { return dot(sum, w, x); }

    static Floats set(float x) { return _mm512_set1_ps(x); }
    static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
    static Floats negate(Floats x) { return _mm512_sub_ps(_mm512_setzero_ps(), x); }
    static Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
    static void store(float * p, Floats x) { _mm512_storeu_ps(p, x); }
    static void store_half(uint16_t * p, Floats x) {
        const __m256i halves = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), halves);
    }
    static Floats load_half(const uint8_t * p) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static Floats load_floats(const float * p) { return _mm512_loadu_ps(p); }
    static float sum(Floats x) { return _mm512_reduce_add_ps(x); }
    static Floats load_unsigned(const uint8_t * p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        return to_floats(_mm512_cvtepu8_epi32(bytes));
    }
    static Floats load_signed(const int8_t * p) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
        return to_floats(_mm512_cvtepi8_epi32(bytes));
    }

    // 32 values as int8 of the returned scale, and the sums of the first and second half.
    static float quantise(const float * values, int8_t * quants, int32_t (&half)[2]) {
        const __m512 a = _mm512_loadu_ps(values), b = _mm512_loadu_ps(values + 16);
        const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        const __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0.0f);
        // What is not a number becomes the smallest integer, of which no two can be added.
        const __m512i least = _mm512_set1_epi32(-127);
        const __m512i qa = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), least);
        const __m512i qb = _mm512_max_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)), least);
        auto * target = reinterpret_cast<__m128i *>(quants);
        _mm_storeu_si128(target, _mm512_cvtsepi32_epi8(qa));
        _mm_storeu_si128(target + 1, _mm512_cvtsepi32_epi8(qb));
        half[0] = _mm512_reduce_add_epi32(qa);
        half[1] = _mm512_reduce_add_epi32(qb);
        return most / 127.0f;
    }
};

}  // namespace
}  // namespace psk
