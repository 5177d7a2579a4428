// Executes the operations in a file and writes their results to another: for processors other than
// the one that the tests run on.
//
//     driver                                   prints the instruction sets of this processor
//     driver INSTRUCTION_SET INPUT OUTPUT
//
// INPUT is one case after the other: a Case; PskLinear, PskStore, or PskAttention and its slices;
// the sources of the operation, each of them a Source and its bytes. OUTPUT has the results, and the
// keys and values after that of PskStore.
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <list>
#include <vector>

#include "powerserve_kernels.h"

namespace {

constexpr size_t LINE = 64;
constexpr int NUM_THREADS = 2;

enum Operation : int64_t { LINEAR, STORE, ATTENTION };
enum Type : int64_t { FLOAT32 = 0, FLOAT16 = 1, INT64 = 27 };  // ggml's ids

struct Case {
    int64_t operation, sizes[3], num_sources;  // sizes: of the result

    int64_t num_floats() const { return sizes[0] * sizes[1] * sizes[2]; }
};

struct Source {
    int64_t type;  // others are packed: a weight as in a file
    int64_t sizes[3], bytes;
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

    Tensor(size_t element_bytes, int64_t columns, int64_t rows = 1, int64_t planes = 1)
        : ggml_tensor{}, memory(element_bytes * columns * rows * planes + LINE) {
        const int64_t sizes[] = {columns, rows, planes, 1};
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

size_t element_bytes(int64_t type) { return type == FLOAT32 ? 4 : type == FLOAT16 ? 2 : 8; }

void add_weight(std::list<Tensor> & tensors, const Source & source, const std::vector<uint8_t> & bytes) {
    const auto type = static_cast<int32_t>(source.type);
    const int64_t in_features = source.sizes[0], rows = source.sizes[1];
    const size_t packed_bytes = psk_packed_bytes(type, rows, in_features);
    if (packed_bytes == 0) fail("there is no kernel for a weight");
    Tensor & tensor = tensors.emplace_back(1, packed_bytes);
    psk_pack(type, rows, in_features, bytes.data(), tensor.data, 0, (rows + 15) / 16);
}

void add_source(std::list<Tensor> & tensors, std::FILE * input) {
    Source source;
    if (!read(input, &source, sizeof(source))) fail("a source is missing");
    std::vector<uint8_t> bytes(source.bytes);
    if (!read(input, bytes.data(), source.bytes)) fail("a source has no data");
    if (source.type != FLOAT32 && source.type != FLOAT16 && source.type != INT64) {
        return add_weight(tensors, source, bytes);
    }
    const int64_t * sizes = source.sizes;
    tensors.emplace_back(element_bytes(source.type), sizes[0], sizes[1], sizes[2]);
    __builtin_memcpy(tensors.back().data, bytes.data(), source.bytes);
}

template <class Operation, class Spec>
void execute(Operation operation, Tensor & result, const std::list<Tensor> & sources, Spec & spec) {
    int next = 0;
    for (const Tensor & source : sources) result.src[next++] = const_cast<Tensor *>(&source);
    for (int i = 0; i < NUM_THREADS; i++) operation(&result, i, NUM_THREADS, &spec);
}

// Replaces the activations, and what normalises them, by what the kernels make of them.
void prepare(std::list<Tensor> & sources, PskLinear & spec, int64_t tokens) {
    std::list<Tensor> own;
    for (int count = spec.flags & PSK_NORM ? 2 : 1; count > 0; count--) {
        own.splice(own.end(), sources, sources.begin());
    }
    sources.emplace_front(1, psk_prepared_bytes(spec.in_features, tokens));
    execute(psk_op_prepare, sources.front(), own, spec);
    spec.flags = (spec.flags & ~PSK_NORM) | PSK_PREPARED;
}

void write(std::FILE * output, const Tensor & tensor, size_t bytes) {
    if (std::fwrite(tensor.data, 1, bytes, output) != bytes) fail("cannot write");
}

template <class Item> std::vector<Item> items(std::FILE * input, size_t count) {
    std::vector<Item> read_items(count);
    if (!read(input, read_items.data(), count * sizeof(Item))) fail("the input is cut off");
    return read_items;
}

std::list<Tensor> sources_of(const Case & each, std::FILE * input) {
    std::list<Tensor> sources;
    for (int64_t i = 0; i < each.num_sources; i++) add_source(sources, input);
    return sources;
}

void run_linear(const Case & each, std::FILE * input, std::FILE * output) {
    PskLinear spec = items<PskLinear>(input, 1)[0];
    std::list<Tensor> sources = sources_of(each, input);
    const int64_t tokens = each.sizes[1];
    if (tokens > psk_max_unprepared()) prepare(sources, spec, tokens);
    Tensor result(sizeof(float), each.sizes[0], tokens);
    execute(psk_op_linear, result, sources, spec);
    write(output, result, sizeof(float) * each.num_floats());
}

void run_store(const Case & each, std::FILE * input, std::FILE * output) {
    PskStore spec = items<PskStore>(input, 1)[0];
    const std::list<Tensor> sources = sources_of(each, input);
    Tensor result(sizeof(float), each.sizes[0], each.sizes[1], each.sizes[2]);
    execute(psk_op_store, result, sources, spec);
    write(output, result, sizeof(float) * each.num_floats());
    const Tensor & values = sources.back(), & keys = *std::prev(sources.end(), 2);
    for (const Tensor * cache : {&keys, &values}) write(output, *cache, cache->nb[2]);
}

void run_attention(const Case & each, std::FILE * input, std::FILE * output) {
    PskAttention spec = items<PskAttention>(input, 1)[0];
    const auto slices = items<PskSlice>(input, spec.num_slices);
    const std::list<Tensor> sources = sources_of(each, input);
    std::vector<int32_t> num_finished(each.sizes[2] * spec.num_kv_heads);
    spec.slices = slices.data();
    spec.num_finished = num_finished.data();
    Tensor result(sizeof(float), psk_attention_floats(&spec));
    execute(psk_op_attention, result, sources, spec);
    write(output, result, sizeof(float) * each.num_floats());
}

bool run_case(std::FILE * input, std::FILE * output) {
    Case each;
    if (!read(input, &each, sizeof(each))) return false;
    switch (each.operation) {
        case LINEAR: run_linear(each, input, output); break;
        case STORE: run_store(each, input, output); break;
        case ATTENTION: run_attention(each, input, output); break;
        default: fail("there is no such operation");
    }
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
