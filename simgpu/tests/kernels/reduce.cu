// Sums of a vector: by shuffles and shared memory, then either atomically or by the last block, which needs fences.
extern "C" __global__ void sum_atomic(const float* __restrict__ x, float* out, int n) {
  __shared__ float part[8];
  float s = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
  for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = s;
  __syncthreads();
  if (threadIdx.x < 32) {
    s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
    for (int o = 4; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
    if (threadIdx.x == 0) atomicAdd(out, s);
  }
}
extern "C" __global__ void sum_last(const float* __restrict__ x, float* out, float* parts, unsigned* count, int n, int fence) {
  __shared__ float part[8];
  __shared__ bool last;
  float s = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) s += x[i];
  for (int o = 16; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = s;
  __syncthreads();
  if (threadIdx.x == 0) {
    s = 0;
    for (int i = 0; i < blockDim.x / 32; i++) s += part[i];
    parts[blockIdx.x] = s;
    if (fence) __threadfence();
    last = atomicAdd(count, 1u) == gridDim.x - 1;
    if (fence) __threadfence();
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    s = 0;
    for (int i = 0; i < gridDim.x; i++) s += parts[i];
    *out = s;
  }
}
// All blocks write the same word.
extern "C" __global__ void clash(int* out) { if (threadIdx.x == 0) out[1] = blockIdx.x; }
extern "C" __global__ void beyond(float* out, int n) { out[blockIdx.x * blockDim.x + threadIdx.x + n] = 1; }
extern "C" __global__ void crooked(char* out) { *(float4*)(out + 4) = float4{1, 2, 3, 4}; }
extern "C" __global__ void reverse(float* x, int sync) {
  extern __shared__ float s[];
  s[threadIdx.x] = x[threadIdx.x];
  if (sync) __syncthreads();
  x[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void neighbours(float* x, int sync) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  if (sync) __syncwarp();
  x[threadIdx.x] = s[threadIdx.x ^ 1];
}
extern "C" __global__ void holes(float* x) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = s[2 * threadIdx.x];
}
extern "C" __global__ void split(float* x) {
  if (threadIdx.x & 1) x[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 2);
}
extern "C" __global__ void half_barrier(float* x) {
  if (threadIdx.x < 16) { x[0] = 1; __syncthreads(); x[1] = 1; }
}
extern "C" __global__ void early_exit(float* x) {
  if (threadIdx.x >= 32) return;
  __syncthreads();
  x[threadIdx.x] = 1;
}
extern "C" __global__ void forever(volatile int* x) { while (x[0] == 0) {} }
