//! The instructions: configuration, and the product of two panels.
//!
//! Six instructions of AMX are used, all of palette 1: `ldtilecfg`, `tilezero`, `tileloadd`, `tdpbf16ps`, `tilestored` and
//! `tilerelease`. `tests/common/amx.rs` carries them out on machines that lack them.

use std::arch::asm;

use super::super::micro::Tile;
use super::{TILE, TILE_NUMBERS};

/// All eight tiles have 16 rows of 64 bytes.
#[repr(align(64))]
struct Config([u8; 64]);

static CONFIG: Config = Config::whole_tiles();

impl Config {
    const fn whole_tiles() -> Config {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut tile = 0;
        while tile < 8 {
            bytes[16 + 2 * tile] = 64;
            bytes[48 + tile] = TILE as u8;
            tile += 1;
        }
        Config(bytes)
    }
}

/// Gives this thread tiles.
///
/// # Safety
/// The machine has them and the system lets this process use them.
pub(in crate::contract) unsafe fn configure() {
    // SAFETY: the caller's promise; the configuration is 64 bytes.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            config = in(reg) CONFIG.0.as_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, readonly),
        );
    }
}

/// Gives them back: a thread without tiles is switched faster.
///
/// # Safety
/// As for `configure`.
pub(in crate::contract) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilerelease",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

/// Sums in tiles 0 to 3, A in 4 and 5, B in 6 and 7. A panel's tiles follow one another: two for each chunk.
macro_rules! tiles {
    ([$a:ident $b:ident $chunks:ident $to:ident $length:ident $more:ident $($below:ident)?]
     zero: $($zero:literal)*; load: $($load:literal)*; step: $($step:literal)*; store: $($store:literal)*) => {
        asm!(
            "test {more}, {more}",
            "jnz 2f",
            $($zero,)*
            "jmp 3f",
            "2:",
            $($load,)*
            "3:",
            $($step,)*
            "add {a}, {pair}",
            "add {b}, {pair}",
            "dec {chunks}",
            "jnz 3b",
            $($store,)*
            a = inout(reg) $a => _,
            b = inout(reg) $b => _,
            chunks = inout(reg) $chunks => _,
            to = in(reg) $to,
            length = in(reg) $length,
            $(below = in(reg) $below,)?
            more = in(reg) $more,
            row = in(reg) 64usize,
            pair = const 2 * 4 * TILE_NUMBERS,
            tile = const 4 * TILE_NUMBERS,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// One or two tiles of rows by one or two of columns, over `chunks` pairs of tiles, at least one.
///
/// # Safety
/// The panels have so many, the product as many whole tiles; this thread is configured.
pub(super) unsafe fn product(tall: bool, wide: bool, chunks: usize, a: *const u8, b: *const u8, tile: Tile) {
    let to = tile.to;
    let length = tile.length * 4;
    let below = to.wrapping_add(TILE * tile.length);
    let more = usize::from(tile.more);
    // SAFETY: the caller's promise.
    unsafe {
        match (tall, wide) {
            (true, true) => tiles!(
                [a b chunks to length more below]
                zero: "tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3";
                load: "tileloadd tmm0, [{to} + {length}]" "tileloadd tmm1, [{to} + {length} + 64]"
                    "tileloadd tmm2, [{below} + {length}]" "tileloadd tmm3, [{below} + {length} + 64]";
                step: "tileloadd tmm6, [{b} + {row}]" "tileloadd tmm4, [{a} + {row}]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {row} + {tile}]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm5, [{a} + {row} + {tile}]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7";
                store: "tilestored [{to} + {length}], tmm0" "tilestored [{to} + {length} + 64], tmm1"
                    "tilestored [{below} + {length}], tmm2" "tilestored [{below} + {length} + 64], tmm3"
            ),
            (true, false) => tiles!(
                [a b chunks to length more below]
                zero: "tilezero tmm0" "tilezero tmm2";
                load: "tileloadd tmm0, [{to} + {length}]" "tileloadd tmm2, [{below} + {length}]";
                step: "tileloadd tmm6, [{b} + {row}]" "tileloadd tmm4, [{a} + {row}]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm5, [{a} + {row} + {tile}]"
                    "tdpbf16ps tmm2, tmm5, tmm6";
                store: "tilestored [{to} + {length}], tmm0" "tilestored [{below} + {length}], tmm2"
            ),
            (false, true) => tiles!(
                [a b chunks to length more]
                zero: "tilezero tmm0" "tilezero tmm1";
                load: "tileloadd tmm0, [{to} + {length}]" "tileloadd tmm1, [{to} + {length} + 64]";
                step: "tileloadd tmm6, [{b} + {row}]" "tileloadd tmm4, [{a} + {row}]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {row} + {tile}]"
                    "tdpbf16ps tmm1, tmm4, tmm7";
                store: "tilestored [{to} + {length}], tmm0" "tilestored [{to} + {length} + 64], tmm1"
            ),
            (false, false) => tiles!(
                [a b chunks to length more]
                zero: "tilezero tmm0";
                load: "tileloadd tmm0, [{to} + {length}]";
                step: "tileloadd tmm6, [{b} + {row}]" "tileloadd tmm4, [{a} + {row}]"
                    "tdpbf16ps tmm0, tmm4, tmm6" "/* {tile} */";
                store: "tilestored [{to} + {length}], tmm0"
            ),
        }
    }
}
