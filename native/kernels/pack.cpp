// GGUF blocks (ggml's block_q4_0, ... in ggml-common.h, MIT) to panels, and back to numbers.
//
// Four features of a row are one 32-bit word of a line, so packing moves and masks words.
#include <cstring>

#include "powerserve_kernels.h"
#include "panels.h"

namespace psk {
namespace {

constexpr uint32_t LOW = 0x0f0f0f0f, HIGH = 0xf0f0f0f0, ONES = 0x01010101, THREES = 0x03030303;

uint32_t word(const uint8_t * bytes, int index) {
    uint32_t value;
    std::memcpy(&value, bytes + 4 * index, 4);
    return value;
}

// Where a row's part of a panel is.
struct Row {
    uint8_t * quants;  // its word of the first line
    uint8_t * scales;  // those of the whole panel
    int row;

    void put(int line, uint32_t value) const { std::memcpy(quants + LINE * line, &value, 4); }
    void put_half(int index, const uint8_t * half) const {
        std::memcpy(scales + 32 * index + 2 * row, half, 2);
    }
};

// Bit g of each byte: the high bits of group g, from 32 bits that are one for each feature.
uint32_t plane_of(uint32_t bits) {
    uint32_t plane = 0;
    for (int group = 0; group < 8; group++) {
        const uint32_t four = bits >> 4 * group & 15;
        // Bits 0 to 3 to the lowest bits of four bytes; the copies do not overlap there.
        plane |= (four * 0x00204081u & ONES) << group;
    }
    return plane;
}

// Each of these packs the `features()` features of one row from its block in the file.

template <Type type> size_t block_bytes();
template <Type type> void pack_block(const uint8_t * source, const Row & row);

template <> size_t block_bytes<Type::Q4_0>() { return 18; }
template <> void pack_block<Type::Q4_0>(const uint8_t * source, const Row & row) {
    row.put_half(0, source);
    for (int p = 0; p < 4; p++) row.put(p, word(source + 2, p));
}

template <> size_t block_bytes<Type::Q4_1>() { return 20; }
template <> void pack_block<Type::Q4_1>(const uint8_t * source, const Row & row) {
    row.put_half(0, source);
    row.put_half(1, source + 2);
    for (int p = 0; p < 4; p++) row.put(p, word(source + 4, p));
}

template <> size_t block_bytes<Type::Q5_0>() { return 22; }
template <> void pack_block<Type::Q5_0>(const uint8_t * source, const Row & row) {
    row.put_half(0, source);
    row.put(4, plane_of(word(source + 2, 0)));
    for (int p = 0; p < 4; p++) row.put(p, word(source + 6, p));
}

template <> size_t block_bytes<Type::Q5_1>() { return 24; }
template <> void pack_block<Type::Q5_1>(const uint8_t * source, const Row & row) {
    row.put_half(0, source);
    row.put_half(1, source + 2);
    row.put(4, plane_of(word(source + 4, 0)));
    for (int p = 0; p < 4; p++) row.put(p, word(source + 8, p));
}

template <> size_t block_bytes<Type::Q8_0>() { return 34; }
template <> void pack_block<Type::Q8_0>(const uint8_t * source, const Row & row) {
    row.put_half(0, source);
    for (int group = 0; group < 8; group++) row.put(group, word(source + 2, group));
}

// The 12 bytes of a K-quant's scales and minima (get_scale_min_k4) into the panel's three lines.
void pack_k4_scales(const uint8_t * source, const Row & row) {
    row.put_half(0, source);
    row.put_half(1, source + 2);
    const uint8_t * packed = source + 4;
    uint8_t * lines = row.scales + 64;
    for (int block = 0; block < 8; block++) {
        uint8_t scale, minimum;
        if (block < 4) {
            scale = packed[block] & 63;
            minimum = packed[block + 4] & 63;
        } else {
            scale = (packed[block + 4] & 15) | packed[block - 4] >> 6 << 4;
            minimum = packed[block + 4] >> 4 | packed[block] >> 6 << 4;
        }
        const int byte = 16 * (block % 4) + row.row, upper = block / 4;
        lines[byte] |= (scale & 15) << 4 * upper;
        lines[64 + byte] |= (minimum & 15) << 4 * upper;
        lines[128 + byte] |= scale >> 4 << 2 * upper | minimum >> 4 << (4 + 2 * upper);
    }
}

// 32 bytes that hold 32 features of two blocks in low and high halves.
void pack_two_blocks(const uint8_t * source, const Row & row, int lines_of_block) {
    for (int p = 0; p < 4; p++) {
        const uint32_t first = word(source, p), second = word(source, p + 4);
        row.put(p, (first & LOW) | (second & LOW) << 4);
        row.put(p + lines_of_block, (first >> 4 & LOW) | (second & HIGH));
    }
}

template <> size_t block_bytes<Type::Q4_K>() { return 144; }
template <> void pack_block<Type::Q4_K>(const uint8_t * source, const Row & row) {
    pack_k4_scales(source, row);
    for (int pair = 0; pair < 4; pair++) {
        const Row blocks{row.quants + 2 * pair * 4 * LINE, row.scales, row.row};
        pack_two_blocks(source + 16 + 32 * pair, blocks, 4);
    }
}

template <> size_t block_bytes<Type::Q5_K>() { return 176; }
template <> void pack_block<Type::Q5_K>(const uint8_t * source, const Row & row) {
    pack_k4_scales(source, row);
    for (int pair = 0; pair < 4; pair++) {
        const Row blocks{row.quants + 2 * pair * 5 * LINE, row.scales, row.row};
        pack_two_blocks(source + 48 + 32 * pair, blocks, 5);
        for (int upper = 0; upper < 2; upper++) {
            uint32_t plane = 0;
            for (int group = 0; group < 8; group++) {
                plane |= (word(source + 16, group) >> (2 * pair + upper) & ONES) << group;
            }
            blocks.put(4 + 5 * upper, plane);
        }
    }
}

template <> size_t block_bytes<Type::Q6_K>() { return 210; }
template <> void pack_block<Type::Q6_K>(const uint8_t * source, const Row & row) {
    row.put_half(0, source + 208);
    for (int half = 0; half < 16; half++) row.scales[32 + 16 * half + row.row] = source[192 + half];
    for (int block = 0; block < 8; block++) {
        const int quarter = block % 4;
        const uint8_t * low = source + 64 * (block / 4) + 32 * (quarter % 2);
        const uint8_t * high = source + 128 + 32 * (block / 4);
        const Row lines{row.quants + block * 6 * LINE, row.scales, row.row};
        uint32_t planes[2] = {};
        for (int p = 0; p < 4; p++) {
            const uint32_t first = word(low, p) >> 4 * (quarter / 2) & LOW;
            const uint32_t second = word(low, p + 4) >> 4 * (quarter / 2) & LOW;
            lines.put(p, first | second << 4);
            planes[0] |= (word(high, p) >> 2 * quarter & THREES) << 2 * p;
            planes[1] |= (word(high, p + 4) >> 2 * quarter & THREES) << 2 * p;
        }
        lines.put(4, planes[0]);
        lines.put(5, planes[1]);
    }
}

template <Type type>
void pack(
    int64_t rows, int64_t in_features, const uint8_t * source, uint8_t * packed,
    int64_t first_panel, int64_t num_panels) {
    constexpr Format F = FORMAT<type>;
    const int64_t blocks = in_features / F.features();
    const size_t quant_bytes = F.features() / BLOCK * F.quant_bytes();
    const size_t row_bytes = blocks * block_bytes<type>();
    for (int64_t index = first_panel; index < first_panel + num_panels; index++) {
        uint8_t * panel = packed + index * F.panel_bytes(in_features);
        std::memset(panel, 0, F.panel_bytes(in_features));
        uint8_t * scales = panel + F.scales_offset(in_features);
        for (int64_t block = 0; block < blocks; block++) {
            for (int row = 0; row < PANEL_ROWS && index * PANEL_ROWS + row < rows; row++) {
                const uint8_t * from = source + (index * PANEL_ROWS + row) * row_bytes;
                pack_block<type>(
                    from + block * block_bytes<type>(),
                    Row{panel + block * quant_bytes + 4 * row, scales + block * F.scale_bytes(), row});
            }
        }
    }
}

float half_to_float(const uint8_t * bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits;
    if (rest >= 0x7c00) {  // infinite, or not a number
        bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        bits = sign | ((rest << 13) + (112u << 23));
    } else {  // rest * 2^-24, exactly
        const float value = float(rest) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &value, 4);
        bits |= sign;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// The number of a feature before scaling.
template <Type type> int quant(const uint8_t * block, int row, int feature) {
    constexpr Format F = FORMAT<type>;
    const int group = feature / 4, byte = 4 * row + feature % 4;
    if (F.bits == 8) return static_cast<int8_t>(block[LINE * group + byte]);
    const int p = group % 4, upper = group / 4;
    int value = block[LINE * p + byte] >> 4 * upper & 15;
    if (F.bits == 5) value |= (block[LINE * 4 + byte] >> group & 1) << 4;
    if (F.bits == 6) value |= (block[LINE * (4 + upper) + byte] >> 2 * p & 3) << 4;
    return value;
}

// Scale and minimum of a row's block, or of half of it.
template <Type type>
void scale_of(const uint8_t * scales, int64_t block, int half, int row, float & scale, float & minimum) {
    constexpr Format F = FORMAT<type>;
    const uint8_t * own = scales + block * BLOCK / F.features() * F.scale_bytes();
    scale = half_to_float(own + 2 * row);
    const int index = block % SUPERBLOCK;
    if (F.scales == Scales::HALF2) {
        minimum = -half_to_float(own + 32 + 2 * row);
    } else if (F.scales == Scales::K4) {
        uint8_t numbers[256];
        unpack_k4(own + 64, numbers);
        scale *= numbers[16 * index + row];
        minimum = half_to_float(own + 32 + 2 * row) * numbers[128 + 16 * index + row];
    } else {
        if (F.scales == Scales::K6) {
            scale *= static_cast<int8_t>(own[32 + 16 * (2 * index + half) + row]);
        }
        minimum = scale * F.offset;
    }
}

template <Type type>
void unpack(
    int64_t in_features, const uint8_t * packed, float * values, int64_t first_row,
    int64_t num_rows) {
    constexpr Format F = FORMAT<type>;
    for (int64_t row = first_row; row < first_row + num_rows; row++) {
        const uint8_t * panel = packed + row / PANEL_ROWS * F.panel_bytes(in_features);
        const int lane = row % PANEL_ROWS;
        for (int64_t feature = 0; feature < in_features; feature++) {
            const int64_t block = feature / BLOCK;
            float scale, minimum;
            scale_of<type>(
                panel + F.scales_offset(in_features), block, feature % BLOCK / 16, lane, scale,
                minimum);
            const uint8_t * quants = panel + block * F.quant_bytes();
            *values++ = scale * float(quant<type>(quants, lane, feature % BLOCK)) - minimum;
        }
    }
}

}  // namespace
}  // namespace psk

using namespace psk;

size_t psk_packed_bytes(int32_t type, int64_t rows, int64_t in_features) {
    size_t bytes = 0;
    with_type(type, [&]<Type T>() {
        if (rows > 0 && in_features > 0 && in_features % FORMAT<T>.features() == 0) {
            bytes = num_panels(rows) * FORMAT<T>.panel_bytes(in_features);
        }
    });
    return bytes;
}

void psk_pack(
    int32_t type, int64_t rows, int64_t in_features, const void * source, void * packed,
    int64_t first_panel, int64_t count) {
    with_type(type, [&]<Type T>() {
        pack<T>(
            rows, in_features, static_cast<const uint8_t *>(source), static_cast<uint8_t *>(packed),
            first_panel, count);
    });
}

void psk_unpack(
    int32_t type, int64_t, int64_t in_features, const void * packed, float * values,
    int64_t first_row, int64_t num_rows) {
    with_type(type, [&]<Type T>() {
        unpack<T>(in_features, static_cast<const uint8_t *>(packed), values, first_row, num_rows);
    });
}
