//! Chance: Philox4x32-10, the counter-based generator that every draw of a recipe comes from.
//!
//! The one definition of `Op::Uniform`; the reference interpreter calls it, and compiled kernels give the same bits.
//! Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".

/// The multipliers and the Weyl constants of Philox4x32 (table 2 of the paper; Random123).
pub const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds: ten leave a safety margin over the seven that pass every known test.
pub const ROUNDS: u32 = 10;

/// Four random words for a key and a counter.
#[inline(always)]
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// The draw at `counter`: uniform over the multiples of 2⁻²⁴ in [0, 1).
///
/// The key is (seed, step) and the counter block (counter / 4, lane, place, 0); the draw is word `counter mod 4` of the four,
/// of which the upper 24 bits count. Signed arguments of a graph are taken as their 32 bits.
#[inline(always)]
pub fn uniform(seed: u32, step: u32, lane: u32, place: u32, counter: u32) -> f32 {
    let words = philox4x32([seed, step], [counter >> 2, lane, place, 0]);
    unit(words[(counter & 3) as usize])
}

/// The upper 24 bits of a word as a fraction.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that Random123 ships (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0, 0], [0, 0, 0, 0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox4x32([ones; 2], [ones; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let key = [0xa409_3822, 0x299f_31d0];
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox4x32(key, counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn draws_fill_the_unit_interval() {
        let draws: Vec<f32> = (0..4096).map(|counter| uniform(7, 1, 0, 3, counter)).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let lanes: Vec<f32> = (0..4096).map(|counter| uniform(7, 1, 1, 3, counter)).collect();
        assert_ne!(draws, lanes);
    }
}
