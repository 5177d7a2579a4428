// The instruction sets that are compiled for this architecture.
#pragma once

#include "isa.h"

namespace psk {

#if defined(__x86_64__)
extern const Isa AMX, AVX512, AVX_VNNI, AVX2;
extern const Tiles AMX_TILES;
bool has_amx_bf16();
size_t attend_tiles_bytes(const Attention & task);
void attend_tiles(const Attention & task, void * scratch);
#elif defined(__aarch64__)
extern const Isa NEON_I8MM, NEON_DOTPROD, NEON;
#endif

}  // namespace psk
