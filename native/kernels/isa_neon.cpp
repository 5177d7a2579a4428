// 64-bit ARM without byte dot products (Armv8.0: Cortex-A53, A57, A72, A73).
#if defined(__aarch64__)

#include "simd_neon.h"
#include "kernels.h"
#include "attention.h"
#include "isa_list.h"

namespace psk {
namespace {

int8x16_t four_bytes(const int8_t * x) {
    int32_t word;
    __builtin_memcpy(&word, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

// Up to 6 bits: products add up in 16 bits, which hold 8 of 31 * 127 or 4 of 63 * 127.
struct Neon : NeonBase {
    struct Ints {
        int16x8_t low, high;  // pairs of features are still apart
    };

    static Ints zero() { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
    static Ints add(Ints a, Ints b) { return {vaddq_s16(a.low, b.low), vaddq_s16(a.high, b.high)}; }
    static Ints dot(Ints sum, Bytes w, const int8_t * x) {
        const int8x16_t four = four_bytes(x);
        return {vmlal_s8(sum.low, vget_low_s8(w), vget_low_s8(four)), vmlal_high_s8(sum.high, w, four)};
    }
    static Floats to_floats(Ints x) {
        return vcvtq_f32_s32(vpaddq_s32(vpaddlq_s16(x.low), vpaddlq_s16(x.high)));
    }
};

// 8 bits.
struct NeonWide : NeonBase {
    struct Ints {
        int32x4_t low, high;
    };

    static Ints zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
    static Ints add(Ints a, Ints b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
    static Ints dot_8(Ints sum, Bytes w, const int8_t * x) {
        const int8x16_t four = four_bytes(x);
        return {
            vpadalq_s16(sum.low, vmull_s8(vget_low_s8(w), vget_low_s8(four))),
            vpadalq_s16(sum.high, vmull_high_s8(w, four))};
    }
    static Floats to_floats(Ints x) { return vcvtq_f32_s32(vpaddq_s32(x.low, x.high)); }
};

template <Type type> struct SimdOf { using Simd = Neon; };
template <> struct SimdOf<Type::Q8_0> { using Simd = NeonWide; };

void multiply_neon(
    int32_t type, const uint8_t * panel, int64_t in_features, const void * group, int64_t columns,
    float * out) {
    with_type(type, [&]<Type T>() {
        multiply_type<typename SimdOf<T>::Simd, T>(panel, in_features, group, columns, out);
    });
}

bool is_always_there() { return true; }

}  // namespace

const Isa NEON{
    "neon", is_always_there, prepare<Neon>, multiply_neon, swiglu,
    attend<Neon>, rotate, to_half<Neon>, nullptr,
};

}  // namespace psk
#endif
