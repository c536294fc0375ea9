// The chain of gated_block, but that no link reads the interior of another: each writes an int8
// image to the workspace, as far as channels are open, and the next one finds it there.
#include "gated_block_int8.h"

#include <algorithm>

#include "base/arena.h"
#include "block_result.h"
#include "pixels/quantize_pixels.h"

namespace ddi {
namespace {

// What each convolution of the branch reads, then the rest of the workspace.
struct Room {
  Room(const GatedBlockInt8& block, void* workspace) {
    Arena arena(workspace);
    for (int i = 0; i < block.depth; ++i) {
      const Conv2dShape& s = block.branch[i].shape;
      input[i] = arena.take<int8_t>(s.n * s.ci * s.h * s.w);
    }
    bytes = arena.used();
    rest = arena.take<char>(0);
  }

  int8_t* input[3];
  int64_t bytes;  // of the inputs
  char* rest;
};

// A convolution of a dense image.
GatedConv2d<int8_t> conv_of(const MaskedConv<int8_t>& masked, const int8_t* x) {
  const Conv2dShape& s = masked.shape;
  GatedConv2d<int8_t> conv = {masked, x, {s.h * s.w * s.ci, 1, s.w * s.ci, s.ci}};
  conv.channels_last = true;
  return conv;
}

ConvChain<int8_t> make_chain(const GatedBlockInt8& b, const Room& room) {
  ConvChain<int8_t> chain;
  if (b.has_shortcut) {
    GatedConv2d<int8_t>& conv = chain.link[chain.count++].conv;
    conv = conv_of(b.shortcut, room.input[0]);
    conv.y = b.y;
  }
  for (int i = 0; i < b.depth; ++i) {
    GatedConv2d<int8_t>& conv = chain.link[chain.count++].conv;
    conv = conv_of(b.branch[i], room.input[i]);
    conv.relu = true;
    if (i + 1 < b.depth) {
      conv.y_int8 = room.input[i + 1];
      conv.y_scale = b.x_scale[i + 1];
    } else {
      conv.y = b.y;
      conv.residual = b.has_shortcut ? b.y : b.x;
    }
  }
  chain.keep = b.keep;
  return chain;
}

}  // namespace

int64_t gated_block_int8_workspace_bytes(const GatedBlockInt8& block, int64_t threads) {
  const Room room(block, nullptr);
  const int64_t chain = conv_chain_workspace_bytes(make_chain(block, room), threads);
  return chain < 0 ? chain : room.bytes + chain;
}

void gated_block_int8(const GatedBlockInt8& block, int64_t threads, const ParallelFor& parallel_for,
                      void* workspace) {
  const Room room(block, workspace);
  ConvChain<int8_t> chain = make_chain(block, room);
  const Conv2dShape &first = block.branch[0].shape, &last = block.branch[block.depth - 1].shape;
  const int64_t pixels = first.h * first.w;
  quantize_pixels({first.n, pixels, first.ci, block.x, pixels * first.ci, first.ci,
                   block.x_scale[0], block.keep, room.input[0]},
                  threads, parallel_for);
  const BlockResult<float> result = {
      last.out_h() * last.out_w(), last.co, true, block.x, block.y, block.x_pooled, block.pooled};
  const auto finish = [&](int64_t sample, bool kept) { result.finish(sample, kept); };
  chain.finish = finish;
  conv_chain(chain, threads, parallel_for, room.rest);
}

}  // namespace ddi
