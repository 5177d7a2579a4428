// Attention over a cache of float16, for any instruction set: what few tokens see.
//
// Cells are gone through once, a block at a time; what came before is scaled whenever a block has a
// larger score (the running softmax of Milakov & Gimelshein 2018).
#pragma once

#include "kernels.h"

namespace psk {
namespace {

constexpr int CELLS_AT_ONCE = 64;
constexpr uint16_t HIDDEN = 0xfc00;  // minus infinity in a mask
constexpr float LOWEST = -1e30f;

// Where the visible cells that begin with `first` end; at `stop` at the latest.
inline int64_t end_of_visible(const uint16_t * mask, int64_t first, int64_t stop) {
    uint16_t nearest = 0xffff;  // to HIDDEN
    for (int64_t i = first; i < stop; i++) {
        const uint16_t difference = mask[i] ^ HIDDEN;
        nearest = difference < nearest ? difference : nearest;
    }
    if (nearest != 0) return stop;
    while (mask[first] != HIDDEN) first++;
    return first;
}

// Of one token: HEADS query heads that share a head of keys and values.
template <class Simd, int HEADS> struct TokenAttention {
    using Floats = typename Simd::Floats;
    static constexpr int LANES = Simd::LANES;

    const Attention & task;
    float q[HEADS][MAX_HEAD_DIM];
    float mixed[HEADS][MAX_HEAD_DIM];
    float largest[HEADS], sum[HEADS];
    float weights[HEADS][CELLS_AT_ONCE];  // first the scores

    TokenAttention(const Attention & task, const float * queries) : task(task) {
        for (int h = 0; h < HEADS; h++) {
            for (int64_t i = 0; i < task.head_dim; i++) {
                q[h][i] = queries[h * task.q_head_stride + i] * task.scale;
                mixed[h][i] = 0;
            }
            largest[h] = LOWEST;
            sum[h] = 0;
        }
    }

    // Up to CELLS_AT_ONCE cells, all of them visible.
    void see(int64_t first, int64_t cells) {
        score(task.keys + first * task.cell_bytes, cells);
        float factors[HEADS];
        for (int h = 0; h < HEADS; h++) factors[h] = weigh(h, cells);
        mix(task.values + first * task.cell_bytes, cells, factors);
    }

    void score(const uint8_t * keys, int64_t cells) {
        for (int64_t cell = 0; cell < cells; cell++, keys += task.cell_bytes) {
            Floats dots[HEADS];
            for (auto & dot : dots) dot = Simd::set(0);
            for (int64_t i = 0; i < task.head_dim; i += LANES) {
                const Floats key = Simd::load_half(keys + 2 * i);
                for (int h = 0; h < HEADS; h++) {
                    dots[h] = Simd::fma(key, Simd::load_floats(q[h] + i), dots[h]);
                }
            }
            for (int h = 0; h < HEADS; h++) weights[h][cell] = Simd::sum(dots[h]);
        }
    }

    // Scores become weights; what earlier cells are to be multiplied with comes back.
    float weigh(int h, int64_t cells) {
        float * scores = weights[h];
        float most = largest[h];
        for (int64_t i = 0; i < cells; i++) most = scores[i] > most ? scores[i] : most;
        const float factor = exponential(largest[h] - most);
        for (int64_t i = 0; i < cells; i++) scores[i] = exponential(scores[i] - most);
        float total = 0;
        for (int64_t i = 0; i < cells; i++) total += scores[i];
        sum[h] = sum[h] * factor + total;
        largest[h] = most;
        return factor;
    }

    void mix(const uint8_t * values, int64_t cells, const float (&factors)[HEADS]) {
        for (int64_t i = 0; i < task.head_dim; i += 2 * LANES) {
            Floats parts[HEADS][2];
            for (int h = 0; h < HEADS; h++) {
                const Floats factor = Simd::set(factors[h]);
                parts[h][0] = Simd::mul(Simd::load_floats(mixed[h] + i), factor);
                parts[h][1] = Simd::mul(Simd::load_floats(mixed[h] + i + LANES), factor);
            }
            const uint8_t * value = values + 2 * i;
            for (int64_t cell = 0; cell < cells; cell++, value += task.cell_bytes) {
                const Floats first = Simd::load_half(value);
                const Floats second = Simd::load_half(value + 2 * LANES);
                for (int h = 0; h < HEADS; h++) {
                    const Floats weight = Simd::set(weights[h][cell]);
                    parts[h][0] = Simd::fma(weight, first, parts[h][0]);
                    parts[h][1] = Simd::fma(weight, second, parts[h][1]);
                }
            }
            for (int h = 0; h < HEADS; h++) {
                Simd::store(mixed[h] + i, parts[h][0]);
                Simd::store(mixed[h] + i + LANES, parts[h][1]);
            }
        }
    }

    void finish(int64_t token, int64_t first_head) const {
        for (int h = 0; h < HEADS; h++) {
            const int64_t head = first_head + h;
            finish_head(
                task, mixed[h], largest[h], sum[h],
                task.out + token * task.out_token_stride + head * task.head_dim,
                sums_of(task, token * task.num_heads + head));
        }
    }
};

template <class Simd, int HEADS> void attend_heads(const Attention & task, int64_t first_head) {
    for (int64_t token = 0; token < task.num_tokens; token++) {
        const float * q = task.q + token * task.q_token_stride + first_head * task.q_head_stride;
        TokenAttention<Simd, HEADS> attention(task, q);
        const uint16_t * mask = task.mask + token * task.mask_stride;
        for (int64_t cell = task.first_cell; cell < task.last_cell;) {
            if (mask[cell] == HIDDEN) {
                cell++;
                continue;
            }
            const int64_t left = task.last_cell - cell;
            const int64_t most = left < CELLS_AT_ONCE ? left : CELLS_AT_ONCE;
            const int64_t end = end_of_visible(mask, cell, cell + most);
            attention.see(cell, end - cell);
            cell = end;
        }
        attention.finish(token, first_head);
    }
}

template <class Simd> void attend(const Attention & task) {
    int64_t head = 0;
    for (; head + 4 <= task.num_heads; head += 4) attend_heads<Simd, 4>(task, head);
    switch (task.num_heads - head) {
        case 1: return attend_heads<Simd, 1>(task, head);
        case 2: return attend_heads<Simd, 2>(task, head);
        case 3: return attend_heads<Simd, 3>(task, head);
        default: return;
    }
}

inline void rotate(
    const float * x, const float * turns, int64_t rope_dim, int64_t dim, bool is_half_split,
    float * out) {
    const int64_t pairs = rope_dim / 2;
    const float * cosines = turns, * sines = turns + pairs;
    if (is_half_split) {
        for (int64_t i = 0; i < pairs; i++) {
            const float a = x[i], b = x[i + pairs];
            out[i] = a * cosines[i] - b * sines[i];
            out[i + pairs] = a * sines[i] + b * cosines[i];
        }
    } else {
        for (int64_t i = 0; i < pairs; i++) {
            const float a = x[2 * i], b = x[2 * i + 1];
            out[2 * i] = a * cosines[i] - b * sines[i];
            out[2 * i + 1] = a * sines[i] + b * cosines[i];
        }
    }
    for (int64_t i = rope_dim; i < dim; i++) out[i] = x[i];
}

template <class Simd> void to_half(const float * x, uint16_t * out, int64_t n) {
    for (int64_t i = 0; i < n; i += Simd::LANES) Simd::store_half(out + i, Simd::load_floats(x + i));
}

}  // namespace
}  // namespace psk
