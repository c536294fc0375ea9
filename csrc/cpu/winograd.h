// Winograd's minimal filtering F(m x m, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2016): m x m outputs from (m + 2)^2 products a pair of channels, where the sum
// over taps takes 9 m^2: 2.25 times fewer for m = 2, 4 times for m = 4. A tile of inputs d, a
// kernel g and a tile of outputs y are related by
//   y = A^T ((G g G^T) * (B^T d B)) A,
// product * by position and summed over input channels, which makes every position a matrix
// product.
//
// Wide convolutions are left out: reading the larger weights takes what fewer products save, and
// the more channels are summed, the more digits F(4 x 4) loses.
//
// Points: 0, 1, -1 and infinity for m = 2; 0, +-5/8, +-3/2 and infinity for m = 4, where the
// textbook's 1 and 2 would lose four times as many digits. All of A and B is exact in binary.
#pragma once

#include <cstdint>

namespace ddi {

constexpr int64_t winograd_positions(int m) { return (m + 2) * (m + 2); }

// Whether a convolution of so many channels has weights transformed for F(m x m, 3 x 3).
constexpr bool has_winograd(int m, int64_t co, int64_t ci) {
  const int64_t most = m == 4 ? 128 : 256;
  return co <= most && ci <= most;
}

constexpr double kWinogradA = 0.625, kWinogradB = 1.5;  // points of m = 4

// G, [m + 2][3].
constexpr double kWinogradG2[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};

namespace winograd {
constexpr double kA2 = kWinogradA * kWinogradA, kB2 = kWinogradB * kWinogradB;
constexpr double kGa = 1 / (2 * kA2 * (kA2 - kB2)), kGb = 1 / (2 * kB2 * (kB2 - kA2));
}  // namespace winograd

constexpr double kWinogradG4[6][3] = {
    {1 / (winograd::kA2 * winograd::kB2), 0, 0},
    {winograd::kGa, winograd::kGa * kWinogradA, winograd::kGa * winograd::kA2},
    {winograd::kGa, -winograd::kGa * kWinogradA, winograd::kGa * winograd::kA2},
    {winograd::kGb, winograd::kGb * kWinogradB, winograd::kGb * winograd::kB2},
    {winograd::kGb, -winograd::kGb * kWinogradB, winograd::kGb * winograd::kB2},
    {0, 0, 1}};

}  // namespace ddi
