//! Element types: those that safetensors names, and those of ggml, which store a block of elements under scales of its own.

use std::fmt;

/// The storage type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
    Q1_0,
    Q2_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ1S,
    IQ1M,
    IQ2XXS,
    IQ2XS,
    IQ2S,
    IQ3XXS,
    IQ3S,
    IQ4NL,
    IQ4XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
}

/// Name in a safetensors header, name in PyTorch, elements and bytes of a block.
const TABLE: &[(Dtype, &str, &str, (u64, u64))] = &[
    (Dtype::Bool, "BOOL", "bool", (1, 1)),
    (Dtype::F4, "F4", "float4_e2m1fn_x2", (2, 1)),
    (Dtype::F6E2M3, "F6_E2M3", "float6_e2m3", (4, 3)),
    (Dtype::F6E3M2, "F6_E3M2", "float6_e3m2", (4, 3)),
    (Dtype::U8, "U8", "uint8", (1, 1)),
    (Dtype::I8, "I8", "int8", (1, 1)),
    (Dtype::F8E5M2, "F8_E5M2", "float8_e5m2", (1, 1)),
    (Dtype::F8E4M3, "F8_E4M3", "float8_e4m3fn", (1, 1)),
    (Dtype::F8E8M0, "F8_E8M0", "float8_e8m0fnu", (1, 1)),
    (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz", (1, 1)),
    (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz", (1, 1)),
    (Dtype::I16, "I16", "int16", (1, 2)),
    (Dtype::U16, "U16", "uint16", (1, 2)),
    (Dtype::F16, "F16", "float16", (1, 2)),
    (Dtype::BF16, "BF16", "bfloat16", (1, 2)),
    (Dtype::I32, "I32", "int32", (1, 4)),
    (Dtype::U32, "U32", "uint32", (1, 4)),
    (Dtype::F32, "F32", "float32", (1, 4)),
    (Dtype::C64, "C64", "complex64", (1, 8)),
    (Dtype::F64, "F64", "float64", (1, 8)),
    (Dtype::I64, "I64", "int64", (1, 8)),
    (Dtype::U64, "U64", "uint64", (1, 8)),
];

/// The types of ggml that have blocks: name there, name in lower case, elements and bytes of a block.
const BLOCKS: &[(Dtype, &str, &str, (u64, u64))] = &[
    (Dtype::Q1_0, "Q1_0", "q1_0", (128, 18)),
    (Dtype::Q2_0, "Q2_0", "q2_0", (64, 18)),
    (Dtype::Q4_0, "Q4_0", "q4_0", (32, 18)),
    (Dtype::Q4_1, "Q4_1", "q4_1", (32, 20)),
    (Dtype::Q5_0, "Q5_0", "q5_0", (32, 22)),
    (Dtype::Q5_1, "Q5_1", "q5_1", (32, 24)),
    (Dtype::Q8_0, "Q8_0", "q8_0", (32, 34)),
    (Dtype::Q2K, "Q2_K", "q2_k", (256, 84)),
    (Dtype::Q3K, "Q3_K", "q3_k", (256, 110)),
    (Dtype::Q4K, "Q4_K", "q4_k", (256, 144)),
    (Dtype::Q5K, "Q5_K", "q5_k", (256, 176)),
    (Dtype::Q6K, "Q6_K", "q6_k", (256, 210)),
    (Dtype::IQ1S, "IQ1_S", "iq1_s", (256, 50)),
    (Dtype::IQ1M, "IQ1_M", "iq1_m", (256, 56)),
    (Dtype::IQ2XXS, "IQ2_XXS", "iq2_xxs", (256, 66)),
    (Dtype::IQ2XS, "IQ2_XS", "iq2_xs", (256, 74)),
    (Dtype::IQ2S, "IQ2_S", "iq2_s", (256, 82)),
    (Dtype::IQ3XXS, "IQ3_XXS", "iq3_xxs", (256, 98)),
    (Dtype::IQ3S, "IQ3_S", "iq3_s", (256, 110)),
    (Dtype::IQ4NL, "IQ4_NL", "iq4_nl", (32, 18)),
    (Dtype::IQ4XS, "IQ4_XS", "iq4_xs", (256, 136)),
    (Dtype::TQ1_0, "TQ1_0", "tq1_0", (256, 54)),
    (Dtype::TQ2_0, "TQ2_0", "tq2_0", (256, 66)),
    (Dtype::MXFP4, "MXFP4", "mxfp4", (32, 17)),
    (Dtype::NVFP4, "NVFP4", "nvfp4", (64, 36)),
];

/// Numbers of types in a GGUF file. Those in between are retired, or never stored.
const GGML_IDS: &[(u32, Dtype)] = &[
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2K),
    (11, Dtype::Q3K),
    (12, Dtype::Q4K),
    (13, Dtype::Q5K),
    (14, Dtype::Q6K),
    (16, Dtype::IQ2XXS),
    (17, Dtype::IQ2XS),
    (18, Dtype::IQ3XXS),
    (19, Dtype::IQ1S),
    (20, Dtype::IQ4NL),
    (21, Dtype::IQ3S),
    (22, Dtype::IQ2S),
    (23, Dtype::IQ4XS),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (29, Dtype::IQ1M),
    (30, Dtype::BF16),
    (34, Dtype::TQ1_0),
    (35, Dtype::TQ2_0),
    (39, Dtype::MXFP4),
    (40, Dtype::NVFP4),
    (41, Dtype::Q1_0),
    (42, Dtype::Q2_0),
];

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, &'static str, (u64, u64)) {
        // Every variant stands in one of the tables: held by the test below.
        TABLE.iter().chain(BLOCKS).find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The name in a safetensors header ("BF16"), or in ggml ("Q4_K").
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The name in PyTorch and in `config.json` ("bfloat16"); of a type that only ggml has, its name in lower case ("q4_k").
    pub fn torch_name(self) -> &'static str {
        self.row().2
    }

    /// The fewest elements that take whole bytes, and those bytes: one and its size for most; types of 4 and 6 bits, and those that store some elements under a
    /// scale of their own, have larger blocks.
    pub fn block(self) -> (u64, u64) {
        self.row().3
    }

    /// Bytes of so many elements; `None` if they are no whole blocks, or too many.
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let (block, bytes) = self.block();
        if elements.is_multiple_of(block) { (elements / block).checked_mul(bytes) } else { None }
    }

    /// True for the types of ggml that store a block of elements under scales of its own. Blocks do not cross rows.
    pub fn is_ggml_block(self) -> bool {
        BLOCKS.iter().any(|row| row.0 == self)
    }

    /// Its number in a GGUF file, where it has one.
    pub fn ggml_id(self) -> Option<u32> {
        GGML_IDS.iter().find(|(_, dtype)| *dtype == self).map(|(id, _)| *id)
    }

    /// The type of that number in a GGUF file; `None` for numbers that are retired, never stored, or newer than this.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        GGML_IDS.iter().find(|(known, _)| *known == id).map(|(_, dtype)| *dtype)
    }

    /// Reads a safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Reads a PyTorch name ("bfloat16", also "torch.bfloat16").
    pub fn from_torch_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// True for the types that hold plain weights: f32, f16, bf16.
    pub fn is_plain_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for &(dtype, name, torch, block) in TABLE {
            assert_eq!(Dtype::from_name(name), Some(dtype));
            assert_eq!(Dtype::from_torch_name(torch), Some(dtype));
            assert_eq!((dtype.name(), dtype.block()), (name, block));
        }
        assert_eq!(TABLE.last().map(|row| row.0), Some(Dtype::U64));
        // What only ggml has is no name of a safetensors header.
        for &(dtype, name, lower, block) in BLOCKS {
            assert_eq!((dtype.name(), dtype.block(), name.to_lowercase().as_str()), (name, block, lower));
            assert_eq!((Dtype::from_name(name), Dtype::from_torch_name(lower)), (None, None));
            assert_eq!(dtype.ggml_id().and_then(Dtype::from_ggml_id), Some(dtype));
        }
        assert_eq!(BLOCKS.last().map(|row| row.0 as usize + 1), Some(TABLE.len() + BLOCKS.len()));
    }

    #[test]
    fn numbers_of_ggml_are_read_back() {
        for &(id, dtype) in GGML_IDS {
            assert_eq!((Dtype::from_ggml_id(id), dtype.ggml_id()), (Some(dtype), Some(id)));
        }
        assert!([4, 5, 9, 15, 31, 33, 36, 38, 43, u32::MAX].iter().all(|&id| Dtype::from_ggml_id(id).is_none()));
    }

    #[test]
    fn sizes_come_in_whole_blocks() {
        let sizes = [
            (Dtype::BF16, 3),
            (Dtype::F4, 2),
            (Dtype::F4, 3),
            (Dtype::F6E2M3, 8),
            (Dtype::F6E3M2, 2),
            (Dtype::U64, u64::MAX),
            (Dtype::Q4K, 512),
            (Dtype::Q4K, 384),
            (Dtype::Q8_0, u64::MAX / 32 * 32),
        ];
        let bytes: Vec<_> = sizes.iter().map(|(dtype, elements)| dtype.bytes_of(*elements)).collect();
        assert_eq!(bytes, [Some(6), Some(1), None, Some(6), None, None, Some(288), None, None]);
    }
}
