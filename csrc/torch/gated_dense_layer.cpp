// ddi::gated_dense_layer and its in-place form for the CPU: checks, allocation, registration.
#include "../cpu/block/gated_dense_layer.h"

#include "block_parts.h"

namespace ddi {
namespace {

// A call of either form, once its image is known; `parts` are the arguments behind the image.
struct Layer {
  const char* op;
  Tensor image;  // x or buffer
  int64_t ci;
  Tensor scale1, shift1;
  BlockConv conv1, conv2;
  OptionalTensor in_mask;
  bool pool;
};

// Checks everything but the image, fills in shapes and makes small tensors dense.
void check_layer(Layer& l) {
  const int64_t n = l.image.size(0), h = l.image.size(2), w = l.image.size(3);
  const ScalarType dtype = l.image.scalar_type();
  l.scale1 = *check_dense(l.op, "scale1", l.scale1, dtype, {l.ci});
  l.shift1 = *check_dense(l.op, "shift1", l.shift1, dtype, {l.ci});
  check_conv(l.op, l.image, l.conv1, l.ci, h, w, 1, 1);
  const OptionalTensor out_mask = l.conv2.mask;
  l.conv2.mask.reset();  // it has another name than those of the blocks
  check_conv(l.op, l.image, l.conv2, l.conv1.shape.co, h, w, 3, 1);
  const auto gates = gates_shape(n, l.conv2.shape.co, l.conv2.group_size);
  l.conv2.mask = check_dense(l.op, "out_mask", out_mask, ScalarType::Bool, gates);
  l.in_mask = check_dense(l.op, "in_mask", l.in_mask, ScalarType::Bool, {n, l.ci});
}

// Where y goes, in elements; strides of 0 for a dense y.
struct Place {
  Tensor y;
  int64_t offset = 0, sample_stride = 0, stride = 0;
  bool channels_last, leave_closed = false;
};

// New channels inside the buffer if its pixels are evenly spaced, with channels or rows contiguous.
std::optional<Place> place_in(const Tensor& buffer, int64_t first) {
  const int64_t h = buffer.size(2), w = buffer.size(3);
  const int64_t row = buffer.stride(2), pixel = w > 1 ? buffer.stride(3) : row;
  const bool even = h == 1 || w == 1 || row == w * pixel;
  const bool one = h == 1 && w == 1;
  Place place = {buffer, first * buffer.stride(1), buffer.stride(0), pixel, true, true};
  if (buffer.stride(1) == 1 && even && pixel > 0) return place;
  place.channels_last = false;
  place.stride = buffer.stride(1);
  return even && (one || pixel == 1) && place.stride > 0 ? std::optional<Place>(place)
                                                         : std::nullopt;
}

template <class T>
void run(const Layer& l, const Place& place, Tensor& pooled) {
  GatedDenseLayer<T> layer = {
      {conv_of<T>(l.conv1, nullptr)}, {conv_of<T>(l.conv2, nullptr)}, nullptr};
  GatedConv2d<T>&in = layer.conv1, &out = layer.conv2;
  in.x = static_cast<const T*>(l.image.const_data_ptr());
  for (int64_t d = 0; d < 4; ++d) in.x_stride[d] = l.image.stride(d);
  in.in_open = data<uint8_t>(l.in_mask);
  in.pre_scale = static_cast<const T*>(l.scale1.const_data_ptr());
  in.pre_shift = static_cast<const T*>(l.shift1.const_data_ptr());
  Tensor y = place.y;
  out.y = static_cast<T*>(y.mutable_data_ptr()) + place.offset;
  out.y_sample_stride = place.sample_stride;
  out.y_stride = place.stride;
  out.channels_last = place.channels_last;
  out.leave_closed = place.leave_closed;
  layer.pooled = l.pool ? static_cast<T*>(pooled.mutable_data_ptr()) : nullptr;
  const int64_t threads = torch::stable::get_num_threads();
  with_workspace(l.op, gated_dense_layer_workspace_bytes(layer, threads), [&](void* workspace) {
    gated_dense_layer(layer, threads, parallel_tasks, workspace);
  });
}

Tensor run_layer(const Layer& l, const Place& place) {
  const ScalarType dtype = l.image.scalar_type();
  const int64_t n = l.image.size(0);
  Tensor pooled = new_tensor({n, l.pool ? l.conv2.shape.co : 0}, dtype);
  if (n == 0) return pooled;
  if (dtype == ScalarType::Float) {
    run<float>(l, place, pooled);
  } else {
    run<double>(l, place, pooled);
  }
  return pooled;
}

std::tuple<Tensor, Tensor> gated_dense_layer_cpu(
    const Tensor& x, const Tensor& scale1, const Tensor& shift1, const Tensor& weight1,
    const OptionalTensor& bias1, const OptionalTensor& packed1, const Tensor& weight2,
    const OptionalTensor& bias2, const OptionalTensor& packed2, const OptionalTensor& in_mask,
    const OptionalTensor& out_mask, int64_t group_size, bool pool) {
  constexpr const char* kOp = "gated_dense_layer";
  check_image(kOp, "x", x);
  Layer layer = {kOp,
                 x,
                 x.size(1),
                 scale1,
                 shift1,
                 {"", "1", "", weight1, bias1, packed1, {}, {}},
                 {"", "2", "", weight2, bias2, packed2, out_mask, {}, group_size},
                 in_mask,
                 pool};
  check_layer(layer);
  const MemoryFormat format = format_of(x);
  Tensor y =
      new_tensor({x.size(0), layer.conv2.shape.co, x.size(2), x.size(3)}, x.scalar_type(), format);
  Tensor pooled = run_layer(layer, {y, 0, 0, 0, format == MemoryFormat::ChannelsLast});
  return {y, pooled};
}

// The open channels of dense y to where they belong in a buffer of any strides.
template <class T>
void copy_open(const Layer& l, const Tensor& y, Tensor& buffer) {
  const T* src = static_cast<const T*>(y.const_data_ptr());
  const uint8_t* open = data<uint8_t>(l.conv2.mask);
  const int64_t n = y.size(0), channels = y.size(1), h = y.size(2), w = y.size(3);
  const int64_t groups = (channels - 1) / l.conv2.group_size + 1;
  T* first = static_cast<T*>(buffer.mutable_data_ptr()) + l.ci * buffer.stride(1);
  for (int64_t i = 0; i < n * channels; ++i) {
    const int64_t sample = i / channels, c = i % channels;
    if (open != nullptr && open[sample * groups + c / l.conv2.group_size] == 0) continue;
    T* plane = first + sample * buffer.stride(0) + c * buffer.stride(1);
    for (int64_t p = 0; p < h * w; ++p) {
      plane[p / w * buffer.stride(2) + p % w * buffer.stride(3)] = src[i * h * w + p];
    }
  }
}

void check_buffer(const char* op, const Tensor& buffer, int64_t ci, int64_t growth) {
  STD_TORCH_CHECK(buffer.size(1) >= ci + growth, op, ": buffer has shape ", shape_of(buffer),
                  "; expected at least ", ci, " + ", growth,
                  " channels, those read and those written");
  for (int64_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(buffer.size(d) <= 1 || buffer.stride(d) != 0, op,
                    ": buffer is expanded, elements of it share memory; clone() it first");
  }
}

Tensor gated_dense_layer_inplace_cpu(Tensor buffer, const Tensor& scale1, const Tensor& shift1,
                                     const Tensor& weight1, const OptionalTensor& bias1,
                                     const OptionalTensor& packed1, const Tensor& weight2,
                                     const OptionalTensor& bias2, const OptionalTensor& packed2,
                                     const OptionalTensor& in_mask, const OptionalTensor& out_mask,
                                     int64_t group_size, bool pool) {
  constexpr const char* kOp = "gated_dense_layer_";
  check_image(kOp, "buffer", buffer);
  check_dim(kOp, "weight1", weight1, 4, "[C, Ci, 1, 1]");
  STD_TORCH_CHECK(weight1.size(1) >= 1, kOp, ": weight1 has shape ", shape_of(weight1),
                  "; expected at least one input channel");
  Layer layer = {kOp,
                 buffer,
                 weight1.size(1),
                 scale1,
                 shift1,
                 {"", "1", "", weight1, bias1, packed1, {}, {}},
                 {"", "2", "", weight2, bias2, packed2, out_mask, {}, group_size},
                 in_mask,
                 pool};
  check_layer(layer);
  const int64_t growth = layer.conv2.shape.co;
  check_buffer(kOp, buffer, layer.ci, growth);
  if (const std::optional<Place> place = place_in(buffer, layer.ci))
    return run_layer(layer, *place);
  Tensor y =
      new_tensor({buffer.size(0), growth, buffer.size(2), buffer.size(3)}, buffer.scalar_type());
  Tensor pooled = run_layer(layer, {y, 0, 0, 0, false});
  if (buffer.scalar_type() == ScalarType::Float) {
    copy_open<float>(layer, y, buffer);
  } else {
    copy_open<double>(layer, y, buffer);
  }
  return pooled;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ddi, CPU, m) {
  m.impl("gated_dense_layer", TORCH_BOX(&gated_dense_layer_cpu));
  m.impl("gated_dense_layer_", TORCH_BOX(&gated_dense_layer_inplace_cpu));
}

}  // namespace ddi
