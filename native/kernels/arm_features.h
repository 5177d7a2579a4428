// What a 64-bit ARM processor can do, as the system tells.
#pragma once

namespace psk {

bool has_dotprod();  // Armv8.2: SDOT
bool has_i8mm();     // Armv8.6: SMMLA

}  // namespace psk
