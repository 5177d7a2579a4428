// Which instruction set is used.
#include <atomic>
#include <cstring>
#include <string>

#include "isa_list.h"
#include "powerserve_kernels.h"

namespace psk {
namespace {

const Isa * best() {
    for (const Isa * const * each = ALL_ISAS; *each != nullptr; each++) {
        if ((*each)->is_supported()) return *each;
    }
    return nullptr;
}

std::atomic<const Isa *> chosen{nullptr};

}  // namespace

const Isa * const ALL_ISAS[] = {
#if defined(__x86_64__)
    &AMX, &AVX512,
#if !defined(PSK_NO_AVX2)
    &AVX_VNNI, &AVX2,
#endif
#elif defined(__aarch64__)
    &NEON_I8MM, &NEON_DOTPROD, &NEON,
#endif
    nullptr,
};

const Isa * current_isa() {
    const Isa * isa = chosen.load(std::memory_order_relaxed);
    if (isa == nullptr) chosen.store(isa = best(), std::memory_order_relaxed);
    return isa;
}

}  // namespace psk

using namespace psk;

const char * psk_get_instruction_sets() {
    static const std::string names = [] {
        std::string text;
        for (const Isa * const * each = ALL_ISAS; *each != nullptr; each++) {
            if (!(*each)->is_supported()) continue;
            if (!text.empty()) text += ' ';
            text += (*each)->name;
        }
        return text;
    }();
    return names.c_str();
}

const char * psk_get_instruction_set() { return current_isa() == nullptr ? "" : current_isa()->name; }

int32_t psk_set_instruction_set(const char * name) {
    for (const Isa * const * each = ALL_ISAS; *each != nullptr; each++) {
        if (std::strcmp((*each)->name, name) == 0 && (*each)->is_supported()) {
            chosen.store(*each);
            return 0;
        }
    }
    return -1;
}
