// 64-bit ARM with dot products of bytes (Armv8.2 with DotProd: Cortex-A55, A75 and newer).
#if defined(__aarch64__)
#pragma GCC target("arch=armv8.2-a+dotprod")

#include "arm_features.h"
#include "isa_list.h"
#include "simd_neon_dotprod.h"

namespace psk {

const Isa NEON_DOTPROD{
    "neon-dotprod", has_dotprod, prepare<NeonDotprod>, multiply<NeonDotprod>, swiglu, nullptr,
};

}  // namespace psk
#endif
