//! The functions that kernels call: a program begins with those that it needs.

/// A name that kernels use, and the text that defines it. What a text uses is above it.
const PIECES: &[(&[&str], &str)] = &[
    (&["INFINITY", "NAN"], "#define INFINITY __int_as_float(0x7f800000)\n#define NAN __int_as_float(0x7fffffff)\n"),
    (
        &["bf16", "to_bf16"],
        r#"
// Numbers of 16 bits are only stored: all arithmetic is in float.
struct bf16 {
    unsigned short bits;
};
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
"#,
    ),
    (
        &["f16", "to_f16"],
        r#"
struct f16 {
    unsigned short bits;
};
__device__ inline float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ inline f16 to_f16(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
"#,
    ),
    (
        &["to_i32"],
        r#"
// To integers: toward zero, as far as they go; NaN is 0.
__device__ inline int to_i32(float x) { return x == x ? __float2int_rz(x) : 0; }
__device__ inline int to_i32(double x) { return x == x ? __double2int_rz(x) : 0; }
"#,
    ),
    (
        &["to_i64"],
        r#"
__device__ inline long long to_i64(float x) { return x == x ? __float2ll_rz(x) : 0; }
__device__ inline long long to_i64(double x) { return x == x ? __double2ll_rz(x) : 0; }
"#,
    ),
    (
        &["wrap_add", "wrap_sub", "wrap_mul"],
        r#"
// Integers wrap.
__device__ inline int wrap_add(int x, int y) { return (int)((unsigned)x + (unsigned)y); }
__device__ inline int wrap_sub(int x, int y) { return (int)((unsigned)x - (unsigned)y); }
__device__ inline int wrap_mul(int x, int y) { return (int)((unsigned)x * (unsigned)y); }
typedef unsigned long long wide;
__device__ inline long long wrap_add(long long x, long long y) { return (long long)((wide)x + (wide)y); }
__device__ inline long long wrap_sub(long long x, long long y) { return (long long)((wide)x - (wide)y); }
__device__ inline long long wrap_mul(long long x, long long y) { return (long long)((wide)x * (wide)y); }
"#,
    ),
    (
        &["floor_div", "floor_rem"],
        r#"
// Toward minus infinity; what is divided by 0 is 0.
template <class X, class Y> __device__ inline auto floor_div(X x, Y y) -> decltype(x + y) {
    typedef decltype(x + y) T;
    if (y == 0) return 0;
    if (y == -1) return wrap_sub((T)0, (T)x);
    const T quotient = x / y;
    return x % y != 0 && (x < 0) != (y < 0) ? quotient - 1 : quotient;
}
"#,
    ),
    (
        &["floor_rem"],
        r#"
// With the sign of the divisor.
template <class X, class Y> __device__ inline auto floor_rem(X x, Y y) -> decltype(x + y) {
    typedef decltype(x + y) T;
    return y == 0 ? 0 : wrap_sub((T)x, wrap_mul(floor_div(x, y), (T)y));
}
__device__ inline float floor_rem(float x, float y) { return x - floorf(x / y) * y; }
__device__ inline double floor_rem(double x, double y) { return x - floor(x / y) * y; }
"#,
    ),
    (
        &["max_nan", "Max"],
        r#"
// NaN when either is.
template <class T> __device__ inline T max_nan(T x, T y) { return x > y || x != x ? x : y; }
"#,
    ),
    (
        &["uniform"],
        r#"
// Philox4x32-10: word `counter % 4` of the block for (seed, step) and (counter / 4, lane, place, 0), of which the upper 24 bits
// make a fraction.
__device__ inline float uniform(unsigned seed, unsigned step, unsigned lane, unsigned place, unsigned counter) {
    unsigned k0 = seed, k1 = step, c0 = counter >> 2, c1 = lane, c2 = place, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned low0 = 0xd2511f53u * c0, high0 = __umulhi(0xd2511f53u, c0);
        const unsigned low1 = 0xcd9e8d57u * c2, high1 = __umulhi(0xcd9e8d57u, c2);
        c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
    const unsigned word = counter & 2 ? (counter & 1 ? c3 : c2) : (counter & 1 ? c1 : c0);
    return (float)(word >> 8) * 0x1p-24f;
}
"#,
    ),
    (
        &["Sum"],
        r#"
struct Sum {
    template <class T> static __device__ T join(T x, T y) { return x + y; }
    static __device__ int join(int x, int y) { return wrap_add(x, y); }
    static __device__ long long join(long long x, long long y) { return wrap_add(x, y); }
};
"#,
    ),
    (
        &["Max"],
        r#"
struct Max {
    template <class T> static __device__ T join(T x, T y) { return max_nan(x, y); }
};
"#,
    ),
    (
        &["copy_ahead", "end_of_copies", "wait_for_copies"],
        r#"
// Copies 16 bytes, or zeros, into shared memory while the kernel goes on; groups of copies are waited for in order, but for the last N.
__device__ inline void copy_ahead(void* to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
                 : "memory");
}
__device__ inline void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ inline void wait_for_copies() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
"#,
    ),
    (
        &["load_matrices", "load_turned"],
        r#"
// Four matrices of 8 by 8 numbers of 16 bits: each lane names one row of one. Turned, rows become columns.
__device__ inline void load_matrices(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}
__device__ inline void load_turned(unsigned (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}
"#,
    ),
    (
        &["pack_bf16"],
        r#"
__device__ inline unsigned pack_bf16(float low, float high) { return to_bf16(low).bits | (unsigned)to_bf16(high).bits << 16; }
"#,
    ),
    (
        &["pack_f16"],
        r#"
__device__ inline unsigned pack_f16(float low, float high) { return to_f16(low).bits | (unsigned)to_f16(high).bits << 16; }
"#,
    ),
    (
        &["multiply_bf16"],
        r#"
// Adds a product of 16 by 16 and 16 by 8 numbers to the sums of a warp.
__device__ inline void multiply_bf16(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
"#,
    ),
    (
        &["multiply_f16"],
        r#"
__device__ inline void multiply_f16(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
"#,
    ),
    (
        &["over_lanes", "over_warp", "over_block"],
        r#"
// Joins the numbers of N neighbouring lanes; all of them get the result, by the same tree.
template <class Fold, int N, class T> __device__ inline T over_lanes(T x) {
#pragma unroll
    for (int apart = N / 2; apart > 0; apart /= 2) x = Fold::join(x, __shfl_xor_sync(0xffffffffu, x, apart));
    return x;
}
"#,
    ),
    (
        &["over_block"],
        r#"
// Joins the numbers of all threads of a block of WARPS warps; all of them get the result.
template <class Fold, int WARPS, class T> __device__ inline T over_block(T x) {
    __shared__ T slots[WARPS];
    x = over_lanes<Fold, 32>(x);
    __syncthreads(); // What was joined before is read.
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
    __syncthreads();
    T all = slots[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) all = Fold::join(all, slots[warp]);
    return all;
}
"#,
    ),
];

const HEADER: &str = "\
// Made by mdlc. Compiled by NVRTC without any header. `k3_…` is kernel 3 of the plan; `b0` are its buffers, `d0` the position
// along a dimension, `v0` its values.
";

/// Kernels with what they call above them.
pub(super) fn with(kernels: &str) -> String {
    // From the last to the first, so that what a piece itself uses is found.
    let mut pieces = String::new();
    for (names, piece) in PIECES.iter().rev() {
        if names.iter().any(|name| uses(kernels, name) || uses(&pieces, name)) {
            pieces.insert_str(0, piece);
        }
    }
    format!("{HEADER}{pieces}{kernels}")
}

/// Whether a text has this word.
fn uses(text: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !is_part(text[..at].chars().next_back()) && !is_part(text[at + word.len()..].chars().next()))
}
