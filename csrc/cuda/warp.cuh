// The instructions of a warp that C++ has no words for: matrix fragments from shared memory, their
// product on tensor cores, votes, and copies to shared memory: in bulk, which a barrier there waits
// for, or of 16 bytes a thread. Fragments are those of mma.m16n8k16 on bfloat16 and float16. Under
// DDI_EMULATE the tests' own version takes their place, so that kernels run, and are checked,
// without a GPU.
#pragma once

#include <cstdint>

#ifdef DDI_EMULATE
#include "emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace ddi {

// The dynamic shared memory of a block, aligned for bulk copies.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

__device__ __forceinline__ void sync_threads() { __syncthreads(); }

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8x8 matrices of 16-bit elements: lanes 8i to 8i + 7 give the rows of matrix i, and every
// lane gets two neighbours of row lane / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// acc[16 x 8] += a[16 x 16] * b[16 x 8].
__device__ __forceinline__ void multiply(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_f16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two bfloat16 in a word, the first one low.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float from_f16(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ uint16_t to_f16(float value) {
  return __half_as_ushort(__float2half_rn(value));
}

// A bit for each lane of the warp.
__device__ __forceinline__ unsigned vote_warp(bool bit) { return __ballot_sync(0xffffffffu, bit); }

__device__ __forceinline__ int count_bits(unsigned bits) { return __popc(bits); }

// For how many threads of the block it holds; all wait for each other.
__device__ __forceinline__ int count_threads(bool bit) { return __syncthreads_count(bit); }

// A thread starts a copy of 16 bytes to shared memory, or, not `real`, of zeros. What it started
// since the last `commit_pieces` becomes a batch; `wait_pieces` leaves its last LEFT batches under
// way. Cached close by: the taps of a filter read the same pixels.
__device__ __forceinline__ void start_piece(void* to, const void* from, bool real) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(real ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_pieces() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int LEFT>
__device__ __forceinline__ void wait_pieces() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// One thread prepares a barrier for everyone's use, behind the next sync_threads.
__device__ __forceinline__ void init_barrier(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One thread starts a copy to shared memory, of a multiple of 16 bytes; `wait_copy` ends it.
__device__ __forceinline__ void start_copy(void* to, const void* from, uint32_t bytes,
                                           uint64_t* barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// All threads; `parity` is that of the barrier's copies so far, 0 for the first.
__device__ __forceinline__ void wait_copy(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

}  // namespace ddi
#endif
