// x86-64 with AVX2: byte products in pairs.
#if defined(__x86_64__)
#include "target.h"

PSK_TARGET("avx2,fma,f16c")

#include "simd_avx2.h"
#include "multiply_avx2.h"
#include "attention.h"
#include "isa_list.h"

namespace psk {
namespace {

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

}  // namespace

const Isa AVX2{
    .name = "avx2",
    .is_supported = has_avx2,
    .prepare = prepare<Avx2>,
    .multiply = multiply_by_passes<Avx2>,
    .swiglu = swiglu,
    .attend = attend<Avx2>,
    .rotate = rotate,
    .to_half = to_half<Avx2>,
    .tiles = nullptr,
    .max_columns = MAX_COLUMNS,
};

}  // namespace psk
PSK_END_TARGET
#endif
