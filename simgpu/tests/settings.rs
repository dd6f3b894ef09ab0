//! What the environment sets: four small devices of an older generation. One test, since the library reads it once.

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

const ADD: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 x, .param .u64 sum) {
    .reg .b32 %r<3>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [sum];
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    ld.global.u32 %r2, [%rd3];
    red.global.add.u32 [%rd2], %r2;
    ret;
}";

#[test]
fn four_small_devices() {
    for (name, value) in [("MDLC_SIMGPU_DEVICES", "4"), ("MDLC_SIMGPU_MEMORY", "65536"), ("MDLC_SIMGPU_CC", "8.0")] {
        // SAFETY: this program's only test, before it has other threads that look.
        unsafe { std::env::set_var(name, value) };
    }
    let gpu = mdl_simgpu::open().unwrap();
    assert_eq!(CudaContext::device_count().unwrap(), 4);
    assert!(CudaContext::new(4).is_err());

    let mut sums = Vec::new();
    for device in 0..4u32 {
        let ctx = CudaContext::new(device as usize).unwrap();
        assert_eq!(ctx.compute_capability().unwrap(), (8, 0));
        assert_eq!(ctx.mem_get_info().unwrap(), (65_536, 65_536));
        let stream = ctx.default_stream();
        let f = ctx.load_module(Ptx::from_src(ADD)).unwrap().load_function("add").unwrap();
        let x = stream.clone_htod(&(0..32).map(|k| k * (device + 1)).collect::<Vec<u32>>()).unwrap();
        let mut sum = stream.alloc_zeros::<u32>(1).unwrap();
        let mut call = stream.launch_builder(&f);
        call.arg(&x).arg(&mut sum);
        let launch = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are the kernel's.
        unsafe { call.launch(launch) }.unwrap_or_else(|e| panic!("{e}: {}", gpu.last_fault()));
        sums.push((ctx, stream, sum));
    }
    for (device, (_, stream, sum)) in (1..).zip(&sums) {
        assert_eq!(stream.clone_dtoh(sum).unwrap(), [496 * device]);
    }

    // From one device to another.
    let far = sums[3].1.clone_htod(&[7u32; 100]).unwrap();
    let mut near = sums[0].1.alloc_zeros::<u32>(100).unwrap();
    sums[0].1.memcpy_dtod(&far, &mut near).unwrap();
    assert_eq!(sums[0].1.clone_dtoh(&near).unwrap(), [7; 100]);

    // Memory ends, and comes back.
    let (ctx, stream, _) = &sums[1];
    let before = ctx.mem_get_info().unwrap().0;
    let held = stream.alloc_zeros::<u8>(40_000).unwrap();
    assert_eq!(stream.alloc_zeros::<u8>(40_000).unwrap_err().0, sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(held);
    stream.synchronize().unwrap();
    assert_eq!(ctx.mem_get_info().unwrap().0, before);

    // Another amount of memory, as on another card.
    gpu.set_memory(1, 1 << 20);
    assert_eq!(ctx.mem_get_info().unwrap().1, 1 << 20);

    // What is for a newer generation does not load.
    assert!(ctx.load_module(Ptx::from_src(ADD.replace("sm_80", "sm_90"))).is_err());
    assert!(gpu.last_fault().contains("capability 8.0"), "{}", gpu.last_fault());
}
