// What an instruction set provides; ops.cpp is the same for all.
#pragma once

#include <cstdint>

#include "attention_task.h"

namespace psk {

constexpr int MAX_COLUMNS = 32;    // of a group, whatever the instruction set
constexpr int KERNEL_COLUMNS = 8;  // that kernels.h multiplies a panel with in one pass

// Activations of a group of columns as int8 with a scale per block of 32:
//     quants int8 [K / 32][columns][32], then sums float [K / 32][columns][4]:
//     scale, scale * (sum of the 32 quants), and that of the first and second 16.
inline int64_t group_bytes(int64_t in_features, int64_t columns) {
    return in_features / 32 * columns * (32 + 16);
}

struct Isa {
    const char * name;
    bool (*is_supported)();
    // Normalise a column (norm: float [K] or null) and write it as column `column` of a group.
    void (*prepare)(
        const float * x, const float * norm, float eps, int64_t in_features, void * group,
        int64_t column, int64_t columns);
    // One panel times a group: out [columns][16].
    void (*multiply)(
        int32_t type, const uint8_t * panel, int64_t in_features, const void * group,
        int64_t columns, float * out);
    // out[i] = silu(gate[i]) * up[i]
    void (*swiglu)(const float * gate, const float * up, float * out, int64_t n);
    // For few query rows: every cell is read once for each token and four of its heads.
    void (*attend)(const Attention & task);
    // A head at its position: see PskStore.
    void (*rotate)(
        const float * x, const float * turns, int64_t rope_dim, int64_t dim, bool is_half_split,
        float * out);
    void (*to_half)(const float * x, uint16_t * out, int64_t n);  // n: a multiple of 32
    const struct Tiles * tiles;  // null: none
    int64_t max_columns = KERNEL_COLUMNS;  // of a group
};

constexpr int TILE_STATE_BYTES = 64;
// From so many tokens on tiles are used, which round to bfloat16. Fewer give the numbers that each
// would give alone, to the last bit: a step that verifies guesses is such a step.
constexpr int64_t MIN_TILE_TOKENS = 25;

// For many columns: matrix units that multiply bfloat16 tiles of 16 x 32.
// Activations lie as [ceil(T / 16)][K / 32][16 tokens][32] bfloat16, padded with zeros.
struct Tiles {
    // Up to 16 tokens, `stride` floats apart, normalised if there is a norm.
    void (*prepare)(
        const float * x, int64_t stride, int64_t tokens, const float * norm, float eps,
        int64_t in_features, void * group);
    // A panel as tiles: [K / 32][16 pairs of features][16 rows][2] bfloat16.
    void (*widen)(int32_t type, const uint8_t * panel, int64_t in_features, void * tiles);
    // On each thread before and after multiplications: configure its tiles, put the state back.
    void (*begin)(void * state);
    void (*end)(const void * state);
    // Two panels times one or two (else null) groups of 16 tokens: out [tokens][32 rows] float.
    void (*multiply)(
        const void * panel0, const void * panel1, const void * tokens0, const void * tokens1,
        int64_t in_features, float * out);
    // For many query rows, between begin and end; `scratch` has the size that is asked for.
    size_t (*attend_bytes)(const Attention & task);
    void (*attend)(const Attention & task, void * scratch);
};

extern const Isa * const ALL_ISAS[];  // best first; a null ends them
const Isa * current_isa();

}  // namespace psk
