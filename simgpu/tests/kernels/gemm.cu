// C = A B for bf16 A [m, k] and B [k, n], f32 C: tiles of 64 x 64 x 32, two stages of cp.async, ldmatrix, mma.sync. Sizes are free:
// what lies outside is filled with zeros. WAIT and SYNC are changed by the tests that plant mistakes.
#ifndef WAIT
#define WAIT 1
#endif
#ifndef SYNC
#define SYNC __syncthreads()
#endif
typedef unsigned short u16;
__device__ __forceinline__ unsigned at(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at(to)), "l"(from), "r"(bytes));
}
extern "C" __global__ void gemm(const u16* __restrict__ a, const u16* __restrict__ b, float* __restrict__ c, int m, int n, int k) {
  extern __shared__ __align__(16) u16 shared[];
  const int A = 64 * 40, B = 32 * 72;
  u16* as = shared; u16* bs = shared + 2 * A;
  int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  int row0 = blockIdx.y * 64, col0 = blockIdx.x * 64;
  int wr = (warp >> 1) * 32, wc = (warp & 1) * 32;
  float acc[2][4][4] = {};
  auto load = [&](int stage, int k0) {
    for (int q = t; q < 256; q += 128) {
      int r = q >> 2, x = (q & 3) * 8;
      int left = (row0 + r < m) ? min(max(k - (k0 + x), 0), 8) : 0;
      copy16(as + stage * A + r * 40 + x, a + (left ? (long long)(row0 + r) * k + k0 + x : 0), left * 2);
      int br = q >> 3, bx = (q & 7) * 8;
      int bleft = (k0 + br < k) ? min(max(n - (col0 + bx), 0), 8) : 0;
      copy16(bs + stage * B + br * 72 + bx, b + (bleft ? (long long)(k0 + br) * n + col0 + bx : 0), bleft * 2);
    }
    asm volatile("cp.async.commit_group;");
  };
  load(0, 0);
  int steps = (k + 31) / 32;
  for (int s = 0; s < steps; s++) {
    load((s + 1) & 1, (s + 1) * 32);
    asm volatile("cp.async.wait_group %0;" ::"n"(WAIT));
    SYNC;
    const u16* sa = as + (s & 1) * A; const u16* sb = bs + (s & 1) * B;
#pragma unroll
    for (int kk = 0; kk < 32; kk += 16) {
      unsigned fa[2][4], fb[4][2];
      for (int i = 0; i < 2; i++)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(fa[i][0]), "=r"(fa[i][1]), "=r"(fa[i][2]), "=r"(fa[i][3])
          : "r"(at(sa + (wr + i * 16 + (lane & 15)) * 40 + kk + (lane >> 4) * 8)));
      for (int j = 0; j < 4; j++)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(fb[j][0]), "=r"(fb[j][1])
          : "r"(at(sb + (kk + (lane & 15)) * 72 + wc + j * 8)));
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
          asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
            : "r"(fa[i][0]), "r"(fa[i][1]), "r"(fa[i][2]), "r"(fa[i][3]), "r"(fb[j][0]), "r"(fb[j][1]));
    }
    SYNC;
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++) {
        int r = row0 + wr + i * 16 + (lane >> 2) + (e >> 1) * 8, x = col0 + wc + j * 8 + (lane & 3) * 2 + (e & 1);
        if (r < m && x < n) c[(long long)r * n + x] = acc[i][j][e];
      }
}
