// A frozen network, ready to run: steps with packed weights. Immutable, shared by any number of
// sessions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ops/op.h"
#include "plan/plan_file.h"

namespace ddi::engine {

using Steps = std::vector<std::unique_ptr<Op>>;

// A classifier that may answer for the network: behind the first `position` steps of the trunk.
struct Exit {
  std::string name;
  int64_t position;
  Steps steps;
  int64_t output;  // value
  // On one sample, everything open: of its own steps, and of all of the trunk up to them as well.
  Work own_work, worst_work;
};

class Network {
 public:
  // Of a plan's bytes, which may be freed afterwards.
  Network(const uint8_t* plan, size_t bytes);

  const Graph& graph() const { return graph_; }
  const Steps& trunk() const { return trunk_; }
  const std::vector<Exit>& exits() const { return exits_; }
  const Buffer& input() const { return graph_.buffer_of(input_); }
  int64_t input_value() const { return input_; }
  // Whether the image is read as it comes; else it is copied into its buffer first.
  bool strided_input() const { return strided_input_; }
  int64_t classes() const { return graph_.values[exits_.back().output].channels; }
  // Of a step of the trunk and all behind it to the next exit, and of that one's classifier: of one
  // sample, everything open.
  const Work& work_ahead(int64_t step) const { return ahead_[static_cast<size_t>(step)]; }
  // Bytes of all decisions of a sample.
  int64_t decision_bytes() const { return decision_bytes_; }
  const std::string& metadata() const { return metadata_; }

 private:
  Steps read_steps(Words& words);
  void read_exits(Words& words);
  void settle_input();

  Graph graph_;
  int64_t input_ = 0;
  Steps trunk_;
  std::vector<Exit> exits_;
  std::vector<Work> ahead_;  // of each step of the trunk
  bool strided_input_ = false;
  int64_t decision_bytes_ = 0;
  std::string metadata_;
};

}  // namespace ddi::engine
