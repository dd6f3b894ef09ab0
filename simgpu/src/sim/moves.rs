//! Packing registers into wider ones, taking them apart, and addresses between spaces.

use super::memory::{self, Where, space_of};
use super::{Block, Instr, LANES, Warp, map1};

fn words(w: &mut Warp, slot: u32) -> [u32; LANES] {
    *w.get::<u32>(slot)
}

/// `d = {list…}`: pieces of 16 bits (`x` = 16) or 32 into a word or a long.
pub(crate) fn pack_word(w: &mut Warp, _: &mut Block<'_>, i: &Instr) {
    let (low, high) = (words(w, i.list[0]), words(w, i.list[1]));
    let out: [u32; LANES] = std::array::from_fn(|k| high[k] << 16 | low[k] & 0xffff);
    w.put(i.d, &out);
}

pub(crate) fn pack_long(w: &mut Warp, _: &mut Block<'_>, i: &Instr) {
    let mut out = [0u64; LANES];
    for (n, &slot) in i.list.iter().enumerate() {
        let piece = words(w, slot);
        for k in 0..LANES {
            let bits = if i.x == 16 { piece[k] & 0xffff } else { piece[k] };
            out[k] |= u64::from(bits) << (i.x as usize * n);
        }
    }
    w.put(i.d, &out);
}

pub(crate) fn unpack_word(w: &mut Warp, _: &mut Block<'_>, i: &Instr) {
    let from = words(w, i.s[0]);
    for (n, &slot) in i.list.iter().enumerate() {
        if slot != super::NONE {
            let out: [u32; LANES] = std::array::from_fn(|k| from[k] >> (16 * n) & 0xffff);
            w.put(slot, &out);
        }
    }
}

pub(crate) fn unpack_long(w: &mut Warp, _: &mut Block<'_>, i: &Instr) {
    let from = *w.get::<u64>(i.s[0]);
    for (n, &slot) in i.list.iter().enumerate() {
        if slot != super::NONE {
            let out: [u32; LANES] = std::array::from_fn(|k| {
                let piece = super::alu::low(from[k] >> (i.x as usize * n));
                if i.x == 16 { piece & 0xffff } else { piece }
            });
            w.put(slot, &out);
        }
    }
}

/// An address moved to another window: `offset` is added.
pub(crate) fn rebase(w: &mut Warp, _: &mut Block<'_>, i: &Instr) {
    map1(w, i, |a: u64| a.wrapping_add(i.offset.cast_unsigned()));
}

/// Whether a generic address lies in the space that `x` names.
pub(crate) fn is_space(w: &mut Warp, _: &mut Block<'_>, i: &Instr) {
    let wanted = [Where::Global, Where::Shared, Where::Local, Where::Param][i.x as usize & 3];
    let from = *w.get::<u64>(i.s[0]);
    let bits = from.iter().enumerate().fold(0, |bits, (k, &a)| bits | u32::from(space_of(a).0 == wanted) << k);
    w.put_pred(i.d, bits);
}

/// Where a space's window begins.
pub(crate) fn window(space: &str) -> Option<u64> {
    Some(match space {
        "global" | "const" => 0,
        "shared" | "shared::cta" => memory::SHARED_WINDOW,
        "local" => memory::LOCAL_WINDOW,
        "param" => memory::PARAM_WINDOW,
        _ => return None,
    })
}
