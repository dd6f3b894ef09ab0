#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" __global__ void softmax(const float* __restrict__ x, float* __restrict__ y, int n) {
  __shared__ float part[32];
  int row = blockIdx.x; const float* xr = x + (size_t)row*n;
  float m = __int_as_float(0xff800000);
  for (int i = threadIdx.x; i < n; i += blockDim.x) m = fmaxf(m, xr[i]);
  for (int o=16;o;o>>=1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, o));
  if ((threadIdx.x&31)==0) part[threadIdx.x>>5]=m;
  __syncthreads();
  m = part[0]; for (int i=1;i<blockDim.x/32;i++) m=fmaxf(m,part[i]);
  __syncthreads();
  float s=0; for (int i = threadIdx.x; i < n; i += blockDim.x) s += expf(xr[i]-m);
  for (int o=16;o;o>>=1) s += __shfl_xor_sync(0xffffffffu, s, o);
  if ((threadIdx.x&31)==0) part[threadIdx.x>>5]=s;
  __syncthreads();
  s=0; for (int i=0;i<blockDim.x/32;i++) s+=part[i];
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[(size_t)row*n+i] = expf(xr[i]-m)/s;
}
extern "C" __global__ void sines(const float* x, float* y, int n, int op) {
  int i = blockIdx.x*blockDim.x+threadIdx.x; if (i>=n) return;
  float v=x[i], r=0;
  switch(op){case 0:r=sinf(v);break;case 1:r=cosf(v);break;case 2:r=powf(v,1.7f);break;case 3:r=logf(v);break;case 4:r=erff(v);break;case 5:r=tanhf(v);break;case 6:r=exp2f(v);break;case 7:r=log1pf(v);break;case 8:r=sqrtf(v);break;case 9:r=rsqrtf(v);break;case 10:r=1.f/v;break;case 11: r=atanf(v);break; case 12: r=__expf(v);break; case 13: r=__logf(v);break; case 14: r=floorf(v); break; case 15: r=rintf(v); break; case 16: r=fmodf(v,0.7f);break; case 17: r=(float)exp((double)v);break; case 18: r=expm1f(v);break; case 19: r=roundf(v);}
  y[i]=r;
}
extern "C" __global__ void halves(const __half* a, const __nv_bfloat16* b, __half* c, __nv_bfloat16* d, int n){
  int i = blockIdx.x*blockDim.x+threadIdx.x; if (i>=n) return;
  __half2 h=((const __half2*)a)[i]; __nv_bfloat162 g=((const __nv_bfloat162*)b)[i];
  ((__half2*)c)[i]=__hfma2(h,h,__hmul2(h,h)); ((__nv_bfloat162*)d)[i]=__hfma2(g,g,__hadd2(g,g));
  c[i]=__hmax(c[i],__float2half(1.5f)); d[i]=__hmul(d[i],__float2bfloat16(1.5f));
}
extern "C" __global__ void philox(unsigned* o, unsigned long long s, int n){
 int i = blockIdx.x*blockDim.x+threadIdx.x; if (i>=n) return;
 unsigned c0=i,c1=s,c2=s>>32,c3=7,k0=1,k1=2;
 for(int r=0;r<10;r++){unsigned h0=__umulhi(0xD2511F53u,c0),l0=0xD2511F53u*c0,h1=__umulhi(0xCD9E8D57u,c2),l1=0xCD9E8D57u*c2; c0=h1^c1^k0;c1=l1;c2=h0^c3^k1;c3=l0;k0+=0x9E3779B9;k1+=0xBB67AE85;}
 o[i]=c0^(unsigned)(s/(i+3))^(unsigned)(s%(i+5)); atomicAdd(o+n, 1u);
 if (__ballot_sync(__activemask(), c0&1)) atomicMax((int*)o+n+1,(int)c1);
}
extern "C" __global__ void atoms(float* f, double* d, __half2* h, unsigned long long* u, int* p){
  atomicAdd(f,1.f); atomicAdd(d,2.0); atomicAdd(h, __half2{__float2half(1.f),__float2half(2.f)}); atomicCAS(u,1ull,2ull); atomicExch(p,3); __threadfence();
  p[1]=__reduce_add_sync(~0u, threadIdx.x); float v[10]; for(int i=0;i<10;i++) v[i]=f[i]; p[2]=v[p[3]&7]; 
  p[4]=__shfl_down_sync(~0u,p[0],2)+__shfl_up_sync(~0u,p[0],2)+__shfl_sync(~0u,p[0],2,8);
  p[5]=__any_sync(~0u,p[0])+__all_sync(~0u,p[1])+__popc(__ballot_sync(~0u,p[2]));
  __syncwarp(); p[6]=__syncthreads_or(p[7]); p[8]=__syncthreads_count(p[7]);
}
