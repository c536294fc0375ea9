#include "network.h"

#include <algorithm>

#include "ops/op_kinds.h"

namespace ddi::engine {

Network::Network(const uint8_t* plan, size_t bytes) {
  const PlanFile file(plan, bytes);
  Words words = file.graph_words(graph_);
  read_graph(file, words, graph_);
  metadata_ = words.name();
  input_ = words.value(Kind::kImage, -1, "input");
  if (graph_.values[input_].channels != input().channels) words.fail("has a part for its input");
  trunk_ = read_steps(words);
  read_exits(words);
  words.done();
  settle_input();
  for (const auto& op : trunk_) decision_bytes_ += op->decision_bytes();
  graph_.constants.clear();  // the plan may go
}

Steps Network::read_steps(Words& words) {
  Steps steps;
  const int64_t count = words.integer(0, kMaxCount, "number of steps");
  for (int64_t i = 0; i < count; ++i) {
    const auto code = static_cast<OpCode>(words.integer(0, INT32_MAX, "kind of step"));
    const std::string& name = words.name();
    const int64_t length = words.integer(0, words.left(), "length of step");
    Words part = words.part(length, "step " + std::to_string(i) + " (" + printable(name) + ") ");
    steps.push_back(read_op(code, part));
    steps.back()->name = name;
  }
  return steps;
}

void Network::read_exits(Words& words) {
  const int64_t count = words.integer(1, kMaxCount, "number of exits");
  int64_t position = 0;
  Work trunk_work;
  ahead_.resize(trunk_.size());
  for (int64_t i = 0; i < count; ++i) {
    Exit exit;
    exit.name = words.name();
    const int64_t before = position;
    const int64_t last = static_cast<int64_t>(trunk_.size());
    position = words.integer(before, last, "position of an exit");
    exit.position = position;
    exit.steps = read_steps(words);
    exit.output = words.value(Kind::kVector, -1, "output of an exit");
    for (const auto& op : exit.steps) exit.own_work += op->dense_work();
    Work ahead = exit.own_work;
    for (int64_t s = position; s-- > before;) {
      ahead += trunk_[s]->dense_work();
      ahead_[s] = ahead;
      trunk_work += trunk_[s]->dense_work();
    }
    exit.worst_work = exit.own_work;
    exit.worst_work += trunk_work;
    exits_.push_back(std::move(exit));
  }
  if (position != static_cast<int64_t>(trunk_.size())) words.fail("has steps behind its last exit");
  for (const Exit& exit : exits_) {
    if (graph_.values[exit.output].channels != classes()) {
      words.fail("has exits with different numbers of classes");
    }
    for (const auto& op : exit.steps) {
      if (op->decision_bytes() != 0) words.fail("has a gate in an exit");
    }
  }
}

// The image need not be copied if all that read it are convolutions, and do so before any exit:
// behind one the samples of a call may be fewer.
void Network::settle_input() {
  std::vector<Op*> readers;
  bool all_strided = true;
  const auto look = [&](Op& op, int64_t step) {
    for (size_t i = 0; i < op.reads.size(); ++i) {
      if (graph_.values[op.reads[i]].buffer != graph_.values[input_].buffer) continue;
      all_strided &= i == 0 && op.takes_strided_image() && op.reads[0] == input_;
      all_strided &= step < exits_.front().position;
      readers.push_back(&op);
    }
    for (const int64_t value : op.writes) {
      all_strided &= graph_.values[value].buffer != graph_.values[input_].buffer;
    }
  };
  for (size_t i = 0; i < trunk_.size(); ++i) look(*trunk_[i], static_cast<int64_t>(i));
  for (const Exit& exit : exits_) {
    for (const auto& op : exit.steps) look(*op, exit.position);
  }
  strided_input_ = all_strided;
  for (Op* op : readers) op->strided_image = all_strided;
}

}  // namespace ddi::engine
