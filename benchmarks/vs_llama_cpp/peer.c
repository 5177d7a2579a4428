/* llama.cpp's side of the comparison, in C so that no interpreter is in its way.
 *
 *   peer bench MODEL THREADS KV PREFILL DECODE DEPTH REPEATS SIZE...   figures as JSON
 *   peer first MODEL THREADS KV PROMPT                                 the first token, as text
 *
 * As in llama-bench, the bench feeds random tokens and never samples (PowerServe's figures include
 * sampling). SIZE...: the batch curve, one token of so many sequences in a step.
 */
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define UBATCH 512
#define CURVE_STEPS 14
#define MAX_SEQUENCES 64

struct peer {
    struct llama_model *model;
    struct llama_context *context;
    ggml_threadpool_t threads;
    int vocab_size;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "peer: %s\n", what);
    exit(1);
}

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void)data;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static enum ggml_type kv_type(const char *name) {
    if (!strcmp(name, "f16")) return GGML_TYPE_F16;
    if (!strcmp(name, "f32")) return GGML_TYPE_F32;
    if (!strcmp(name, "q8_0")) return GGML_TYPE_Q8_0;
    die("the KV type must be f16, f32 or q8_0");
    return GGML_TYPE_F16;
}

static struct peer load(const char *path, int num_threads, const char *kv, int num_cells) {
    struct peer peer;
    llama_log_set(quiet, NULL);
    ggml_backend_load_all();
    llama_backend_init();
    peer.model = llama_model_load_from_file(path, llama_model_default_params());
    if (!peer.model) die("the model cannot be loaded");
    peer.vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(peer.model));
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (num_cells + 255) / 256 * 256;
    params.n_batch = params.n_ubatch = UBATCH;
    params.n_seq_max = MAX_SEQUENCES;
    params.kv_unified = true;
    params.n_threads = params.n_threads_batch = num_threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = kv_type(kv);
    peer.context = llama_init_from_model(peer.model, params);
    if (!peer.context) die("the context cannot be made");
    /* llama.cpp's own programs keep one thread pool too. */
    struct ggml_threadpool_params threads = ggml_threadpool_params_default(num_threads);
    peer.threads = ggml_threadpool_new(&threads);
    llama_attach_threadpool(peer.context, peer.threads, peer.threads);
    return peer;
}

static void forget(const struct peer *peer) {
    llama_memory_clear(llama_get_memory(peer->context), true);
}

static void decode(const struct peer *peer, struct llama_batch batch) {
    if (llama_decode(peer->context, batch)) die("a step failed");
    llama_synchronize(peer->context);
}

static void feed(const struct peer *peer, int count) {
    llama_token tokens[UBATCH];
    while (count > 0) {
        int size = count < UBATCH ? count : UBATCH;
        for (int i = 0; i < size; i++) tokens[i] = rand() % peer->vocab_size;
        decode(peer, llama_batch_get_one(tokens, size));
        count -= size;
    }
}

static void step(const struct peer *peer, struct llama_batch *batch, int size, int position) {
    batch->n_tokens = size;
    for (int i = 0; i < size; i++) {
        batch->token[i] = rand() % peer->vocab_size;
        batch->pos[i] = position;
        batch->n_seq_id[i] = 1;
        batch->seq_id[i][0] = i;
        batch->logits[i] = 1;
    }
    decode(peer, *batch);
}

/* One JSON object per sample: what, tokens, and the seconds of each step. */
static void sample_prefill(const struct peer *peer, int count, int depth, const char *end) {
    forget(peer);
    feed(peer, depth);
    double start = now_s(), cpu = cpu_s();
    feed(peer, count);
    printf("{\"name\": \"pp%d\", \"num_tokens\": %d, ", count, count);
    printf("\"steps_s\": [%.9f], \"cpu_s\": %.6f}%s\n", now_s() - start, cpu_s() - cpu, end);
}

static void sample_decode(
    const struct peer *peer, const char *name, int sequences, int steps, int depth, const char *end
) {
    struct llama_batch batch = llama_batch_init(MAX_SEQUENCES, 0, 1);
    forget(peer);
    if (sequences == 1) feed(peer, depth > 0 ? depth : 1);
    int position = sequences > 1 ? 1 : depth > 0 ? depth : 1;
    if (sequences > 1) step(peer, &batch, sequences, 0);
    printf("{\"name\": \"%s%d\", ", name, sequences > 1 || *name == 'b' ? sequences : steps);
    printf("\"num_tokens\": %d, \"steps_s\": [", sequences * steps);
    double cpu = cpu_s();
    for (int i = 0; i < steps; i++) {
        double start = now_s();
        step(peer, &batch, sequences, position + i);
        printf("%s%.9f", i ? ", " : "", now_s() - start);
    }
    printf("], \"cpu_s\": %.6f}%s\n", cpu_s() - cpu, end);
    llama_batch_free(batch);
}

static void round_of_samples(
    const struct peer *peer, int prefill, int tokens, int depth, int argc, char **sizes, const char *end
) {
    if (prefill) sample_prefill(peer, prefill, depth, ",");
    for (int i = 0; i < argc; i++) sample_decode(peer, "batch", atoi(sizes[i]), CURVE_STEPS, 0, ",");
    sample_decode(peer, "tg", 1, tokens, depth, end);
}

static void bench(int argc, char **argv) {
    int prefill = atoi(argv[5]), tokens = atoi(argv[6]), depth = atoi(argv[7]);
    int repeats = atoi(argv[8]);
    int num_cells = depth + (prefill > tokens ? prefill : tokens) + 1;
    if (argc > 9 && num_cells < 1024) num_cells = 1024;
    struct peer peer = load(argv[2], atoi(argv[3]), argv[4], num_cells);
    printf("{\"system_info\": \"%s\", \"warm_up\": [\n", llama_print_system_info());
    round_of_samples(&peer, prefill, tokens, depth, argc - 9, argv + 9, "],");
    puts("\"samples\": [");
    for (int i = 1; i <= repeats; i++)
        round_of_samples(
            &peer, prefill, tokens, depth, argc - 9, argv + 9, i == repeats ? "]," : ","
        );
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("\"peak_memory_bytes\": %ld}\n", usage.ru_maxrss * 1024L);
}

static void first(char **argv) {
    llama_token tokens[UBATCH];
    char text[256];
    struct peer peer = load(argv[2], atoi(argv[3]), argv[4], 8192);
    const struct llama_vocab *vocab = llama_model_get_vocab(peer.model);
    const char *prompt = argv[5];
    int count = llama_tokenize(vocab, prompt, strlen(prompt), tokens, UBATCH, true, true);
    if (count < 1) die("the prompt is empty or too long");
    decode(&peer, llama_batch_get_one(tokens, count));
    struct llama_sampler *greedy = llama_sampler_init_greedy();
    llama_token token = llama_sampler_sample(greedy, peer.context, -1);
    int length = llama_token_to_piece(vocab, token, text, sizeof text, 0, true);
    printf("%.*s\n", length, text);
    fflush(stdout);
    _Exit(0); /* what follows the first token is not measured */
}

int main(int argc, char **argv) {
    if (argc >= 9 && !strcmp(argv[1], "bench")) bench(argc, argv);
    else if (argc == 6 && !strcmp(argv[1], "first")) first(argv);
    else die("see the top of peer.c for the usage");
    return 0;
}
