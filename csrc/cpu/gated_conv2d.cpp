// Divides a batch among tasks: whole samples where there are enough of them, else the panels and
// row blocks of all samples. Either way tasks take the next piece when they are done with their
// last, because the cost of samples differs.
#include "gated_conv2d.h"

#include <atomic>
#include <vector>

#include "gated_conv2d_sample.h"

namespace ddi {
namespace {

constexpr int64_t kMacsPerTask = 1 << 20;  // less is not worth waking a thread for

// Tasks worth starting for this much work, closed channels included.
int64_t task_count(const Conv2dShape& s, int64_t threads) {
  const double macs = static_cast<double>(s.n) * s.out_h() * s.out_w() * s.co * s.ci * s.kh * s.kw;
  const double worth = std::min(macs / kMacsPerTask, static_cast<double>(threads));
  return std::max<int64_t>(static_cast<int64_t>(worth), 1);
}

// What the tasks of one call work in: a plan for each sample in flight, a block's room for each
// task.
template <class T>
struct Rooms {
  Rooms(const Conv2dShape& s, int64_t tasks, void* workspace) {
    Arena arena(workspace);
    for (int64_t i = 0; i < std::min(tasks, s.n); ++i) plans.push_back(make_plan<T>(s, arena));
    for (int64_t i = 0; i < tasks; ++i) blocks.push_back(arena.take<T>(block_numel<T>(s)));
    bytes = arena.used();
  }

  std::vector<Plan<T>> plans;
  std::vector<T*> blocks;
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

template <class T>
void over_samples(const GatedConv2d<T>& args, int64_t tasks, const ParallelFor& parallel_for,
                  Rooms<T>& rooms) {
  const SampleConv<T> conv(args, 1);
  share(tasks, args.shape.n, parallel_for, [&](int64_t task, int64_t n) {
    Plan<T>& plan = rooms.plans[task];
    conv.plan_sample(plan, n);
    for (int64_t i = 0; i < plan.blocks; ++i) {
      conv.run_block(plan, i, i == 0 && !plan.weight_ready, rooms.blocks[task]);
    }
    plan.weight_ready = true;
  });
}

// Fewer samples than tasks: the panels, then the row blocks, of all samples are shared out.
template <class T>
void over_rows(const GatedConv2d<T>& args, int64_t tasks, const ParallelFor& parallel_for,
               Rooms<T>& rooms) {
  const Conv2dShape& s = args.shape;
  const SampleConv<T> conv(args, ceil_div(tasks, s.n));
  int64_t panels = 0, blocks = 0;
  for (int64_t n = 0; n < s.n; ++n) {
    Plan<T>& plan = rooms.plans[n];
    conv.plan_sample(plan, n);
    if (!plan.weight_ready) panels = std::max(panels, conv.panels(plan));
    blocks = std::max(blocks, plan.blocks);
  }
  if (panels > 0) {
    share(tasks, s.n * panels, parallel_for, [&](int64_t, int64_t item) {
      const Plan<T>& plan = rooms.plans[item / panels];
      const int64_t panel = item % panels;
      if (!plan.weight_ready && panel < conv.panels(plan)) conv.compress_panel(plan, panel);
    });
  }
  share(tasks, s.n * blocks, parallel_for, [&](int64_t task, int64_t item) {
    conv.run_block(rooms.plans[item / blocks], item % blocks, false, rooms.blocks[task]);
  });
}

}  // namespace

template <class T>
int64_t gated_conv2d_workspace_bytes(const Conv2dShape& s, int64_t threads) {
  // In floating point first: sizes near the limits of int64_t must not wrap around.
  const double taps = static_cast<double>(s.kh) * s.kw;
  const double panels = taps * (s.ci + 1.0) * (s.co + kLanes);
  const double rows = ((s.kh - 1.0) * s.dilation_h + 1.0) * (s.w + 2.0 * s.pad_w) * s.ci +
                      (s.w + 2.0 * s.pad_w) * (s.co + kLanes);
  if ((panels + rows) * sizeof(T) * threads > 1e15) return -1;
  return Rooms<T>(s, task_count(s, threads), nullptr).bytes;
}

template <class T>
void gated_conv2d(const GatedConv2d<T>& args, int64_t threads, const ParallelFor& parallel_for,
                  void* workspace) {
  if (args.shape.n == 0) return;
  const int64_t tasks = task_count(args.shape, threads);
  Rooms<T> rooms(args.shape, tasks, workspace);
  if (args.shape.n >= tasks) {
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
