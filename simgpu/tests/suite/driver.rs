//! Memory, streams, events and graphs through `cudarc`.

use super::{Rig, config};
use cudarc::driver::{CudaContext, PushKernelArg, sys};

const SCALE: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry scale(.param .u64 x, .param .f32 by, .param .u32 n) {
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [x];
    ld.param.f32 %f1, [by];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.u32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 ret;
    mul.wide.u32 %rd2, %r5, 4;
    add.u64 %rd3, %rd1, %rd2;
    ld.global.f32 %f2, [%rd3];
    mul.f32 %f3, %f2, %f1;
    st.global.f32 [%rd3], %f3;
    ret;
}";

#[test]
fn copies_and_fills() {
    let gpu = mdl_simgpu::open().unwrap();
    assert!(gpu.path().exists());
    let ctx = CudaContext::new(0).unwrap();
    assert_eq!(ctx.name().unwrap(), "MDL simulated GPU");
    let stream = ctx.new_stream().unwrap();
    let x: Vec<u32> = (0..1000).collect();
    let a = stream.clone_htod(&x).unwrap();
    let mut b = stream.alloc_zeros::<u32>(1000).unwrap();
    assert_eq!(stream.clone_dtoh(&b).unwrap(), vec![0; 1000]);
    stream.memcpy_dtod(&a.slice(500..1000), &mut b.slice_mut(0..500)).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(stream.clone_dtoh(&b).unwrap()[..500], x[500..]);
}

#[test]
fn memory_is_counted_and_ends() {
    let gpu = mdl_simgpu::open().unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let (free, total) = ctx.mem_get_info().unwrap();
    assert!(free <= total && total == 16 << 30);
    // More than all the memory, whatever other tests hold.
    let error = stream.alloc_zeros::<u8>((16 << 30) + 1).unwrap_err();
    assert_eq!(error.0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(gpu);
}

#[test]
fn fresh_memory_is_no_number() {
    let rig = Rig::new(SCALE);
    // SAFETY: reading what was never written is the point.
    let x = unsafe { rig.stream.alloc::<f32>(10) }.unwrap();
    assert!(rig.stream.clone_dtoh(&x).unwrap().iter().all(|v| v.is_nan()));
}

#[test]
fn a_graph_is_recorded_and_replayed() {
    let rig = Rig::new(SCALE);
    let f = rig.f("scale");
    let stream = rig.stream.context().new_stream().unwrap();
    let x: Vec<f32> = (0..100).map(|k| k as f32).collect();
    let mut dx = stream.clone_htod(&x).unwrap();
    let (by, n) = (2f32, 100u32);
    stream.synchronize().unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    for _ in 0..2 {
        let mut call = stream.launch_builder(&f);
        call.arg(&mut dx).arg(&by).arg(&n);
        rig.go(&mut call, config(4, 32, 0));
    }
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    // Nothing ran while it was recorded.
    assert_eq!(stream.clone_dtoh(&dx).unwrap(), x);
    for times in 1..=3 {
        graph.launch().unwrap();
        let want: Vec<f32> = x.iter().map(|v| v * 4f32.powi(times)).collect();
        assert_eq!(stream.clone_dtoh(&dx).unwrap(), want);
    }
}

#[test]
fn waiting_breaks_a_capture() {
    let rig = Rig::new(SCALE);
    let stream = rig.stream.context().new_stream().unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    assert!(stream.synchronize().is_err());
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    assert!(stream.end_capture(flags).is_err());
}

#[test]
fn a_second_stream_joins_a_capture() {
    let rig = Rig::new(SCALE);
    let f = rig.f("scale");
    let ctx = rig.stream.context();
    let (first, second) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
    let mut dx = first.clone_htod(&[1f32; 32]).unwrap();
    let (by, n) = (3f32, 32u32);
    first.synchronize().unwrap();
    // SAFETY: one stream waits for the other by hand below.
    unsafe { ctx.disable_event_tracking() };
    first.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    second.join(&first).unwrap();
    let mut call = second.launch_builder(&f);
    call.arg(&mut dx).arg(&by).arg(&n);
    rig.go(&mut call, config(1, 32, 0));
    first.join(&second).unwrap();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = first.end_capture(flags).unwrap().unwrap();
    assert_eq!(first.clone_dtoh(&dx).unwrap(), [1.0; 32]);
    graph.launch().unwrap();
    assert_eq!(first.clone_dtoh(&dx).unwrap(), [3.0; 32]);
}

#[test]
fn ptx_that_is_refused() {
    let unknown = SCALE.replace("mul.f32", "mul.f33");
    assert!(
        Rig::refusal(&unknown).contains("PTX line 22: opcode `mul.f33` is not known"),
        "{}",
        Rig::refusal(&unknown)
    );
    assert!(Rig::refusal(&SCALE.replace(".version 8.0", ".version 9.5")).contains("newer than this driver"));
    assert!(Rig::refusal(&SCALE.replace("sm_80", "sm_100")).contains("capability 9.0"));
    assert!(Rig::refusal(&SCALE.replace("%f3, %f2", "%f3, %r2x")).contains("`%r2x` is not known here"));
    assert!(Rig::refusal("\x7fELF machine code").contains("takes PTX"));
    assert!(Rig::refusal(".version 8.0\n.target sm_80\n.entry x() {").contains("does not end"));
}
