// A panel times many columns with no more than sixteen registers of 256 bits.
// Up to four columns are multiplied at a time, as that many sums of 16 rows fit into registers
// beside the weights. Panels are gone through in stretches of a few blocks: what passes over
// several sets of columns need, they find in the first cache, quants already as bytes.
#pragma once

#include "kernels.h"

namespace psk {
namespace {

constexpr int PASS_COLUMNS = 4;
constexpr int STRETCH = SUPERBLOCK;  // blocks
constexpr int GROUPS = 8;            // of a block

// Group g of a block, rows of one part.
template <class Simd, Type type>
inline typename Simd::Bytes load_group(const uint8_t * block, int g, int part) {
    constexpr Format F = FORMAT<type>;
    block += part * sizeof(typename Simd::Bytes);
    if constexpr (F.bits == 8) return Simd::load_8(block + LINE * g);
    const auto line = Simd::load(block + LINE * (g % 4));
    const auto low = g < 4 ? Simd::low_4(line) : Simd::high_4(line);
    if constexpr (F.bits == 5) return Simd::add_bits(low, Simd::load(block + LINE * 4), g - 4, 16);
    if constexpr (F.bits == 6) {
        return Simd::add_bits(low, Simd::load(block + LINE * (4 + g / 4)), 2 * (g % 4) - 4, 48);
    }
    return low;
}

// Quants as they are packed, and as bytes.
template <class Simd, Type type> struct PackedQuants {
    static constexpr int64_t BYTES = FORMAT<type>.quant_bytes();  // of a block
    static typename Simd::Bytes load(const uint8_t * block, int g, int part) {
        return load_group<Simd, type>(block, g, part);
    }
    static void fetch_ahead(const uint8_t * block) { fetch(block, BYTES); }
};

template <class Simd> struct WideQuants {
    static constexpr int64_t BYTES = GROUPS * LINE;
    static typename Simd::Bytes load(const uint8_t * block, int g, int part) {
        return Simd::load(block + LINE * g + part * sizeof(typename Simd::Bytes));
    }
    static void fetch_ahead(const uint8_t *) {}
};

template <class Simd, Type type>
inline void widen_quants(const uint8_t * packed, int64_t blocks, uint8_t * wide) {
    for (int64_t block = 0; block < blocks; block++) {
        fetch(packed, FORMAT<type>.quant_bytes());
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; g++) {
            for (int part = 0; part < Simd::PARTS; part++) {
                Simd::store_bytes(
                    wide + LINE * g + part * sizeof(typename Simd::Bytes),
                    load_group<Simd, type>(packed, g, part));
            }
        }
        packed += FORMAT<type>.quant_bytes();
        wide += GROUPS * LINE;
    }
}

// A stretch's part of a group of activations, from the first column of a pass on.
struct Columns {
    const int8_t * quants;
    const Sums * sums;
    int64_t stride;  // columns of the group
};

// Groups FIRST ... FIRST + COUNT - 1 of a block times COLUMNS columns.
template <class Simd, Type type, class Quants, int FIRST, int COUNT, int COLUMNS>
inline void dot_groups(
    const uint8_t * block, const int8_t * x, typename Simd::Ints (&dots)[Simd::PARTS][COLUMNS]) {
    constexpr int BITS = FORMAT<type>.bits;
    constexpr int RUN = Simd::template RUN<BITS> < COUNT ? Simd::template RUN<BITS> : COUNT;
    constexpr int STEP = RUN < 2 ? 1 : 2;
    typename Simd::Partials partials[Simd::PARTS][COLUMNS];
#pragma GCC unroll 8
    for (int g = 0; g < COUNT; g += STEP) {
        typename Simd::Bytes w[STEP][Simd::PARTS];
        for (int i = 0; i < STEP; i++) {
            for (int part = 0; part < Simd::PARTS; part++) {
                w[i][part] = Quants::load(block, FIRST + g + i, part);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) {
            for (int part = 0; part < Simd::PARTS; part++) {
                auto partial = g % RUN == 0 ? Simd::zero() : partials[part][c];
                for (int i = 0; i < STEP; i++) {
                    const auto four = Simd::four(x + 32 * c + 4 * (FIRST + g + i));
                    partial = BITS == 8 ? Simd::dot_8(partial, w[i][part], four)
                                        : Simd::dot(partial, w[i][part], four);
                }
                if ((g + STEP) % RUN == 0) {
                    dots[part][c] = Simd::add_partials(
                        g + STEP == RUN ? Simd::zero() : dots[part][c], partial);
                }
                partials[part][c] = partial;
            }
        }
    }
}

// Groups of a block that have scales of their own (the half of it, or -1: the whole) times columns.
template <class Simd, Type type, class Quants, int HALF, int COLUMNS>
inline void multiply_groups(
    const uint8_t * block, const BlockScales<Simd> & scales, const int8_t * x, const Sums * sums,
    typename Simd::Floats (&total)[Simd::PARTS][COLUMNS]) {
    constexpr bool WHOLE = HALF < 0;
    constexpr int INDEX = WHOLE ? 0 : HALF;
    typename Simd::Ints dots[Simd::PARTS][COLUMNS];
    dot_groups<Simd, type, Quants, 4 * INDEX, WHOLE ? GROUPS : GROUPS / 2>(block, x, dots);
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; c++) {
        const auto scale = Simd::set(sums[c].scale);
        const auto sum = Simd::set(WHOLE ? sums[c].whole : sums[c].half[INDEX]);
        for (int part = 0; part < Simd::PARTS; part++) {
            const auto dot = Simd::mul(Simd::to_floats(dots[part][c]), scale);
            auto t = Simd::fma(dot, scales.scale[INDEX][part], total[part][c]);
            if constexpr (FORMAT<type>.bits != 8 || Simd::OFFSET_8 != 0) {
                t = Simd::fnma(scales.minimum[INDEX][part], sum, t);
            }
            total[part][c] = t;
        }
    }
}

// Adds a stretch times COLUMNS columns to out [COLUMNS][16].
template <class Simd, Type type, class Quants, int COLUMNS>
void multiply_stretch(
    const uint8_t * quants, const BlockScales<Simd> * scales, int64_t blocks, Columns x,
    float * out) {
    typename Simd::Floats total[Simd::PARTS][COLUMNS];
    for (int part = 0; part < Simd::PARTS; part++) {
        for (int c = 0; c < COLUMNS; c++) {
            total[part][c] = Simd::load_floats(out + PANEL_ROWS * c + part * Simd::LANES);
        }
    }
    for (int64_t block = 0; block < blocks; block++) {
        Quants::fetch_ahead(quants);
        if constexpr (FORMAT<type>.scales == Scales::K6) {
            multiply_groups<Simd, type, Quants, 0>(quants, scales[block], x.quants, x.sums, total);
            multiply_groups<Simd, type, Quants, 1>(quants, scales[block], x.quants, x.sums, total);
        } else {
            multiply_groups<Simd, type, Quants, -1>(quants, scales[block], x.quants, x.sums, total);
        }
        quants += Quants::BYTES;
        x.quants += BLOCK * x.stride;
        x.sums += x.stride;
    }
    for (int part = 0; part < Simd::PARTS; part++) {
        for (int c = 0; c < COLUMNS; c++) {
            Simd::store(out + PANEL_ROWS * c + part * Simd::LANES, total[part][c]);
        }
    }
}

// A stretch times all columns, in passes of about the same size.
template <class Simd, Type type, class Quants>
inline void multiply_passes(
    const uint8_t * quants, const BlockScales<Simd> * scales, int64_t blocks, Columns x,
    float * out) {
    using Kernel =
        void (*)(const uint8_t *, const BlockScales<Simd> *, int64_t, Columns, float *);
    static_assert(PASS_COLUMNS == 4, "a kernel for each");
    constexpr Kernel KERNELS[] = {
        multiply_stretch<Simd, type, Quants, 1>, multiply_stretch<Simd, type, Quants, 2>,
        multiply_stretch<Simd, type, Quants, 3>, multiply_stretch<Simd, type, Quants, 4>,
    };
    int64_t passes = (x.stride + PASS_COLUMNS - 1) / PASS_COLUMNS;
    for (int64_t rest = x.stride; passes > 0; passes--) {
        const int64_t columns = (rest + passes - 1) / passes;
        KERNELS[columns - 1](quants, scales, blocks, x, out);
        rest -= columns;
        x.quants += BLOCK * columns;
        x.sums += columns;
        out += PANEL_ROWS * columns;
    }
}

template <class Simd, Type type>
void multiply_panel(
    const uint8_t * panel, int64_t in_features, const void * group, int64_t columns, float * out) {
    constexpr Format F = FORMAT<type>;
    const uint8_t * packed_scales = panel + F.scales_offset(in_features);
    const uint8_t * next_scales = packed_scales + F.panel_bytes(in_features);
    ScaleReader<Simd, type> reader(packed_scales);
    BlockScales<Simd> scales[STRETCH];
    alignas(64) uint8_t wide[STRETCH * GROUPS * LINE];
    Columns x{quants_of(group), sums_of(group, in_features, columns), columns};
    __builtin_memset(out, 0, columns * PANEL_ROWS * sizeof(float));
    const int64_t num_blocks = in_features / BLOCK;
    for (int64_t first = 0; first < num_blocks; first += STRETCH) {
        const int64_t blocks = num_blocks - first < STRETCH ? num_blocks - first : STRETCH;
        for (int64_t block = 0; block < blocks; block++) {
            __builtin_prefetch(next_scales + (first + block) * LINE, 0, 2);
            reader.read(first + block, scales[block]);
        }
        if (columns > PASS_COLUMNS && F.bits != 8) {
            widen_quants<Simd, type>(panel, blocks, wide);
            multiply_passes<Simd, type, WideQuants<Simd>>(wide, scales, blocks, x, out);
        } else {
            multiply_passes<Simd, type, PackedQuants<Simd, type>>(panel, scales, blocks, x, out);
        }
        panel += blocks * F.quant_bytes();
        x.quants += blocks * BLOCK * columns;
        x.sums += blocks * columns;
    }
}

template <class Simd>
void multiply_by_passes(
    int32_t type, const uint8_t * panel, int64_t in_features, const void * group, int64_t columns,
    float * out) {
    with_type(type, [&]<Type T>() {
        multiply_panel<Simd, T>(panel, in_features, group, columns, out);
    });
}

}  // namespace
}  // namespace psk
