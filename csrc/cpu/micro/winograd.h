// Winograd's minimal filtering F(m x m, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2016): m x m outputs from (m + 2)^2 products a pair of channels, where the sum
// over taps takes 9 m^2: 2.25 times fewer for m = 2, 4 times for m = 4. A tile of inputs d, a
// kernel g and a tile of outputs y are related by
//   y = A^T ((G g G^T) * (B^T d B)) A,
// product * by position and summed over input channels, which makes every position a matrix
// product.
//
// A 7x7 kernel with stride 2, the first layer of networks for large images, is a 4x4 kernel over
// four phases of the image, its even and odd rows and columns apart, with a zero for the eighth
// tap. For it F(3 x 3, 4 x 4) takes 16 products an output, where the sum over taps takes 49.
//
// Wide convolutions are left out: reading the larger weights takes what fewer products save, and
// the more channels are summed, the more digits tiles of 6 x 6 lose.
//
// Points: 0, 1, -1 and infinity for m = 2; 0, +-5/8, +-3/2 and infinity for tiles of 6 x 6 inputs
// (m = 3 and 4), where the textbook's 1 and 2 would lose four times as many digits. All of A and B
// is exact in binary.
#pragma once

#include <cstdint>

namespace ddi {

// m of the transforms that a kernel may have, or 0, the one that saves most first.
struct WinogradForms {
  int m[2];
};
constexpr WinogradForms winograd_forms(int64_t kh, int64_t kw) {
  if (kh == 3 && kw == 3) return {{4, 2}};
  if (kh == 7 && kw == 7) return {{3, 0}};
  return {{0, 0}};
}

// The stride that a convolution must have to take it.
constexpr int64_t winograd_stride(int m) { return m == 3 ? 2 : 1; }
// Inputs of a tile, along one axis.
constexpr int winograd_side(int m) { return m == 2 ? 4 : 6; }
// Images that one is taken apart into.
constexpr int64_t winograd_phases(int m) { return m == 3 ? 4 : 1; }
constexpr int64_t winograd_positions(int m) {
  return static_cast<int64_t>(winograd_side(m)) * winograd_side(m);
}
// Transformed weights of a pair of channels.
constexpr int64_t winograd_taps(int m) { return winograd_positions(m) * winograd_phases(m); }

// Whether a convolution of so many channels has weights transformed for F(m x m).
constexpr bool has_winograd(int m, int64_t co, int64_t ci) {
  const int64_t most = m == 2 ? 256 : 128;
  return m > 0 && co <= most && winograd_phases(m) * ci <= most;
}

constexpr double kWinogradA = 0.625, kWinogradB = 1.5;  // points of larger tiles

// G, [winograd_side(m)][taps].
constexpr double kWinogradG2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

namespace winograd {
constexpr double kA2 = kWinogradA * kWinogradA, kB2 = kWinogradB * kWinogradB;
constexpr double kGa = 1 / (2 * kA2 * (kA2 - kB2)), kGb = 1 / (2 * kB2 * (kB2 - kA2));
constexpr double kGaA = kGa * kWinogradA, kGbB = kGb * kWinogradB;
}  // namespace winograd

constexpr double kWinogradG4[6][3] = {
    {1 / (winograd::kA2 * winograd::kB2), 0, 0},
    {winograd::kGa, winograd::kGaA, winograd::kGa * winograd::kA2},
    {winograd::kGa, -winograd::kGaA, winograd::kGa * winograd::kA2},
    {winograd::kGb, winograd::kGbB, winograd::kGb * winograd::kB2},
    {winograd::kGb, -winograd::kGbB, winograd::kGb * winograd::kB2},
    {0, 0, 1}};

constexpr double kWinogradG3[6][4] = {
    {1 / (winograd::kA2 * winograd::kB2), 0, 0, 0},
    {winograd::kGa, winograd::kGaA, winograd::kGa * winograd::kA2, winograd::kGaA * winograd::kA2},
    {winograd::kGa, -winograd::kGaA, winograd::kGa * winograd::kA2,
     -winograd::kGaA * winograd::kA2},
    {winograd::kGb, winograd::kGbB, winograd::kGb * winograd::kB2, winograd::kGbB * winograd::kB2},
    {winograd::kGb, -winograd::kGbB, winograd::kGb * winograd::kB2,
     -winograd::kGbB * winograd::kB2},
    {0, 0, 0, 1}};

}  // namespace ddi
