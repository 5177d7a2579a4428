// How a weight lies in memory: panels of 16 rows, one after the other.
//
// A panel is its quants, then its scales, padded to 64 bytes. Quants go block by block (32
// features), and a block goes by groups of 4 features: a group of 16 rows x 4 features is 64 bytes,
// one cache line and one 512-bit register, row after row. Types with 4 to 6 bits have
//     4 lines:  group p in the low, group p + 4 in the high halves of line p's bytes,
//     1 line (5 bits):  bit g of a byte is bit 4 of group g,
//     2 lines (6 bits): bits 2p and 2p + 1 of line 0 are bits 4 and 5 of group p, line 1: p + 4;
// 8 bits have 8 lines, signed. What a row's number means is
//     value = scale * quant - minimum
// with scale and minimum per block of 32 (Q6_K: 16) features. Scales are stored as
//     HALF:  per block, float16[16] scale, one for each row; the minimum is a multiple of it,
//     HALF2: per block, float16[16] scale, float16[16] minus the minimum,
//     K4:    per 8 blocks, float16[16] d, float16[16] dmin, then 6-bit scales and minima, 8 of each
//            per row, as 3 lines (see unpack_k4): scale = d * s, minimum = dmin * m,
//     K6:    per 8 blocks, float16[16] d, int8 s[16 half blocks][16]: scale = d * s.
#pragma once

#include <cstddef>
#include <cstdint>

namespace psk {
namespace {  // files for several instruction sets include this: nothing may be shared by name

constexpr int64_t PANEL_ROWS = 16;
constexpr int64_t BLOCK = 32;       // features
constexpr int64_t SUPERBLOCK = 8;   // blocks
constexpr size_t LINE = 64;         // bytes

enum class Type : int32_t {  // ggml's ids
    Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14,
};

enum class Scales { HALF, HALF2, K4, K6 };

struct Format {
    int bits;
    Scales scales;
    int offset;  // HALF and K6: minimum = offset * scale; 8 bits are signed and have none

    constexpr int lines() const { return bits == 8 ? 8 : bits; }
    constexpr size_t quant_bytes() const { return lines() * LINE; }  // per block
    constexpr bool is_k() const { return scales == Scales::K4 || scales == Scales::K6; }
    constexpr int64_t features() const { return is_k() ? SUPERBLOCK * BLOCK : BLOCK; }
    // Bytes of the scales of `features()` features of 16 rows.
    constexpr size_t scale_bytes() const {
        switch (scales) {
            case Scales::HALF: return 32;
            case Scales::HALF2: return 64;
            case Scales::K4: return 256;
            default: return 288;
        }
    }
    size_t scales_offset(int64_t in_features) const { return in_features / BLOCK * quant_bytes(); }
    size_t panel_bytes(int64_t in_features) const {
        const size_t bytes =
            scales_offset(in_features) + in_features / features() * scale_bytes();
        return (bytes + LINE - 1) / LINE * LINE;
    }
};

template <Type type> constexpr Format FORMAT{};
template <> inline constexpr Format FORMAT<Type::Q4_0>{4, Scales::HALF, 8};
template <> inline constexpr Format FORMAT<Type::Q4_1>{4, Scales::HALF2, 0};
template <> inline constexpr Format FORMAT<Type::Q5_0>{5, Scales::HALF, 16};
template <> inline constexpr Format FORMAT<Type::Q5_1>{5, Scales::HALF2, 0};
template <> inline constexpr Format FORMAT<Type::Q8_0>{8, Scales::HALF, 0};
template <> inline constexpr Format FORMAT<Type::Q4_K>{4, Scales::K4, 0};
template <> inline constexpr Format FORMAT<Type::Q5_K>{5, Scales::K4, 0};
template <> inline constexpr Format FORMAT<Type::Q6_K>{6, Scales::K6, 32};

// Calls visit(type as a compile-time constant); false if there is no such format.
template <class Visit> bool with_type(int32_t type, Visit && visit) {
    switch (static_cast<Type>(type)) {
#define PSK_CASE(T) \
    case Type::T: \
        visit.template operator()<Type::T>(); \
        return true;
        PSK_CASE(Q4_0) PSK_CASE(Q4_1) PSK_CASE(Q5_0) PSK_CASE(Q5_1)
        PSK_CASE(Q8_0) PSK_CASE(Q4_K) PSK_CASE(Q5_K) PSK_CASE(Q6_K)
#undef PSK_CASE
        default: return false;
    }
}

inline int64_t num_panels(int64_t rows) { return (rows + PANEL_ROWS - 1) / PANEL_ROWS; }

// The 6-bit numbers of 8 blocks: line 0 has the low 4 bits of the scales of blocks 0-3 (a row of 16
// bytes each) in low halves and of blocks 4-7 in high halves, line 1 those of the minima; line 2
// has bits 4 and 5 of scales 0-3, scales 4-7, minima 0-3 and minima 4-7 from the lowest bit on.
// numbers: scales [8][16], minima [8][16].
inline void unpack_k4(const uint8_t * lines, uint8_t * numbers) {
    for (int i = 0; i < 64; i++) {
        const uint8_t s = lines[i], m = lines[64 + i], high = lines[128 + i];
        numbers[i] = (s & 15) | (high & 3) << 4;
        numbers[64 + i] = s >> 4 | (high >> 2 & 3) << 4;
        numbers[128 + i] = (m & 15) | (high >> 4 & 3) << 4;
        numbers[192 + i] = m >> 4 | high >> 6 << 4;
    }
}

}  // namespace
}  // namespace psk
