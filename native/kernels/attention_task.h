// What attention has to compute: the same for all instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace psk {

constexpr int64_t MAX_HEAD_DIM = 256;

// Query heads that share a head of keys and values, for some tokens of a sequence.
struct Attention {
    const float * q;  // [tokens][heads][head_dim]
    int64_t q_token_stride, q_head_stride;  // floats
    int64_t num_tokens, num_heads, head_dim;
    const uint8_t * keys, * values;  // float16 [cells][head_dim]
    int64_t cell_bytes;              // from a cell to the next
    const uint16_t * mask;           // float16 [tokens][cells]: minus infinity hides a cell
    int64_t mask_stride;             // numbers
    int64_t first_cell, last_cell;
    float scale;
    float * out;  // [tokens][heads][head_dim]
    int64_t out_token_stride;
    // Null, or [tokens][heads][2]: the largest score and the sum of weights go here, and `out` is
    // not divided by the sum, so that results of several ranges of cells can be put together.
    float * sums;
};

namespace {  // files for several instruction sets include this: no function may be shared by name

inline float * sums_of(const Attention & task, int64_t row) {
    return task.sums == nullptr ? nullptr : task.sums + 2 * row;
}

inline void finish_head(
    const Attention & task, const float * mixed, float largest, float sum, float * out,
    float * sums) {
    if (sums != nullptr) {
        sums[0] = largest;
        sums[1] = sum;
    }
    // Nothing was visible: the result is nothing.
    const float factor = sums != nullptr ? 1.0f : sum > 0 ? 1.0f / sum : 0.0f;
    for (int64_t i = 0; i < task.head_dim; i++) out[i] = mixed[i] * factor;
}

}  // namespace
}  // namespace psk
