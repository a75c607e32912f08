//! bitsandbytes' double quantization: the block maxima of a 4-bit weight, themselves quantized to 8 bits.
//!
//! The maxima minus their mean are cut into blocks of 256, each scaled by its own maximum and coded with a 256-entry
//! "dynamic" map. Two details decide the bits: torch sums the mean in a cascade of eight lanes, and on the CPU
//! bitsandbytes picks codes from a table of 65,536 entries rather than by nearest value. Sources: bitsandbytes 0.50.2
//! (`csrc/cpu_ops.cpp`, `functional.py`), torch 2.15 (`aten/src/ATen/native/cpu/SumKernel.cpp`).

use std::sync::OnceLock;

use crate::dtype::Dtype;
use crate::formats::{float_bytes, floats};
use crate::simd::floats::round_one;

/// Maxima per second-level scale.
pub(crate) const BLOCK: usize = 256;

/// Second-level state of a double-quantized weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Nested {
    /// Mean that was subtracted from the maxima.
    pub(crate) offset: f32,
    /// Type in which maxima are restored: f32, or a 16-bit float after a forward pass on some processors.
    pub(crate) dtype: Dtype,
    /// Maxima per second-level scale (256 in every known file).
    pub(crate) block: usize,
}

/// The 256 maxima that a code can stand for in second-level block `group`: `map[code] · nested_absmax + offset`, each
/// step rounded to the nested type. `scales` and `map` are the whole parts, as bytes.
pub(crate) fn table(nested: &Nested, group: usize, scales: &[u8], map: &[u8]) -> [f32; 256] {
    let scale = floats(scales).nth(group).unwrap_or(0.0);
    let mut table = [0.0; 256];
    for (entry, value) in table.iter_mut().zip(floats(map)) {
        *entry = value;
    }
    table.map(|value| match nested.dtype {
        Dtype::F32 => value * scale + nested.offset,
        dtype => round_one(dtype, round_one(dtype, value * scale) + nested.offset),
    })
}

/// A byte is always within the table.
#[allow(clippy::indexing_slicing)]
fn entry(table: &[f32; 256], code: u8) -> f32 {
    table[usize::from(code)]
}

/// Restores block maxima. `codes` begins at block number `first`; the other parts are whole.
pub(crate) fn restore(nested: &Nested, codes: &[u8], first: usize, scales: &[u8], map: &[u8]) -> Vec<f32> {
    let mut absmax = Vec::with_capacity(codes.len());
    for (group, run) in groups(nested, codes, first) {
        let table = table(nested, group, scales, map);
        absmax.extend(run.iter().map(|&code| entry(&table, code)));
    }
    absmax
}

/// The codes of other maxima, each one of its block's table; where a maximum stays, so does its code.
pub(crate) fn recode(
    nested: &Nested,
    codes: &[u8],
    first: usize,
    scales: &[u8],
    map: &[u8],
    absmax: &[f32],
) -> Vec<u8> {
    let mut absmax = absmax.iter();
    let mut recoded = Vec::with_capacity(codes.len());
    for (group, run) in groups(nested, codes, first) {
        let table = table(nested, group, scales, map);
        recoded.extend(run.iter().zip(&mut absmax).map(|(&code, wanted)| {
            if entry(&table, code) == *wanted {
                return code;
            }
            table.iter().position(|have| have == wanted).map_or(code, |at| at as u8)
        }));
    }
    recoded
}

/// Codes from block number `first` on, cut at second-level blocks, each with its number.
fn groups<'a>(nested: &Nested, codes: &'a [u8], first: usize) -> impl Iterator<Item = (usize, &'a [u8])> {
    let (block, start) = (nested.block, first / nested.block);
    let head = (block - first % block).min(codes.len());
    let (head, rest) = codes.split_at(head);
    std::iter::once(head).chain(rest.chunks(block)).enumerate().map(move |(i, run)| (start + i, run))
}

/// The quantized maxima.
pub(crate) struct Quantized {
    pub(crate) offset: f32,
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<f32>,
}

/// Quantizes block maxima as bitsandbytes does on the CPU, with the mean as torch sums it on `threads` threads.
pub(crate) fn quantize(absmax: &[f32], threads: usize) -> Quantized {
    let offset = mean(absmax, threads);
    let table = code_table();
    let mut codes = Vec::with_capacity(absmax.len());
    let mut scales = Vec::with_capacity(absmax.len().div_ceil(BLOCK));
    for block in absmax.chunks(BLOCK) {
        // `f32::max` ignores NaN, as the reference does here.
        let scale = block.iter().fold(0.0_f32, |max, x| max.max((x - offset).abs()));
        scales.push(scale);
        let inverse = 1.0 / scale;
        codes.extend(block.iter().map(|x| {
            if scale == 0.0 {
                return 0;
            }
            let scaled = ((x - offset) * inverse).clamp(-1.0, 1.0);
            let place = ((scaled + 1.0) * 0.5) * 65535.0 + 0.5;
            // A NaN casts to 0.
            table.get(usize::from(place as u16)).copied().unwrap_or(0)
        }));
    }
    Quantized { offset, codes, scales }
}

/// The map as the bytes of `nested_quant_map`.
pub(crate) fn map_bytes() -> Vec<u8> {
    float_bytes(&DYNAMIC_MAP.map(f32::from_bits))
}

/// Code for each of 65,536 equally spaced values of [−1, 1]: the number of midpoints strictly below.
fn code_table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let map = DYNAMIC_MAP.map(f32::from_bits);
        let midpoints: Vec<f32> = map.iter().zip(map.iter().skip(1)).map(|(a, b)| 0.5 * (a + b)).collect();
        (0..=u16::MAX)
            .map(|i| {
                let z = (2.0 * f32::from(i)) / 65535.0 - 1.0;
                midpoints.partition_point(|&mid| mid < z) as u8
            })
            .collect()
    })
}

/// Elements per thread from which torch splits a sum.
const GRAIN: usize = 32_768;

/// The mean as torch computes it on x86 with `threads` intra-op threads.
pub(crate) fn mean(x: &[f32], threads: usize) -> f32 {
    let sum = if x.len() < GRAIN || threads <= 1 {
        sum_lanes(x)
    } else {
        let chunk = x.len().div_ceil(threads.min(x.len().div_ceil(GRAIN)));
        let mut parts = vec![0.0; threads];
        for (part, x) in parts.iter_mut().zip(x.chunks(chunk)) {
            *part = sum_lanes(x);
        }
        sum_lanes(&parts)
    };
    sum / x.len() as f32
}

/// Sum of a contiguous vector: rows of eight lanes in a cascade, then the tail, then the lanes.
fn sum_lanes(x: &[f32]) -> f32 {
    if x.len() < 8 {
        return cascade::<1>(x)[0];
    }
    let whole = x.len() / 8 * 8;
    let (whole, tail) = x.split_at_checked(whole).unwrap_or_default();
    let lanes = cascade::<8>(whole);
    tail.iter().chain(&lanes).fold(0.0, |sum, x| sum + x)
}

/// Lane-wise sum of rows of `L`: four interleaved rows, four levels of accumulators.
fn cascade<const L: usize>(x: &[f32]) -> [f32; L] {
    const LEVELS: usize = 4;
    const ROWS: usize = 4;
    let add = |sum: &mut [f32; L], x: &[f32]| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    let rows = x.len() / L;
    let groups = rows / ROWS;
    let log2 = if groups <= 2 { 1 } else { usize::BITS - (groups - 1).leading_zeros() };
    let power = (log2 / LEVELS as u32).max(4);
    let step = 1_usize << power;
    let mut level = [[[0.0; L]; ROWS]; LEVELS];
    for (i, group) in x.chunks_exact(L * ROWS).enumerate() {
        for (sum, row) in level[0].iter_mut().zip(group.chunks_exact(L)) {
            add(sum, row);
        }
        let done = i + 1;
        // Only full runs of `step` groups are carried up.
        if done % step == 0 {
            for j in 1..LEVELS {
                let Some([from, to]) = level.get_mut(j - 1..=j) else { break };
                let carried = std::mem::replace(from, [[0.0; L]; ROWS]);
                for (sum, row) in to.iter_mut().zip(&carried) {
                    add(sum, row);
                }
                if done & ((step - 1) << (j as u32 * power)) != 0 {
                    break;
                }
            }
        }
    }
    let [mut total, rest @ ..] = level;
    for upper in &rest {
        for (sum, row) in total.iter_mut().zip(upper) {
            add(sum, row);
        }
    }
    for row in x.get(groups * ROWS * L..).unwrap_or_default().chunks_exact(L) {
        add(&mut total[0], row);
    }
    let [mut sum, others @ ..] = total;
    for row in &others {
        add(&mut sum, row);
    }
    sum
}

/// bitsandbytes' signed 8-bit dynamic map, ascending, as f32 bits (as built on x86 with AVX2 or AVX-512).
#[rustfmt::skip]
const DYNAMIC_MAP: [u32; 256] = [
    0xbf7e_3333, 0xbf7a_999a, 0xbf77_0000, 0xbf73_6666, 0xbf6f_cccd, 0xbf6c_3333, 0xbf68_999a, 0xbf65_0000,
    0xbf61_6666, 0xbf5d_cccd, 0xbf5a_3333, 0xbf56_999a, 0xbf53_0000, 0xbf4f_6666, 0xbf4b_cccd, 0xbf48_3333,
    0xbf44_999a, 0xbf41_0000, 0xbf3d_6666, 0xbf39_cccd, 0xbf36_3334, 0xbf32_999a, 0xbf2f_0000, 0xbf2b_6666,
    0xbf27_cccd, 0xbf24_3334, 0xbf20_999a, 0xbf1d_0000, 0xbf19_6666, 0xbf15_cccd, 0xbf12_3334, 0xbf0e_999a,
    0xbf0b_0000, 0xbf07_6666, 0xbf03_cccc, 0xbf00_3333, 0xbef9_3332, 0xbef2_0000, 0xbeea_cccc, 0xbee3_999a,
    0xbedc_6666, 0xbed5_3333, 0xbece_0000, 0xbec6_cccc, 0xbebf_999a, 0xbeb8_6666, 0xbeb1_3333, 0xbeaa_0000,
    0xbea2_cccc, 0xbe9b_999a, 0xbe94_6666, 0xbe8d_3334, 0xbe86_0000, 0xbe7d_9999, 0xbe6f_3333, 0xbe60_cccd,
    0xbe52_6666, 0xbe44_0000, 0xbe35_999a, 0xbe27_3333, 0xbe18_cccd, 0xbe0a_6666, 0xbdf8_0000, 0xbddb_3334,
    0xbdc9_eb85, 0xbdc4_28f7, 0xbdbe_6667, 0xbdb8_a3d7, 0xbdb2_e148, 0xbdad_1eb8, 0xbda7_5c2a, 0xbda1_999a,
    0xbd9b_d70a, 0xbd96_147b, 0xbd90_51eb, 0xbd8a_8f5d, 0xbd84_cccd, 0xbd7e_147b, 0xbd72_8f5d, 0xbd67_0a3d,
    0xbd5b_851f, 0xbd50_0000, 0xbd44_7ae1, 0xbd38_f5c3, 0xbd2d_70a3, 0xbd21_eb85, 0xbd16_6667, 0xbd0a_e148,
    0xbcfe_b852, 0xbce7_ae15, 0xbcd0_a3d7, 0xbcb9_999a, 0xbca2_8f5d, 0xbc8b_851f, 0xbc68_f5c3, 0xbc3a_e148,
    0xbc1f_3b64, 0xbc16_0418, 0xbc0c_cccd, 0xbc03_9581, 0xbbf4_bc6a, 0xbbe2_4dd3, 0xbbcf_df3b, 0xbbbd_70a4,
    0xbbab_020d, 0xbb98_9374, 0xbb86_24dd, 0xbb67_6c8a, 0xbb42_8f5c, 0xbb1d_b22d, 0xbaf1_a9fc, 0xbaa7_ef9d,
    0xba77_65ff, 0xba59_e83e, 0xba3c_6a80, 0xba1e_ecc1, 0xba01_6f01, 0xb9c7_e283, 0xb98c_e705, 0xb923_d70b,
    0xb8ba_1f4b, 0xb88a_efb3, 0xb837_8034, 0xb7b2_4206, 0xb702_05ff, 0xb65a_1a94, 0xb513_a3b7, 0x0000_0000,
    0x3513_a3b7, 0x365a_1a94, 0x3702_05ff, 0x37b2_4206, 0x3837_8034, 0x388a_efb3, 0x38ba_1f4b, 0x3923_d70b,
    0x398c_e705, 0x39c7_e283, 0x3a01_6f01, 0x3a1e_ecc1, 0x3a3c_6a80, 0x3a59_e83e, 0x3a77_65ff, 0x3aa7_ef9d,
    0x3af1_a9fc, 0x3b1d_b22d, 0x3b42_8f5c, 0x3b67_6c8a, 0x3b86_24dd, 0x3b98_9374, 0x3bab_020d, 0x3bbd_70a4,
    0x3bcf_df3b, 0x3be2_4dd3, 0x3bf4_bc6a, 0x3c03_9581, 0x3c0c_cccd, 0x3c16_0418, 0x3c1f_3b64, 0x3c3a_e148,
    0x3c68_f5c3, 0x3c8b_851f, 0x3ca2_8f5d, 0x3cb9_999a, 0x3cd0_a3d7, 0x3ce7_ae15, 0x3cfe_b852, 0x3d0a_e148,
    0x3d16_6667, 0x3d21_eb85, 0x3d2d_70a3, 0x3d38_f5c3, 0x3d44_7ae1, 0x3d50_0000, 0x3d5b_851f, 0x3d67_0a3d,
    0x3d72_8f5d, 0x3d7e_147b, 0x3d84_cccd, 0x3d8a_8f5d, 0x3d90_51eb, 0x3d96_147b, 0x3d9b_d70a, 0x3da1_999a,
    0x3da7_5c2a, 0x3dad_1eb8, 0x3db2_e148, 0x3db8_a3d7, 0x3dbe_6667, 0x3dc4_28f7, 0x3dc9_eb85, 0x3ddb_3334,
    0x3df8_0000, 0x3e0a_6666, 0x3e18_cccd, 0x3e27_3333, 0x3e35_999a, 0x3e44_0000, 0x3e52_6666, 0x3e60_cccd,
    0x3e6f_3333, 0x3e7d_9999, 0x3e86_0000, 0x3e8d_3334, 0x3e94_6666, 0x3e9b_999a, 0x3ea2_cccc, 0x3eaa_0000,
    0x3eb1_3333, 0x3eb8_6666, 0x3ebf_999a, 0x3ec6_cccc, 0x3ece_0000, 0x3ed5_3333, 0x3edc_6666, 0x3ee3_999a,
    0x3eea_cccc, 0x3ef2_0000, 0x3ef9_3332, 0x3f00_3333, 0x3f03_cccc, 0x3f07_6666, 0x3f0b_0000, 0x3f0e_999a,
    0x3f12_3334, 0x3f15_cccd, 0x3f19_6666, 0x3f1d_0000, 0x3f20_999a, 0x3f24_3334, 0x3f27_cccd, 0x3f2b_6666,
    0x3f2f_0000, 0x3f32_999a, 0x3f36_3334, 0x3f39_cccd, 0x3f3d_6666, 0x3f41_0000, 0x3f44_999a, 0x3f48_3333,
    0x3f4b_cccd, 0x3f4f_6666, 0x3f53_0000, 0x3f56_999a, 0x3f5a_3333, 0x3f5d_cccd, 0x3f61_6666, 0x3f65_0000,
    0x3f68_999a, 0x3f6c_3333, 0x3f6f_cccd, 0x3f73_6666, 0x3f77_0000, 0x3f7a_999a, 0x3f7e_3333, 0x3f80_0000,
];
