//! The opcodes that are known: full strings, each with the shape of its operands and what it does. What is not here is refused.

use super::{Flow, Op};
use std::collections::HashMap;
use std::sync::OnceLock;

#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) op: Op,
    /// One letter an operand, the result first: `r` a register of up to 32 bits, `q` of 64, `p` a predicate, `i` a constant, which
    /// goes to `offset`. `S` alone is the shape of `setp`.
    pub(crate) shape: &'static str,
    pub(crate) x: u32,
    pub(crate) flow: Flow,
}

#[derive(Default)]
pub(crate) struct Table {
    rows: HashMap<String, Row>,
}

impl Table {
    pub(crate) fn add(&mut self, name: impl Into<String>, shape: &'static str, x: u32, op: Op) {
        self.rows.insert(name.into(), Row { op, shape, x, flow: Flow::Plain });
    }

    pub(crate) fn with_flow(&mut self, name: impl Into<String>, shape: &'static str, x: u32, flow: Flow, op: Op) {
        self.rows.insert(name.into(), Row { op, shape, x, flow });
    }

    pub(crate) fn get(&self, name: &str) -> Option<Row> {
        self.rows.get(name).copied()
    }
}

/// Two functions of one body: for AVX-512, whose closures are compiled for it, and for any machine.
macro_rules! both {
    ($fast:ident, $base:ident, |$t:ident| $body:block) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        pub(crate) fn $fast($t: &mut $crate::sim::tables::Table) $body

        pub(crate) fn $base($t: &mut $crate::sim::tables::Table) $body
    };
}
pub(crate) use both;

pub(crate) fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut t = Table::default();
        plain(&mut t);
        #[cfg(target_arch = "x86_64")]
        if std::env::var_os("MDLC_SIMGPU_PLAIN").is_none_or(|plain| plain != "1")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
        {
            // SAFETY: the features were asked for.
            unsafe {
                super::alu::fast(&mut t);
                super::float::fast(&mut t);
                super::convert::fast(&mut t);
                super::tensor::fast(&mut t);
            }
            return t;
        }
        super::alu::base(&mut t);
        super::float::base(&mut t);
        super::convert::base(&mut t);
        super::tensor::base(&mut t);
        t
    })
}

/// What gains nothing from wide vectors, or is rare.
fn plain(t: &mut Table) {
    super::convert::rare(t);
    super::half::fill(t);
    super::warpops::fill(t);
    super::memory::fill(t);
    super::copies::fill(t);
    super::atomics::fill(t);
}
