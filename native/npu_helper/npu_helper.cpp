// Executes compiled graphs of Qualcomm's NPU for PowerServe, in a process of its own: a crash in
// Qualcomm's libraries ends this program and not the server, and on Android this program uses the
// system's C library, as those libraries do, whichever one the client uses.
//
//   powerserve-npu-helper FD      FD: a connected Unix stream socket, whose other end is the client
//
// The protocol, version 1. A request is u32 length, u32 serial, u32 operation and its arguments; a
// reply is u32 length, u32 serial, u32 status (0 done, 1 failed) and a JSON object. A length counts
// what follows it, numbers are little-endian, a string is u32 length and its bytes.
//
//   1 OPEN      u32 protocol, string backend library, string system library, u32 flags -> device
//   2 DESCRIBE  string path of a context binary                                        -> binary
//   3 LOAD      string path of a context binary                                        -> context
//   4 ALLOCATE  u64 size, u32 flags      -> buffer, and the descriptor of its memory (SCM_RIGHTS)
//   5 BIND      u32 context, string graph; for inputs, then for outputs: u32 count and as many
//               (u32 buffer, u64 offset), in the binary's order                        -> graph
//   6 RUN       u32 graph
//
// End of file on the socket ends the program.

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace {

constexpr uint32_t kProtocol = 1;
constexpr uint32_t kOpenForPerformance = 1;  // flag of OPEN
constexpr uint32_t kAllocatePlain = 1;       // flag of ALLOCATE: no RPC memory
constexpr uint32_t kMaxRequestBytes = 1 << 20;
constexpr auto kGraceAfterHangUp = std::chrono::seconds(2);

// ---- QNN's C interface --------------------------------------------------------------------------
//
// Our own declarations of what Qualcomm's public API documentation describes. The layouts are those
// since core API 2.21 (QNN SDK 2.28), which added the third form of a graph's description; later
// versions of API 2 only append. `open_library` checks versions before anything else is touched.

namespace qnn {

constexpr uint32_t kCoreMajor = 2;
constexpr uint32_t kCoreMinMinor = 21;
constexpr uint32_t kSystemMajor = 1;

using Error = uint64_t;
using Handle = void*;

struct Version {
  uint32_t major, minor, patch;
};

constexpr uint32_t kDefined = 1;
constexpr uint32_t kOneScale = 0;

struct Quantisation {
  uint32_t definition;
  uint32_t encoding;
  union {
    struct {
      float scale;
      int32_t offset;
    } one;  // for encoding kOneScale
    uint64_t others[4];
  };
};

enum MemoryKind : uint32_t { kRaw = 0, kRegistered = 1 };

struct Tensor {
  uint32_t version;
  uint32_t padding;
  uint32_t id;
  const char* name;
  uint32_t kind;
  uint32_t format;
  uint32_t data_type;
  Quantisation quantisation;
  uint32_t rank;
  uint32_t* dimensions;
  MemoryKind memory_kind;
  union {
    struct {
      void* data;
      uint32_t size;
    } raw;
    Handle registered;
  };
  uint64_t of_version_2[3];
};
static_assert(sizeof(Tensor) == 144 && offsetof(Tensor, raw) == 104);

struct GraphInfo {
  uint32_t version;
  const char* name;
  uint32_t num_inputs;
  Tensor* inputs;
  uint32_t num_outputs;
  Tensor* outputs;
  uint64_t of_later_versions[5];
};
static_assert(sizeof(GraphInfo) == 88);

struct BinaryInfo {
  uint32_t version;  // 1, 2 or 3
  uint32_t padding;
  uint32_t backend_id;
  const char* build_id;
  Version core_api, backend_api;
  const char* soc_version;
  union {
    struct {
      Version hardware_blob, context_blob;
      uint32_t hardware_blob_size;
      void* hardware_blob_data;
      uint64_t context_blob_size;
      uint32_t num_tensors;
      Tensor* tensors;
      uint32_t num_graphs;
      GraphInfo* graphs;
    } v1;  // and version 2, which appends to it
    struct {
      Version context_blob;
      uint64_t context_blob_size;
      uint32_t num_tensors;
      Tensor* tensors;
      uint32_t num_graphs;
      GraphInfo* graphs;
      void* platform;
      uint32_t metadata_size;
      void* metadata;
      uint32_t soc_model;
    } v3;
  };
};

struct DeviceExtension {  // the HTP's
  uint32_t kind;
  size_t vtcm_mb;
  uint32_t soc_model;
  bool signed_domain, dlbc;
  uint32_t htp_arch;
};

struct Device {
  uint32_t version, padding, id, kind, num_cores;
  void* cores;
  DeviceExtension* extension;
};

struct Platform {
  uint32_t version, padding, num_devices;
  Device* devices;
};

enum ContextOption : uint32_t { kCustomOption = 0 };
enum HtpContextOption : uint32_t { kIoMemoryEstimation = 6 };

struct HtpContextConfig {
  HtpContextOption option;
  union {
    bool enabled;
    uint64_t others[4];
  };
};

struct ContextConfig {
  ContextOption option;
  union {
    const HtpContextConfig* custom;
    uint64_t others[3];
  };
};

enum PowerOption : uint32_t { kDcvsV3 = 1, kRpcLatency = 2, kRpcPolling = 3, kHmxV2 = 5 };

struct PowerConfig {
  PowerOption option;
  uint32_t values[16];
};

struct Infrastructure {  // the HTP's
  uint32_t kind;
  Error (*create_power_config)(uint32_t device, uint32_t core, uint32_t* id);
  Error (*destroy_power_config)(uint32_t id);
  Error (*set_power_config)(uint32_t id, const PowerConfig* const* configs);
};

constexpr uint32_t kPartOfSharedBuffer = 1;

struct SharedBufferPart {  // the HTP's
  uint32_t kind;
  uint64_t total_size;
  int32_t descriptor;
  uint64_t offset;
};

constexpr uint32_t kCustomMemory = 2;

struct MemoryDescriptor {
  uint32_t rank;
  uint32_t* dimensions;
  const char* shape_config;
  uint32_t data_type;
  uint32_t kind;
  union {
    SharedBufferPart* custom;
    uint64_t others[2];
  };
};

enum LogLevel : uint32_t { kLogErrors = 1 };
using LogCallback = void (*)(const char* format, LogLevel level, uint64_t time, va_list values);

struct Interface {
  static constexpr const char* kGetProviders = "QnnInterface_getProviders";
  uint32_t backend_id;
  const char* name;
  Version api, backend_api;
  void* property_has_capability;
  Error (*backend_create)(Handle log, const void** config, Handle* backend);
  void* skipped_2[2];
  Error (*backend_get_build_id)(const char** id);
  void* skipped_5[3];
  Error (*backend_free)(Handle backend);
  void* skipped_9[4];
  Error (*context_create_from_binary)(Handle backend, Handle device,
                                      const ContextConfig* const* configs, const void* binary,
                                      uint64_t size, Handle* context, Handle profile);
  Error (*context_free)(Handle context, Handle profile);
  void* skipped_15[5];
  Error (*graph_retrieve)(Handle context, const char* name, Handle* graph);
  Error (*graph_execute)(Handle graph, const Tensor* inputs, uint32_t num_inputs, Tensor* outputs,
                         uint32_t num_outputs, Handle profile, Handle signal);
  void* skipped_22[3];
  Error (*log_create)(LogCallback callback, LogLevel level, Handle* log);
  void* skipped_26[9];
  Error (*memory_register)(Handle context, const MemoryDescriptor* descriptors, uint32_t count,
                           Handle* handles);
  void* skipped_36;
  Error (*device_get_platform_info)(Handle log, const Platform** platform);
  void* skipped_38;
  Error (*device_get_infrastructure)(const Infrastructure** infrastructure);
  Error (*device_create)(Handle log, const void** config, Handle* device);
  void* skipped_41[2];
  Error (*device_free)(Handle device);
  void* skipped_44[4];
  Error (*error_get_message)(Error error, const char** message);
};
constexpr size_t kFirstFunction = offsetof(Interface, property_has_capability);
static_assert(kFirstFunction == 40);
static_assert(offsetof(Interface, graph_execute) == kFirstFunction + 21 * sizeof(void*));
static_assert(offsetof(Interface, device_create) == kFirstFunction + 40 * sizeof(void*));
static_assert(offsetof(Interface, error_get_message) == kFirstFunction + 48 * sizeof(void*));

struct SystemInterface {
  static constexpr const char* kGetProviders = "QnnSystemInterface_getProviders";
  uint32_t id;
  const char* name;
  Version api;
  Error (*context_create)(Handle* context);
  Error (*context_get_binary_info)(Handle context, void* binary, uint64_t size,
                                   const BinaryInfo** info, uint64_t* info_size);
};
static_assert(offsetof(SystemInterface, context_create) == 32);

}  // namespace qnn

// ---- Failures, and what the libraries say about them --------------------------------------------

struct Failure : std::runtime_error {
  Failure(std::string operation, const std::string& text, qnn::Error code = 0)
      : std::runtime_error(text), operation(std::move(operation)), code(code) {}
  std::string operation;
  qnn::Error code;
};

std::string text_of(const char* text) { return text == nullptr ? "" : text; }

std::string text_of(const qnn::Version& v) {
  return std::to_string(v.major) + '.' + std::to_string(v.minor) + '.' + std::to_string(v.patch);
}

// Error lines that the libraries logged since the last `take`, from whichever of their threads.
// They also go to standard error, where the client finds the last one if the libraries crash next.
class ErrorLog {
 public:
  void add(const char* format, va_list values) {
    char line[512];
    vsnprintf(line, sizeof line, format, values);
    fprintf(stderr, "%s\n", line);
    std::lock_guard<std::mutex> lock(mutex_);
    if (lines_.size() < kMaxLines) lines_.emplace_back(line);
  }

  std::vector<std::string> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(lines_, {});
  }

 private:
  static constexpr size_t kMaxLines = 8;
  std::mutex mutex_;
  std::vector<std::string> lines_;
};

ErrorLog error_log;  // global because QNN's callback is given no context

void log_callback(const char* format, qnn::LogLevel level, uint64_t, va_list values) {
  if (level <= qnn::kLogErrors) error_log.add(format, values);
}

// ---- JSON ---------------------------------------------------------------------------------------

// Writes one JSON value; where commas go follows from what was written last.
class Json {
 public:
  Json& begin(char bracket) { return token(std::string(1, bracket)); }

  Json& end(char bracket) {
    text_ += bracket;
    return *this;
  }

  Json& key(const char* name) {
    string(name);
    text_ += ':';
    return *this;
  }

  Json& string(const std::string& value) {
    std::string quoted = "\"";
    for (const char c : value) quoted += escaped(c);
    return token(quoted + '"');
  }

  template <typename Integer>
  Json& number(Integer value) {
    return token(std::to_string(value));
  }

  Json& number(float value) {
    char digits[32];
    snprintf(digits, sizeof digits, "%.17g", static_cast<double>(value));
    return token(digits);
  }

  const std::string& text() const { return text_; }

 private:
  Json& token(const std::string& text) {
    if (!text_.empty() && strchr("{[:", text_.back()) == nullptr) text_ += ',';
    text_ += text;
    return *this;
  }

  static std::string escaped(char c) {
    if (c == '"' || c == '\\') return {'\\', c};
    if (static_cast<unsigned char>(c) >= 0x20) return {c};
    char code[8];
    snprintf(code, sizeof code, "\\u%04x", c);
    return code;
  }

  std::string text_;
};

void describe(Json& json, const qnn::Tensor& tensor) {
  json.begin('{').key("name").string(text_of(tensor.name));
  json.key("data_type").number(tensor.data_type).key("shape").begin('[');
  for (uint32_t i = 0; i < tensor.rank; ++i) json.number(tensor.dimensions[i]);
  json.end(']');
  const qnn::Quantisation& quantisation = tensor.quantisation;
  if (quantisation.definition == qnn::kDefined && quantisation.encoding == qnn::kOneScale &&
      std::isfinite(quantisation.one.scale))  // in a damaged file it may be anything
    json.key("scale").number(quantisation.one.scale).key("offset").number(quantisation.one.offset);
  json.end('}');
}

void describe(Json& json, const char* key, const qnn::Tensor* tensors, uint32_t count) {
  json.key(key).begin('[');
  for (uint32_t i = 0; i < count; ++i) describe(json, tensors[i]);
  json.end(']');
}

void describe(Json& json, const qnn::GraphInfo& graph) {
  json.begin('{').key("name").string(text_of(graph.name));
  describe(json, "inputs", graph.inputs, graph.num_inputs);
  describe(json, "outputs", graph.outputs, graph.num_outputs);
  json.end('}');
}

// ---- Context binaries ---------------------------------------------------------------------------

// A file in memory. Its pages are private: the interface that reads them does not promise const.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (file < 0 || fstat(file, &status) != 0) throw Failure("open", strerror(errno));
    size_ = static_cast<size_t>(status.st_size);
    data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    const int error = errno;
    close(file);
    if (size_ == 0) throw Failure("open", "the file is empty");
    if (data_ == MAP_FAILED) throw Failure("mmap", strerror(error));
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { munmap(data_, size_); }

  void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// What a binary says about itself. The system library owns the memory as long as the process runs,
// but nothing says that it does not point into the file, which therefore stays mapped.
class Description {
 public:
  Description(const qnn::SystemInterface& system, const std::string& path)
      : file_(std::make_unique<MappedFile>(path)) {
    qnn::Handle handle = nullptr;
    qnn::Error error = system.context_create(&handle);
    if (error != 0) throw Failure("systemContextCreate", "error", error);
    uint64_t info_size = 0;
    error = system.context_get_binary_info(handle, file_->data(), file_->size(), &info_,
                                           &info_size);
    if (error != 0 || info_ == nullptr)
      throw Failure("getBinaryInfo", "it is no context binary, or a damaged one", error);
    if (info_->version < 1 || info_->version > 3)
      throw Failure("getBinaryInfo",
                    "its description has the unknown form " + std::to_string(info_->version));
  }

  const MappedFile& file() const { return *file_; }

  uint32_t num_graphs() const { return third() ? info_->v3.num_graphs : info_->v1.num_graphs; }

  const qnn::GraphInfo& graph(uint32_t index) const {
    return (third() ? info_->v3.graphs : info_->v1.graphs)[index];
  }

  const qnn::GraphInfo& graph(const std::string& name) const {
    for (uint32_t i = 0; i < num_graphs(); ++i)
      if (text_of(graph(i).name) == name) return graph(i);
    throw Failure("graphRetrieve", "the binary has no graph " + name);
  }

  void write(Json& json) const {
    json.begin('{').key("build_id").string(text_of(info_->build_id));
    json.key("core_api").string(text_of(info_->core_api));
    json.key("backend_api").string(text_of(info_->backend_api));
    json.key("soc_model").number(third() ? info_->v3.soc_model : 0);
    json.key("graphs").begin('[');
    for (uint32_t i = 0; i < num_graphs(); ++i) describe(json, graph(i));
    json.end(']').end('}');
  }

 private:
  bool third() const { return info_->version == 3; }

  std::unique_ptr<MappedFile> file_;
  const qnn::BinaryInfo* info_ = nullptr;
};

// ---- Memory of tensors --------------------------------------------------------------------------

struct Buffer {
  uint8_t* data;
  size_t size;
  int descriptor;
  bool rpc;  // the NPU reads and writes it without a copy
};

// Shared memory of the phone's vendor (FastRPC), where its library can be found.
class RpcMemory {
 public:
  RpcMemory() {
    void* library = dlopen("libcdsprpc.so", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) library = dlopen("/vendor/lib64/libcdsprpc.so", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    allocate_ = reinterpret_cast<Allocate>(dlsym(library, "rpcmem_alloc"));
    free_ = reinterpret_cast<Free>(dlsym(library, "rpcmem_free"));
    descriptor_of_ = reinterpret_cast<DescriptorOf>(dlsym(library, "rpcmem_to_fd"));
  }

  // Whether `buffer` was filled in; false where there is no such memory, or not enough.
  bool allocate(size_t size, Buffer& buffer) const {
    constexpr int kSystemHeap = 25;
    constexpr uint32_t kDefaultFlags = 1;
    if (allocate_ == nullptr || free_ == nullptr || descriptor_of_ == nullptr) return false;
    if (size > INT32_MAX) return false;
    void* data = allocate_(kSystemHeap, kDefaultFlags, static_cast<int>(size));
    if (data == nullptr) return false;
    const int descriptor = descriptor_of_(data);
    if (descriptor < 0) {
      free_(data);
      return false;
    }
    memset(data, 0, size);
    buffer = {static_cast<uint8_t*>(data), size, descriptor, true};
    return true;
  }

 private:
  using Allocate = void* (*)(int heap, uint32_t flags, int size);
  using Free = void (*)(void* data);
  using DescriptorOf = int (*)(void* data);
  Allocate allocate_ = nullptr;
  Free free_ = nullptr;
  DescriptorOf descriptor_of_ = nullptr;
};

Buffer allocate_plain(size_t size) {
  constexpr unsigned kCloseOnExec = 1;
  const auto descriptor =
      static_cast<int>(syscall(SYS_memfd_create, "powerserve-npu", kCloseOnExec));
  if (descriptor < 0) throw Failure("allocate", strerror(errno));
  void* data = MAP_FAILED;
  if (ftruncate(descriptor, static_cast<off_t>(size)) == 0)
    data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) {
    const Failure failure("allocate", strerror(errno));
    close(descriptor);
    throw failure;
  }
  return {static_cast<uint8_t*>(data), size, descriptor, false};
}

// The low byte of a data type spells the bits of an element in decimal digits: 0x216 is a float16.
size_t size_bytes(const qnn::Tensor& tensor) {
  size_t size = ((tensor.data_type >> 4 & 0xf) * 10 + (tensor.data_type & 0xf)) / 8;
  for (uint32_t i = 0; i < tensor.rank; ++i) size *= tensor.dimensions[i];
  return size;
}

struct Place {
  uint32_t buffer;
  uint64_t offset;
};

struct Context {
  Description description;
  qnn::Handle handle;
  // Tensors of one place, type and shape in several graphs are registered once.
  std::map<std::tuple<uint32_t, uint64_t, uint32_t, std::vector<uint32_t>>, qnn::Handle> memory;
};

struct Graph {
  qnn::Handle handle;
  std::vector<qnn::Tensor> inputs, outputs;
};

// ---- The NPU ------------------------------------------------------------------------------------

template <typename I>
const I& open_library(const std::string& path, uint32_t major, uint32_t min_minor) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Failure("dlopen", dlerror());
  using GetProviders = qnn::Error (*)(const I* const** providers, uint32_t* count);
  const auto get_providers = reinterpret_cast<GetProviders>(dlsym(library, I::kGetProviders));
  if (get_providers == nullptr) throw Failure("dlsym", path + " has no " + I::kGetProviders);
  const I* const* providers = nullptr;
  uint32_t count = 0;
  const qnn::Error error = get_providers(&providers, &count);
  if (error != 0 || count == 0) throw Failure("version", path + " offers no interface", error);
  const qnn::Version& api = providers[0]->api;
  if (api.major != major || api.minor < min_minor)
    throw Failure("version", path + " speaks version " + text_of(api) + " of its interface; " +
                                 text_of({major, min_minor, 0}) + " or a later " +
                                 std::to_string(major) + ".x is needed");
  return *providers[0];
}

class Npu {
 public:
  Npu(const std::string& backend_path, const std::string& system_path, uint32_t flags)
      : qnn_(open_library<qnn::Interface>(backend_path, qnn::kCoreMajor, qnn::kCoreMinMinor)),
        system_(open_library<qnn::SystemInterface>(system_path, qnn::kSystemMajor, 0)) {
    check("logCreate", qnn_.log_create(log_callback, qnn::kLogErrors, &log_));
    check("backendCreate", qnn_.backend_create(log_, nullptr, &backend_));
    check("deviceCreate", qnn_.device_create(log_, nullptr, &device_));
    read_device();
    if (flags & kOpenForPerformance) vote_for_performance();
  }
  Npu(const Npu&) = delete;
  Npu& operator=(const Npu&) = delete;

  ~Npu() {  // votes for clock rates end with the process
    for (const Context& context : contexts_) qnn_.context_free(context.handle, nullptr);
    qnn_.device_free(device_);
    qnn_.backend_free(backend_);
  }

  void describe_device(Json& json) const {
    const char* build_id = nullptr;
    qnn_.backend_get_build_id(&build_id);
    json.key("build_id").string(text_of(build_id));
    json.key("core_api").string(text_of(qnn_.api));
    json.key("backend_api").string(text_of(qnn_.backend_api));
    json.key("system_api").string(text_of(system_.api));
    json.key("soc_model").number(extension_.soc_model).key("htp_arch").number(extension_.htp_arch);
    json.key("refused_votes").begin('[');
    for (const std::string& refused : refused_votes_) json.string(refused);
    json.end(']');
  }

  void describe_binary(const std::string& path, Json& json) const {
    json.key("binary");
    Description(system_, path).write(json);
  }

  void load(const std::string& path, Json& json) {
    Context context{Description(system_, path), nullptr, {}};
    // With the memory of inputs and outputs counted, the NPU has room for them later. The emulator
    // does not know this option, and where memory is short, trying without it costs nothing.
    const qnn::HtpContextConfig estimation{qnn::kIoMemoryEstimation, {true}};
    const qnn::ContextConfig config{qnn::kCustomOption, {&estimation}};
    const qnn::ContextConfig* configs[] = {&config, nullptr};
    if (create_context(context, configs) != 0) {
      error_log.take();
      check("contextCreateFromBinary", create_context(context, nullptr));
    }
    contexts_.push_back(std::move(context));
    json.key("context").number(contexts_.size() - 1);
  }

  int allocate(size_t size, uint32_t flags, Json& json) {
    Buffer buffer{};
    const bool rpc = !(flags & kAllocatePlain) && rpc_memory_.allocate(size, buffer);
    if (!rpc) buffer = allocate_plain(size);
    buffers_.push_back(buffer);
    json.key("buffer").number(buffers_.size() - 1).key("rpc").number(rpc ? 1 : 0);
    return buffer.descriptor;
  }

  void bind(uint32_t context_index, const std::string& name, const std::vector<Place>& inputs,
            const std::vector<Place>& outputs, Json& json) {
    Context& context = contexts_.at(context_index);
    const qnn::GraphInfo& info = context.description.graph(name);
    Graph graph{nullptr, placed(context, info.inputs, info.num_inputs, inputs),
                placed(context, info.outputs, info.num_outputs, outputs)};
    check("graphRetrieve", qnn_.graph_retrieve(context.handle, name.c_str(), &graph.handle));
    graphs_.push_back(std::move(graph));
    json.key("graph").number(graphs_.size() - 1);
  }

  void run(uint32_t index) {
    Graph& graph = graphs_.at(index);
    check("graphExecute", qnn_.graph_execute(graph.handle, graph.inputs.data(),
                                             static_cast<uint32_t>(graph.inputs.size()),
                                             graph.outputs.data(),
                                             static_cast<uint32_t>(graph.outputs.size()), nullptr,
                                             nullptr));
  }

 private:
  void check(const char* operation, qnn::Error error) const {
    if (error != 0) throw Failure(operation, message_of(error), error);
  }

  qnn::Error create_context(Context& context, const qnn::ContextConfig* const* configs) const {
    const MappedFile& file = context.description.file();
    return qnn_.context_create_from_binary(backend_, device_, configs, file.data(), file.size(),
                                           &context.handle, nullptr);
  }

  std::string message_of(qnn::Error error) const {
    const char* message = nullptr;
    qnn_.error_get_message(error, &message);
    return message == nullptr ? "error " + std::to_string(error) : message;
  }

  void read_device() {
    const qnn::Platform* platform = nullptr;
    if (qnn_.device_get_platform_info(log_, &platform) != 0 || platform == nullptr) return;
    if (platform->num_devices == 0 || platform->devices[0].extension == nullptr) return;
    extension_ = *platform->devices[0].extension;
  }

  // Clock rates as high as they go for as long as this process lives, as the original has them. A
  // refused vote costs speed, not answers, so it is only noted.
  void vote_for_performance() {
    constexpr uint32_t kMaxCorner = 0xA0, kMaxHmxCorner = 0xFFFF, kPerformanceMode = 0x10;
    constexpr uint32_t kSleepLatencyUs = 40, kRpcLatencyUs = 100, kRpcPollingUs = 9999;
    constexpr uint32_t kFirstArchWithPolling = 69;
    const qnn::Infrastructure* infrastructure = nullptr;
    uint32_t id = 0;
    const auto accepted = [this](const char* name, qnn::Error error) {
      if (error != 0) refused_votes_.push_back(std::string(name) + ": " + message_of(error));
      return error == 0;
    };
    if (!accepted("all votes", qnn_.device_get_infrastructure(&infrastructure))) return;
    if (!accepted("all votes", infrastructure->create_power_config(0, 0, &id))) return;
    const auto vote = [&](const char* name, const qnn::PowerConfig& config) {
      const qnn::PowerConfig* configs[] = {&config, nullptr};
      accepted(name, infrastructure->set_power_config(id, configs));
    };
    vote("clock rates", {qnn::kDcvsV3,
                         {id, 1, 0 /* no scaling */, kPerformanceMode, 1, kSleepLatencyUs, 1,
                          1 /* no sleep */, 1, kMaxCorner, kMaxCorner, kMaxCorner /* bus */, 1,
                          kMaxCorner, kMaxCorner, kMaxCorner /* cores */}});
    vote("RPC latency", {qnn::kRpcLatency, {kRpcLatencyUs}});
    if (extension_.htp_arch < kFirstArchWithPolling) return;
    vote("RPC polling", {qnn::kRpcPolling, {kRpcPollingUs}});
    vote("matrix unit", {qnn::kHmxV2, {0, kMaxHmxCorner, kMaxHmxCorner, kMaxHmxCorner, 0}});
  }

  std::vector<qnn::Tensor> placed(Context& context, const qnn::Tensor* tensors, uint32_t count,
                                  const std::vector<Place>& places) {
    if (places.size() != count)
      throw Failure("bind", std::to_string(places.size()) + " places for " + std::to_string(count) +
                                " tensors");
    std::vector<qnn::Tensor> result(tensors, tensors + count);
    for (uint32_t i = 0; i < count; ++i) put(context, result[i], places[i]);
    return result;
  }

  void put(Context& context, qnn::Tensor& tensor, const Place& place) {
    const Buffer& buffer = buffers_.at(place.buffer);
    const size_t size = size_bytes(tensor);
    if (place.offset > buffer.size || size > buffer.size - place.offset || size > UINT32_MAX)
      throw Failure("bind", text_of(tensor.name) + " does not fit in its buffer");
    qnn::Handle registered = buffer.rpc ? registration(context, tensor, place) : nullptr;
    if (registered != nullptr) {
      tensor.memory_kind = qnn::kRegistered;
      tensor.registered = registered;
      return;
    }
    tensor.memory_kind = qnn::kRaw;
    tensor.raw.data = buffer.data + place.offset;
    tensor.raw.size = static_cast<uint32_t>(size);
  }

  // The handle of the memory at `place`, or nullptr if the NPU cannot use it directly: then QNN
  // copies.
  qnn::Handle registration(Context& context, const qnn::Tensor& tensor, const Place& place) {
    const std::vector<uint32_t> shape(tensor.dimensions, tensor.dimensions + tensor.rank);
    const auto key = std::make_tuple(place.buffer, place.offset, tensor.data_type, shape);
    const auto known = context.memory.find(key);
    if (known != context.memory.end()) return known->second;
    const Buffer& buffer = buffers_.at(place.buffer);
    qnn::SharedBufferPart part{qnn::kPartOfSharedBuffer, buffer.size, buffer.descriptor,
                               place.offset};
    qnn::MemoryDescriptor memory{tensor.rank, tensor.dimensions, nullptr, tensor.data_type,
                                 qnn::kCustomMemory, {&part}};
    qnn::Handle handle = nullptr;
    if (qnn_.memory_register(context.handle, &memory, 1, &handle) != 0) handle = nullptr;
    return context.memory[key] = handle;
  }

  const qnn::Interface& qnn_;
  const qnn::SystemInterface& system_;
  const RpcMemory rpc_memory_;
  qnn::Handle log_ = nullptr, backend_ = nullptr, device_ = nullptr;
  qnn::DeviceExtension extension_{};
  std::vector<std::string> refused_votes_;
  std::vector<Context> contexts_;
  std::vector<Buffer> buffers_;
  std::vector<Graph> graphs_;
};

// ---- Messages -----------------------------------------------------------------------------------

class Request {
 public:
  explicit Request(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}

  uint32_t u32() { return value<uint32_t>(); }
  uint64_t u64() { return value<uint64_t>(); }

  std::string string() {
    const uint32_t length = u32();
    const char* start = reinterpret_cast<const char*>(take(length));
    return std::string(start, length);
  }

  std::vector<Place> places() {
    const uint32_t count = u32();
    std::vector<Place> result;
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t buffer = u32();
      result.push_back({buffer, u64()});
    }
    return result;
  }

 private:
  template <typename T>
  T value() {
    T result;
    memcpy(&result, take(sizeof result), sizeof result);
    return result;
  }

  const uint8_t* take(size_t size) {
    if (size > bytes_.size() - next_) throw Failure("protocol", "a request is too short");
    next_ += size;
    return bytes_.data() + next_ - size;
  }

  std::vector<uint8_t> bytes_;
  size_t next_ = 0;
};

class Client {
 public:
  explicit Client(int socket) : socket_(socket) {}

  // Reads the next request; false at the end of file.
  bool read(std::vector<uint8_t>& bytes) {
    uint32_t length = 0;
    if (!read_exactly(&length, sizeof length) || length > kMaxRequestBytes) return false;
    bytes.resize(length);
    return read_exactly(bytes.data(), length);
  }

  void write(uint32_t serial, bool done, const std::string& json, int descriptor) {
    const uint32_t head[] = {static_cast<uint32_t>(2 * sizeof(uint32_t) + json.size()), serial,
                             done ? 0U : 1U};
    std::string bytes(reinterpret_cast<const char*>(head), sizeof head);
    bytes += json;
    size_t sent = send_first(bytes, descriptor);
    while (sent < bytes.size()) {
      const ssize_t count = send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (count <= 0 && errno != EINTR) exit(1);  // the client has left
      if (count > 0) sent += static_cast<size_t>(count);
    }
  }

 private:
  bool read_exactly(void* target, size_t size) {
    auto* next = static_cast<uint8_t*>(target);
    while (size > 0) {
      const ssize_t count = recv(socket_, next, size, 0);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      next += count;
      size -= static_cast<size_t>(count);
    }
    return true;
  }

  // Sends the first byte, with the descriptor if there is one.
  size_t send_first(const std::string& bytes, int descriptor) {
    if (descriptor < 0) return 0;
    iovec data{const_cast<char*>(bytes.data()), 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof descriptor)] = {};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof descriptor);
    memcpy(CMSG_DATA(rights), &descriptor, sizeof descriptor);
    if (sendmsg(socket_, &message, MSG_NOSIGNAL) != 1) exit(1);
    return 1;
  }

  int socket_;
};

class Server {
 public:
  // Carries a request out, writing the members of the reply; returns a descriptor to send, or -1.
  int handle(uint32_t operation, Request& request, Json& json) {
    if (operation == kOpen) {
      open(request, json);
      return -1;
    }
    if (npu_ == nullptr) throw Failure("protocol", "the first request must be OPEN");
    switch (operation) {
      case kDescribe:
        npu_->describe_binary(request.string(), json);
        return -1;
      case kLoad:
        npu_->load(request.string(), json);
        return -1;
      case kAllocate: {
        const uint64_t size = request.u64();
        return npu_->allocate(size, request.u32(), json);
      }
      case kBind:
        bind(request, json);
        return -1;
      case kRun:
        npu_->run(request.u32());
        return -1;
      default:
        throw Failure("protocol", "there is no operation " + std::to_string(operation));
    }
  }

 private:
  enum Operation : uint32_t { kOpen = 1, kDescribe, kLoad, kAllocate, kBind, kRun };

  void open(Request& request, Json& json) {
    const uint32_t protocol = request.u32();
    if (protocol != kProtocol)
      throw Failure("protocol", "the helper speaks version " + std::to_string(kProtocol) +
                                    " of the protocol, the client " + std::to_string(protocol));
    const std::string backend_path = request.string();
    const std::string system_path = request.string();
    npu_ = std::make_unique<Npu>(backend_path, system_path, request.u32());
    npu_->describe_device(json);
  }

  void bind(Request& request, Json& json) {
    const uint32_t context = request.u32();
    const std::string name = request.string();
    const std::vector<Place> inputs = request.places();
    npu_->bind(context, name, inputs, request.places(), json);
  }

  std::unique_ptr<Npu> npu_;
};

std::string failure_json(const std::string& operation, const char* text, qnn::Error code) {
  Json json;
  json.begin('{').key("operation").string(operation).key("code").number(code);
  json.key("text").string(text).key("log").begin('[');
  for (const std::string& line : error_log.take()) json.string(line);
  return json.end(']').end('}').text();
}

void answer(Server& server, Client& client, std::vector<uint8_t> bytes) {
  Request request(std::move(bytes));
  const uint32_t serial = request.u32();
  error_log.take();
  try {
    Json json;
    json.begin('{');
    const int descriptor = server.handle(request.u32(), request, json);
    client.write(serial, true, json.end('}').text(), descriptor);
  } catch (const Failure& failure) {
    client.write(serial, false, failure_json(failure.operation, failure.what(), failure.code), -1);
  } catch (const std::exception& error) {
    client.write(serial, false, failure_json("protocol", error.what(), 0), -1);
  }
}

// Ends the process when the client is gone, even in the middle of a graph.
void end_with_client(int socket) {
  pollfd hang_up{socket, 0, 0};
  while (poll(&hang_up, 1, -1) < 0 && errno == EINTR) continue;
  std::this_thread::sleep_for(kGraceAfterHangUp);  // for an orderly end
  _exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: powerserve-npu-helper FD\n");
    return 2;
  }
  const int socket = atoi(argv[1]);
  // These are for the client, which may have answers to finish; its end is ours.
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) signal(number, SIG_IGN);
  std::thread(end_with_client, socket).detach();
  Server server;
  Client client(socket);
  std::vector<uint8_t> bytes;
  while (client.read(bytes)) answer(server, client, std::move(bytes));
  return 0;
}
