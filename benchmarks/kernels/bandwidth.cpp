// How fast this machine reads memory: the ceiling of every step that reads all weights once.
//
//     bandwidth THREADS BYTES
//
// Answers each line, a number of bytes (at most BYTES), with the seconds of the fastest of several
// passes in which the threads together read so many bytes once. As in STREAM (McCalpin 1995), but
// reading only. Like weights at their best: huge pages, each thread its own part, prefetched by
// software; several distances are tried, because processors differ in which one helps.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <thread>
#include <vector>

namespace {

constexpr size_t LINE = 64;
constexpr size_t STRIDE = 4 * LINE;  // read at once
constexpr size_t DISTANCES[] = {0, 512, 1024, 2048, 4096, 8192};
constexpr int PASSES_PER_DISTANCE = 4;
constexpr size_t PAGE = size_t(2) << 20;

typedef uint64_t Vector __attribute__((vector_size(LINE)));

uint64_t read_all(const uint8_t * memory, size_t bytes, size_t distance) {
    Vector sums[4] = {};
    for (size_t i = 0; i < bytes; i += STRIDE) {
        for (int part = 0; part < 4; part++) {
            const uint8_t * line = memory + i + part * LINE;
            if (distance != 0) __builtin_prefetch(line + distance);
            Vector values;
            std::memcpy(&values, line, LINE);
            sums[part] ^= values;
        }
    }
    const Vector sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    uint64_t total = 0;
    for (size_t i = 0; i < LINE / sizeof(uint64_t); i++) total ^= sum[i];
    return total;
}

uint8_t * allocate(size_t bytes) {
    void * memory = std::aligned_alloc(PAGE, bytes);
    if (memory == nullptr) {
        std::fprintf(stderr, "bandwidth: there is no memory for %zu bytes\n", bytes);
        std::exit(1);
    }
    madvise(memory, bytes, MADV_HUGEPAGE);
    return static_cast<uint8_t *>(memory);
}

class Readers {
public:
    Readers(int count, size_t bytes)
        : count_(count), memory_(allocate(bytes)), begin_(count + 1), end_(count + 1) {
        const size_t part = bytes / count / STRIDE * STRIDE;
        for (int index = 0; index < count; index++) {
            threads_.emplace_back([this, index, part] { work(index, part); });
        }
        begin_.arrive_and_wait();  // every part is filled
    }

    ~Readers() {
        bytes_ = 0;
        begin_.arrive_and_wait();
        for (std::thread & thread : threads_) thread.join();
        std::free(memory_);
    }

    double fastest_s(size_t bytes) {
        double best = 1e9;
        for (int pass = 0; pass < PASSES_PER_DISTANCE; pass++) {
            for (const size_t distance : DISTANCES) best = std::min(best, pass_s(bytes, distance));
        }
        return best;
    }

private:
    double pass_s(size_t bytes, size_t distance) {
        bytes_ = bytes / count_ / STRIDE * STRIDE;
        distance_ = distance;
        const auto start = std::chrono::steady_clock::now();
        begin_.arrive_and_wait();
        end_.arrive_and_wait();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

    void work(int index, size_t part) {
        uint8_t * own = memory_ + index * part;
        std::memset(own, 1 + index, part);
        begin_.arrive_and_wait();
        for (;;) {
            begin_.arrive_and_wait();
            if (bytes_ == 0) return;
            found_ ^= read_all(own, bytes_, distance_);
            end_.arrive_and_wait();
        }
    }

    int count_;
    uint8_t * memory_;
    size_t bytes_ = 0, distance_ = 0;  // of a thread's pass
    std::atomic<uint64_t> found_ = 0;  // so that the reading cannot be left out
    std::barrier<> begin_, end_;
    std::vector<std::thread> threads_;
};

}  // namespace

int main(int argc, char ** argv) {
    const int count = argc == 3 ? std::atoi(argv[1]) : 0;
    const size_t most = argc == 3 ? std::strtoull(argv[2], nullptr, 10) : 0;
    if (count < 1 || most < count * STRIDE) {
        std::fprintf(stderr, "bandwidth: see the top of bandwidth.cpp for the usage\n");
        return 1;
    }
    Readers readers(count, (most + PAGE - 1) / PAGE * PAGE);
    std::printf("ready\n");
    std::fflush(stdout);
    size_t bytes;
    while (std::scanf("%zu", &bytes) == 1) {
        if (bytes > most || bytes < count * STRIDE) {
            std::fprintf(stderr, "bandwidth: %zu bytes are too many or too few\n", bytes);
            return 1;
        }
        std::printf("%.9f\n", readers.fastest_s(bytes));
        std::fflush(stdout);
    }
    return 0;
}
