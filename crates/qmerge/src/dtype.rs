//! Element types as safetensors names them.

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

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, &'static str, (u64, u64)) {
        // Every variant stands in the table: held by the test below.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The name in a safetensors header ("BF16").
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The name in PyTorch and in `config.json` ("bfloat16").
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
        ];
        let bytes: Vec<_> = sizes.iter().map(|(dtype, elements)| dtype.bytes_of(*elements)).collect();
        assert_eq!(bytes, [Some(6), Some(1), None, Some(6), None, None]);
    }
}
