#if defined(__aarch64__)
#include "arm_features.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace psk {
namespace {

#if defined(__APPLE__)
// Source: Apple, "Determining instruction set characteristics".
bool has(const char * feature) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
#elif defined(__linux__)
// Source: Linux, arch/arm64/include/uapi/asm/hwcap.h; Android's headers may lack the names.
constexpr unsigned long HWCAP_DOT_PRODUCTS = 1ul << 20, HWCAP2_MATRIX_PRODUCTS = 1ul << 13;
#endif

}  // namespace

#if defined(__APPLE__)
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__linux__)
bool has_dotprod() { return (getauxval(AT_HWCAP) & HWCAP_DOT_PRODUCTS) != 0; }
bool has_i8mm() { return (getauxval(AT_HWCAP2) & HWCAP2_MATRIX_PRODUCTS) != 0; }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

}  // namespace psk
#endif
