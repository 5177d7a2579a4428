// Intel AMX: products of bfloat16 tiles. Weights are widened to bfloat16, so that whole rows add up
// in the tile registers; scales of 32 features would have to be applied between integer products.
#if defined(__x86_64__)
#include "target.h"

PSK_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16")

#include "simd_avx512.h"
#include "kernels.h"
#include "isa_list.h"
#include "tiles.h"

#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace psk {
namespace {

// 16 rows x 64 bytes in all eight tiles.
struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static_assert(sizeof(Configuration) == TILE_STATE_BYTES);

// Not the intrinsics: GCC 12 believes that they read 8 bytes only, and drops stores to the others.
void load_configuration(const void * configuration) {
    asm volatile("ldtilecfg %0" : : "m"(*static_cast<const Configuration *>(configuration)) : "memory");
}

// ggml configures a thread's tiles once, for all of its own products to come.
void begin(void * state) {
    asm volatile("sttilecfg %0" : "=m"(*static_cast<Configuration *>(state)) : : "memory");
    const Configuration ours;
    load_configuration(&ours);
}

void end(const void * state) { load_configuration(state); }

// Token after token within a block, so that writes go on where they ended.
void prepare_tiles(
    const float * x, int64_t stride, int64_t tokens, const float * norm, float eps,
    int64_t in_features, void * group) {
    float factors[16];
    for (int64_t t = 0; t < tokens; t++) {
        factors[t] = norm ? norm_factor(x + t * stride, eps, in_features) : 1.0f;
    }
    auto * target = static_cast<uint8_t *>(group);
    for (int64_t i = 0; i < in_features; i += BLOCK, target += TILE_BYTES) {
        for (int64_t t = 0; t < tokens; t++) {
            const float * values = x + t * stride + i;
            __m512 first = _mm512_loadu_ps(values), second = _mm512_loadu_ps(values + 16);
            if (norm) {
                const __m512 factor = _mm512_set1_ps(factors[t]);
                first = _mm512_mul_ps(_mm512_mul_ps(first, factor), _mm512_loadu_ps(norm + i));
                second = _mm512_mul_ps(_mm512_mul_ps(second, factor), _mm512_loadu_ps(norm + i + 16));
            }
            store_row(target + t * LINE, first, second);
        }
        __builtin_memset(target + tokens * LINE, 0, TILE_BYTES - tokens * LINE);
    }
}

// Four features of 16 rows.
inline void widen_group(uint8_t * target, __m512i group, __m512 scale, __m512 minimum) {
    const __m512i byte = _mm512_set1_epi32(255);
    const auto number = [&](__m512i x) {
        return _mm512_fmsub_ps(_mm512_cvtepi32_ps(x), scale, minimum);
    };
    const __m512 first = number(_mm512_and_si512(group, byte));
    const __m512 second = number(_mm512_and_si512(_mm512_srli_epi32(group, 8), byte));
    const __m512 third = number(_mm512_and_si512(_mm512_srli_epi32(group, 16), byte));
    const __m512 fourth = number(_mm512_srli_epi32(group, 24));
    store_pair(target, first, second);
    store_pair(target + LINE, third, fourth);
}

template <Type type> void widen_type(const uint8_t * panel, int64_t in_features, uint8_t * tiles) {
    constexpr Format F = FORMAT<type>;
    constexpr bool HALVES = F.scales == Scales::K6;
    ScaleReader<Avx512, type> reader(panel + F.scales_offset(in_features));
    for (int64_t block = 0; block < in_features / BLOCK; block++) {
        fetch(panel, F.quant_bytes());
        BlockScales<Avx512> s;
        reader.read(block, s);
        for (int p = 0; p < 4; p++) {
            __m512i low, high;
            load_groups<Avx512, type>(panel, p, 0, low, high);
            widen_group(tiles + 2 * LINE * p, low, s.scale[0][0], s.minimum[0][0]);
            widen_group(
                tiles + 2 * LINE * (p + 4), high, s.scale[HALVES][0], s.minimum[HALVES][0]);
        }
        panel += F.quant_bytes();
        tiles += TILE_BYTES;
    }
}

void widen(int32_t type, const uint8_t * panel, int64_t in_features, void * tiles) {
    with_type(type, [&]<Type T>() {
        widen_type<T>(panel, in_features, static_cast<uint8_t *>(tiles));
    });
}

template <int GROUPS>
void multiply_groups(
    const uint8_t * b0, const uint8_t * b1, const uint8_t * a0, const uint8_t * a1,
    int64_t in_features, float * out) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t offset = 0; offset < in_features / BLOCK * TILE_BYTES; offset += TILE_BYTES) {
        _tile_loadd(4, a0 + offset, LINE);
        _tile_loadd(6, b0 + offset, LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1 + offset, LINE);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (GROUPS == 2) {
            _tile_loadd(5, a1 + offset, LINE);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    constexpr int64_t STRIDE = 32 * sizeof(float);
    _tile_stored(0, out, STRIDE);
    _tile_stored(1, out + 16, STRIDE);
    if constexpr (GROUPS == 2) {
        _tile_stored(2, out + 16 * 32, STRIDE);
        _tile_stored(3, out + 16 * 32 + 16, STRIDE);
    }
}

void multiply_tiles(
    const void * panel0, const void * panel1, const void * tokens0, const void * tokens1,
    int64_t in_features, float * out) {
    (tokens1 == nullptr ? multiply_groups<1> : multiply_groups<2>)(
        static_cast<const uint8_t *>(panel0), static_cast<const uint8_t *>(panel1),
        static_cast<const uint8_t *>(tokens0), static_cast<const uint8_t *>(tokens1), in_features,
        out);
}

// Linux gives a process the tile registers when it asks for them.
bool is_permitted() {
#if defined(__linux__)
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

}  // namespace

bool has_amx_bf16() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    if ((d & AMX_BF16) == 0 || (d & AMX_TILE) == 0) return false;
    return __builtin_cpu_supports("avx512bf16") && is_permitted();
}

const Tiles AMX_TILES{prepare_tiles, widen, begin, end, multiply_tiles,
                      attend_tiles_bytes, attend_tiles};

}  // namespace psk
PSK_END_TARGET
#endif
