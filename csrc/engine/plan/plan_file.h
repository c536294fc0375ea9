// A frozen network as it lies in a file (docs/plan_format.md): a header, a graph of 64-bit words
// and a blob of weights, all little-endian. Nothing in a file is trusted: every number is read
// through Words, which checks its range, and every tensor lies inside the blob before anyone sees
// it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "pages.h"

namespace ddi::engine {

// A file that is no plan, or one that this build cannot run. The message says what is wrong.
class PlanError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr int64_t kPlanVersion = 1;
constexpr int64_t kMaxPlanSize = 1 << 16;  // channels, height, width
constexpr int64_t kMaxCount = 1 << 13;     // buffers, values, tensors, steps

// Of int8 are single steps; between them images are float32.
enum class PlanType : int64_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

// What a buffer holds: activations, of bfloat16 in such a plan, else float32, [pixel][channel];
// float32 vectors; bits, a byte each; float32 that is zero at the start of every run.
enum class Kind : int64_t { kImage = 0, kVector = 1, kBits = 2, kState = 3 };

enum class OpCode : int64_t {
  kConv2d = 1,
  kBlock = 2,
  kDenseLayer = 3,
  kGate = 4,
  kMean = 5,
  kLinear = 6,
  kPool2d = 7,
  kActivation = 8,
  kCopy = 9,
  kOpenAll = 10,
  kConv2dInt8 = 11,
  kBlockInt8 = 12,
};

struct Buffer {
  Kind kind;
  int64_t channels, h, w;

  int64_t pixels() const { return h * w; }
  int64_t numel() const { return channels * h * w; }
};

// Channels [first, first + channels) of a buffer.
struct Value {
  int64_t buffer, first, channels;
};

// A constant in the blob.
struct Constant {
  const uint8_t* data;
  int64_t dtype;  // PlanType
  int64_t numel;
};

// What steps refer to.
struct Graph {
  PlanType type;
  std::vector<Buffer> buffers;
  std::vector<Value> values;
  std::vector<Constant> constants;
  std::vector<std::string> names;
  // Elements that steps may still take out of the blob. They share constants, but not so often that
  // a small file fills the memory.
  mutable int64_t elements_left = 0;
  mutable PagePool weights;  // of the steps, packed

  const Buffer& buffer_of(int64_t value) const { return buffers[values[value].buffer]; }
};

// The words of the graph, or of one step, read front to back.
class Words {
 public:
  Words(const uint8_t* data, int64_t count, const Graph& graph, std::string where)
      : data_(data), left_(count), graph_(graph), where_(std::move(where)) {}

  // One that lies in [low, high]; `what` names it in the error.
  int64_t integer(int64_t low, int64_t high, const char* what);
  bool flag(const char* what) { return integer(0, 1, what) != 0; }
  // A value of this kind and, unless negative, as many channels.
  int64_t value(Kind kind, int64_t channels, const char* what);
  // The same or -1.
  int64_t optional_value(Kind kind, int64_t channels, const char* what);
  // A constant of as many elements, float32 or bfloat16.
  std::vector<float> floats(int64_t numel, const char* what);
  // The same, or an empty vector for -1.
  std::vector<float> optional_floats(int64_t numel, const char* what);
  const Constant& constant(int64_t numel, const char* what);
  const std::string& name();
  // The next `count` words, to be read on their own.
  Words part(int64_t count, const std::string& where);
  void done() const;

  int64_t left() const { return left_; }
  const Graph& graph() const { return graph_; }
  [[noreturn]] void fail(const std::string& what) const;

 private:
  int64_t next(const char* what);

  const uint8_t* data_;
  int64_t left_;
  const Graph& graph_;
  std::string where_;
};

// A plan's bytes, checked as far as its header and checksums go. They are the caller's and read
// where they lie: a copy would take as much memory as the network itself.
class PlanFile {
 public:
  PlanFile(const uint8_t* data, size_t bytes);

  PlanType type() const { return type_; }
  Words graph_words(const Graph& graph) const;
  const uint8_t* blob() const { return data_ + blob_offset_; }
  int64_t blob_bytes() const { return blob_bytes_; }

 private:
  const uint8_t* data_;
  PlanType type_;
  int64_t words_, blob_offset_, blob_bytes_;
};

// The start of a name for a message: a file may hold any bytes, those who read messages take text.
std::string printable(const std::string& name);

std::vector<uint8_t> read_file(const std::string& path);

// Buffers, values, constants and names; leaves `words` at the first step.
void read_graph(const PlanFile& file, Words& words, Graph& graph);

std::vector<float> decode_floats(const Constant& constant);

}  // namespace ddi::engine
