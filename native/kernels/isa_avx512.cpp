// x86-64 with AVX-512 and its byte dot products; with AMX for many columns where there is that too.
#if defined(__x86_64__)
#include "target.h"

PSK_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

#include "simd_avx512.h"
#include "kernels.h"
#include "attention.h"
#include "isa_list.h"

namespace psk {
namespace {

bool has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

bool has_amx() { return has_avx512_vnni() && has_amx_bf16(); }

}  // namespace

const Isa AVX512{
    "avx512-vnni", has_avx512_vnni, prepare<Avx512>, multiply<Avx512>, swiglu, attend<Avx512>, rotate, to_half<Avx512>, nullptr,
};
const Isa AMX{"amx-bf16", has_amx, prepare<Avx512>, multiply<Avx512>, swiglu, attend<Avx512>, rotate, to_half<Avx512>, &AMX_TILES};

}  // namespace psk
PSK_END_TARGET
#endif
