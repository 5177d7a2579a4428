// 64-bit ARM with dot products of bytes.
#pragma once

#include "kernels.h"
#include "simd_neon.h"

namespace psk {
namespace {

struct NeonDotprod : NeonBase {
    using Ints = int32x4_t;

    static Ints zero() { return vdupq_n_s32(0); }
    static Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
    static Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }

    // For several columns, clang would copy each four activations to a register of their own, and
    // these to memory, before it goes through the rows: it must not know that they stay the same.
    template <int COLUMNS> static int8x16_t sixteen(const int8_t * x) {
        int8x16_t values = vld1q_s8(x);
#if defined(__clang__)
        if constexpr (COLUMNS > 1) asm volatile("" : "+w"(values));
#endif
        return values;
    }
    // Four of the 16 activations, which stay in one register.
    static Ints dot(Ints sum, Bytes w, int8x16_t x, int index) {
        switch (index) {
            case 0: return vdotq_laneq_s32(sum, w, x, 0);
            case 1: return vdotq_laneq_s32(sum, w, x, 1);
            case 2: return vdotq_laneq_s32(sum, w, x, 2);
            default: return vdotq_laneq_s32(sum, w, x, 3);
        }
    }

    template <Type type, int CHAINS, int COLUMNS>
    static void dot_block(
        const uint8_t * block, int part, const int8_t * x, Ints (&dots)[CHAINS][COLUMNS]) {
        int8x16_t halves[COLUMNS][2];
#pragma GCC unroll 8
        for (int c = 0; c < COLUMNS; c++) {
            halves[c][0] = sixteen<COLUMNS>(x + 32 * c);
            halves[c][1] = sixteen<COLUMNS>(x + 32 * c + 16);
        }
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) {
            Bytes low, high;
            load_groups<NeonDotprod, type>(block, p, part, low, high);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                dots[0][c] = dot(dots[0][c], low, halves[c][0], p);
                dots[CHAINS - 1][c] = dot(dots[CHAINS - 1][c], high, halves[c][1], p);
            }
        }
    }
};

}  // namespace
}  // namespace psk
