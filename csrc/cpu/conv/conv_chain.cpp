// Divides a batch among tasks: whole samples where there are enough of them, else the panels and
// row blocks of all samples, one convolution of the chain after the other. Either way tasks take
// the next piece when they are done with their last, because the cost of samples differs.
#include "conv_chain.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <optional>

#include "gated_conv2d_sample.h"

namespace ddi {
namespace {

constexpr int64_t kMacsPerTask = 1 << 20;  // less is not worth waking a thread for

double macs(const Conv2dShape& s) {
  return static_cast<double>(s.n) * s.out_h() * s.out_w() * s.co * s.group_ci() * s.kh * s.kw;
}

// Tasks worth starting for this much work, closed channels included.
template <class T>
int64_t task_count(const ConvChain<T>& chain, int64_t threads) {
  double sum = 0;
  for (int c = 0; c < chain.count; ++c) sum += macs(chain.link[c].conv.shape);
  const double worth = std::min(sum / kMacsPerTask, static_cast<double>(threads));
  return std::max<int64_t>(static_cast<int64_t>(worth), 1);
}

template <class T>
int64_t interior_cells(const ConvLink<T>& link) {
  const Conv2dShape& s = link.conv.shape;
  const int64_t width = s.out_w() + 2 * link.halo_w, height = s.out_h() + 2 * link.halo_h;
  return height * width * round_up(s.co, kLanes) / Types<T>::kPack + kLanes;
}

// A piece of work, one convolution group of one sample, on its way through the chain.
template <class T>
struct Piece {
  Piece(const ConvChain<T>& chain, Arena& arena) {
    for (int c = 0; c < chain.count; ++c) {
      plan[c] = make_conv_plan<T>(chain.link[c].conv.shape, arena);
      if (!chain.link[c].to_interior) continue;
      plan[c].to = arena.take<typename Types<T>::Cell>(interior_cells(chain.link[c]));
    }
    for (int c = 1; c < chain.count; ++c) plan[c].from = plan[c - 1].to;
  }

  ConvPlan<T> plan[kMaxChain];  // of each convolution
};

// What a task works in, by convolution. They use the same memory one after the other.
template <class T>
struct TaskRoom {
  TaskRoom(const ConvChain<T>& chain, Arena& arena) {
    int64_t most = 0;
    for (int c = 0; c < chain.count; ++c) {
      Arena piece = arena;
      row_block[c] = RowBlockRoom<T>(chain.link[c].conv.shape, piece);
      most = std::max(most, piece.used() - arena.used());
    }
    arena.take<char>(most);
  }

  RowBlockRoom<T> row_block[kMaxChain];
};

// What the tasks of one call work in.
template <class T>
struct Rooms {
  Rooms(const ConvChain<T>& chain, int64_t tasks, void* workspace) {
    Arena arena(workspace);
    const Conv2dShape& first = chain.link[0].conv.shape;
    order = arena.take<int64_t>(first.n);
    pieces = make<Piece<T>>(chain, std::min(tasks, first.n * first.groups), arena);
    tasks_ = make<TaskRoom<T>>(chain, tasks, arena);
    bytes = arena.used();
  }

  const RowBlockRoom<T>& row_block(int64_t task, int c) const { return tasks_[task].row_block[c]; }

  int64_t* order;  // [n], the samples to run
  Piece<T>* pieces;
  int64_t bytes;

 private:
  // So many of one kind and what they point to; only measured without a workspace.
  template <class Room>
  static Room* make(const ConvChain<T>& chain, int64_t count, Arena& arena) {
    Room* rooms = arena.take<Room>(count);
    for (int64_t i = 0; i < count; ++i) {
      const Room room(chain, arena);
      if (rooms != nullptr) new (rooms + i) Room(room);
    }
    return rooms;
  }

  TaskRoom<T>* tasks_;
};

// Calls body(task, item) for every item.
template <class Body>
void share(int64_t tasks, int64_t items, const ParallelFor& parallel_for, const Body& body) {
  if (tasks == 1) {
    for (int64_t item = 0; item < items; ++item) body(0, item);
    return;
  }
  std::atomic<int64_t> next{0};
  parallel_for(tasks, [&](int64_t task) {
    for (int64_t item = next++; item < items; item = next++) body(task, item);
  });
}

// Negative, 0 or positive as the masks of sample a are before, equal to or behind those of b.
template <class T>
int compare_masks(const ConvChain<T>& chain, int64_t a, int64_t b) {
  for (int c = 0; c < chain.count; ++c) {
    const MaskedConv<T>& conv = chain.link[c].conv;
    const int64_t in_groups = ceil_div(conv.shape.ci, conv.in_group_size);
    const int64_t out_groups = ceil_div(conv.shape.co, conv.out_group_size);
    if (const int order = compare_bits(conv.in_open, in_groups, a, b)) return order;
    if (const int order = compare_bits(conv.out_open, out_groups, a, b)) return order;
  }
  return 0;
}

// The samples to run, those with equal masks next to each other: a task that meets them in a row
// lists channels and compresses weights once. Returns how many.
template <class T>
int64_t list_kept_samples(const ConvChain<T>& chain, int64_t* order) {
  int64_t count = 0;
  for (int64_t n = 0; n < chain.link[0].conv.shape.n; ++n) {
    if (chain.keep == nullptr || chain.keep[n] != 0) {
      order[count++] = n;
    } else if (chain.finish) {
      chain.finish(n, false);
    }
  }
  // Not std::stable_sort, which asks the heap for a buffer.
  std::sort(order, order + count, [&](int64_t a, int64_t b) {
    const int masks = compare_masks(chain, a, b);
    return masks != 0 ? masks < 0 : a < b;
  });
  return count;
}

// The convolutions of a chain, bound to its arguments.
template <class T>
struct Convs {
  Convs(const ConvChain<T>& chain, int64_t min_row_blocks) {
    for (int c = 0; c < chain.count; ++c) {
      planner[c].emplace(chain.link[c], min_row_blocks);
      conv[c].emplace(chain.link[c], *planner[c]);
    }
  }

  std::optional<ConvPlanner<T>> planner[kMaxChain];
  std::optional<SampleConv<T>> conv[kMaxChain];
};

template <class T>
void over_samples(const ConvChain<T>& chain, int64_t n, int64_t tasks,
                  const ParallelFor& parallel_for, const Rooms<T>& rooms) {
  const Convs<T> convs(chain, 1);
  const int64_t items = n * chain.link[0].conv.shape.groups, *order = rooms.order;
  share(tasks, items, parallel_for, [&](int64_t task, int64_t item) {
    const int64_t sample = order[item % n];
    // What this task will likely take next: past the last item, a row block that does not exist.
    const bool more = item + tasks < items;
    const int64_t later = more ? order[(item + tasks) % n] : sample;
    for (int c = 0; c < chain.count; ++c) {
      ConvPlan<T>& plan = rooms.pieces[task].plan[c];
      if (c > 0) plan.from_stride = rooms.pieces[task].plan[c - 1].to_stride;
      convs.planner[c]->plan(plan, sample, item / n);
      for (int64_t i = 0; i < plan.row_blocks; ++i) {
        const bool last = more && c + 1 == chain.count && i + 1 == plan.row_blocks;
        const Upcoming<T> next = last
                                     ? convs.conv[0]->upcoming(rooms.pieces[task].plan[0], later, 0)
                                     : convs.conv[c]->upcoming(plan, sample, i + 1);
        convs.conv[c]->run_row_block(plan, i, next, rooms.row_block(task, c));
        plan.ready = true;
      }
    }
    if (chain.finish) chain.finish(sample, true);
  });
}

// Fewer pieces than tasks: the panels, then the row blocks, of all pieces are shared out.
template <class T>
void over_rows(const ConvChain<T>& chain, int64_t n, int64_t tasks, const ParallelFor& parallel_for,
               const Rooms<T>& rooms) {
  const int64_t pieces = n * chain.link[0].conv.shape.groups, *order = rooms.order;
  const Convs<T> convs(chain, ceil_div(tasks, pieces));
  for (int c = 0; c < chain.count; ++c) {
    int64_t panels = 0, row_blocks = 0;
    for (int64_t i = 0; i < pieces; ++i) {
      ConvPlan<T>& plan = rooms.pieces[i].plan[c];
      if (c > 0) plan.from_stride = rooms.pieces[i].plan[c - 1].to_stride;
      convs.planner[c]->plan(plan, order[i % n], i / n);
      if (!plan.ready) panels = std::max(panels, plan.n_panels);
      row_blocks = std::max(row_blocks, plan.row_blocks);
    }
    if (panels > 0) {
      share(tasks, pieces * panels, parallel_for, [&](int64_t, int64_t item) {
        const ConvPlan<T>& plan = rooms.pieces[item / panels].plan[c];
        const int64_t panel = item % panels;
        if (!plan.ready && panel < plan.n_panels) convs.planner[c]->ready_panel(plan, panel);
      });
    }
    for (int64_t i = 0; i < pieces; ++i) rooms.pieces[i].plan[c].ready = true;
    share(tasks, pieces * row_blocks, parallel_for, [&](int64_t task, int64_t item) {
      const ConvPlan<T>& plan = rooms.pieces[item / row_blocks].plan[c];
      if (item % row_blocks >= plan.row_blocks) return;
      const Upcoming<T> next =
          convs.conv[c]->upcoming(plan, plan.sample, item % row_blocks + tasks);
      convs.conv[c]->run_row_block(plan, item % row_blocks, next, rooms.row_block(task, c));
    });
  }
  if (!chain.finish) return;
  share(tasks, n, parallel_for, [&](int64_t, int64_t i) { chain.finish(order[i], true); });
}

}  // namespace

template <class T>
int64_t conv_chain_workspace_bytes(const ConvChain<T>& chain, int64_t threads) {
  // In floating point first: sizes near the limits of int64_t must not wrap around.
  double numel = static_cast<double>(chain.link[0].conv.shape.n);
  for (int c = 0; c < chain.count; ++c) {
    const Conv2dShape& s = chain.link[c].conv.shape;
    const double width = s.w + 2.0 * s.pad_w, co = s.co + kLanes;
    numel += 4.0 * s.kh * s.kw * (s.ci + 1.0) * co;
    numel += 4.0 * ((s.kh * static_cast<double>(s.dilation_h) + 2) * width * s.ci + width * co);
    if (chain.link[c].to_interior) numel += (s.h + 2.0 * s.pad_h + 2.0) * (width + 2.0) * co;
  }
  if (numel * sizeof(double) * threads > 1e15) return -1;
  return Rooms<T>(chain, task_count(chain, threads), nullptr).bytes;
}

template <class T>
void conv_chain(const ConvChain<T>& chain, int64_t threads, const ParallelFor& parallel_for,
                void* workspace) {
  const int64_t tasks = task_count(chain, threads);
  const Rooms<T> rooms(chain, tasks, workspace);
  const int64_t n = list_kept_samples(chain, rooms.order);
  if (n == 0) return;
  if (n * chain.link[0].conv.shape.groups >= tasks) {
    over_samples(chain, n, tasks, parallel_for, rooms);
  } else {
    over_rows(chain, n, tasks, parallel_for, rooms);
  }
}

#define DDI_INSTANTIATE(T)                                                            \
  template int64_t conv_chain_workspace_bytes<T>(const ConvChain<T>& chain, int64_t); \
  template void conv_chain<T>(const ConvChain<T>&, int64_t, const ParallelFor&, void*);

DDI_INSTANTIATE(float)
DDI_INSTANTIATE(double)
DDI_INSTANTIATE(half)
DDI_INSTANTIATE(bf16)
DDI_INSTANTIATE(int8_t)

}  // namespace ddi
