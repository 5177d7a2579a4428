// Attention as one operation for all sequences of a step.
#include <atomic>
#include <cmath>

#include "isa.h"
#include "powerserve_kernels.h"
#include "work.h"

namespace psk {
namespace {

constexpr int64_t CELLS_PER_PART = 256;  // of the cells that few tokens look at
constexpr int64_t MAX_PARTS = 8;
constexpr int64_t FEW_TOKENS = 4;  // of a block, where tokens are computed one by one
constexpr int64_t MAX_TILE_ROWS = 128;
constexpr int64_t MAX_HEADS_PER_KV = 64;

thread_local Scratch tile_memory;

bool is_for_tiles(const PskSlice & slice) { return slice.num_tokens >= MIN_TILE_TOKENS; }

// How a slice's work is cut into items: by its tokens, heads and, if it has few tokens, its cells.
// Nothing depends on the number of threads, so that results do not either.
struct Cut {
    int64_t tokens, blocks, parts;  // tokens: of a block

    Cut(const PskSlice & slice, int64_t heads_per_kv) {
        const bool few = !is_for_tiles(slice);
        tokens = min(slice.num_tokens, few ? FEW_TOKENS : max(1, MAX_TILE_ROWS / heads_per_kv));
        parts = few ? max(1, min(MAX_PARTS, slice.num_cells / CELLS_PER_PART)) : 1;
        blocks = ceil_div(slice.num_tokens, tokens);
    }
};

struct Step {
    PskAttention & spec;
    ggml_tensor * dst;
    const ggml_tensor * q, * keys, * values, * mask;
    int64_t heads_per_kv, width;

    Step(PskAttention & spec, ggml_tensor * dst)
        : spec(spec), dst(dst), q(dst->src[0]), keys(dst->src[1]), values(dst->src[2]),
          mask(dst->src[3]), heads_per_kv(spec.num_heads / spec.num_kv_heads),
          width(spec.num_heads * spec.head_dim) {}

    int64_t num_items() const {
        int64_t count = 0;
        for (int32_t i = 0; i < spec.num_slices; i++) count += items_of(i);
        return count;
    }
    int64_t items_of(int32_t slice) const {
        const Cut cut(spec.slices[slice], heads_per_kv);
        return cut.blocks * cut.parts * spec.num_kv_heads;
    }
    float * out() const { return static_cast<float *>(dst->data); }
};

int64_t num_tokens(const PskAttention & spec) {
    int64_t count = 0;
    for (int32_t i = 0; i < spec.num_slices; i++) count += spec.slices[i].num_tokens;
    return count;
}

// Floats of the parts of a slice: for each, results [tokens][heads][head_dim] and sums
// [tokens][heads][2].
int64_t part_floats(const PskAttention & spec, const PskSlice & slice) {
    const Cut cut(slice, spec.num_heads / spec.num_kv_heads);
    if (cut.parts == 1) return 0;
    return cut.parts * slice.num_tokens * spec.num_heads * (spec.head_dim + 2);
}

// The results of a token's heads in all parts, put together by the thread that finished the last.
void combine(
    const Step & step, const Cut & cut, const PskSlice & slice, int64_t kv_head, const float * parts) {
    const int64_t dim = step.spec.head_dim, group = step.heads_per_kv;
    const int64_t per_part = slice.num_tokens * step.spec.num_heads;
    const float * sums = parts + cut.parts * per_part * dim;
    for (int64_t row = 0; row < slice.num_tokens * group; row++) {
        const int64_t token = row / group, head = kv_head * group + row % group;
        const int64_t index = token * step.spec.num_heads + head;
        float most = sums[2 * index];
        for (int64_t part = 1; part < cut.parts; part++) {
            most = std::fmax(most, sums[2 * (part * per_part + index)]);
        }
        float * out = step.out() + (slice.first_token + token) * step.width + head * dim;
        float total = 0;
        for (int64_t part = 0; part < cut.parts; part++) {
            const float * own = sums + 2 * (part * per_part + index);
            const float factor = std::exp(own[0] - most);
            const float * result = parts + (part * per_part + index) * dim;
            total += own[1] * factor;
            for (int64_t i = 0; i < dim; i++) out[i] = (part ? out[i] : 0) + result[i] * factor;
        }
        const float factor = total > 0 ? 1 / total : 0;
        for (int64_t i = 0; i < dim; i++) out[i] *= factor;
    }
}

void attend(const Attention & task, const Tiles * tiles) {
    if (tiles != nullptr) {
        tiles->attend(task, tile_memory.get(tiles->attend_bytes(task)));
    } else {
        current_isa()->attend(task);
    }
}

// Item `index` of a slice whose parts lie at `parts`.
void compute(
    const Step & step, const PskSlice & slice, int64_t index, float * parts, const Tiles * tiles) {
    const PskAttention & spec = step.spec;
    if (!is_for_tiles(slice)) tiles = nullptr;
    const Cut cut(slice, step.heads_per_kv);
    const int64_t kv_head = index % spec.num_kv_heads, rest = index / spec.num_kv_heads;
    const int64_t part = rest % cut.parts, first = rest / cut.parts * cut.tokens;
    const int64_t token = slice.first_token + first, head = kv_head * step.heads_per_kv;
    const int64_t stride = step.q->nb[2] / sizeof(float), head_stride = step.q->nb[1] / sizeof(float);
    const int64_t offset = slice.first_cell * step.keys->nb[1] + kv_head * spec.head_dim * 2;
    const auto * mask = static_cast<const uint16_t *>(step.mask->data);
    Attention task{
        static_cast<const float *>(step.q->data) + token * stride + head * head_stride, stride,
        head_stride, min(cut.tokens, slice.num_tokens - first), step.heads_per_kv, spec.head_dim,
        static_cast<const uint8_t *>(step.keys->data) + offset,
        static_cast<const uint8_t *>(step.values->data) + offset,
        int64_t(step.keys->nb[1]), mask + slice.mask_offset + first * slice.num_cells,
        slice.num_cells, slice.num_cells * part / cut.parts,
        slice.num_cells * (part + 1) / cut.parts, spec.scale,
        step.out() + token * step.width + head * spec.head_dim, step.width, nullptr};
    if (cut.parts == 1) return attend(task, tiles);
    const int64_t per_part = slice.num_tokens * spec.num_heads;
    float sums[FEW_TOKENS * MAX_HEADS_PER_KV * 2];  // as `attend` orders them
    const int64_t place = first * spec.num_heads + head;  // of the block's first result in its part
    task.out = parts + (part * per_part + place) * spec.head_dim;
    task.sums = sums;
    attend(task, tiles);
    float * all = parts + cut.parts * per_part * spec.head_dim + 2 * (part * per_part + place);
    for (int64_t row = 0; row < task.num_tokens * task.num_heads; row++) {
        float * own = all + 2 * (row / task.num_heads * spec.num_heads + row % task.num_heads);
        own[0] = sums[2 * row];
        own[1] = sums[2 * row + 1];
    }
    std::atomic_ref<int32_t> finished(
        spec.num_finished[slice.first_token * spec.num_kv_heads + kv_head]);
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 == cut.parts * cut.blocks) {
        finished.store(0);
        combine(step, cut, slice, kv_head, parts);
    }
}

}  // namespace
}  // namespace psk

using namespace psk;

int32_t psk_can_attend(int64_t head_dim, int64_t heads_per_kv) {
    return head_dim % 32 == 0 && head_dim <= MAX_HEAD_DIM && heads_per_kv <= MAX_HEADS_PER_KV;
}

size_t psk_attention_floats(const PskAttention * attention) {
    int64_t count = num_tokens(*attention) * attention->num_heads * attention->head_dim;
    for (int32_t i = 0; i < attention->num_slices; i++) {
        count += part_floats(*attention, attention->slices[i]);
    }
    return count;
}

void psk_op_attention(ggml_tensor * dst, int, int nth, void * user_data) {
    auto & spec = *static_cast<PskAttention *>(user_data);
    const Step step(spec, dst);
    const Tiles * tiles = current_isa()->tiles;
    alignas(64) uint8_t tile_state[TILE_STATE_BYTES];
    if (tiles != nullptr) tiles->begin(tile_state);
    Chunks chunks(spec.next_item, spec.num_done, step.num_items(), ChunkSize{1, 1}, nth);
    for (int64_t first, last; chunks.take(first, last);) {
        int32_t slice = 0;
        float * parts = step.out() + num_tokens(spec) * step.width;
        for (; first >= step.items_of(slice); slice++) {
            first -= step.items_of(slice);
            parts += part_floats(spec, spec.slices[slice]);
        }
        compute(step, spec.slices[slice], first, parts, tiles);
    }
    if (tiles != nullptr) tiles->end(tile_state);
    chunks.leave();
}
