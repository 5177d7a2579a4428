// Executes the operations in a file and writes their results to another: for processors other than
// the one that the tests run on.
//
//     driver                                   prints the instruction sets of this processor
//     driver INSTRUCTION_SET INPUT OUTPUT
//
// INPUT is one case after the other: a Case, then its sources, each of them a Source and its bytes.
// OUTPUT has the results, float32 [tokens][out_features] each.
#include <cstdio>
#include <cstdlib>
#include <list>
#include <vector>

#include "powerserve_kernels.h"

namespace {

constexpr size_t LINE = 64;
constexpr int NUM_THREADS = 2;

struct Case {
    PskLinear linear;
    int64_t tokens, out_features, num_sources;
};

struct Source {
    int64_t type;  // of a weight as in a file; 0: float32
    int64_t columns, rows, bytes;
};

[[noreturn]] void fail(const char * what) {
    std::fprintf(stderr, "driver: %s\n", what);
    std::exit(1);
}

std::FILE * open(const char * path, const char * mode) {
    std::FILE * file = std::fopen(path, mode);
    return file != nullptr ? file : (fail("a file cannot be opened"), nullptr);
}

bool read(std::FILE * file, void * target, size_t bytes) {
    const size_t count = std::fread(target, 1, bytes, file);
    if (count != bytes && count != 0) fail("the input is cut off");
    return count == bytes;
}

// A tensor that starts with a cache line, as ggml allocates it.
struct Tensor : ggml_tensor {
    std::vector<uint8_t> memory;

    Tensor(size_t element_bytes, int64_t columns, int64_t rows)
        : ggml_tensor{}, memory(element_bytes * columns * rows + LINE) {
        const int64_t sizes[] = {columns, rows, 1, 1};
        size_t stride = element_bytes;
        for (int i = 0; i < 4; i++) {
            ne[i] = sizes[i];
            nb[i] = stride;
            stride *= sizes[i];
        }
        data = memory.data() + (LINE - reinterpret_cast<uintptr_t>(memory.data()) % LINE) % LINE;
    }
    Tensor(const Tensor &) = delete;
};

void add_source(std::list<Tensor> & tensors, std::FILE * input) {
    Source source;
    if (!read(input, &source, sizeof(source))) fail("a source is missing");
    std::vector<uint8_t> bytes(source.bytes);
    if (!read(input, bytes.data(), source.bytes)) fail("a source has no data");
    if (source.type == 0) {
        Tensor & tensor = tensors.emplace_back(sizeof(float), source.columns, source.rows);
        __builtin_memcpy(tensor.data, bytes.data(), source.bytes);
        return;
    }
    const auto type = static_cast<int32_t>(source.type);
    const size_t packed_bytes = psk_packed_bytes(type, source.rows, source.columns);
    if (packed_bytes == 0) fail("there is no kernel for a weight");
    Tensor & tensor = tensors.emplace_back(1, packed_bytes, 1);
    const int64_t num_panels = (source.rows + 15) / 16;
    psk_pack(type, source.rows, source.columns, bytes.data(), tensor.data, 0, num_panels);
}

template <class Operation>
void execute(Operation operation, Tensor & result, const std::list<Tensor> & sources, PskLinear & linear) {
    int next = 0;
    for (const Tensor & source : sources) result.src[next++] = const_cast<Tensor *>(&source);
    for (int i = 0; i < NUM_THREADS; i++) operation(&result, i, NUM_THREADS, &linear);
}

// Replaces the activations, and what normalises them, by what the kernels make of them.
void prepare(std::list<Tensor> & sources, PskLinear & linear, int64_t tokens) {
    std::list<Tensor> own;
    for (int count = linear.flags & PSK_NORM ? 2 : 1; count > 0; count--) {
        own.splice(own.end(), sources, sources.begin());
    }
    sources.emplace_front(1, psk_prepared_bytes(linear.in_features, tokens), 1);
    execute(psk_op_prepare, sources.front(), own, linear);
    linear.flags = (linear.flags & ~PSK_NORM) | PSK_PREPARED;
}

bool run_case(std::FILE * input, std::FILE * output) {
    Case each;
    if (!read(input, &each, sizeof(each))) return false;
    std::list<Tensor> sources;
    for (int64_t i = 0; i < each.num_sources; i++) add_source(sources, input);
    if (each.tokens > psk_max_unprepared()) prepare(sources, each.linear, each.tokens);
    Tensor result(sizeof(float), each.out_features, each.tokens);
    execute(psk_op_linear, result, sources, each.linear);
    const size_t count = each.out_features * each.tokens;
    if (std::fwrite(result.data, sizeof(float), count, output) != count) fail("cannot write");
    return true;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc == 1) {
        std::puts(psk_get_instruction_sets());
        return 0;
    }
    if (argc != 4) fail("INSTRUCTION_SET INPUT OUTPUT are needed");
    if (psk_set_instruction_set(argv[1]) != 0) fail("this processor lacks the instruction set");
    std::FILE * input = open(argv[2], "rb");
    std::FILE * output = open(argv[3], "wb");
    while (run_case(input, output)) {
    }
    return std::fclose(output) == 0 ? 0 : 1;
}
