// 64-bit ARM with products of 2 x 8 by 8 x 2 bytes (Armv8.6, or 8.2 with I8MM).
#if defined(__aarch64__)
#include "target.h"

PSK_TARGET("arch=armv8.2-a+dotprod+i8mm")

#include "arm_features.h"
#include "attention.h"
#include "isa_list.h"
#include "simd_neon_dotprod.h"

namespace psk {
namespace {

struct NeonI8mm : NeonDotprod {
    static constexpr int MIN_COLUMNS = 4;  // from which arranging rows in pairs is worth it

    // Products of two columns: with rows 0 and 1, and with rows 2 and 3.
    struct Pair {
        Ints rows[2] = {zero(), zero()};
    };

    template <Type type, int CHAINS, int COLUMNS>
    static void dot_block(
        const uint8_t * block, int part, const int8_t * x, Ints (&dots)[CHAINS][COLUMNS]) {
        if constexpr (COLUMNS < MIN_COLUMNS) {
            NeonDotprod::dot_block<type>(block, part, x, dots);
        } else {
            Pair pairs[CHAINS][COLUMNS / 2];
#pragma GCC unroll 2
            for (int i = 0; i < 2; i++) {
                Bytes low[2], high[2];
                load_groups<NeonI8mm, type>(block, 2 * i, part, low[0], high[0]);
                load_groups<NeonI8mm, type>(block, 2 * i + 1, part, low[1], high[1]);
                add_products<COLUMNS>(low, x, i, pairs[0], dots[0]);
                add_products<COLUMNS>(high, x, i + 2, pairs[CHAINS - 1], dots[CHAINS - 1]);
            }
            for (int chain = 0; chain < CHAINS; chain++) {
                for (int n = 0; n < COLUMNS / 2; n++) {
                    const Ints * rows = pairs[chain][n].rows;
                    dots[chain][2 * n] = vuzp1q_s32(rows[0], rows[1]);
                    dots[chain][2 * n + 1] = vuzp2q_s32(rows[0], rows[1]);
                }
            }
        }
    }

private:
    // Two neighbouring groups of 4 rows, the features 8 * index ... 8 * index + 7 of a block.
    template <int COLUMNS>
    static void add_products(
        const Bytes (&groups)[2], const int8_t * x, int index, Pair (&pairs)[COLUMNS / 2],
        Ints (&dots)[COLUMNS]) {
        const Ints first = vreinterpretq_s32_s8(groups[0]), second = vreinterpretq_s32_s8(groups[1]);
        const Bytes rows[2] = {
            vreinterpretq_s8_s32(vzip1q_s32(first, second)),
            vreinterpretq_s8_s32(vzip2q_s32(first, second))};
#pragma GCC unroll 4
        for (int n = 0; n < COLUMNS / 2; n++) {
            const Bytes columns = eight_of_two(x + 64 * n, index);
            for (int i = 0; i < 2; i++) {
                pairs[n].rows[i] = vmmlaq_s32(pairs[n].rows[i], rows[i], columns);
            }
        }
        if constexpr (COLUMNS % 2 == 1) {
            const int8x16_t own = vld1q_s8(x + 32 * (COLUMNS - 1) + 16 * (index / 2));
            Ints & sum = dots[COLUMNS - 1];
            sum = dot(dot(sum, groups[0], own, index % 2 * 2), groups[1], own, index % 2 * 2 + 1);
        }
    }
    // The activations 8 * index ... 8 * index + 7 of two columns.
    static Bytes eight_of_two(const int8_t * x, int index) {
        const int64x2_t first = vreinterpretq_s64_s8(vld1q_s8(x + 16 * (index / 2)));
        const int64x2_t second = vreinterpretq_s64_s8(vld1q_s8(x + 32 + 16 * (index / 2)));
        return vreinterpretq_s8_s64(
            index % 2 == 0 ? vzip1q_s64(first, second) : vzip2q_s64(first, second));
    }
};

void multiply_i8mm(
    int32_t type, const uint8_t * panel, int64_t in_features, const void * group, int64_t columns,
    float * out) {
    const auto kernel =
        columns < NeonI8mm::MIN_COLUMNS ? NEON_DOTPROD.multiply : multiply<NeonI8mm>;
    kernel(type, panel, in_features, group, columns, out);
}

}  // namespace

const Isa NEON_I8MM{
    "neon-i8mm", has_i8mm, prepare<NeonI8mm>, multiply_i8mm, swiglu,
    attend<NeonI8mm>, rotate, to_half<NeonI8mm>, nullptr,
};

}  // namespace psk

PSK_END_TARGET
#endif
