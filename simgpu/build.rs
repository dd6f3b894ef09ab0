//! Gives the shared object the SONAME of the CUDA driver, so that a later `dlopen("libcuda.so")` is satisfied by it; the *file* keeps
//! its own name, since a file called libcuda.so beside the test binaries would shadow a real driver.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
}
