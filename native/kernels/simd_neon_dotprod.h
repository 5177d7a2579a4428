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
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) {
            Bytes low, high;
            load_groups<NeonDotprod, type>(block, p, part, low, high);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                const int8_t * q = x + 32 * c;
                dots[0][c] = dot(dots[0][c], low, vld1q_s8(q), p);
                dots[CHAINS - 1][c] = dot(dots[CHAINS - 1][c], high, vld1q_s8(q + 16), p);
            }
        }
    }
};

}  // namespace
}  // namespace psk
