// The part of ggml's interface that custom operations meet: struct ggml_tensor (ggml.h, MIT).
// PowerServe checks this layout against the loaded library before it uses any kernel.
#pragma once

#include <cstddef>
#include <cstdint>

struct ggml_tensor {
    int32_t type;
    void * buffer;
    int64_t ne[4];  // elements per dimension, the fastest first
    size_t nb[4];   // bytes from one element to the next
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    ggml_tensor * src[10];
    ggml_tensor * view_src;
    size_t view_offs;
    void * data;
    char name[64];
    void * extra;
    char padding[8];
};
