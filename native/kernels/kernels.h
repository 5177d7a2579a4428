// The kernels, for any instruction set: `Simd` (simd_*.h) says how its registers do it.
// Included once per instruction set, inside a file that sets the compiler's target; nothing here
// may come from the standard library, or its functions would be shared with other targets.
#pragma once

#include "isa.h"
#include "panels.h"

namespace psk {
namespace {

// Bytes ahead of the quants in use that are fetched into the first and second cache.
constexpr int64_t NEAR = 1024, FAR = 4096;

struct Sums {
    float scale, whole, half[2];  // the last three: scale times a sum of quants
};

inline const int8_t * quants_of(const void * group) { return static_cast<const int8_t *>(group); }
inline int8_t * quants_of(void * group) { return static_cast<int8_t *>(group); }
inline const Sums * sums_of(const void * group, int64_t in_features, int64_t columns) {
    return reinterpret_cast<const Sums *>(quants_of(group) + in_features * columns);
}

inline void fetch(const uint8_t * quants, size_t bytes) {
    for (size_t i = 0; i < bytes; i += LINE) {
        __builtin_prefetch(quants + NEAR + i, 0, 3);
        __builtin_prefetch(quants + FAR + i, 0, 2);
    }
}

// Scales and minima of one block for all rows of a panel.
template <class Simd> struct BlockScales {
    typename Simd::Floats scale[2][Simd::PARTS], minimum[2][Simd::PARTS];  // [half block]
};

// Reads scales as blocks are gone through.
template <class Simd, Type type> struct ScaleReader {
    static constexpr Format F = FORMAT<type>;
    const uint8_t * next;
    alignas(64) uint8_t numbers[256];
    typename Simd::Floats d[Simd::PARTS] = {}, dmin[Simd::PARTS] = {};

    explicit ScaleReader(const uint8_t * scales) : next(scales) {}

    void read(int64_t block, BlockScales<Simd> & out) {
        if constexpr (F.scales == Scales::HALF || F.scales == Scales::HALF2) {
            const float offset = F.bits == 8 ? Simd::OFFSET_8 : F.offset;
            for (int part = 0; part < Simd::PARTS; part++) {
                const int row = part * Simd::LANES;
                out.scale[0][part] = Simd::load_half(next + 2 * row);
                out.minimum[0][part] =
                    F.scales == Scales::HALF2
                        ? Simd::negate(Simd::load_half(next + 32 + 2 * row))
                        : Simd::mul(out.scale[0][part], Simd::set(offset));
            }
            next += F.scale_bytes();
        } else {
            const int64_t index = block % SUPERBLOCK;
            if (index == 0) {
                begin_superblock();
            }
            for (int part = 0; part < Simd::PARTS; part++) {
                const int row = part * Simd::LANES;
                if constexpr (F.scales == Scales::K4) {
                    out.scale[0][part] =
                        Simd::mul(d[part], Simd::load_unsigned(numbers + 16 * index + row));
                    out.minimum[0][part] =
                        Simd::mul(dmin[part], Simd::load_unsigned(numbers + 128 + 16 * index + row));
                } else {
                    for (int half = 0; half < 2; half++) {
                        const uint8_t * s = next - F.scale_bytes() + 32 + 16 * (2 * index + half);
                        out.scale[half][part] = Simd::mul(
                            d[part], Simd::load_signed(reinterpret_cast<const int8_t *>(s + row)));
                        out.minimum[half][part] =
                            Simd::mul(out.scale[half][part], Simd::set(F.offset));
                    }
                }
            }
        }
    }

    void begin_superblock() {
        for (int part = 0; part < Simd::PARTS; part++) {
            d[part] = Simd::load_half(next + 2 * part * Simd::LANES);
            if (F.scales == Scales::K4) {
                dmin[part] = Simd::load_half(next + 32 + 2 * part * Simd::LANES);
            }
        }
        if (F.scales == Scales::K4) {
            unpack_k4(next + 64, numbers);
        }
        next += F.scale_bytes();
    }
};

// Groups p and p + 4 of a block, rows of one part.
template <class Simd, Type type>
inline void load_groups(
    const uint8_t * block, int p, int part, typename Simd::Bytes & low, typename Simd::Bytes & high) {
    constexpr Format F = FORMAT<type>;
    block += part * sizeof(typename Simd::Bytes);
    if constexpr (F.bits == 8) {
        low = Simd::load_8(block + LINE * p);
        high = Simd::load_8(block + LINE * (p + 4));
        return;
    }
    const auto line = Simd::load(block + LINE * p);
    low = Simd::low_4(line);
    high = Simd::high_4(line);
    if constexpr (F.bits == 5) {
        const auto plane = Simd::load(block + LINE * 4);
        low = Simd::add_bits(low, plane, p - 4, 16);
        high = Simd::add_bits(high, plane, p, 16);
    } else if constexpr (F.bits == 6) {
        low = Simd::add_bits(low, Simd::load(block + LINE * 4), 2 * p - 4, 48);
        high = Simd::add_bits(high, Simd::load(block + LINE * 5), 2 * p - 4, 48);
    }
}

// One part of a block times all columns, added to `dots`; a Simd may have a way of its own.
template <class Simd, Type type, int CHAINS, int COLUMNS>
inline void dot_block(
    const uint8_t * block, int part, const int8_t * x, typename Simd::Ints (&dots)[CHAINS][COLUMNS]) {
    if constexpr (requires { Simd::template dot_block<type>(block, part, x, dots); }) {
        Simd::template dot_block<type>(block, part, x, dots);
    } else {
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) {
            typename Simd::Bytes low, high;
            load_groups<Simd, type>(block, p, part, low, high);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                const int8_t * q = x + 32 * c + 4 * p;
                if constexpr (FORMAT<type>.bits == 8) {
                    dots[0][c] = Simd::dot_8(dots[0][c], low, q);
                    dots[CHAINS - 1][c] = Simd::dot_8(dots[CHAINS - 1][c], high, q + 16);
                } else {
                    dots[0][c] = Simd::dot(dots[0][c], low, q);
                    dots[CHAINS - 1][c] = Simd::dot(dots[CHAINS - 1][c], high, q + 16);
                }
            }
        }
    }
}

template <class Simd, Type type, int COLUMNS>
void multiply_columns(
    const uint8_t * panel, int64_t in_features, const void * group, float * out) {
    using Floats = typename Simd::Floats;
    using Ints = typename Simd::Ints;
    constexpr Format F = FORMAT<type>;
    // Two accumulators where halves have scales of their own, or to shorten the chain of one.
    constexpr bool HALVES = F.scales == Scales::K6;
    constexpr int CHAINS = HALVES || COLUMNS <= 2 ? 2 : 1;
    const int8_t * x = quants_of(group);
    const Sums * sums = sums_of(group, in_features, COLUMNS);
    const uint8_t * scales = panel + F.scales_offset(in_features);
    const uint8_t * next_scales = scales + F.panel_bytes(in_features);
    ScaleReader<Simd, type> reader(scales);
    Floats total[Simd::PARTS][COLUMNS];
    for (auto & part : total) {
        for (auto & each : part) each = Simd::set(0);
    }
    const int64_t num_blocks = in_features / BLOCK;
    for (int64_t block = 0; block < num_blocks; block++) {
        fetch(panel, F.quant_bytes());
        __builtin_prefetch(next_scales + block * LINE, 0, 2);
        BlockScales<Simd> s;
        reader.read(block, s);
        for (int part = 0; part < Simd::PARTS; part++) {
            Ints dots[CHAINS][COLUMNS];
            for (auto & chain : dots) {
                for (auto & each : chain) each = Simd::zero();
            }
            dot_block<Simd, type>(panel, part, x, dots);
#pragma GCC unroll 8
            for (int c = 0; c < COLUMNS; c++) {
                const Sums & sum = sums[c];
                Floats t = total[part][c];
                if constexpr (HALVES) {
                    for (int half = 0; half < 2; half++) {
                        const Floats dot =
                            Simd::mul(Simd::to_floats(dots[half][c]), Simd::set(sum.scale));
                        t = Simd::fma(dot, s.scale[half][part], t);
                        t = Simd::fnma(s.minimum[half][part], Simd::set(sum.half[half]), t);
                    }
                } else {
                    Ints whole = dots[0][c];
                    if constexpr (CHAINS == 2) whole = Simd::add(whole, dots[1][c]);
                    const Floats dot = Simd::mul(Simd::to_floats(whole), Simd::set(sum.scale));
                    t = Simd::fma(dot, s.scale[0][part], t);
                    if constexpr (F.bits != 8 || Simd::OFFSET_8 != 0) {
                        t = Simd::fnma(s.minimum[0][part], Simd::set(sum.whole), t);
                    }
                }
                total[part][c] = t;
            }
        }
        panel += F.quant_bytes();
        x += 32 * COLUMNS;
        sums += COLUMNS;
    }
    for (int part = 0; part < Simd::PARTS; part++) {
        for (int c = 0; c < COLUMNS; c++) {
            Simd::store(out + 16 * c + part * Simd::LANES, total[part][c]);
        }
    }
}

template <class Simd, Type type>
void multiply_type(
    const uint8_t * panel, int64_t in_features, const void * group, int64_t columns, float * out) {
    static_assert(KERNEL_COLUMNS == 8, "a kernel for each");
    using Kernel = void (*)(const uint8_t *, int64_t, const void *, float *);
    constexpr Kernel KERNELS[] = {
        multiply_columns<Simd, type, 1>, multiply_columns<Simd, type, 2>,
        multiply_columns<Simd, type, 3>, multiply_columns<Simd, type, 4>,
        multiply_columns<Simd, type, 5>, multiply_columns<Simd, type, 6>,
        multiply_columns<Simd, type, 7>, multiply_columns<Simd, type, 8>,
    };
    KERNELS[columns - 1](panel, in_features, group, out);
}

template <class Simd>
void multiply(
    int32_t type, const uint8_t * panel, int64_t in_features, const void * group, int64_t columns,
    float * out) {
    with_type(type, [&]<Type T>() {
        multiply_type<Simd, T>(panel, in_features, group, columns, out);
    });
}

// 1 / sqrt(mean(x²) + eps), in double precision: squares of large numbers overflow float.
inline float norm_factor(const float * x, float eps, int64_t n) {
    double sums[8] = {};
    for (int64_t i = 0; i < n; i += 8) {
        for (int j = 0; j < 8; j++) sums[j] += double(x[i + j]) * x[i + j];
    }
    double sum = 0;
    for (double each : sums) sum += each;
    return float(1.0 / __builtin_sqrt(sum / double(n) + eps));
}

template <class Simd>
void prepare(
    const float * x, const float * norm, float eps, int64_t in_features, void * group,
    int64_t column, int64_t columns) {
    const float factor = norm ? norm_factor(x, eps, in_features) : 1.0f;
    int8_t * quants = quants_of(group) + 32 * column;
    auto * sums = const_cast<Sums *>(sums_of(group, in_features, columns)) + column;
    for (int64_t block = 0; block < in_features / BLOCK; block++) {
        const float * values = x + 32 * block;
        float normalised[32];
        if (norm != nullptr) {
            for (int i = 0; i < 32; i++) normalised[i] = values[i] * factor * norm[32 * block + i];
            values = normalised;
        }
        int32_t half[2];
        const float scale = Simd::quantise(values, quants, half);
        sums->scale = scale;
        sums->whole = scale * float(half[0] + half[1]);
        sums->half[0] = scale * float(half[0]);
        sums->half[1] = scale * float(half[1]);
        quants += 32 * columns;
        sums += columns;
    }
}

// e^x within 2 units in the last place, for loops that the compiler turns into vectors.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 89.0f ? 89.0f : x;  // e^89 is infinite
    const float n = __builtin_floorf(x * 1.44269504f + 0.5f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    float p = 1.9875691e-4f;  // the Cephes library's polynomial
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 5.0000001e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float value; } power{(int32_t(n) + 127) << 23};
    return p * power.value;
}

inline void swiglu(const float * gate, const float * up, float * out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

}  // namespace
}  // namespace psk
