//! Loads and stores: addresses, bounds, alignment, and for global memory the check for races between blocks.
//!
//! Addresses are a device's: global memory lies where the driver placed it, shared and local memory and parameters are seen through
//! windows when the address is generic.

use super::launch::Alloc;
use super::shared::Who;
use super::tables::Table;
use super::{Block, Flow, Instr, LANES, NONE, Warp};
use std::sync::atomic::Ordering::Relaxed;

pub(crate) const SHARED_WINDOW: u64 = 0x0001_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x0002_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x0003_0000_0000;
const WINDOW: u64 = 0x1000_0000;
/// Where the driver's allocations begin.
pub(crate) const GLOBAL_BASE: u64 = 0x0010_0000_0000;

/// Flags of a memory instruction.
pub(crate) const SIGNED: u32 = 1;
/// The data register has 64 bits.
pub(crate) const LONG: u32 = 2;
/// The address is in a register of 32 bits.
pub(crate) const SHORT_ADDRESS: u32 = 4;
/// Volatile or relaxed and stronger: does not race with atomics.
pub(crate) const STRONG: u32 = 8;

/// What an access does, for the check between blocks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    StrongRead,
    Write,
    Atomic,
}

/// Bytes that registers hold: zero- or sign-extended on the way in, cut on the way out.
pub(crate) trait Data: Copy + Default + PartialEq {
    fn give(w: &mut Warp, slot: u32, x: u32, value: &[Self; LANES]);
    fn take(w: &mut Warp, slot: u32, x: u32) -> [Self; LANES];
}

macro_rules! data {
    ($ty:ty, $signed:ty) => {
        impl Data for $ty {
            #[inline(always)]
            fn give(w: &mut Warp, slot: u32, x: u32, value: &[Self; LANES]) {
                if slot == NONE {
                    return;
                }
                if size_of::<$ty>() == 8 || x & LONG != 0 {
                    let mut out = [0u64; LANES];
                    for k in 0..LANES {
                        out[k] = if x & SIGNED != 0 { value[k] as $signed as i64 as u64 } else { value[k] as u64 };
                    }
                    w.put(slot, &out);
                } else {
                    let mut out = [0u32; LANES];
                    for k in 0..LANES {
                        out[k] = if x & SIGNED != 0 { value[k] as $signed as i32 as u32 } else { value[k] as u32 };
                    }
                    w.put(slot, &out);
                }
            }

            #[inline(always)]
            fn take(w: &mut Warp, slot: u32, x: u32) -> [Self; LANES] {
                let mut out = [0; LANES];
                if size_of::<$ty>() == 8 || x & LONG != 0 {
                    let from = w.get::<u64>(slot);
                    for k in 0..LANES {
                        out[k] = from[k] as $ty;
                    }
                } else {
                    let from = w.get::<u32>(slot);
                    for k in 0..LANES {
                        out[k] = from[k] as $ty;
                    }
                }
                out
            }
        }
    };
}
data!(u8, i8);
data!(u16, i16);
data!(u32, i32);
data!(u64, i64);

/// The address of each lane: a register, or none, and an offset.
#[inline(always)]
pub(crate) fn addresses(w: &mut Warp, base: u32, offset: i64, short: bool) -> [u64; LANES] {
    let mut out = [offset.cast_unsigned(); LANES];
    if base == NONE {
        return out;
    }
    if short {
        let base = w.get::<u32>(base);
        for k in 0..LANES {
            // Shared addresses are 32 bits wide: a negative offset wraps there.
            out[k] = (u64::from(base[k]).wrapping_add(out[k])) & 0xffff_ffff;
        }
    } else {
        let base = w.get::<u64>(base);
        for k in 0..LANES {
            out[k] = base[k].wrapping_add(out[k]);
        }
    }
    out
}

/// Of a load or store.
#[inline(always)]
pub(crate) fn of(w: &mut Warp, i: &Instr) -> [u64; LANES] {
    addresses(w, i.s[0], i.offset, i.x & SHORT_ADDRESS != 0)
}

#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        (left != 0).then(|| {
            let k = left.trailing_zeros() as usize;
            left &= left - 1;
            k
        })
    })
}

impl Warp {
    pub(crate) fn who(&self, b: &Block<'_>, lane: usize) -> Who {
        Who { thread: self.first + lane as u32, phase: b.phase, warp_phase: self.phase }
    }
}

/// Finds the allocation that holds `len` bytes at the address; says what is wrong otherwise.
#[inline(always)]
pub(crate) fn locate(b: &mut Block<'_>, address: u64, len: u64) -> Result<(*mut u8, usize), String> {
    let allocs = b.launch.allocs;
    if let Some(a) = allocs.get(b.recent)
        && address.wrapping_sub(a.base) < a.len
        && a.len - (address - a.base) >= len
    {
        // SAFETY: the offset is within the allocation.
        return Ok((unsafe { a.host.add((address - a.base) as usize) }, b.recent));
    }
    find(b, address, len)
}

#[cold]
fn find(b: &mut Block<'_>, address: u64, len: u64) -> Result<(*mut u8, usize), String> {
    let allocs = b.launch.allocs;
    let after = allocs.partition_point(|a| a.base <= address);
    let Some(idx) = after.checked_sub(1) else {
        return Err(format!("out-of-bounds access of {len} bytes at 0x{address:x}: not in any live allocation"));
    };
    let a = &allocs[idx];
    let offset = address - a.base;
    if offset.checked_add(len).is_some_and(|end| end <= a.len) {
        b.recent = idx;
        // SAFETY: the offset is within the allocation.
        return Ok((unsafe { a.host.add(offset as usize) }, idx));
    }
    if offset < a.len.saturating_add(1 << 20) {
        return Err(format!(
            "out-of-bounds access of {len} bytes at 0x{address:x}: {} bytes past the start of an allocation of {}",
            offset, a.len
        ));
    }
    Err(format!("out-of-bounds access of {len} bytes at 0x{address:x}: not in any live allocation"))
}

/// Notes the access and says whether it races with another block's.
#[inline(always)]
pub(crate) fn touch(b: &Block<'_>, a: &Alloc, offset: u64, len: u64, kind: Kind) -> Result<(), String> {
    if !b.launch.between_blocks || a.cells.is_null() {
        return Ok(());
    }
    let shift = b.launch.kernel.global_shift;
    let me = b.launch.epoch << 40 | u64::from(b.idx) << 13;
    for idx in offset >> shift..=(offset + len - 1) >> shift {
        // SAFETY: an allocation has a cell for each granule.
        let cell = unsafe { &*a.cells.add(idx as usize) };
        let wrote = cell.wrote.load(Relaxed);
        let foreign = wrote >> 40 == b.launch.epoch && (wrote ^ me) >> 13 != 0;
        let both_atomic = wrote >> 12 & 1 != 0 && matches!(kind, Kind::Atomic | Kind::StrongRead);
        if foreign && !both_atomic && !b.launch.ordered(b, wrote) {
            return Err(race(b, a, idx << shift, kind, wrote, "wrote"));
        }
        let read = cell.read.load(Relaxed);
        let read_now = read >> 40 == b.launch.epoch;
        if matches!(kind, Kind::Read | Kind::StrongRead) {
            if !read_now {
                cell.read.store(me, Relaxed);
            } else if (read ^ me) >> 13 != 0 {
                cell.read.store(me | 1 << 12, Relaxed);
            }
            continue;
        }
        // A block that has fenced may be the last one, which cleans up after the others.
        if kind == Kind::Write && read_now && b.n_fences == 0 && (read >> 12 & 1 != 0 || (read ^ me) >> 13 != 0) {
            return Err(race(b, a, idx << shift, kind, read, "read"));
        }
        let atomic = u64::from(kind == Kind::Atomic) << 12;
        cell.wrote.store(me | atomic | u64::from(b.n_fences.min(0xfff)), Relaxed);
    }
    Ok(())
}

#[cold]
fn race(b: &Block<'_>, a: &Alloc, offset: u64, kind: Kind, other: u64, did: &str) -> String {
    let verb = match kind {
        Kind::Read | Kind::StrongRead => "reads",
        Kind::Write => "writes",
        Kind::Atomic => "atomically changes",
    };
    let [x, y, z] = b.launch.place((other >> 13 & 0x7ff_ffff) as u32);
    format!(
        "race between blocks: this block {verb} byte {offset} of an allocation of {} bytes, which block ({x},{y},{z}) {did} in the same launch",
        a.len
    )
}

#[cold]
pub(crate) fn misaligned(address: u64, bytes: usize) -> String {
    format!("misaligned access: 0x{address:x} is not a multiple of {bytes}")
}

/// Whether all 32 lanes are active and lie one after another.
#[inline(always)]
fn in_a_row(mask: u32, at: &[u64; LANES], bytes: u64) -> bool {
    if mask != !0 {
        return false;
    }
    let mut same = 0;
    for (k, &address) in at.iter().enumerate() {
        same |= address ^ at[0].wrapping_add(k as u64 * bytes);
    }
    same == 0
}

#[inline(never)]
fn load_global<T: Data, const N: usize>(w: &mut Warp, b: &mut Block<'_>, i: &Instr, at: &[u64; LANES]) {
    let bytes = size_of::<T>() * N;
    let kind = if i.x & STRONG != 0 { Kind::StrongRead } else { Kind::Read };
    let mut out = [[T::default(); LANES]; N];
    if in_a_row(w.mask, at, bytes as u64)
        && at[0] & (bytes as u64 - 1) == 0
        && let Ok((from, idx)) = locate(b, at[0], (bytes * LANES) as u64)
    {
        let a = &b.launch.allocs[idx];
        if let Err(what) = touch(b, a, at[0] - a.base, (bytes * LANES) as u64, kind) {
            return w.fail(0, what);
        }
        for k in 0..LANES {
            for (n, out) in out.iter_mut().enumerate() {
                // SAFETY: the whole row is within the allocation.
                out[k] = unsafe { from.cast::<T>().add(k * N + n).read_unaligned() };
            }
        }
    } else {
        for k in lanes(w.mask) {
            if at[k] & (bytes as u64 - 1) != 0 {
                return w.fail(k, misaligned(at[k], bytes));
            }
            let found = locate(b, at[k], bytes as u64).and_then(|(from, idx)| {
                let a = &b.launch.allocs[idx];
                touch(b, a, at[k] - a.base, bytes as u64, kind).map(|()| from)
            });
            match found {
                Ok(from) => {
                    for (n, out) in out.iter_mut().enumerate() {
                        // SAFETY: the element is within the allocation.
                        out[k] = unsafe { from.cast::<T>().add(n).read_unaligned() };
                    }
                }
                Err(what) => return w.fail(k, what),
            }
        }
    }
    for (&slot, out) in i.list.iter().zip(&out) {
        T::give(w, slot, i.x, out);
    }
}

#[inline(never)]
fn store_global<T: Data, const N: usize>(w: &mut Warp, b: &mut Block<'_>, i: &Instr, at: &[u64; LANES]) {
    let bytes = size_of::<T>() * N;
    let kind = if i.x & STRONG != 0 { Kind::Atomic } else { Kind::Write };
    let mut value = [[T::default(); LANES]; N];
    for (n, value) in value.iter_mut().enumerate() {
        *value = T::take(w, i.list[n], i.x);
    }
    if in_a_row(w.mask, at, bytes as u64)
        && at[0] & (bytes as u64 - 1) == 0
        && let Ok((to, idx)) = locate(b, at[0], (bytes * LANES) as u64)
        && b.launch.allocs[idx].writable
    {
        let a = &b.launch.allocs[idx];
        if let Err(what) = touch(b, a, at[0] - a.base, (bytes * LANES) as u64, kind) {
            return w.fail(0, what);
        }
        for k in 0..LANES {
            for (n, value) in value.iter().enumerate() {
                // SAFETY: the whole row is within the allocation.
                unsafe { to.cast::<T>().add(k * N + n).write_unaligned(value[k]) };
            }
        }
        return;
    }
    for k in lanes(w.mask) {
        if at[k] & (bytes as u64 - 1) != 0 {
            return w.fail(k, misaligned(at[k], bytes));
        }
        let found = locate(b, at[k], bytes as u64).and_then(|(to, idx)| {
            let a = &b.launch.allocs[idx];
            if !a.writable {
                return Err("write to constant memory".to_owned());
            }
            touch(b, a, at[k] - a.base, bytes as u64, kind).map(|()| to)
        });
        match found {
            Ok(to) => {
                for (n, value) in value.iter().enumerate() {
                    // SAFETY: the element is within the allocation.
                    unsafe { to.cast::<T>().add(n).write_unaligned(value[k]) };
                }
            }
            Err(what) => return w.fail(k, what),
        }
    }
}

/// Bounds and alignment in shared memory.
#[inline(always)]
pub(crate) fn in_shared(b: &Block<'_>, address: u64, bytes: usize) -> Result<usize, String> {
    let size = b.launch.shared_bytes;
    if address.checked_add(bytes as u64).is_none_or(|end| end > size as u64) {
        return Err(format!(
            "out-of-bounds access of {bytes} bytes at byte {address} of {size} bytes of shared memory"
        ));
    }
    if address & (bytes as u64 - 1) != 0 {
        return Err(format!("misaligned access: byte {address} of shared memory is not a multiple of {bytes}"));
    }
    Ok(address as usize)
}

#[inline(never)]
fn load_shared<T: Data, const N: usize>(w: &mut Warp, b: &mut Block<'_>, i: &Instr, at: &[u64; LANES]) {
    let bytes = size_of::<T>() * N;
    let mut out = [[T::default(); LANES]; N];
    for k in lanes(w.mask) {
        let who = w.who(b, k);
        match in_shared(b, at[k], bytes).and_then(|at| b.shared.before_read(at, bytes, who).map(|()| at)) {
            Ok(at) => {
                let from = b.shared.bytes[at..at + bytes].as_ptr();
                for (n, out) in out.iter_mut().enumerate() {
                    // SAFETY: the slice has these bytes.
                    out[k] = unsafe { from.cast::<T>().add(n).read_unaligned() };
                }
            }
            Err(what) => return w.fail(k, what),
        }
    }
    for (&slot, out) in i.list.iter().zip(&out) {
        T::give(w, slot, i.x, out);
    }
}

#[inline(never)]
fn store_shared<T: Data, const N: usize>(w: &mut Warp, b: &mut Block<'_>, i: &Instr, at: &[u64; LANES]) {
    let bytes = size_of::<T>() * N;
    let mut value = [[T::default(); LANES]; N];
    for (n, value) in value.iter_mut().enumerate() {
        *value = T::take(w, i.list[n], i.x);
    }
    for k in lanes(w.mask) {
        let who = w.who(b, k);
        let at = match in_shared(b, at[k], bytes) {
            Ok(at) => at,
            Err(what) => return w.fail(k, what),
        };
        let to = b.shared.bytes[at..at + bytes].as_mut_ptr();
        let mut same = true;
        for (n, value) in value.iter().enumerate() {
            // SAFETY: the slice has these bytes.
            unsafe {
                let to = to.cast::<T>().add(n);
                same &= to.read_unaligned() == value[k];
                to.write_unaligned(value[k]);
            }
        }
        if let Err(what) = b.shared.before_write(at, bytes, who, same, i.x & STRONG != 0) {
            return w.fail(k, what);
        }
    }
}

/// The bytes of one lane's local memory.
#[inline(always)]
fn in_local(w: &Warp, lane: usize, address: u64, bytes: usize) -> Result<usize, String> {
    let size = w.local_bytes;
    if address.checked_add(bytes as u64).is_none_or(|end| end > size as u64) {
        return Err(format!("out-of-bounds access of {bytes} bytes at byte {address} of {size} bytes of local memory"));
    }
    if address & (bytes as u64 - 1) != 0 {
        return Err(format!("misaligned access: byte {address} of local memory is not a multiple of {bytes}"));
    }
    Ok(lane * size + address as usize)
}

#[inline(never)]
fn load_local<T: Data, const N: usize>(w: &mut Warp, i: &Instr, at: &[u64; LANES]) {
    let bytes = size_of::<T>() * N;
    let mut out = [[T::default(); LANES]; N];
    for k in lanes(w.mask) {
        match in_local(w, k, at[k], bytes) {
            Ok(at) => {
                let from = w.local[at..at + bytes].as_ptr();
                for (n, out) in out.iter_mut().enumerate() {
                    // SAFETY: the slice has these bytes.
                    out[k] = unsafe { from.cast::<T>().add(n).read_unaligned() };
                }
            }
            Err(what) => return w.fail(k, what),
        }
    }
    for (&slot, out) in i.list.iter().zip(&out) {
        T::give(w, slot, i.x, out);
    }
}

#[inline(never)]
fn store_local<T: Data, const N: usize>(w: &mut Warp, i: &Instr, at: &[u64; LANES]) {
    let bytes = size_of::<T>() * N;
    for n in 0..N {
        let value = T::take(w, i.list[n], i.x);
        for k in lanes(w.mask) {
            match in_local(w, k, at[k], bytes) {
                Ok(at) => {
                    let to = w.local[at..at + bytes].as_mut_ptr();
                    // SAFETY: the slice has these bytes.
                    unsafe { to.cast::<T>().add(n).write_unaligned(value[k]) };
                }
                Err(what) => return w.fail(k, what),
            }
        }
    }
}

#[inline(never)]
fn load_param<T: Data, const N: usize>(w: &mut Warp, b: &mut Block<'_>, i: &Instr, at: &[u64; LANES]) {
    let bytes = size_of::<T>() * N;
    let mut out = [[T::default(); LANES]; N];
    let params = b.launch.params;
    for k in lanes(w.mask) {
        if at[k].checked_add(bytes as u64).is_none_or(|end| end > params.len() as u64) {
            return w.fail(k, format!("out-of-bounds access of {bytes} bytes at byte {} of the parameters", at[k]));
        }
        for (n, out) in out.iter_mut().enumerate() {
            // SAFETY: the parameters have these bytes.
            out[k] = unsafe { params.as_ptr().add(at[k] as usize).cast::<T>().add(n).read_unaligned() };
        }
    }
    for (&slot, out) in i.list.iter().zip(&out) {
        T::give(w, slot, i.x, out);
    }
}

/// Which space generic addresses lie in, made relative to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Global,
    Shared,
    Local,
    Param,
}

pub(crate) fn space_of(address: u64) -> (Where, u64) {
    match address {
        a if a.wrapping_sub(SHARED_WINDOW) < WINDOW => (Where::Shared, a - SHARED_WINDOW),
        a if a.wrapping_sub(LOCAL_WINDOW) < WINDOW => (Where::Local, a - LOCAL_WINDOW),
        a if a.wrapping_sub(PARAM_WINDOW) < WINDOW => (Where::Param, a - PARAM_WINDOW),
        a => (Where::Global, a),
    }
}

/// The space that all active lanes share, addresses relative to it.
pub(crate) fn generic(w: &mut Warp, at: &mut [u64; LANES]) -> Option<Where> {
    let mut space = None;
    for k in lanes(w.mask) {
        let (here, relative) = space_of(at[k]);
        at[k] = relative;
        if *space.get_or_insert(here) != here {
            w.fail(k, "one instruction whose lanes access different memory spaces is not handled".to_owned());
            return None;
        }
    }
    space
}

mod fill {
    use super::*;
    macro_rules! accesses {
        ($t:ident, $(($ty:ty, $n:literal)),*) => { $(
            let bytes = size_of::<$ty>();
            $t.with_flow(format!("#ld.global.{bytes}x{}", $n), "", 0, Flow::Mem, |w, b, i| { let at = of(w, i); load_global::<$ty, $n>(w, b, i, &at); });
            $t.with_flow(format!("#st.global.{bytes}x{}", $n), "", 0, Flow::Mem, |w, b, i| { let at = of(w, i); store_global::<$ty, $n>(w, b, i, &at); });
            $t.with_flow(format!("#ld.shared.{bytes}x{}", $n), "", 0, Flow::Mem, |w, b, i| { let at = of(w, i); load_shared::<$ty, $n>(w, b, i, &at); });
            $t.with_flow(format!("#st.shared.{bytes}x{}", $n), "", 0, Flow::Mem, |w, b, i| { let at = of(w, i); store_shared::<$ty, $n>(w, b, i, &at); });
            $t.with_flow(format!("#ld.local.{bytes}x{}", $n), "", 0, Flow::Mem, |w, _, i| { let at = of(w, i); load_local::<$ty, $n>(w, i, &at); });
            $t.with_flow(format!("#st.local.{bytes}x{}", $n), "", 0, Flow::Mem, |w, _, i| { let at = of(w, i); store_local::<$ty, $n>(w, i, &at); });
            $t.with_flow(format!("#ld.param.{bytes}x{}", $n), "", 0, Flow::Mem, |w, b, i| { let at = of(w, i); load_param::<$ty, $n>(w, b, i, &at); });
            $t.with_flow(format!("#ld.generic.{bytes}x{}", $n), "", 0, Flow::Mem, |w, b, i| {
                let mut at = of(w, i);
                match generic(w, &mut at) {
                    Some(Where::Global) => load_global::<$ty, $n>(w, b, i, &at),
                    Some(Where::Shared) => load_shared::<$ty, $n>(w, b, i, &at),
                    Some(Where::Local) => load_local::<$ty, $n>(w, i, &at),
                    Some(Where::Param) => load_param::<$ty, $n>(w, b, i, &at),
                    None => {}
                }
            });
            $t.with_flow(format!("#st.generic.{bytes}x{}", $n), "", 0, Flow::Mem, |w, b, i| {
                let mut at = of(w, i);
                match generic(w, &mut at) {
                    Some(Where::Global) => store_global::<$ty, $n>(w, b, i, &at),
                    Some(Where::Shared) => store_shared::<$ty, $n>(w, b, i, &at),
                    Some(Where::Local) => store_local::<$ty, $n>(w, i, &at),
                    Some(Where::Param) => w.fail(w.mask.trailing_zeros() as usize, "write to parameters".to_owned()),
                    None => {}
                }
            });
        )* };
    }
    pub(crate) fn fill(t: &mut Table) {
        accesses!(
            t,
            (u8, 1),
            (u8, 2),
            (u8, 4),
            (u16, 1),
            (u16, 2),
            (u16, 4),
            (u32, 1),
            (u32, 2),
            (u32, 4),
            (u64, 1),
            (u64, 2)
        );
    }
}
pub(crate) use fill::fill;
