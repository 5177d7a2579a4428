// Attention with Intel AMX: many query rows against a block of cells.
//
// Rows are (token, head) pairs, 16 to a tile. Keys and values of a block of cells are turned into
// tiles once and serve all rows: scores = Q · Kᵀ, then, weighted by the running softmax, O += P · V.
#if defined(__x86_64__)
#include "target.h"

PSK_TARGET(
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16")

#include <immintrin.h>

#include "attention_task.h"
#include "isa_list.h"
#include "panels.h"
#include "tiles.h"

namespace psk {
namespace {

constexpr int64_t CELLS = 64;  // of a block
constexpr int64_t TILE_ROWS = 16;
constexpr uint16_t HIDDEN = 0xfc00;
constexpr float LOWEST = -1e30f;

// Cells of a block, a bit for each.
struct Visible {
    uint64_t to_any = 0, to_all = ~0ull;
};

struct Sizes {
    int64_t rows, tiles, depth;  // query rows, tiles of them, tiles along the head's dimensions

    explicit Sizes(const Attention & task)
        : rows(task.num_tokens * task.num_heads), tiles((rows + TILE_ROWS - 1) / TILE_ROWS),
          depth(task.head_dim / 32) {}
};

// A thread's memory for one task.
struct Memory {
    uint8_t * queries;     // [tiles][depth] tiles of [row][32 dimensions]
    uint8_t * keys;        // [4][depth] tiles of [pair of dimensions][16 cells][2]
    uint8_t * values;      // [2][2 depth] tiles of [pair of cells][16 dimensions][2]
    float * mixed;         // [tiles][16 rows][head_dim]
    float * largest, *sum; // [tiles][16 rows]

    Memory(const Attention & task, const Sizes & sizes, void * memory) {
        queries = static_cast<uint8_t *>(memory);
        keys = queries + sizes.tiles * sizes.depth * TILE_BYTES;
        values = keys + 4 * sizes.depth * TILE_BYTES;
        mixed = reinterpret_cast<float *>(values + 4 * sizes.depth * TILE_BYTES);
        largest = mixed + sizes.tiles * TILE_ROWS * task.head_dim;
        sum = largest + sizes.tiles * TILE_ROWS;
    }
};

inline __m512 load_half(const uint8_t * p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}

// e^x for x <= 0, within 2 units in the last place; nothing for what is far below.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
    const __m512 n = _mm512_roundscale_ps(
        _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691e-4f);  // the Cephes library's polynomial
    constexpr float REST[] = {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f};
    for (const float next : REST) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(next));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_scalef_ps(p, n);
}

void load_queries(const Attention & task, const Sizes & sizes, const Memory & memory) {
    __builtin_memset(memory.queries, 0, sizes.tiles * sizes.depth * TILE_BYTES);
    __builtin_memset(memory.mixed, 0, sizes.tiles * TILE_ROWS * task.head_dim * sizeof(float));
    const __m512 scale = _mm512_set1_ps(task.scale);
    for (int64_t row = 0; row < sizes.tiles * TILE_ROWS; row++) {
        memory.largest[row] = LOWEST;
        memory.sum[row] = 0;
        if (row >= sizes.rows) continue;
        const int64_t token = row / task.num_heads, head = row % task.num_heads;
        const float * q = task.q + token * task.q_token_stride + head * task.q_head_stride;
        uint8_t * target = memory.queries + row / TILE_ROWS * sizes.depth * TILE_BYTES +
                           row % TILE_ROWS * LINE;
        for (int64_t i = 0; i < sizes.depth; i++, q += 32) {
            store_row(
                target + i * TILE_BYTES, _mm512_mul_ps(_mm512_loadu_ps(q), scale),
                _mm512_mul_ps(_mm512_loadu_ps(q + 16), scale));
        }
    }
}

// 32 bfloat16 of each of 16 cells: pairs of dimensions, each with all cells.
inline void transpose(__m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 16; i += 8) {
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

// Keys and values of the cells from `first` on. Those that no token sees become zeros: they may hold
// what is not a number, and no weight of zero would make that vanish.
void load_cells(
    const Attention & task, const Sizes & sizes, const Memory & memory, int64_t first,
    uint64_t visible) {
    for (int64_t part = 0; part < CELLS / 16; part++) {
        for (int64_t depth = 0; depth < sizes.depth; depth++) {
            __m512i rows[16];
            for (int64_t i = 0; i < 16; i++) {
                const int64_t cell = 16 * part + i;
                const uint8_t * key = task.keys + (first + cell) * task.cell_bytes + 64 * depth;
                rows[i] = visible >> cell & 1 ? row_of(load_half(key), load_half(key + 32))
                                              : _mm512_setzero_si512();
            }
            transpose(rows);
            uint8_t * tile = memory.keys + (part * sizes.depth + depth) * TILE_BYTES;
            for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(tile + i * LINE, rows[i]);
        }
    }
    for (int64_t cell = 0; cell < CELLS; cell += 2) {
        const uint8_t * value = task.values + (first + cell) * task.cell_bytes;
        uint8_t * tile = memory.values + cell / 32 * 2 * sizes.depth * TILE_BYTES +
                         cell / 2 % TILE_ROWS * LINE;
        for (int64_t i = 0; i < 2 * sizes.depth; i++) {
            const __m512 zero = _mm512_setzero_ps();
            const __m512 even = visible >> cell & 1 ? load_half(value + 32 * i) : zero;
            const __m512 odd =
                visible >> cell & 2 ? load_half(value + task.cell_bytes + 32 * i) : zero;
            store_pair(tile + i * TILE_BYTES, even, odd);
        }
    }
}

Visible find_visible(const Attention & task, int64_t first, int64_t cells) {
    const uint64_t there = cells == CELLS ? ~0ull : (1ull << cells) - 1;
    const __m512i hidden = _mm512_set1_epi16(static_cast<int16_t>(HIDDEN));
    Visible visible;
    for (int64_t token = 0; token < task.num_tokens; token++) {
        const uint16_t * mask = task.mask + token * task.mask_stride + first;
        uint64_t bits = 0;
        for (int64_t half = 0; half < 2; half++) {
            const __mmask32 wanted = static_cast<__mmask32>(there >> (32 * half));
            const __m512i row = _mm512_maskz_loadu_epi16(wanted, mask + 32 * half);
            const uint64_t found = _mm512_mask_cmpneq_epi16_mask(wanted, row, hidden);
            bits |= found << (32 * half);
        }
        visible.to_any |= bits;
        visible.to_all &= bits;
    }
    return visible;
}

// Scores of one tile of rows: [16][CELLS].
void score(const Sizes & sizes, const Memory & memory, int64_t tile, float * scores) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t depth = 0; depth < sizes.depth; depth++) {
        const int64_t step = sizes.depth * TILE_BYTES;
        const uint8_t * keys = memory.keys + depth * TILE_BYTES;
        _tile_loadd(4, memory.queries + tile * step + depth * TILE_BYTES, LINE);
        _tile_loadd(5, keys, LINE);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, keys + step, LINE);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(5, keys + 2 * step, LINE);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(6, keys + 3 * step, LINE);
        _tile_dpbf16ps(3, 4, 6);
    }
    constexpr int64_t STRIDE = CELLS * sizeof(float);
    _tile_stored(0, scores, STRIDE);
    _tile_stored(1, scores + 16, STRIDE);
    _tile_stored(2, scores + 32, STRIDE);
    _tile_stored(3, scores + 48, STRIDE);
}

void hide(const Attention & task, const Sizes & sizes, int64_t tile, int64_t first, int64_t cells, float * scores) {
    for (int64_t i = 0; i < TILE_ROWS; i++) {
        const int64_t row = tile * TILE_ROWS + i;
        if (row >= sizes.rows) return;  // of a row that is not there nothing is kept
        const uint16_t * mask = task.mask + row / task.num_heads * task.mask_stride + first;
        for (int64_t cell = 0; cell < cells; cell++) {
            if (mask[cell] == HIDDEN) scores[i * CELLS + cell] = LOWEST;
        }
        for (int64_t cell = cells; cell < CELLS; cell++) scores[i * CELLS + cell] = LOWEST;
    }
}

// Scores become weights, as two tiles of [16 rows][32 cells]; earlier results are scaled to match.
void weigh(
    const Attention & task, const Memory & memory, int64_t tile, const float * scores,
    uint8_t * weights) {
    float most[TILE_ROWS], totals[TILE_ROWS];
    for (int64_t i = 0; i < TILE_ROWS; i++) {
        const float * s = scores + i * CELLS;
        const __m512 a = _mm512_max_ps(_mm512_loadu_ps(s), _mm512_loadu_ps(s + 16));
        const __m512 b = _mm512_max_ps(_mm512_loadu_ps(s + 32), _mm512_loadu_ps(s + 48));
        most[i] = _mm512_reduce_max_ps(_mm512_max_ps(a, b));
    }
    float * largest = memory.largest + tile * TILE_ROWS, * sum = memory.sum + tile * TILE_ROWS;
    const __m512 before = _mm512_loadu_ps(largest);
    const __m512 now = _mm512_max_ps(before, _mm512_loadu_ps(most));
    const __m512 factor = exponential(_mm512_sub_ps(before, now));
    _mm512_storeu_ps(largest, now);
    for (int64_t i = 0; i < TILE_ROWS; i++) {
        const float * s = scores + i * CELLS;
        __m512 total = _mm512_setzero_ps();
        for (int64_t half = 0; half < 2; half++) {
            __m512 p[2];
            for (int64_t j = 0; j < 2; j++) {
                const __m512 score = _mm512_loadu_ps(s + 32 * half + 16 * j);
                // What is hidden has no weight, even if nothing is visible.
                const __mmask16 visible =
                    _mm512_cmp_ps_mask(score, _mm512_set1_ps(LOWEST), _CMP_GT_OQ);
                p[j] = _mm512_maskz_mov_ps(
                    visible, exponential(_mm512_sub_ps(score, _mm512_set1_ps(largest[i]))));
                total = _mm512_add_ps(total, p[j]);
            }
            store_row(weights + half * TILE_BYTES + i * LINE, p[0], p[1]);
        }
        totals[i] = _mm512_reduce_add_ps(total);
    }
    _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_loadu_ps(sum), factor, _mm512_loadu_ps(totals)));
    if (_mm512_cmp_ps_mask(factor, _mm512_set1_ps(1), _CMP_NEQ_OQ) == 0) return;
    alignas(64) float factors[TILE_ROWS];
    _mm512_store_ps(factors, factor);
    float * mixed = memory.mixed + tile * TILE_ROWS * task.head_dim;
    for (int64_t i = 0; i < TILE_ROWS; i++) {
        for (int64_t j = 0; j < task.head_dim; j += 16, mixed += 16) {
            _mm512_storeu_ps(mixed, _mm512_mul_ps(_mm512_loadu_ps(mixed), _mm512_set1_ps(factors[i])));
        }
    }
}

// 32 dimensions at a time: two tiles of results.
void mix(const Attention & task, const Sizes & sizes, const Memory & memory, int64_t tile, const uint8_t * weights) {
    const int64_t stride = task.head_dim * sizeof(float);
    _tile_loadd(4, weights, LINE);
    _tile_loadd(5, weights + TILE_BYTES, LINE);
    for (int64_t i = 0; i < sizes.depth; i++) {
        float * mixed = memory.mixed + tile * TILE_ROWS * task.head_dim + 32 * i;
        const uint8_t * values = memory.values + 2 * i * TILE_BYTES;
        const uint8_t * later = values + 2 * sizes.depth * TILE_BYTES;
        _tile_loadd(0, mixed, stride);
        _tile_loadd(1, mixed + 16, stride);
        _tile_loadd(6, values, LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, values + TILE_BYTES, LINE);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(6, later, LINE);
        _tile_dpbf16ps(0, 5, 6);
        _tile_loadd(7, later + TILE_BYTES, LINE);
        _tile_dpbf16ps(1, 5, 7);
        _tile_stored(0, mixed, stride);
        _tile_stored(1, mixed + 16, stride);
    }
}

}  // namespace

size_t attend_tiles_bytes(const Attention & task) {
    const Sizes sizes(task);
    return (sizes.tiles + 8) * sizes.depth * TILE_BYTES +
           sizes.tiles * TILE_ROWS * (task.head_dim + 2) * sizeof(float);
}

void attend_tiles(const Attention & task, void * scratch) {
    const Sizes sizes(task);
    const Memory memory(task, sizes, scratch);
    load_queries(task, sizes, memory);
    alignas(64) float scores[TILE_ROWS * CELLS];
    alignas(64) uint8_t weights[2 * TILE_BYTES];
    for (int64_t first = task.first_cell; first < task.last_cell; first += CELLS) {
        const int64_t left = task.last_cell - first, cells = left < CELLS ? left : CELLS;
        const Visible visible = find_visible(task, first, cells);
        if (visible.to_any == 0) continue;
        load_cells(task, sizes, memory, first, visible.to_any);
        for (int64_t tile = 0; tile < sizes.tiles; tile++) {
            score(sizes, memory, tile, scores);
            if (visible.to_all != ~0ull) hide(task, sizes, tile, first, cells, scores);
            weigh(task, memory, tile, scores, weights);
            mix(task, sizes, memory, tile, weights);
        }
    }
    for (int64_t row = 0; row < sizes.rows; row++) {
        const int64_t token = row / task.num_heads, head = row % task.num_heads;
        finish_head(
            task, memory.mixed + row * task.head_dim, memory.largest[row], memory.sum[row],
            task.out + token * task.out_token_stride + head * task.head_dim, sums_of(task, row));
    }
}

}  // namespace psk
PSK_END_TARGET
#endif
