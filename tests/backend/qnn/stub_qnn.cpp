// A stand-in for Qualcomm's libraries: what the emulator lacks (RPC memory, a newer NPU's votes) or
// would not do on demand (crash, be too old). Structures are written byte by byte, at the offsets of
// the documentation, so that the helper's own declarations are not what they are tested with.
//
// It takes any file for a context binary with one graph, "double": y = 2 x, float32 [2, 4].
// Environment: STUB_LOG, a file for what is called; STUB_CORE_MINOR; STUB_FAIL and STUB_CRASH, the
// name of a function that fails or crashes; STUB_SLEEP_S of a run; STUB_BUILD, a binary's build id.

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using Log = void (*)(const char* format, uint32_t level, uint64_t time, va_list values);
Log log_callback;

template <typename T>
T get(const void* base, size_t offset) {
  T value;
  memcpy(&value, static_cast<const char*>(base) + offset, sizeof value);
  return value;
}

template <typename T>
void put(void* base, size_t offset, T value) {
  memcpy(static_cast<char*>(base) + offset, &value, sizeof value);
}

const char* setting(const char* name, const char* fallback) {
  const char* value = getenv(name);
  return value == nullptr ? fallback : value;
}

void note(const char* format, ...) {
  va_list values;
  va_start(values, format);
  if (FILE* file = fopen(setting("STUB_LOG", "/dev/null"), "a")) {
    vfprintf(file, format, values);
    fclose(file);
  }
  va_end(values);
}

void log_error(const char* format, ...) {
  va_list values;
  va_start(values, format);
  log_callback(format, 1, 0, values);
  va_end(values);
}

uint64_t outcome(const char* function) {
  if (strcmp(setting("STUB_CRASH", ""), function) == 0) {
    log_error("%s is about to crash", function);
    abort();
  }
  if (strcmp(setting("STUB_FAIL", ""), function) != 0) return 0;
  log_error("%s has \"no\" luck", function);
  return 1002;
}

// ---- what a binary says -------------------------------------------------------------------------

uint32_t shape[] = {2, 4};

std::vector<char> tensor(const char* name) {
  std::vector<char> bytes(144);
  put<uint32_t>(bytes.data(), 0, 1);
  put(bytes.data(), 16, name);
  put<uint32_t>(bytes.data(), 32, 0x232);
  put<uint32_t>(bytes.data(), 40, 0x7fffffff);
  put<uint32_t>(bytes.data(), 80, 2);
  put(bytes.data(), 88, &shape[0]);
  return bytes;
}

std::vector<char> x = tensor("x"), y = tensor("y"), graph(88), info(144);

uint64_t create_system_context(void** handle) {
  *handle = &info;
  return 0;
}

uint64_t get_binary_info(void*, void*, uint64_t, const void** result, uint64_t* size) {
  put<uint32_t>(graph.data(), 0, 3);
  put(graph.data(), 8, "double");
  put<uint32_t>(graph.data(), 16, 1);
  put(graph.data(), 24, x.data());
  put<uint32_t>(graph.data(), 32, 1);
  put(graph.data(), 40, y.data());
  put<uint32_t>(info.data(), 0, 3);
  put(info.data(), 16, setting("STUB_BUILD", "v2.40.0.1"));
  put<uint32_t>(info.data(), 96, 1);
  put(info.data(), 104, graph.data());
  put<uint32_t>(info.data(), 136, 69);
  *result = info.data();
  *size = info.size();
  return 0;
}

// ---- the NPU ------------------------------------------------------------------------------------

struct Registered {
  int descriptor;
  uint64_t offset;
};
std::vector<Registered> registered;

uint64_t log_create(Log callback, uint32_t, void** handle) {
  log_callback = callback;
  *handle = &log_callback;
  return 0;
}

uint64_t make(void*, const void**, void** handle) {
  *handle = &registered;
  return 0;
}

uint64_t get_build_id(const char** id) {
  *id = "v2.40.0.1";
  return 0;
}

uint64_t get_platform_info(void*, const void** platform) {
  static char extension[32], device[40], bytes[24];
  put<uint64_t>(extension, 8, 8);
  put<uint32_t>(extension, 16, 57);
  put<uint32_t>(extension, 24, 75);
  put(device, 32, &extension[0]);
  put<uint32_t>(bytes, 8, 1);
  put(bytes, 16, &device[0]);
  *platform = bytes;
  return 0;
}

uint64_t create_power_config(uint32_t, uint32_t, uint32_t* id) {
  *id = 5;
  return 0;
}

uint64_t set_power_config(uint32_t id, const uint32_t** configs) {
  for (; *configs != nullptr; ++configs) {
    note("vote %u:", id);
    for (int i = 0; i < ((*configs)[0] == 1 ? 17 : 2); ++i) note(" %u", (*configs)[i]);
    note("\n");
  }
  return outcome("setPowerConfig");
}

uint64_t get_infrastructure(const void** infrastructure) {
  static char bytes[40];
  put(bytes, 8, &create_power_config);
  put(bytes, 24, &set_power_config);
  *infrastructure = bytes;
  return outcome("deviceGetInfrastructure");
}

uint64_t create_context(void*, void*, const void** configs, const void*, uint64_t, void** context,
                        void*) {
  if (configs != nullptr) {
    const void* htp = get<const void*>(configs[0], 8);
    note("context option %u: %u is %u\n", get<uint32_t>(configs[0], 0), get<uint32_t>(htp, 0),
         get<uint8_t>(htp, 8));
    if (outcome("contextConfig") != 0) return 5010;
  }
  *context = &info;
  return outcome("contextCreateFromBinary");
}

uint64_t retrieve_graph(void*, const char*, void** handle) {
  *handle = &graph;
  return outcome("graphRetrieve");
}

uint64_t register_memory(void*, const void* descriptor, uint32_t, void** handle) {
  const void* part = get<const void*>(descriptor, 32);
  registered.push_back({get<int>(part, 16), get<uint64_t>(part, 24)});
  note("register rank %u type %#x kind %u: part kind %u of %llu at %llu\n",
       get<uint32_t>(descriptor, 0), get<uint32_t>(descriptor, 24), get<uint32_t>(descriptor, 28),
       get<uint32_t>(part, 0), static_cast<unsigned long long>(get<uint64_t>(part, 8)),
       static_cast<unsigned long long>(registered.back().offset));
  *handle = reinterpret_cast<void*>(registered.size());
  return outcome("memRegister");
}

float* data_of(const void* tensor) {
  if (get<uint32_t>(tensor, 96) == 0) return get<float*>(tensor, 104);
  const Registered& memory = registered.at(get<uintptr_t>(tensor, 104) - 1);
  void* mapped = mmap(nullptr, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, memory.descriptor, 0);
  return reinterpret_cast<float*>(static_cast<char*>(mapped) + memory.offset);
}

uint64_t execute(void*, const void* inputs, uint32_t, void* outputs, uint32_t, void*, void*) {
  sleep(static_cast<unsigned>(atoi(setting("STUB_SLEEP_S", "0"))));
  const float* from = data_of(inputs);
  float* to = data_of(outputs);
  for (int i = 0; i < 8; ++i) to[i] = 2 * from[i];
  return outcome("graphExecute");
}

uint64_t release(void*, void*) { return 0; }

uint64_t get_message(uint64_t error, const char** message) {
  static std::string text;
  text = "STUB_ERROR " + std::to_string(error);
  *message = text.c_str();
  return 0;
}

}  // namespace

extern "C" uint64_t QnnInterface_getProviders(const void*** providers, uint32_t* count) {
  static char bytes[40 + 60 * 8];
  static const void* all[] = {bytes};
  const auto function = [](int position, auto* address) { put(bytes, 40 + 8 * position, address); };
  put<uint32_t>(bytes, 16, 2);
  put<uint32_t>(bytes, 20, static_cast<uint32_t>(atoi(setting("STUB_CORE_MINOR", "29"))));
  function(1, &make);
  function(4, &get_build_id);
  function(8, &release);
  function(13, &create_context);
  function(14, &release);
  function(20, &retrieve_graph);
  function(21, &execute);
  function(25, &log_create);
  function(35, &register_memory);
  function(37, &get_platform_info);
  function(39, &get_infrastructure);
  function(40, &make);
  function(43, &release);
  function(48, &get_message);
  *providers = all;
  *count = 1;
  return 0;
}

extern "C" uint64_t QnnSystemInterface_getProviders(const void*** providers, uint32_t* count) {
  static char bytes[32 + 4 * 8];
  static const void* all[] = {bytes};
  put<uint32_t>(bytes, 16, static_cast<uint32_t>(atoi(setting("STUB_SYSTEM_MAJOR", "1"))));
  put(bytes, 32, &create_system_context);
  put(bytes, 40, &get_binary_info);
  *providers = all;
  *count = 1;
  return 0;
}

// ---- the phone's shared memory (libcdsprpc.so) --------------------------------------------------

namespace {
int rpc_descriptor = -1;
}

extern "C" void* rpcmem_alloc(int heap, uint32_t flags, int size) {
  note("rpcmem_alloc %d %u %d\n", heap, flags, size);
  rpc_descriptor = static_cast<int>(syscall(SYS_memfd_create, "rpc", 0));
  if (ftruncate(rpc_descriptor, size) != 0) return nullptr;
  void* data = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED,
                    rpc_descriptor, 0);
  memset(data, 0xff, static_cast<size_t>(size));
  return data;
}

extern "C" int rpcmem_to_fd(void*) {
  return strcmp(setting("STUB_FAIL", ""), "rpcmem_to_fd") == 0 ? -1 : rpc_descriptor;
}

extern "C" void rpcmem_free(void*) { note("rpcmem_free\n"); }
