// Largest buffers first, each at the lowest place that is free while it lives. Time is counted in
// steps of the trunk. A run may fall back on an exit until it has reached the next one, so what the
// steps of an exit use lives until then.
#include "memory_plan.h"

#include <algorithm>

#include "base/arena.h"

namespace ddi::engine {
namespace {

int64_t element_bytes(const Graph& graph, Kind kind) {
  switch (kind) {
    case Kind::kImage:
      return graph.type == PlanType::kBFloat16 ? 2 : 4;
    case Kind::kVector:
    case Kind::kState:
      return 4;
    case Kind::kBits:
      break;
  }
  return 1;
}

std::vector<Life> find_lives(const Network& network) {
  const Graph& graph = network.graph();
  std::vector<Life> lives(graph.buffers.size());
  const auto use = [&](const Op& op, int64_t from, int64_t to) {
    for (const auto* values : {&op.reads, &op.writes}) {
      for (const int64_t value : *values) lives[graph.values[value].buffer].extend(from, to);
    }
  };
  const int64_t steps = static_cast<int64_t>(network.trunk().size());
  for (int64_t i = 0; i < steps; ++i) use(*network.trunk()[i], i, i);
  const auto& exits = network.exits();
  for (size_t e = 0; e < exits.size(); ++e) {
    const int64_t until = e + 1 < exits.size() ? exits[e + 1].position : steps;
    for (const auto& op : exits[e].steps) use(*op, exits[e].position, until);
    lives[graph.values[exits[e].output].buffer].extend(exits[e].position, steps);
  }
  for (size_t b = 0; b < lives.size(); ++b) {
    // Bits are looked at when the run is over; states must be zero when it begins.
    const Kind kind = graph.buffers[b].kind;
    if (kind == Kind::kBits || kind == Kind::kState) lives[b].extend(-1, steps);
  }
  // The image is there before the first step.
  lives[graph.values[network.input_value()].buffer].extend(-1, 0);
  return lives;
}

}  // namespace

MemoryPlan plan_memory(const Network& network, int64_t n) {
  const Graph& graph = network.graph();
  const size_t count = graph.buffers.size();
  MemoryPlan plan{find_lives(network), std::vector<int64_t>(count), std::vector<int64_t>(count, -1),
                  0};
  const std::vector<Life>& lives = plan.lives;
  std::vector<int64_t> bytes(count);
  std::vector<size_t> order;
  for (size_t b = 0; b < count; ++b) {
    const Buffer& buffer = graph.buffers[b];
    plan.sample_bytes[b] = buffer.numel() * element_bytes(graph, buffer.kind);
    bytes[b] = round_up(n * plan.sample_bytes[b], 64);
    if (lives[b].last >= 0) order.push_back(b);
  }
  if (network.strided_input()) {
    const size_t input = static_cast<size_t>(graph.values[network.input_value()].buffer);
    order.erase(std::remove(order.begin(), order.end(), input), order.end());
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return bytes[a] != bytes[b] ? bytes[a] > bytes[b] : a < b; });
  std::vector<size_t> placed;
  for (const size_t b : order) {
    std::vector<std::pair<int64_t, int64_t>> taken;  // [begin, end)
    for (const size_t other : placed) {
      if (!lives[b].meets(lives[other])) continue;
      taken.emplace_back(plan.offset[other], plan.offset[other] + bytes[other]);
    }
    std::sort(taken.begin(), taken.end());
    int64_t at = 0;
    for (const auto& [begin, end] : taken) {
      if (begin - at >= bytes[b]) break;
      at = std::max(at, end);
    }
    plan.offset[b] = at;
    plan.bytes = std::max(plan.bytes, at + bytes[b]);
    placed.push_back(b);
  }
  return plan;
}

}  // namespace ddi::engine
