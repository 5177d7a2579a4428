// 64-bit ARM with dot products of bytes (Armv8.2 with DotProd: Cortex-A55, A75 and newer).
#if defined(__aarch64__)
#include "target.h"

PSK_TARGET("arch=armv8.2-a+dotprod")

#include "arm_features.h"
#include "attention.h"
#include "isa_list.h"
#include "simd_neon_dotprod.h"

namespace psk {

const Isa NEON_DOTPROD{
    "neon-dotprod", has_dotprod, prepare<NeonDotprod>, multiply<NeonDotprod>, swiglu,
    attend<NeonDotprod>, rotate, to_half<NeonDotprod>, nullptr,
};

}  // namespace psk

PSK_END_TARGET
#endif
