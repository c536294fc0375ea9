// Two walks over a sample. Where x and y are channels_last, lanes are channels: tiles read x in
// place, taps that fall into the padding are left out, and words of kLanes channels with nothing
// open are skipped; compacting sparser words would cost what a 3x3 kernel takes. Elsewhere lanes
// are neighbouring pixels of an open channel, whose plane is copied between zeros first.
#include "depthwise_conv2d.h"

#include <algorithm>
#include <atomic>

#include "conv_planner.h"
#include "micro/micro_depthwise.h"

namespace ddi {
namespace {

constexpr int64_t kShortRow = 4;          // outputs; too few to hide the latency of a sum
constexpr double kMacsPerTask = 1 << 18;  // these multiplies wait for memory

// Neighbouring output rows, or columns, whose windows meet the image in the same taps.
struct Span {
  int64_t begin, end, first_tap, last_tap;
};

// Taps [first, last) of a window that starts at `start` and lie in [0, size).
inline void taps_inside(int64_t start, int64_t dilation, int64_t taps, int64_t size, int64_t* first,
                        int64_t* last) {
  *first = start < 0 ? std::min(ceil_div(-start, dilation), taps) : 0;
  *last = start < size ? std::min(ceil_div(size - start, dilation), taps) : 0;
  *last = std::max(*first, *last);
}

// Of a row of taps, as a tile takes them whose outputs lie along it.
inline int taps_in_run(int64_t taps, int64_t dilation, int64_t stride) {
  return taps == 3 && dilation == stride ? 3 : 1;
}

// What one task works in.
template <class T>
struct Room {
  Room(const Conv2dShape& s, Arena& arena) {
    const int64_t words = ceil_div(s.co, kLanes), taps = s.kh * s.kw;
    index = arena.take<int32_t>(s.co);
    in_bits = arena.take<uint16_t>(words);
    out_bits = arena.take<uint16_t>(words);
    bias = arena.take<T>(words * kLanes);
    scale = arena.take<T>(words * kLanes);
    tap = arena.take<DepthwiseTap>(taps);
    row_span = arena.take<Span>(s.out_h());
    column_span = arena.take<Span>(s.out_w());
    weight = arena.take<T>(taps * kLanes);
    phase = ceil_div(s.w + 2 * s.pad_w, s.stride_w);
    plane = arena.take<T>((s.h + 2 * s.pad_h) * phase * s.stride_w);
    out = arena.take<T>(s.out_h() * s.out_w());
  }

  int32_t* index;
  uint16_t *in_bits, *out_bits;
  T *bias, *scale;
  DepthwiseTap* tap;
  Span *row_span, *column_span;  // channels_last
  T* weight;                     // planes: of one channel, each tap in all lanes
  T *plane, *out;
  int64_t phase;  // planes: columns of a row that are stride_w apart, kept together
};

// The epilogue of one element without its sum.
template <class T>
T closed_value(const T* residual, bool relu) {
  const T v = residual == nullptr ? T(0) : *residual;
  return relu && v < T(0) ? T(0) : v;
}

template <class T>
class SampleDepthwise {
 public:
  SampleDepthwise(const GatedConv2d<T>& args, const Room<T>& room, int64_t sample)
      : a_(args),
        s_(args.shape),
        r_(room),
        tile_fn_(depthwise_tile<T>()),
        n_(sample),
        out_h_(s_.out_h()),
        out_w_(s_.out_w()) {
    const int64_t in_groups = ceil_div(s_.ci, a_.in_group_size);
    const int64_t out_groups = ceil_div(s_.co, a_.out_group_size);
    const uint8_t* in = a_.in_open == nullptr ? nullptr : a_.in_open + n_ * in_groups;
    const uint8_t* out = a_.out_open == nullptr ? nullptr : a_.out_open + n_ * out_groups;
    in_ = list_channels(in, 0, s_.ci, a_.in_group_size, r_.index, r_.in_bits);
    out_ = list_channels(out, 0, s_.co, a_.out_group_size, r_.index, r_.out_bits);
    const T* scale = a_.scale == nullptr ? nullptr : a_.scale + n_ * out_groups;
    for (int64_t c = 0; c < round_up(s_.co, kLanes); ++c) {
      r_.bias[c] = a_.bias == nullptr || c >= s_.co ? T(0) : a_.bias[c];
      r_.scale[c] = scale == nullptr || c >= s_.co ? T(0) : scale[c / a_.out_group_size];
    }
  }

  // Output rows [y0, y1), lanes are channels.
  void run_rows(int64_t y0, int64_t y1) const {
    const int64_t rows =
        find_spans(y0, y1, s_.stride_h, s_.pad_h, s_.dilation_h, s_.kh, s_.h, r_.row_span);
    const int64_t columns =
        find_spans(0, out_w_, s_.stride_w, s_.pad_w, s_.dilation_w, s_.kw, s_.w, r_.column_span);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) run_spans(r_.row_span[i], r_.column_span[j]);
    }
    for (int64_t c = 0; c < s_.co; c += kLanes) {
      if (r_.out_bits[c / kLanes] != 0) continue;
      const int64_t at = y_at(0, y0, 0);
      micro<T>().fill_closed((y1 - y0) * out_w_, out_, residual(at), a_.relu, s_.co, a_.y + at);
      break;
    }
  }

  // Channels [c0, c1), lanes are pixels.
  void run_planes(int64_t c0, int64_t c1) const {
    list_plane_taps();
    for (int64_t c = c0; c < c1; ++c) {
      if (is_open(r_.out_bits, c)) {
        if (is_open(r_.in_bits, c)) copy_plane(c);
        run_plane(c);
        continue;
      }
      const int64_t step = a_.channels_last ? s_.co : 1, first = y_at(c, 0, 0);
      for (int64_t i = 0; i < out_h_ * out_w_; ++i) {
        const int64_t at = first + i * step;
        a_.y[at] = closed_value(residual(at), a_.relu);
      }
    }
  }

 private:
  static bool is_open(const uint16_t* bits, int64_t c) {
    return (bits[c / kLanes] >> (c % kLanes)) & 1u;
  }

  const T* residual(int64_t at) const {
    return a_.residual == nullptr ? nullptr : a_.residual + at;
  }

  int64_t y_at(int64_t c, int64_t y, int64_t x) const {
    return a_.channels_last ? ((n_ * out_h_ + y) * out_w_ + x) * s_.co + c
                            : ((n_ * s_.co + c) * out_h_ + y) * out_w_ + x;
  }

  // Runs of outputs [begin, end) along one dimension of the image that have the same taps.
  static int64_t find_spans(int64_t begin, int64_t end, int64_t stride, int64_t pad,
                            int64_t dilation, int64_t taps, int64_t size, Span* spans) {
    int64_t count = 0;
    for (int64_t i = begin; i < end; ++i) {
      Span span = {i, i + 1, 0, 0};
      taps_inside(i * stride - pad, dilation, taps, size, &span.first_tap, &span.last_tap);
      Span* last = spans + count - 1;
      if (count > 0 && last->first_tap == span.first_tap && last->last_tap == span.last_tap) {
        last->end = i + 1;
      } else {
        spans[count++] = span;
      }
    }
    return count;
  }

  // Runs of outputs go along a row; at the sides, where rows are short, down a column.
  void run_spans(const Span& rows, const Span& columns) const {
    const int64_t taps = list_taps(rows, columns);
    const int64_t height = rows.end - rows.begin, width = columns.end - columns.begin;
    const int64_t in_row = s_.stride_h * a_.x_stride[2], in_pixel = s_.stride_w * a_.x_stride[3];
    const int64_t out_row = out_w_ * s_.co;
    const bool down = width < std::min(height, kShortRow);
    DepthwiseTile<T> tile = {};
    tile.in_stride = down ? in_row : in_pixel;
    tile.out_stride = down ? out_row : s_.co;
    tile.tap = r_.tap;
    // Down a column the taps of a run are not neighbours in the list, whose order is the same for
    // all outputs: that of their sums.
    tile.run =
        down ? 1 : taps_in_run(columns.last_tap - columns.first_tap, s_.dilation_w, s_.stride_w);
    tile.relu = a_.relu;
    for (int64_t c = 0; c < s_.co; c += kLanes) {
      tile.in_open = r_.in_bits[c / kLanes];
      tile.out_open = r_.out_bits[c / kLanes];
      if (tile.out_open == 0) continue;
      tile.taps = (tile.in_open & tile.out_open) == 0 ? 0 : taps;
      tile.weight = a_.packed + c;
      tile.bias = r_.bias + c;
      tile.scale = a_.scale == nullptr ? nullptr : r_.scale + c;
      tile.lanes = static_cast<int>(std::min<int64_t>(s_.co - c, kLanes));
      for (int64_t i = 0; i < (down ? width : height); ++i) {
        const int64_t at = y_at(c, rows.begin, columns.begin) + i * (down ? s_.co : out_row);
        tile.in = a_.x + n_ * a_.x_stride[0] + c + i * (down ? in_pixel : in_row);
        tile.residual = residual(at);
        tile.out = a_.y + at;
        tile_fn_(tile, down ? height : width);
      }
    }
  }

  // The taps of the first output of two spans, from the first element of the sample.
  int64_t list_taps(const Span& rows, const Span& columns) const {
    const int64_t top = rows.begin * s_.stride_h - s_.pad_h;
    const int64_t left = columns.begin * s_.stride_w - s_.pad_w;
    int64_t taps = 0;
    for (int64_t ky = rows.first_tap; ky < rows.last_tap; ++ky) {
      for (int64_t kx = columns.first_tap; kx < columns.last_tap; ++kx) {
        const int64_t row = top + ky * s_.dilation_h, column = left + kx * s_.dilation_w;
        r_.tap[taps++] = {row * a_.x_stride[2] + column * a_.x_stride[3],
                          (ky * s_.kw + kx) * round_up(s_.co, kLanes)};
      }
    }
    return taps;
  }

  // Column by column, since tiles go down one.
  void list_plane_taps() const {
    for (int64_t tap = 0; tap < s_.kh * s_.kw; ++tap) {
      const int64_t ky = tap % s_.kh, kx = tap / s_.kh;
      const int64_t row = ky * s_.dilation_h, column = kx * s_.dilation_w;
      r_.tap[tap] = {(row * s_.stride_w + column % s_.stride_w) * r_.phase + column / s_.stride_w,
                     (ky * s_.kw + kx) * kLanes};
    }
  }

  // A channel between zeros, columns sorted by their remainder modulo stride_w.
  void copy_plane(int64_t c) const {
    const int64_t row_numel = r_.phase * s_.stride_w;
    std::fill(r_.plane, r_.plane + (s_.h + 2 * s_.pad_h) * row_numel, T(0));
    for (int64_t y = 0; y < s_.h; ++y) {
      const T* src = a_.x + n_ * a_.x_stride[0] + c * a_.x_stride[1] + y * a_.x_stride[2];
      T* dst = r_.plane + (y + s_.pad_h) * row_numel;
      if (s_.stride_w == 1 && a_.x_stride[3] == 1) {
        std::copy(src, src + s_.w, dst + s_.pad_w);
        continue;
      }
      for (int64_t p = 0; p < s_.stride_w; ++p, dst += r_.phase) {
        // The first image column of this remainder.
        const int64_t x0 = ((p - s_.pad_w) % s_.stride_w + s_.stride_w) % s_.stride_w;
        T* to = dst + (x0 + s_.pad_w) / s_.stride_w;
        for (int64_t x = x0; x < s_.w; x += s_.stride_w) *to++ = src[x * a_.x_stride[3]];
      }
    }
  }

  void run_plane(int64_t c) const {
    const int64_t taps = is_open(r_.in_bits, c) ? s_.kh * s_.kw : 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      std::fill_n(r_.weight + tap * kLanes, kLanes, a_.packed[tap * round_up(s_.co, kLanes) + c]);
    }
    T bias[kLanes], scale[kLanes];
    std::fill_n(bias, kLanes, r_.bias[c]);
    std::fill_n(scale, kLanes, r_.scale[c]);
    const int64_t at = y_at(c, 0, 0);
    DepthwiseTile<T> tile = {};
    tile.in_stride = s_.stride_h * r_.phase * s_.stride_w;
    tile.out_stride = out_w_;
    tile.tap = r_.tap;
    tile.taps = taps;
    tile.run = taps_in_run(s_.kh, s_.dilation_h, s_.stride_h);
    tile.weight = r_.weight;
    tile.bias = bias;
    tile.scale = a_.scale == nullptr ? nullptr : scale;
    tile.in_open = tile.out_open = 0xffff;
    tile.relu = a_.relu && !a_.channels_last;
    // Tiles go down a column of kLanes pixels: a row has too few for one.
    for (int64_t x = 0; x < out_w_; x += kLanes) {
      tile.in = r_.plane + x;
      tile.out = (a_.channels_last ? r_.out : a_.y + at) + x;
      tile.residual = a_.channels_last ? nullptr : residual(at + x);
      tile.lanes = static_cast<int>(std::min<int64_t>(out_w_ - x, kLanes));
      tile_fn_(tile, out_h_);
    }
    if (a_.channels_last) spread_plane(c);
  }

  // The result of a channel into channels_last pixels.
  void spread_plane(int64_t c) const {
    for (int64_t i = 0; i < out_h_ * out_w_; ++i) {
      const int64_t at = y_at(c, 0, 0) + i * s_.co;
      const T v = a_.residual == nullptr ? r_.out[i] : r_.out[i] + a_.residual[at];
      a_.y[at] = a_.relu && v < T(0) ? T(0) : v;
    }
  }

  const GatedConv2d<T>& a_;
  const Conv2dShape& s_;
  const Room<T>& r_;
  const DepthwiseTileFn<T> tile_fn_;
  const int64_t n_, out_h_, out_w_;
  ChannelSet in_, out_;
};

int64_t task_count(const Conv2dShape& s, int64_t threads) {
  const double macs = static_cast<double>(s.n) * s.out_h() * s.out_w() * s.co * s.kh * s.kw;
  const double worth = std::min(macs / kMacsPerTask, static_cast<double>(threads));
  return std::max<int64_t>(static_cast<int64_t>(worth), 1);
}

}  // namespace

template <class T>
int64_t depthwise_conv2d_workspace_bytes(const Conv2dShape& s, int64_t threads) {
  // In floating point first: sizes near the limits of int64_t must not wrap around.
  const double width = s.w + 2.0 * s.pad_w + s.stride_w, height = s.h + 2.0 * s.pad_h;
  const double numel =
      2.0 * width * (height + 5.0) + 8.0 * s.co + 8.0 * height + kLanes * 2.0 * s.kh * s.kw;
  if (numel * sizeof(T) * threads > 1e15) return -1;
  Arena size(nullptr);
  Room<T>(s, size);
  return size.used() * task_count(s, threads);
}

template <class T>
void depthwise_conv2d(const GatedConv2d<T>& args, int64_t threads, const ParallelFor& parallel_for,
                      void* workspace) {
  const Conv2dShape& s = args.shape;
  const bool in_place = args.channels_last && args.x_stride[1] == 1;
  const int64_t tasks = task_count(s, threads), all = in_place ? s.out_h() : s.co;
  const int64_t parts =
      s.n >= tasks ? 1 : std::min(all, ceil_div(tasks, std::max<int64_t>(s.n, 1)));
  Arena size(nullptr);
  Room<T>(s, size);
  std::atomic<int64_t> next{0};
  parallel_for(tasks, [&](int64_t task) {
    Arena arena(static_cast<char*>(workspace) + task * size.used());
    const Room<T> room(s, arena);
    for (int64_t item = next++; item < s.n * parts; item = next++) {
      const SampleDepthwise<T> sample(args, room, item / parts);
      const int64_t part = item % parts, first = part * all / parts;
      const int64_t end = (part + 1) * all / parts;
      in_place ? sample.run_rows(first, end) : sample.run_planes(first, end);
    }
  });
}

template int64_t depthwise_conv2d_workspace_bytes<float>(const Conv2dShape&, int64_t);
template int64_t depthwise_conv2d_workspace_bytes<double>(const Conv2dShape&, int64_t);
template void depthwise_conv2d<float>(const GatedConv2d<float>&, int64_t, const ParallelFor&,
                                      void*);
template void depthwise_conv2d<double>(const GatedConv2d<double>&, int64_t, const ParallelFor&,
                                       void*);

}  // namespace ddi
