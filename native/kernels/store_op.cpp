// Before attention: Q and K are rotated to their positions, K and V go into their cells.
#include <cstring>

#include "isa.h"
#include "powerserve_kernels.h"
#include "work.h"

namespace psk {
namespace {

const float * head_of(const ggml_tensor * tensor, int64_t head, int64_t token) {
    return reinterpret_cast<const float *>(
        static_cast<const uint8_t *>(tensor->data) + head * tensor->nb[1] + token * tensor->nb[2]);
}

uint16_t * cell_of(const ggml_tensor * cache, int64_t cell) {
    return reinterpret_cast<uint16_t *>(static_cast<uint8_t *>(cache->data) + cell * cache->nb[1]);
}

}  // namespace
}  // namespace psk

using namespace psk;

void psk_op_store(ggml_tensor * dst, int ith, int nth, void * user_data) {
    const auto & spec = *static_cast<const PskStore *>(user_data);
    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2];
    const ggml_tensor * turns = dst->src[3], * cells = dst->src[4];
    const ggml_tensor * keys = dst->src[5], * values = dst->src[6];
    const Isa & isa = *current_isa();
    const int64_t dim = q->ne[0], num_heads = q->ne[1], num_kv_heads = k->ne[1], tokens = q->ne[2];
    for (int64_t token = tokens * ith / nth; token < tokens * (ith + 1) / nth; token++) {
        const float * turn = row_of(turns, token);
        float * out = static_cast<float *>(dst->data) + token * num_heads * dim;
        for (int64_t head = 0; head < num_heads; head++, out += dim) {
            isa.rotate(head_of(q, head, token), turn, spec.rope_dim, dim, spec.is_half_split, out);
        }
        const int64_t cell = static_cast<const int64_t *>(cells->data)[token];
        for (int64_t head = 0; head < num_kv_heads; head++) {
            alignas(64) float rotated[MAX_HEAD_DIM];
            isa.rotate(
                head_of(k, head, token), turn, spec.rope_dim, dim, spec.is_half_split, rotated);
            isa.to_half(rotated, cell_of(keys, cell) + head * dim, dim);
            isa.to_half(head_of(v, head, token), cell_of(values, cell) + head * dim, dim);
        }
    }
}
