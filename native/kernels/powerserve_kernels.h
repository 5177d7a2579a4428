// Quantised matrices times a few or many activation columns, for ggml graphs on the CPU.
//
// A weight [rows, in_features] of a GGUF file is packed once into panels (panels.h). Operations
// enter a ggml graph through ggml_custom_4d: every thread of ggml's pool calls the function with
// its index, and the pool's barrier follows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml_tensor.h"

#if defined(_WIN32)
#define PSK_API extern "C" __declspec(dllexport)
#else
#define PSK_API extern "C" __attribute__((visibility("default")))
#endif

enum { PSK_ABI = 4, PSK_MAX_WEIGHTS = 3 };

// Flags of PskLinear, in the order in which the operation's sources follow x.
enum {
    PSK_PREPARED = 1,  // x is what psk_op_prepare made of the activations; else float32 [K, T]
    PSK_NORM = 2,      // source: norm weight float32 [K]; x is normalised (RMSNorm) first
                       // then come the weights, each of them packed bytes,
    PSK_BIAS = 4,      // a bias float32 [rows] for each weight,
    PSK_RESIDUAL = 8,  // what is added to the result: float32, of the result's shape
    PSK_SWIGLU = 16,   // two weights of the same size, gate and up: silu(gate) * up
};

// What psk_op_linear and psk_op_prepare are to do: the custom operation's user data.
struct PskLinear {
    int32_t flags;
    int32_t num_weights;
    int32_t types[PSK_MAX_WEIGHTS];  // ggml's ids
    float eps;                       // of the norm
    int64_t in_features;             // K
    int64_t rows[PSK_MAX_WEIGHTS];
    int64_t next_item;  // private: work that no thread has taken; zero between operations
    int64_t num_done;   // private
};

PSK_API int32_t psk_abi(void);

// The instruction sets that this processor can be served with, best first, separated by spaces.
PSK_API const char * psk_get_instruction_sets(void);
// The one in use.
PSK_API const char * psk_get_instruction_set(void);
// Use another (for tests and measurements; not while an operation runs). 0, or -1 if it cannot be.
PSK_API int32_t psk_set_instruction_set(const char * name);

// Bytes of a packed weight; 0 if there is no kernel for this type and size.
PSK_API size_t psk_packed_bytes(int32_t type, int64_t rows, int64_t in_features);
// Pack the panels first_panel ... first_panel + num_panels - 1 (16 rows each) of a weight whose
// rows lie at `source` as in the file, into the whole weight's memory at `packed`.
PSK_API void psk_pack(
    int32_t type, int64_t rows, int64_t in_features, const void * source, void * packed,
    int64_t first_panel, int64_t num_panels);
// What the kernels multiply with: rows [first_row, first_row + num_rows) of a packed weight.
PSK_API void psk_unpack(
    int32_t type, int64_t rows, int64_t in_features, const void * packed, float * values,
    int64_t first_row, int64_t num_rows);

// Bytes that psk_op_prepare writes for `tokens` columns of K activations.
PSK_API size_t psk_prepared_bytes(int64_t in_features, int64_t tokens);
// Up to how many columns psk_op_linear should rather be given the activations themselves.
PSK_API int64_t psk_max_unprepared(void);

// dst: int8 [psk_prepared_bytes]. Sources: x float32 [K, T]; the norm's weight with PSK_NORM.
PSK_API void psk_op_prepare(ggml_tensor * dst, int ith, int nth, void * linear);
// dst: float32 [sum of rows, T] (PSK_SWIGLU: [rows, T]). Sources: see the flags.
PSK_API void psk_op_linear(ggml_tensor * dst, int ith, int nth, void * linear);

// What psk_op_store is to do: the position embedding (RoPE).
struct PskStore {
    int64_t rope_dim;  // the first dimensions of a head are rotated, the others stay
    int32_t is_half_split;  // pairs are (i, i + rope_dim / 2); else (2i, 2i + 1)
};

// Rotates Q and K and puts K and V, rounded to float16, into their cells.
// dst: float32 [head_dim, heads, T], the rotated Q. Sources: q, k, v float32 [head_dim, their heads,
// T]; turns float32 [rope_dim, T]: the cosines of all pairs, then the sines; cells int64 [T]; keys
// and values float16 [kv_heads * head_dim, cells]. Heads as psk_can_attend takes them.
PSK_API void psk_op_store(ggml_tensor * dst, int ith, int nth, void * store);

// One sequence's tokens in a step, and the cells that they may see.
struct PskSlice {
    int64_t first_token, num_tokens;
    int64_t first_cell, num_cells;
    int64_t mask_offset;  // of its mask [num_tokens][num_cells], in numbers
};

// What psk_op_attention is to do.
struct PskAttention {
    float scale;
    int32_t num_slices;
    const PskSlice * slices;
    int64_t head_dim, num_heads, num_kv_heads;
    int32_t * num_finished;  // private: [tokens of all slices][num_kv_heads], zero between operations
    int64_t next_item;       // private, zero between operations
    int64_t num_done;        // private
};

// Whether there is attention for heads of this size, so many of which share keys and values.
PSK_API int32_t psk_can_attend(int64_t head_dim, int64_t heads_per_kv);
// Numbers that dst needs: the result first, then what threads tell each other.
PSK_API size_t psk_attention_floats(const PskAttention * attention);
// dst: float32 [psk_attention_floats], of which [heads * head_dim, T] come first. Sources: q float32
// [head_dim, heads, T]; keys and values float16 [kv_heads * head_dim, cells]; the masks of all slices
// one after the other, float16: minus infinity hides a cell, anything else shows it. What is in cells
// that no token of a slice sees does not matter; what is infinite or not a number in one that some
// tokens see may spoil the others' results, too.
PSK_API void psk_op_attention(ggml_tensor * dst, int ith, int nth, void * attention);
