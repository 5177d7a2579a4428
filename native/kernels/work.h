// How operations divide their work, and the memory that a thread has for itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "ggml_tensor.h"
#include "panels.h"

namespace psk {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline float * row_of(const ggml_tensor * tensor, int64_t token) {
    return reinterpret_cast<float *>(static_cast<uint8_t *>(tensor->data) + token * tensor->nb[1]);
}

// A thread's own memory, which grows as needed.
class Scratch {
public:
    ~Scratch() { std::free(memory_); }
    uint8_t * get(size_t bytes) {
        if (bytes > size_) {
            std::free(memory_);
            memory_ = std::malloc(bytes + LINE);
            if (memory_ == nullptr) std::abort();
            size_ = bytes;
        }
        return aligned(memory_);
    }
    static uint8_t * aligned(void * memory) {
        return reinterpret_cast<uint8_t *>(
            (reinterpret_cast<uintptr_t>(memory) + LINE - 1) / LINE * LINE);
    }

private:
    void * memory_ = nullptr;
    size_t size_ = 0;
};

// How many of `left` items a thread takes at once: large pieces first, so that memory is read in
// long runs, and small ones in the end, so that no thread waits long for another.
struct ChunkSize {
    int64_t step, most;  // a multiple of `step`, at most `most`

    int64_t of(int64_t left, int nth) const {
        return min(most, ceil_div(max(1, left / (2 * nth)), step) * step);
    }
};

// An operation's items, for the threads as they ask for them. The two counters belong to the
// operation and are zero between its executions.
class Chunks {
public:
    Chunks(int64_t & next, int64_t & done, int64_t items, ChunkSize size, int nth)
        : next_(next), done_(done), items_(items), size_(size), nth_(nth) {}
    bool take(int64_t & first, int64_t & last) {
        first = next_.load(std::memory_order_relaxed);
        do {
            if (first >= items_) return false;
            last = min(items_, first + size_.of(items_ - first, nth_));
        } while (!next_.compare_exchange_weak(first, last, std::memory_order_relaxed));
        return true;
    }
    // The last thread to call makes the operation ready for its next execution.
    void leave() {
        if (done_.fetch_add(1) + 1 == nth_) {
            next_.store(0);
            done_.store(0);
        }
    }

private:
    std::atomic_ref<int64_t> next_, done_;
    int64_t items_;
    ChunkSize size_;
    int nth_;
};

}  // namespace psk
