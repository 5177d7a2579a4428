// 256-bit registers: a register holds 8 rows x 4 features.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace psk {
namespace {

struct Avx2 {
    using Bytes = __m256i;
    using Ints = __m256i;
    using Partials = __m256i;  // 16 bits for two features: room for RUN groups
    using Floats = __m256;
    static constexpr int LANES = 8, PARTS = 2;
    static constexpr int OFFSET_8 = 0;
    // So many groups: two features add at most 2 * 127 * (2^bits - 1), signed 8 bits 2 * 127 * 128.
    template <int bits>
    static constexpr int RUN = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;

    static Bytes load(const uint8_t * p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    }
    static Bytes load_8(const uint8_t * p) { return load(p); }
    static Bytes low_4(Bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    static Bytes high_4(Bytes x) { return low_4(_mm256_srli_epi16(x, 4)); }
    // x with `mask` of plane >> shift (to the left if negative).
    static Bytes add_bits(Bytes x, Bytes plane, int shift, char mask) {
        const Bytes moved =
            shift < 0 ? _mm256_slli_epi16(plane, -shift) : _mm256_srli_epi16(plane, shift);
        return _mm256_or_si256(x, _mm256_and_si256(moved, _mm256_set1_epi8(mask)));
    }
    static void store_bytes(uint8_t * p, Bytes x) {
        _mm256_store_si256(reinterpret_cast<__m256i *>(p), x);
    }
    // Four features of one column, for every row.
    static Bytes four(const int8_t * x) {
        int32_t all;
        __builtin_memcpy(&all, x, 4);
        return _mm256_set1_epi32(all);
    }
    static Ints zero() { return _mm256_setzero_si256(); }
    static Partials dot(Partials sum, Bytes w, Bytes x) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
        // Or compilers add up as a tree, whose leaves need far more registers than there are.
        asm("" : "+x"(sum));
        return sum;
    }
    // Of signed weights: the sign moves to the activations, which are never -128.
    static Partials dot_8(Partials sum, Bytes w, Bytes x) {
        return dot(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    }
    static Ints add_partials(Ints sum, Partials x) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(x, _mm256_set1_epi16(1)));
    }

    static Floats set(float x) { return _mm256_set1_ps(x); }
    static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
    static Floats negate(Floats x) { return _mm256_sub_ps(_mm256_setzero_ps(), x); }
    static Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
    static Floats load_floats(const float * p) { return _mm256_loadu_ps(p); }
    static float sum(Floats x) {
        __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
        return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
    }
    static void store(float * p, Floats x) { _mm256_storeu_ps(p, x); }
    static void store_half(uint16_t * p, Floats x) {
        const __m128i halves = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(p), halves);
    }
    static Floats load_half(const uint8_t * p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static Floats load_unsigned(const uint8_t * p) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
        return to_floats(_mm256_cvtepu8_epi32(bytes));
    }
    static Floats load_signed(const int8_t * p) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
        return to_floats(_mm256_cvtepi8_epi32(bytes));
    }

    // 32 values as int8 of the returned scale, and the sums of the first and second half.
    static float quantise(const float * values, int8_t * quants, int32_t (&half)[2]) {
        __m256 most = _mm256_setzero_ps();
        for (int i = 0; i < 32; i += 8) {
            const __m256 magnitude =
                _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(values + i));
            most = _mm256_max_ps(most, magnitude);
        }
        const float largest = largest_of(most);
        const __m256 inverse = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
        for (int i = 0; i < 2; i++) {
            half[i] = quantise_half(values + 16 * i, inverse, quants + 16 * i);
        }
        return largest / 127.0f;
    }

private:
    static float largest_of(__m256 x) {
        __m128 most = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        most = _mm_max_ps(most, _mm_movehl_ps(most, most));
        return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
    }
    static int32_t quantise_half(const float * values, __m256 inverse, int8_t * quants) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values), inverse));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 8), inverse));
        // Packing works within 128 bits: a's low, b's low, a's high, b's high half.
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        const __m128i bytes =
            _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(quants), bytes);
        const __m256i pairs = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
        __m128i sum =
            _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
        return _mm_cvtsi128_si32(sum) + _mm_extract_epi32(sum, 1);
    }
};

}  // namespace
}  // namespace psk
