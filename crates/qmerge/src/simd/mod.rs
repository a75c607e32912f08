//! The inner loops, at the widest vector level the machine has.
//!
//! Every kernel is one scalar body; the `versions!` macro compiles it once per level, and the levels agree bit for
//! bit because the body fixes the order of every operation and Rust never contracts `a * b + c`. Intrinsics stand only
//! where a compiler does not find the instruction (table lookups of 4-bit codes, blocks turned over) or does not keep all sums in registers (tiles of products of
//! matrices). `QMERGE_SIMD` forces a level (`scalar`, `avx2`, `avx512`, `neon`); asking for more than the machine has gives the best it has.

pub(crate) mod codes;
pub(crate) mod differences;
pub(crate) mod dots;
pub mod exp;
pub(crate) mod feedback;
pub(crate) mod fields;
pub(crate) mod floats;
pub(crate) mod gram;
pub(crate) mod lanes;
pub(crate) mod low_rank;
pub mod matmul;
pub(crate) mod neighbours;
pub(crate) mod nibbles;
pub(crate) mod rows8;
pub mod tanh;
pub(crate) mod vectors;
pub(crate) mod words;

use std::sync::OnceLock;

/// A vector instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every machine of the architecture has (SSE2 on x86-64).
    Scalar,
    /// 128-bit, the baseline of aarch64.
    Neon,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl Level {
    /// The name that `QMERGE_SIMD` takes.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }
}

/// Levels this machine can run, narrowest first.
pub(crate) fn available() -> Vec<Level> {
    let mut levels = vec![Level::Scalar];
    if cfg!(target_arch = "aarch64") {
        levels.push(Level::Neon);
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            levels.push(Level::Avx2);
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                levels.push(Level::Avx512);
            }
        }
    }
    levels
}

/// The level in use: the widest available, unless `QMERGE_SIMD` asks for a narrower one.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    #[cfg(test)]
    if let Some(forced) = forced::get() {
        return forced;
    }
    *LEVEL.get_or_init(|| {
        let levels = available();
        let best = levels[levels.len() - 1];
        let asked = std::env::var("QMERGE_SIMD").unwrap_or_default();
        levels.into_iter().find(|level| level.name() == asked).unwrap_or(best)
    })
}

/// Compiles the body `$body` (an `#[inline(always)]` function) once per level and picks one at run time.
macro_rules! versions {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level()` returns a level only after the processor was found to have its features.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use versions;

/// Tests run a kernel at every level in one process; the level is forced per thread.
#[cfg(test)]
pub(crate) mod forced {
    use super::{Level, available};
    use std::cell::Cell;

    thread_local!(static FORCED: Cell<Option<Level>> = const { Cell::new(None) });

    pub(crate) fn get() -> Option<Level> {
        FORCED.get()
    }

    /// Runs `f` at every available level and returns the results, scalar first.
    pub(crate) fn at_every_level<T>(mut f: impl FnMut() -> T) -> Vec<(Level, T)> {
        available()
            .into_iter()
            .map(|level| {
                FORCED.set(Some(level));
                let result = f();
                FORCED.set(None);
                (level, result)
            })
            .collect()
    }
}
