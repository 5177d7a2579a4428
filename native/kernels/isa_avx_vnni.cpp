// x86-64 with AVX2 and the byte dot products of AVX-VNNI.
#if defined(__x86_64__)
#include "target.h"

PSK_TARGET("avx2,fma,f16c,avxvnni")

#include "simd_avx2.h"
#include "multiply_avx2.h"
#include "attention.h"
#include "isa_list.h"

#include <cpuid.h>

namespace psk {
namespace {

struct AvxVnni : Avx2 {
    using Partials = Ints;  // sums of four features, in 32 bits
    static constexpr int OFFSET_8 = 128;  // vpdpbusd wants unsigned weights
    template <int bits> static constexpr int RUN = 8;

    static Bytes load_8(const uint8_t * p) {
        return _mm256_xor_si256(load(p), _mm256_set1_epi8(char(-128)));
    }
    static Partials dot(Partials sum, Bytes w, Bytes x) {
        return _mm256_dpbusd_avx_epi32(sum, w, x);
    }
    static Partials dot_8(Partials sum, Bytes w, Bytes x) { return dot(sum, w, x); }
    static Ints add_partials(Ints sum, Partials x) { return _mm256_add_epi32(sum, x); }
};

bool has_avx_vnni() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
    constexpr unsigned AVX_VNNI_BIT = 1u << 4;
    return (a & AVX_VNNI_BIT) != 0 && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

const Isa AVX_VNNI{
    .name = "avx-vnni",
    .is_supported = has_avx_vnni,
    .prepare = prepare<AvxVnni>,
    .multiply = multiply_by_passes<AvxVnni>,
    .swiglu = swiglu,
    .attend = attend<AvxVnni>,
    .rotate = rotate,
    .to_half = to_half<AvxVnni>,
    .tiles = nullptr,
    .max_columns = MAX_COLUMNS,
};

}  // namespace psk
PSK_END_TARGET
#endif
