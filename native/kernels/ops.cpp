// ggml's custom operations: who computes what, and what is done with the products.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "isa.h"
#include "panels.h"
#include "powerserve_kernels.h"
#include "work.h"

namespace psk {
namespace {

constexpr int64_t MAX_UNPREPARED = 4;
constexpr int64_t TILE_TOKENS = 16;
constexpr size_t CACHED_BYTES = 1 << 18;  // of packed weights, before columns are read again
constexpr size_t TILED_BYTES = 1 << 19;  // of widened weights that a thread works with

thread_local Scratch column_memory, tile_memory;

// T columns in groups as large as may be, the first ones a column larger if need be.
struct Groups {
    int64_t tokens, in_features, count, size, larger;

    Groups(int64_t tokens, int64_t in_features)
        : tokens(tokens), in_features(in_features),
          count(ceil_div(tokens, current_isa()->max_columns)), size(tokens / count),
          larger(tokens % count) {}
    int64_t columns(int64_t group) const { return size + (group < larger); }
    int64_t start(int64_t group) const { return group * size + min(group, larger); }
    int64_t offset(int64_t group) const { return group_bytes(in_features, start(group)); }
    int64_t group_of(int64_t column) const {
        const int64_t in_larger = larger * (size + 1);
        return column < in_larger ? column / (size + 1) : larger + (column - in_larger) / size;
    }
};

const Tiles * tiles_for(int64_t tokens) {
    return tokens >= MIN_TILE_TOKENS ? current_isa()->tiles : nullptr;
}

int64_t tile_group_bytes(int64_t in_features) { return in_features * TILE_TOKENS * 2; }

size_t prepared_bytes(int64_t in_features, int64_t tokens) {
    return tiles_for(tokens) != nullptr
               ? ceil_div(tokens, TILE_TOKENS) * tile_group_bytes(in_features)
               : group_bytes(in_features, tokens);
}

// The part of thread `ith` of all columns of x into memory as `prepared_bytes` counts it.
void prepare_columns(
    const ggml_tensor * x, const float * norm, float eps, int ith, int nth, uint8_t * memory) {
    const int64_t in_features = x->ne[0], tokens = x->ne[1];
    if (const Tiles * tiles = tiles_for(tokens)) {
        const int64_t count = ceil_div(tokens, TILE_TOKENS), stride = x->nb[1] / sizeof(float);
        for (int64_t group = count * ith / nth; group < count * (ith + 1) / nth; group++) {
            const int64_t first = group * TILE_TOKENS;
            tiles->prepare(
                row_of(x, first), stride, min(TILE_TOKENS, tokens - first), norm, eps, in_features,
                memory + group * tile_group_bytes(in_features));
        }
        return;
    }
    const Groups groups(tokens, in_features);
    for (int64_t column = tokens * ith / nth; column < tokens * (ith + 1) / nth; column++) {
        const int64_t group = groups.group_of(column);
        current_isa()->prepare(
            row_of(x, column), norm, eps, in_features, memory + groups.offset(group),
            column - groups.start(group), groups.columns(group));
    }
}

// The sources of a linear operation by their meaning.
struct Linear {
    const PskLinear & spec;
    const ggml_tensor * x;
    const float * norm = nullptr;
    const uint8_t * weights[PSK_MAX_WEIGHTS] = {};
    const float * biases[PSK_MAX_WEIGHTS] = {};
    const ggml_tensor * residual = nullptr;
    ggml_tensor * dst;
    size_t panel_bytes[PSK_MAX_WEIGHTS] = {};

    Linear(const PskLinear & spec, ggml_tensor * dst) : spec(spec), x(dst->src[0]), dst(dst) {
        int next = 1;
        if (has(PSK_NORM)) norm = static_cast<const float *>(dst->src[next++]->data);
        for (int i = 0; i < spec.num_weights; i++) {
            weights[i] = static_cast<const uint8_t *>(dst->src[next++]->data);
            panel_bytes[i] = psk_packed_bytes(spec.types[i], PANEL_ROWS, spec.in_features);
        }
        if (has(PSK_BIAS)) {
            for (int i = 0; i < spec.num_weights; i++) {
                biases[i] = static_cast<const float *>(dst->src[next++]->data);
            }
        }
        if (has(PSK_RESIDUAL)) residual = dst->src[next++];
    }

    bool has(int32_t flag) const { return (spec.flags & flag) != 0; }
    bool is_swiglu() const { return has(PSK_SWIGLU); }
    int64_t tokens() const { return dst->ne[1]; }
    const uint8_t * panel(int weight, int64_t index) const {
        return weights[weight] + index * panel_bytes[weight];
    }
    int64_t num_items() const {
        int64_t count = 0;
        for (int i = 0; i < (is_swiglu() ? 1 : spec.num_weights); i++) {
            count += num_panels(spec.rows[i]);
        }
        return count;
    }
};

// A panel's place among all panels of an operation; with SwiGLU it stands for gate and up.
struct Item {
    int weight = 0;
    int64_t panel, row = 0;  // row: of the result

    Item(const Linear & linear, int64_t index) : panel(index) {
        while (panel >= num_panels(linear.spec.rows[weight])) {
            panel -= num_panels(linear.spec.rows[weight]);
            row += linear.spec.rows[weight++];
        }
        row += panel * PANEL_ROWS;
    }
    int64_t num_rows(const Linear & linear) const {
        return min(PANEL_ROWS, linear.spec.rows[weight] - panel * PANEL_ROWS);
    }
};

void add_bias(const Linear & linear, int weight, int64_t panel, int64_t num_rows, float * values) {
    if (const float * bias = linear.biases[weight]) {
        for (int64_t i = 0; i < num_rows; i++) values[i] += bias[panel * PANEL_ROWS + i];
    }
}

// Products of a panel (16 for each token; with SwiGLU those of gate, and of up) become a part of
// the result. `stride`: from one token's products to the next one's.
void finish(
    const Linear & linear, const Item & item, int64_t first_token, int64_t num_tokens,
    float * values, float * up, int64_t stride) {
    const int64_t count = item.num_rows(linear);
    for (int64_t t = 0; t < num_tokens; t++, values += stride, up += stride) {
        float * out = row_of(linear.dst, first_token + t) + item.row;
        add_bias(linear, item.weight, item.panel, count, values);
        if (linear.is_swiglu()) {
            add_bias(linear, 1, item.panel, count, up);
            current_isa()->swiglu(values, up, values, PANEL_ROWS);
        }
        if (linear.residual != nullptr) {
            const float * other = row_of(linear.residual, first_token + t) + item.row;
            for (int64_t i = 0; i < count; i++) values[i] += other[i];
        }
        std::memcpy(out, values, count * sizeof(float));
    }
}

// An item times a group of columns.
void multiply_item(
    const Linear & linear, const Item & item, const Groups & groups, int64_t group,
    const uint8_t * x) {
    const Isa & isa = *current_isa();
    const PskLinear & spec = linear.spec;
    const int64_t columns = groups.columns(group);
    const uint8_t * own = x + groups.offset(group);
    alignas(64) float values[MAX_COLUMNS * PANEL_ROWS], up[MAX_COLUMNS * PANEL_ROWS];
    isa.multiply(
        spec.types[item.weight], linear.panel(item.weight, item.panel), spec.in_features, own,
        columns, values);
    if (linear.is_swiglu()) {
        isa.multiply(
            spec.types[1], linear.panel(1, item.panel), spec.in_features, own, columns, up);
    }
    finish(linear, item, groups.start(group), columns, values, up, PANEL_ROWS);
}

// Items first ... last - 1, as many at once as stay cached while the columns go by.
void multiply_items(
    const Linear & linear, const Groups & groups, const uint8_t * x, int64_t first, int64_t last) {
    const size_t item_bytes = linear.panel_bytes[0] * (linear.is_swiglu() ? 2 : 1);
    const int64_t at_once = 1 + CACHED_BYTES / item_bytes;
    for (; first < last; first += at_once) {
        for (int64_t group = 0; group < groups.count; group++) {
            for (int64_t i = first; i < min(first + at_once, last); i++) {
                multiply_item(linear, Item(linear, i), groups, group, x);
            }
        }
    }
}

// Items first ... last - 1 with tiles. Two panels are multiplied at once: gate and up, or neighbours.
void multiply_tiled(
    const Linear & linear, const Tiles & tiles, const uint8_t * x, int64_t first, int64_t last) {
    const PskLinear & spec = linear.spec;
    const int64_t in_features = spec.in_features, panel_size = in_features * PANEL_ROWS * 2;
    const bool swiglu = linear.is_swiglu();
    const int64_t num_tiled = swiglu ? 2 * (last - first) : last - first;
    uint8_t * tiled = tile_memory.get(num_tiled * panel_size);
    for (int64_t i = 0; i < num_tiled; i++) {
        const Item item(linear, first + (swiglu ? i / 2 : i));
        const int weight = swiglu ? i % 2 : item.weight;
        tiles.widen(spec.types[weight], linear.panel(weight, item.panel), in_features, tiled + i * panel_size);
    }
    constexpr int64_t STRIDE = 2 * PANEL_ROWS;
    alignas(64) float out[2 * TILE_TOKENS * STRIDE];
    const int64_t tokens = linear.tokens(), group_size = tile_group_bytes(in_features);
    for (int64_t token = 0; token < tokens; token += 2 * TILE_TOKENS) {
        const uint8_t * own = x + token / TILE_TOKENS * group_size;
        const bool has_second = token + TILE_TOKENS < tokens;
        const int64_t count = min(2 * TILE_TOKENS, tokens - token);
        for (int64_t i = 0; i < num_tiled; i += 2) {
            const uint8_t * panel = tiled + i * panel_size;
            tiles.multiply(
                panel, i + 1 < num_tiled ? panel + panel_size : panel, own,
                has_second ? own + group_size : nullptr, in_features, out);
            for (int64_t side = 0; side < (swiglu ? 1 : min(2, num_tiled - i)); side++) {
                const Item item(linear, first + (swiglu ? i / 2 : i + side));
                finish(
                    linear, item, token, count, out + side * PANEL_ROWS, out + PANEL_ROWS, STRIDE);
            }
        }
    }
}

// Items are panels; tiles multiply two at once, and widened they have to fit the cache.
ChunkSize chunk_size(const Linear & linear, const Tiles * tiles) {
    if (tiles == nullptr) return {1, linear.num_items()};
    const int64_t per_item = linear.spec.in_features * PANEL_ROWS * 2 * (linear.is_swiglu() ? 2 : 1);
    return {2, max(2, int64_t(TILED_BYTES) / per_item / 2 * 2)};
}

}  // namespace
}  // namespace psk

using namespace psk;

int32_t psk_abi() { return PSK_ABI; }

size_t psk_prepared_bytes(int64_t in_features, int64_t tokens) {
    return prepared_bytes(in_features, tokens) + LINE;  // room to align
}

int64_t psk_max_unprepared() { return MAX_UNPREPARED; }

void psk_op_prepare(ggml_tensor * dst, int ith, int nth, void * linear) {
    const auto & spec = *static_cast<const PskLinear *>(linear);
    const ggml_tensor * x = dst->src[0];
    const auto * norm =
        spec.flags & PSK_NORM ? static_cast<const float *>(dst->src[1]->data) : nullptr;
    prepare_columns(x, norm, spec.eps, ith, nth, Scratch::aligned(dst->data));
}

void psk_op_linear(ggml_tensor * dst, int, int nth, void * user_data) {
    auto & spec = *static_cast<PskLinear *>(user_data);
    const Linear linear(spec, dst);
    const int64_t tokens = linear.tokens();
    const Tiles * tiles = tiles_for(tokens);
    const uint8_t * x;
    if (linear.has(PSK_PREPARED)) {
        x = Scratch::aligned(linear.x->data);
    } else {
        // Every thread for itself: less work than to wait for each other.
        uint8_t * memory = column_memory.get(prepared_bytes(spec.in_features, tokens));
        prepare_columns(linear.x, linear.norm, spec.eps, 0, 1, memory);
        x = memory;
    }
    const Groups groups(tokens, spec.in_features);
    Chunks chunks(spec.next_item, spec.num_done, linear.num_items(), chunk_size(linear, tiles), nth);
    alignas(64) uint8_t tile_state[TILE_STATE_BYTES];
    if (tiles != nullptr) tiles->begin(tile_state);
    for (int64_t first, last; chunks.take(first, last);) {
        if (tiles != nullptr) {
            multiply_tiled(linear, *tiles, x, first, last);
        } else {
            multiply_items(linear, groups, x, first, last);
        }
    }
    if (tiles != nullptr) tiles->end(tile_state);
    chunks.leave();
}
