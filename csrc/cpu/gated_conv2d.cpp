// Divides a batch among tasks: whole samples where there are enough of them, else the panels and
// row blocks of all samples. Either way tasks take the next piece when they are done with their
// last, because the cost of samples differs.
#include "gated_conv2d.h"

#include <atomic>
#include <numeric>
#include <vector>

#include "gated_conv2d_sample.h"

namespace ddi {
namespace {

constexpr int64_t kMacsPerTask = 1 << 20;  // less is not worth waking a thread for

// Tasks worth starting for this much work, closed channels included.
int64_t task_count(const Conv2dShape& s, int64_t threads) {
  const double macs =
      static_cast<double>(s.n) * s.out_h() * s.out_w() * s.co * s.group_ci() * s.kh * s.kw;
  const double worth = std::min(macs / kMacsPerTask, static_cast<double>(threads));
  return std::max<int64_t>(static_cast<int64_t>(worth), 1);
}

// What the tasks of one call work in: a plan for each piece in flight, a block's room for each
// task. A piece is one convolution group of one sample.
template <class T>
struct Rooms {
  Rooms(const Conv2dShape& s, int64_t tasks, void* workspace) {
    Arena arena(workspace);
    const int64_t in_flight = std::min(tasks, s.n * s.groups);
    for (int64_t i = 0; i < in_flight; ++i) plans.push_back(make_conv_plan<T>(s, arena));
    for (int64_t i = 0; i < tasks; ++i) blocks.emplace_back(s, arena);
    bytes = arena.used();
  }

  std::vector<ConvPlan<T>> plans;
  std::vector<BlockRoom<T>> blocks;
  int64_t bytes;
};

// Calls body(task, item) for every item.
void share(int64_t tasks, int64_t items, const ParallelFor& parallel_for,
           const std::function<void(int64_t task, int64_t item)>& body) {
  std::atomic<int64_t> next{0};
  parallel_for(tasks, [&](int64_t task) {
    for (int64_t item = next++; item < items; item = next++) body(task, item);
  });
}

// The samples, those with equal masks next to each other: a task that meets them in a row lists
// channels and compresses weights once.
template <class T>
std::vector<int64_t> by_mask(const GatedConv2d<T>& args) {
  const Conv2dShape& s = args.shape;
  const int64_t in_groups = ceil_div(s.ci, args.in_group_size);
  const int64_t out_groups = ceil_div(s.co, args.out_group_size);
  std::vector<int64_t> order(static_cast<size_t>(s.n));
  std::iota(order.begin(), order.end(), int64_t(0));
  const auto compare = [](const uint8_t* open, int64_t groups, int64_t a, int64_t b) {
    return open == nullptr ? 0 : std::memcmp(open + a * groups, open + b * groups, groups);
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const int in = compare(args.in_open, in_groups, a, b);
    return in != 0 ? in < 0 : compare(args.out_open, out_groups, a, b) < 0;
  });
  return order;
}

template <class T>
void over_samples(const GatedConv2d<T>& args, int64_t tasks, const ParallelFor& parallel_for,
                  Rooms<T>& rooms) {
  const ConvPlanner<T> planner(args, 1);
  const SampleConv<T> conv(args, planner);
  const std::vector<int64_t> order = by_mask(args);
  const int64_t n = args.shape.n;
  share(tasks, n * args.shape.groups, parallel_for, [&](int64_t task, int64_t item) {
    ConvPlan<T>& plan = rooms.plans[task];
    planner.plan(plan, order[item % n], item / n);
    // What this task will likely take next: past the last item, a block that does not exist.
    const bool more = item + tasks < n * args.shape.groups;
    const int64_t later = more ? order[(item + tasks) % n] : plan.sample;
    for (int64_t i = 0; i < plan.blocks; ++i) {
      const bool last = more && i + 1 == plan.blocks;
      const Upcoming<T> next = conv.upcoming(plan, last ? later : plan.sample, last ? 0 : i + 1);
      conv.run_block(plan, i, next, rooms.blocks[task]);
      plan.ready = true;
    }
  });
}

// Fewer pieces than tasks: the panels, then the row blocks, of all pieces are shared out.
template <class T>
void over_rows(const GatedConv2d<T>& args, int64_t tasks, const ParallelFor& parallel_for,
               Rooms<T>& rooms) {
  const int64_t n = args.shape.n, pieces = n * args.shape.groups;
  const ConvPlanner<T> planner(args, ceil_div(tasks, pieces));
  const SampleConv<T> conv(args, planner);
  int64_t panels = 0, blocks = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    ConvPlan<T>& plan = rooms.plans[i];
    planner.plan(plan, i % n, i / n);
    if (!plan.ready) panels = std::max(panels, plan.n_panels);
    blocks = std::max(blocks, plan.blocks);
  }
  if (panels > 0) {
    share(tasks, pieces * panels, parallel_for, [&](int64_t, int64_t item) {
      const ConvPlan<T>& plan = rooms.plans[item / panels];
      const int64_t panel = item % panels;
      if (!plan.ready && panel < plan.n_panels) planner.compress_panel(plan, panel);
    });
  }
  for (ConvPlan<T>& plan : rooms.plans) plan.ready = true;
  share(tasks, pieces * blocks, parallel_for, [&](int64_t task, int64_t item) {
    const ConvPlan<T>& plan = rooms.plans[item / blocks];
    if (item % blocks >= plan.blocks) return;
    const Upcoming<T> next = conv.upcoming(plan, plan.sample, item % blocks + tasks);
    conv.run_block(plan, item % blocks, next, rooms.blocks[task]);
  });
}

}  // namespace

template <class T>
int64_t gated_conv2d_workspace_bytes(const Conv2dShape& s, int64_t threads) {
  // In floating point first: sizes near the limits of int64_t must not wrap around.
  const double width = s.w + 2.0 * s.pad_w, co = s.co + kLanes;
  const double panels = static_cast<double>(s.kh) * s.kw * (s.ci + 1.0) * co;
  const double rows =
      4.0 * ((s.kh * static_cast<double>(s.dilation_h) + 2) * width * s.ci + width * co);
  if ((panels + rows) * sizeof(T) * threads > 1e15) return -1;
  return Rooms<T>(s, task_count(s, threads), nullptr).bytes;
}

template <class T>
void gated_conv2d(const GatedConv2d<T>& args, int64_t threads, const ParallelFor& parallel_for,
                  void* workspace) {
  if (args.shape.n == 0) return;
  const int64_t tasks = task_count(args.shape, threads);
  Rooms<T> rooms(args.shape, tasks, workspace);
  if (args.shape.n * args.shape.groups >= tasks) {
    over_samples(args, tasks, parallel_for, rooms);
  } else {
    over_rows(args, tasks, parallel_for, rooms);
  }
}

template int64_t gated_conv2d_workspace_bytes<float>(const Conv2dShape&, int64_t);
template int64_t gated_conv2d_workspace_bytes<double>(const Conv2dShape&, int64_t);
template void gated_conv2d<float>(const GatedConv2d<float>&, int64_t, const ParallelFor&, void*);
template void gated_conv2d<double>(const GatedConv2d<double>&, int64_t, const ParallelFor&, void*);

}  // namespace ddi
