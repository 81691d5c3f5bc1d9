// D += A B of a warp on the tensor cores: A has 16 rows, B 8 columns, sums are fp32.
//
// Fragments, for lane l with g = l / 4 and t = l % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16" and "m16n8k8"):
//   d[0], d[1]: row g, columns 2t and 2t + 1;   d[2], d[3]: the same columns of row g + 8.
//   16-bit, k16: a[0] row g, k = 2t and 2t + 1;  a[1] row g + 8;  a[2], a[3] the same rows, k + 8;
//                b0 column g, k = 2t and 2t + 1;  b1 k + 8.
//   tf32, k8:    a[0] row g, k = t;  a[1] row g + 8;  a[2], a[3] the same rows, k + 4;  b0 column g, k = t;  b1 k + 4.
#pragma once

#include "cuda/primitives/numbers.h"

namespace fusednn::cuda {

#if defined(FUSEDNN_EMULATE)
namespace host {

struct MmaSlot {
  float* d;
  const u32* a;
  u32 b[2];
};

// element(a register, which) reads one of the values that a register holds; a register holds kPack of them.
template <int kPack, class Element>
void mma(const char* name, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, Element element) {
  MmaSlot slot{d, a, {b0, b1}};
  emulation::together(name, slot, [&](MmaSlot* const* all) {
    constexpr int kHalf = 4 * kPack, kDepth = 2 * kHalf;
    float left[16][kDepth], right[kDepth][8];
    for (int l = 0; l < 32; ++l) {
      for (int half = 0; half < 2; ++half) {
        for (int p = 0; p < kPack; ++p) {
          const int k = half * kHalf + l % 4 * kPack + p;
          left[l / 4][k] = element(all[l]->a[2 * half], p);
          left[l / 4 + 8][k] = element(all[l]->a[2 * half + 1], p);
          right[k][l / 4] = element(all[l]->b[half], p);
        }
      }
    }
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        float sum = all[l]->d[i];
        for (int k = 0; k < kDepth; ++k) sum += left[l / 4 + i / 2 * 8][k] * right[k][l % 4 * 2 + i % 2];
        all[l]->d[i] = sum;
      }
    }
  });
}

}  // namespace host
#endif

FUSEDNN_DEVICE void mma(BFloat16, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(FUSEDNN_EMULATE)
  host::mma<2>("mma.bf16", d, a, b0, b1, [](u32 r, int p) { return widen(BFloat16{static_cast<u16>(r >> 16 * p)}); });
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

FUSEDNN_DEVICE void mma(Float16, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(FUSEDNN_EMULATE)
  host::mma<2>("mma.f16", d, a, b0, b1, [](u32 r, int p) { return widen(Float16{static_cast<u16>(r >> 16 * p)}); });
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// fp32 to the nearest value with 10 digits, ties away from zero; the hardware ignores the other 13 bits.
FUSEDNN_DEVICE u32 to_tf32(float x) {
#if defined(FUSEDNN_EMULATE)
  const u32 bits = bits_as<u32>(x);
  if (x != x) return 0x7fffffffu;  // not its own bits: without the last 13 they may read as infinity
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & ~0x1fffu;
#else
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

FUSEDNN_DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(FUSEDNN_EMULATE)
  host::mma<1>("mma.tf32", d, a, b0, b1, [](u32 r, int) { return bits_as<float>(r & ~0x1fffu); });
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane l names row l % 8 of matrix l / 8, 16 bytes, aligned.
// Of each, lane l receives row l / 4, elements 2 (l % 4) and the next; transposed, of the transposed matrix.
template <bool kTransposed>
FUSEDNN_DEVICE void load_matrices(u32 (&r)[4], const void* row) {
#if defined(FUSEDNN_EMULATE)
  struct Slot {
    const u16* row;
    u32* r;
  } slot{static_cast<const u16*>(row), r};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::die("ldmatrix: a row is not aligned to 16 bytes");
  emulation::together("ldmatrix", slot, [](Slot* const* all) {
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int i, int j) -> u32 {
        return kTransposed ? all[8 * m + j]->row[i] : all[8 * m + i]->row[j];
      };
      for (int l = 0; l < 32; ++l) all[l]->r[m] = element(l / 4, l % 4 * 2) | element(l / 4, l % 4 * 2 + 1) << 16;
    }
  });
#else
  const u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  }
#endif
}

}  // namespace fusednn::cuda
