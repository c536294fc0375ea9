// From the compact result of a convolution to y: closed channels, residual and activation, and for
// int8 the quantization.
#pragma once

#include <algorithm>

#include "conv_plan.h"

namespace ddi {

// Neighbouring pixels of the compact result of one sample and convolution group.
template <class T>
struct Result {
  const typename Types<T>::Acc* data;
  int64_t stride;  // from pixel to pixel
  int64_t pixels;
  int64_t at;  // of the first in y, its first channel
};

template <class T>
const typename Types<T>::Out* residual_at(const GatedConv2d<T>& args, int64_t at) {
  return args.residual == nullptr ? nullptr : args.residual + at;
}

inline bool is_open(const ChannelSet& set, int64_t c) {
  return (set.bits[c / kLanes] >> (c % kLanes)) & 1u;
}

// The closed ones of pixel-contiguous channels.
template <class T>
void fill_planes(const GatedConv2d<T>& args, const ConvPlan<T>& p, const Result<T>& r) {
  using Acc = typename Types<T>::Acc;
  const int64_t plane = args.out_stride();
  for (int64_t c = 0; c < p.out.channels; ++c) {
    if (is_open(p.out, c)) continue;
    for (int64_t i = r.at + c * plane; i < r.at + c * plane + r.pixels; ++i) {
      const Acc v = args.residual == nullptr ? Acc(0) : to_float(args.residual[i]);
      round_to(args.relu && v < Acc(0) ? Acc(0) : v, args.y + i);
    }
  }
}

// Pixel-contiguous int8 channels.
template <class T>
void write_int8_planes(const GatedConv2d<T>& args, const ConvPlan<T>& p, const Result<T>& r,
                       float* room) {
  const float* column = r.data;
  int64_t at = r.at;
  for (int64_t c = 0; c < p.out.channels; ++c) {
    const bool open = is_open(p.out, c);
    const float* residual = residual_at(args, at);
    for (int64_t k = 0; k < r.pixels; ++k) {
      float v = open ? column[k * r.stride] : 0.0f;
      if (residual != nullptr) v += residual[k];
      room[k] = args.relu && v < 0.0f ? 0.0f : v;
    }
    column += open;
    micro<T>().quantize(room, r.pixels, args.y_scale, args.y_int8 + at);
    at += args.shape.out_h() * args.shape.out_w();
  }
}

// Channel-contiguous int8 pixels.
template <class T>
void write_int8_pixels(const GatedConv2d<T>& args, const ConvPlan<T>& p, const Result<T>& r,
                       float* room) {
  const int64_t co = args.shape.co;
  micro<T>().expand_pixels(r.data, r.stride, r.pixels, p.out, residual_at(args, r.at), args.relu,
                           co, room);
  // Whole pixels at once, unless other convolution groups lie between.
  const int64_t runs = p.out.channels == co ? 1 : r.pixels;
  for (int64_t k = 0; k < runs; ++k) {
    micro<T>().quantize(room + k * co, r.pixels / runs * p.out.channels, args.y_scale,
                        args.y_int8 + r.at + k * co);
  }
}

// `room` for `numel` floats, at least one pixel, is needed for int8 only.
template <class T>
void write_result(const GatedConv2d<T>& args, const ConvPlan<T>& p, const Result<T>& r,
                  typename Types<T>::Acc* room, int64_t numel) {
  const int64_t co = args.shape.co, stride = args.out_stride();
  if constexpr (Types<T>::kInteger) {
    if (args.y == nullptr) {
      const int64_t most = numel / (args.channels_last ? co : 1);
      for (int64_t i = 0; i < r.pixels; i += most) {
        const Result<T> some = {r.data + i * r.stride, r.stride, std::min(most, r.pixels - i),
                                r.at + i * (args.channels_last ? co : 1)};
        (args.channels_last ? write_int8_pixels<T> : write_int8_planes<T>)(args, p, some, room);
      }
      return;
    }
  }
  if (args.channels_last && args.leave_closed && micro<T>().scatter_pixels != nullptr) {
    micro<T>().scatter_pixels(r.data, r.stride, r.pixels, p.out, stride, args.y + r.at);
    return;
  }
  if (args.channels_last) {
    micro<T>().expand_pixels(r.data, r.stride, r.pixels, p.out, residual_at(args, r.at), args.relu,
                             stride, args.y + r.at);
    return;
  }
  micro<T>().scatter_planes(r.data, r.stride, r.pixels, p.out, stride, residual_at(args, r.at),
                            args.relu, args.y + r.at);
  if (!args.leave_closed) fill_planes(args, p, r);
}

}  // namespace ddi
