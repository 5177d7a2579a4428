// 128-bit registers of 64-bit ARM: a register holds 4 rows x 4 features, and weights are signed.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace psk {
namespace {

// What all generations of these processors share; the products of bytes differ.
struct NeonBase {
    using Bytes = int8x16_t;
    using Floats = float32x4_t;
    static constexpr int LANES = 4, PARTS = 4;
    static constexpr int OFFSET_8 = 0;

    static Bytes load_8(const uint8_t * p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
    static Bytes load(const uint8_t * p) { return load_8(p); }
    static Bytes low_4(Bytes x) { return vandq_s8(x, vdupq_n_s8(15)); }
    static Bytes high_4(Bytes x) {
        return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4));
    }
    // x with `mask` of plane >> shift (to the left if negative).
    static Bytes add_bits(Bytes x, Bytes plane, int shift, int8_t mask) {
        const uint8x16_t bits = vreinterpretq_u8_s8(plane);
        const uint8x16_t moved = vshlq_u8(bits, vdupq_n_s8(int8_t(-shift)));
        return vorrq_s8(x, vandq_s8(vreinterpretq_s8_u8(moved), vdupq_n_s8(mask)));
    }

    static Floats set(float x) { return vdupq_n_f32(x); }
    static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
    static Floats fnma(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
    static Floats negate(Floats x) { return vnegq_f32(x); }
    static Floats load_floats(const float * p) { return vld1q_f32(p); }
    static float sum(Floats x) { return vaddvq_f32(x); }
    static void store(float * p, Floats x) { vst1q_f32(p, x); }
    static void store_half(uint16_t * p, Floats x) {
        vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
    }
    static Floats load_half(const uint8_t * p) {
        return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
    }
    static Floats load_unsigned(const uint8_t * p) {
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four(p)))));
    }
    static Floats load_signed(const int8_t * p) {
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four(p))))));
    }

    // 32 values as int8 of the returned scale, and the sums of the first and second half.
    static float quantise(const float * values, int8_t * quants, int32_t (&half)[2]) {
        float32x4_t most = vdupq_n_f32(0);
        for (int i = 0; i < 32; i += 4) most = vmaxq_f32(most, vabsq_f32(vld1q_f32(values + i)));
        const float largest = vmaxvq_f32(most);
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        for (int i = 0; i < 2; i++) {
            const int8x16_t sixteen = narrow(values + 16 * i, inverse);
            vst1q_s8(quants + 16 * i, sixteen);
            half[i] = vaddlvq_s8(sixteen);
        }
        return largest / 127.0f;
    }

private:
    static uint8x8_t four(const void * p) {
        uint32_t word;
        __builtin_memcpy(&word, p, 4);
        return vcreate_u8(word);
    }
    static int8x16_t narrow(const float * values, float factor) {
        int16x4_t parts[4];
        for (int i = 0; i < 4; i++) {
            const float32x4_t scaled = vmulq_n_f32(vld1q_f32(values + 4 * i), factor);
            parts[i] = vqmovn_s32(vcvtnq_s32_f32(scaled));
        }
        return vcombine_s8(
            vqmovn_s16(vcombine_s16(parts[0], parts[1])),
            vqmovn_s16(vcombine_s16(parts[2], parts[3])));
    }
};

}  // namespace
}  // namespace psk
