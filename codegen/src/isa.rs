//! Which instructions the machine has, found at run time.

use std::fmt;

/// An instruction set that routines are compiled for, from the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What every machine of this architecture has: SSE2 on x86-64, NEON on AArch64.
    Baseline,
    Avx2,
    Avx512,
    /// Products of `bf16` in tiles, all else as in AVX-512.
    Amx,
}

impl Isa {
    /// The best of this machine.
    pub fn detect() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa::Baseline)
    }

    /// Every one that this machine has, from the weakest.
    pub fn available() -> Vec<Isa> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "nothing is added on other machines"))]
        let mut found = vec![Isa::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512cd");
            if avx2 {
                found.push(Isa::Avx2);
            }
            if avx2 && avx512 {
                found.push(Isa::Avx512);
                if amx::is_usable() {
                    found.push(Isa::Amx);
                }
            }
        }
        found
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Baseline => "baseline",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        })
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    /// `ARCH_REQ_XCOMP_PERM`, and the state of tile registers, which a process has to ask for.
    const ASK: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;

    /// Whether the processor has tiles of `bf16` as products are compiled for, and the system lets this process use them. It
    /// is asked once: threads that start later have the permission too.
    pub(super) fn is_usable() -> bool {
        static USABLE: OnceLock<bool> = OnceLock::new();
        // SAFETY: the call asks for permission and changes nothing else.
        *USABLE.get_or_init(|| has_tiles() && unsafe { libc::syscall(libc::SYS_arch_prctl, ASK, TILE_DATA) } == 0)
    }

    fn has_tiles() -> bool {
        let leaf = |leaf, sub| __cpuid_count(leaf, sub);
        if leaf(0, 0).eax < 0x1d
            || leaf(7, 0).edx >> 22 & 1 == 0
            || leaf(7, 0).edx >> 24 & 1 == 0
            || leaf(0x1d, 0).eax < 1
        {
            return false;
        }
        // Palette 1: bytes of a tile, of a row; names and rows.
        let palette = leaf(0x1d, 1);
        let (tile, row, names, rows) =
            (palette.eax >> 16, palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
        tile >= 1024 && row >= 64 && names >= 8 && rows >= 16
    }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
mod amx {
    pub(super) fn is_usable() -> bool {
        false
    }
}
