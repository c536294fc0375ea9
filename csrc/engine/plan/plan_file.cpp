// Header, checksum and tables of a plan. Bytes are put together one by one, so that the order of
// bytes of the machine does not matter.
#include "plan_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/dtypes.h"

namespace ddi::engine {
namespace {

// The first byte is no text, the rest breaks where line ends are converted.
constexpr uint8_t kMagic[8] = {0x89, 'D', 'D', 'I', '\r', '\n', 0x1a, '\n'};
constexpr int64_t kHeaderBytes = 64;
constexpr int64_t kAlignment = 64;
constexpr int64_t kMaxFileBytes = int64_t{1} << 40;
constexpr int64_t kFreeElements = int64_t{1} << 22, kMostUses = 16;

uint64_t little_endian(const uint8_t* data, int bytes) {
  uint64_t word = 0;
  for (int i = 0; i < bytes; ++i) word |= static_cast<uint64_t>(data[i]) << (8 * i);
  return word;
}

// The polynomial of zlib and PNG.
uint32_t crc32(const uint8_t* data, size_t bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = (c & 1u) != 0 ? 0xedb88320u ^ (c >> 1) : c >> 1;
      t[i] = c;
    }
    return t;
  }();
  const uint32_t* const row = table.data();
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < bytes; ++i) crc = row[(crc ^ data[i]) & 0xffu] ^ (crc >> 8);
  return crc ^ 0xffffffffu;
}

int64_t bytes_of(int64_t dtype) {
  switch (static_cast<PlanType>(dtype)) {
    case PlanType::kFloat32:
      return 4;
    case PlanType::kBFloat16:
      return 2;
    case PlanType::kInt8:
      break;
  }
  return 1;
}

bool is_plan(const uint8_t* data, size_t bytes) {
  return bytes >= sizeof(kMagic) && std::memcmp(data, kMagic, sizeof(kMagic)) == 0;
}

[[noreturn]] void fail(const std::string& what) { throw PlanError("plan: " + what); }

std::string number(int64_t v) { return std::to_string(v); }

}  // namespace

void Words::fail(const std::string& what) const { throw PlanError("plan: " + where_ + what); }

int64_t Words::next(const char* what) {
  if (left_ <= 0) fail(std::string("ends before ") + what);
  const int64_t word = static_cast<int64_t>(little_endian(data_, 8));
  data_ += 8;
  --left_;
  return word;
}

int64_t Words::integer(int64_t low, int64_t high, const char* what) {
  const int64_t word = next(what);
  if (word < low || word > high) {
    fail(std::string(what) + " is " + number(word) + "; expected " + number(low) + " to " +
         number(high));
  }
  return word;
}

int64_t Words::value(Kind kind, int64_t channels, const char* what) {
  const int64_t value = integer(0, static_cast<int64_t>(graph_.values.size()) - 1, what);
  if (graph_.buffer_of(value).kind != kind) fail(std::string(what) + " is of another kind");
  if (channels >= 0 && graph_.values[value].channels != channels) {
    fail(std::string(what) + " has " + number(graph_.values[value].channels) +
         " channels; expected " + number(channels));
  }
  return value;
}

int64_t Words::optional_value(Kind kind, int64_t channels, const char* what) {
  if (left_ > 0 && static_cast<int64_t>(little_endian(data_, 8)) == -1) return next(what);
  return value(kind, channels, what);
}

const Constant& Words::constant(int64_t numel, const char* what) {
  const Constant& c =
      graph_.constants[integer(0, static_cast<int64_t>(graph_.constants.size()) - 1, what)];
  if (c.numel != numel) {
    fail(std::string(what) + " has " + number(c.numel) + " elements; expected " + number(numel));
  }
  return c;
}

std::vector<float> Words::floats(int64_t numel, const char* what) {
  const Constant& c = constant(numel, what);
  if (c.dtype == static_cast<int64_t>(PlanType::kInt8)) {
    fail(std::string(what) + " is not a floating-point number");
  }
  graph_.elements_left -= numel;
  if (graph_.elements_left < 0) fail("and those before it use the same constants too often");
  return decode_floats(c);
}

std::vector<float> Words::optional_floats(int64_t numel, const char* what) {
  if (left_ > 0 && static_cast<int64_t>(little_endian(data_, 8)) == -1) {
    next(what);
    return {};
  }
  return floats(numel, what);
}

const std::string& Words::name() {
  return graph_.names[integer(0, static_cast<int64_t>(graph_.names.size()) - 1, "name")];
}

Words Words::part(int64_t count, const std::string& where) {
  if (count > left_) fail(where + "is longer than the graph");
  Words words(data_, count, graph_, where);
  data_ += 8 * count;
  left_ -= count;
  return words;
}

void Words::done() const {
  if (left_ != 0) fail("has " + number(left_) + " words too many");
}

PlanFile::PlanFile(const uint8_t* data, size_t bytes) : data_(data) {
  const int64_t size = static_cast<int64_t>(bytes);
  if (size < kHeaderBytes) fail("the file has " + number(size) + " bytes, less than a header");
  if (!is_plan(data, bytes)) fail("this is no plan: its first bytes differ");
  const auto word = [&](int at, int width) {
    return static_cast<int64_t>(little_endian(data + at, width));
  };
  if (word(8, 4) != kPlanVersion) {
    fail("version " + number(word(8, 4)) + " of the format; this build reads version " +
         number(kPlanVersion) + ", freeze the network again");
  }
  if (crc32(data, 60) != little_endian(data + 60, 4)) fail("the header is damaged");
  if (word(16, 8) != size) {
    fail("the file has " + number(size) + " bytes, its header says " + number(word(16, 8)));
  }
  if (word(12, 4) > static_cast<int64_t>(PlanType::kInt8)) fail("its data type is unknown");
  type_ = static_cast<PlanType>(word(12, 4));
  words_ = word(24, 8);
  blob_offset_ = word(32, 8);
  blob_bytes_ = word(40, 8);
  const bool fits = words_ >= 0 && words_ <= (size - kHeaderBytes) / 8 &&
                    blob_offset_ >= kHeaderBytes + 8 * words_ && blob_offset_ <= size &&
                    blob_bytes_ == size - blob_offset_;
  if (!fits) fail("graph and weights do not fit into the file");
  if (crc32(data + kHeaderBytes, bytes - kHeaderBytes) != little_endian(data + 48, 4)) {
    fail("the checksum of its contents differs: the file is damaged");
  }
}

Words PlanFile::graph_words(const Graph& graph) const {
  return {data_ + kHeaderBytes, words_, graph, "the graph "};
}

std::string printable(const std::string& name) {
  std::string text = name.substr(0, 80);
  std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return text;
}

std::vector<uint8_t> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             std::fclose);
  if (file == nullptr) fail("cannot open " + path + ": " + std::strerror(errno));
  // Where it has an end, memory is taken once; what grows is copied, and there twice meanwhile.
  const long size = std::fseek(file.get(), 0, SEEK_END) == 0 ? std::ftell(file.get()) : 0;
  std::rewind(file.get());
  std::vector<uint8_t> bytes;
  std::array<uint8_t, 1 << 16> piece;
  for (;;) {
    const size_t got = std::fread(piece.data(), 1, piece.size(), file.get());
    const bool plan = !bytes.empty() || is_plan(piece.data(), got);
    if (plan && bytes.empty() && size > 0) bytes.reserve(static_cast<size_t>(size));
    bytes.insert(bytes.end(), piece.begin(), piece.begin() + static_cast<int64_t>(got));
    if (got < piece.size() || !plan) break;  // whatever it is, it may not fit into memory
    if (static_cast<int64_t>(bytes.size()) > kMaxFileBytes) fail(path + " is too large");
  }
  if (std::ferror(file.get()) != 0) fail("cannot read " + path + ": " + std::strerror(errno));
  return bytes;
}

void read_graph(const PlanFile& file, Words& words, Graph& graph) {
  graph.type = file.type();
  const int64_t buffers = words.integer(1, kMaxCount, "number of buffers");
  for (int64_t i = 0; i < buffers; ++i) {
    Buffer b;
    b.kind = static_cast<Kind>(words.integer(0, static_cast<int64_t>(Kind::kState), "kind"));
    b.channels = words.integer(1, kMaxPlanSize, "channels");
    b.h = words.integer(1, b.kind == Kind::kImage ? kMaxPlanSize : 1, "height");
    b.w = words.integer(1, b.kind == Kind::kImage ? kMaxPlanSize : 1, "width");
    if (b.numel() > INT32_MAX) words.fail("buffer " + number(i) + " is too large");
    graph.buffers.push_back(b);
  }
  const int64_t values = words.integer(1, kMaxCount, "number of values");
  for (int64_t i = 0; i < values; ++i) {
    Value v;
    v.buffer = words.integer(0, buffers - 1, "buffer");
    const int64_t channels = graph.buffers[v.buffer].channels;
    v.first = words.integer(0, channels - 1, "first channel");
    v.channels = words.integer(1, channels - v.first, "channels");
    graph.values.push_back(v);
  }
  const auto blob_range = [&](int64_t alignment) {
    const int64_t offset = words.integer(0, file.blob_bytes(), "offset");
    if (offset % alignment != 0) words.fail("constant is not aligned");
    return offset;
  };
  const int64_t constants = words.integer(0, kMaxCount, "number of constants");
  for (int64_t i = 0; i < constants; ++i) {
    Constant c;
    c.dtype = words.integer(0, static_cast<int64_t>(PlanType::kInt8), "data type");
    const int64_t offset = blob_range(kAlignment), bytes = bytes_of(c.dtype);
    c.numel = words.integer(0, (file.blob_bytes() - offset) / bytes, "elements");
    c.data = file.blob() + offset;
    graph.constants.push_back(c);
  }
  graph.elements_left = kFreeElements + kMostUses * (file.blob_bytes() / 2);
  const int64_t names = words.integer(1, kMaxCount, "number of names");
  int64_t left = file.blob_bytes();  // names do not overlap, so a small file makes no large ones
  for (int64_t i = 0; i < names; ++i) {
    const int64_t offset = blob_range(1);
    const int64_t length = words.integer(0, std::min(left, file.blob_bytes() - offset), "length");
    left -= length;
    const char* text = reinterpret_cast<const char*>(file.blob() + offset);
    graph.names.emplace_back(text, static_cast<size_t>(length));
  }
}

std::vector<float> decode_floats(const Constant& constant) {
  const bool wide = constant.dtype == static_cast<int64_t>(PlanType::kFloat32);
  std::vector<float> values(static_cast<size_t>(constant.numel));
  for (int64_t i = 0; i < constant.numel; ++i) {
    const uint64_t bits = wide ? little_endian(constant.data + 4 * i, 4)
                               : little_endian(constant.data + 2 * i, 2) << 16;
    values[static_cast<size_t>(i)] = float_of(static_cast<uint32_t>(bits));
  }
  return values;
}

}  // namespace ddi::engine
