// What a file is compiled for beside what the command line says: PSK_TARGET("avx2,fma") before its
// functions, PSK_END_TARGET after them. They may only be entered where the processor has all that.
#pragma once

// Before any PSK_TARGET: the compiler's own functions have targets of their own.
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PSK_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define PSK_TARGET(features) \
    PSK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PSK_END_TARGET PSK_PRAGMA(clang attribute pop)
#else
#define PSK_TARGET(features) PSK_PRAGMA(GCC target(features))
#define PSK_END_TARGET
#endif
