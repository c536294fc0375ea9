// A step of a network: reads values, calls a driver of csrc/cpu, writes values. A step is immutable
// once read from its plan; everything that belongs to a run is in the Frame, so that one network
// serves many threads.
#pragma once

#include <string>
#include <vector>

#include "base/parallel.h"
#include "plan/plan_file.h"
#include "work.h"

namespace ddi::engine {

// Where a run keeps the values of a network, and what it runs with.
struct Frame {
  const Graph& graph;
  char* const* buffers;  // of each buffer of the graph, all samples one after the other
  int64_t n, threads;
  ParallelFor parallel_for;
  void* workspace;  // what the step asked for
  // The image, float32 of any strides, in elements. Only steps that read it as it came use it.
  const float* image;
  int64_t image_stride[4];  // of n, c, h, w

  // Of the first sample.
  template <class T>
  T* at(int64_t value) const {
    const Value& v = graph.values[value];
    return reinterpret_cast<T*>(buffers[v.buffer]) + v.first;
  }
  // Between samples, in elements.
  int64_t stride(int64_t value) const { return graph.buffer_of(value).numel(); }
};

class Op {
 public:
  Op() = default;
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;
  virtual ~Op() = default;

  virtual void run(const Frame& frame) const = 0;
  // Scratch memory for up to n samples and as many threads; negative: out of reach.
  virtual int64_t workspace_bytes(int64_t /*n*/, int64_t /*threads*/) const { return 0; }
  // On one sample with everything open, and with what the frame's bits leave open.
  virtual Work dense_work() const { return {}; }
  virtual Work work(const Frame&, int64_t /*sample*/) const { return dense_work(); }
  // Bytes of the decision that a gate takes for a sample; 0 for other steps.
  virtual int64_t decision_bytes() const { return 0; }
  // Copies decisions [n][...] with `stride` bytes between samples out of the frame, or into it.
  virtual void read_decision(const Frame&, uint8_t*, int64_t /*stride*/) const {}
  virtual void write_decision(const Frame&, const uint8_t*, int64_t /*stride*/) const {}

  // Whether its image, value `reads[0]`, may be the caller's own, of any strides.
  virtual bool takes_strided_image() const { return false; }

  std::string name;
  std::vector<int64_t> reads, writes;  // values
  bool strided_image = false;          // reads[0] is Frame::image
};

}  // namespace ddi::engine
