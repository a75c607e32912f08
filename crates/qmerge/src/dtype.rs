//! Element types: those that safetensors names, and those of ggml, which store a block of elements under scales of its own.

use std::fmt;

/// What is known of a type.
struct Row {
    dtype: Dtype,
    name: &'static str,
    torch_name: &'static str,
    block: (u64, u64),
    ggml_id: Option<u32>,
    is_ggml_block: bool,
}

/// Declares the types: name in a safetensors header and in PyTorch, or in ggml and there in lower case; elements and bytes of a block; number in a GGUF file.
macro_rules! dtypes {
    (
        safetensors { $($dtype:ident, $name:literal, $torch:literal, $block:expr, $id:expr;)* }
        ggml { $($own:ident, $ggml:literal, $lower:literal, $size:expr, $number:expr;)* }
    ) => {
        /// The storage type of a tensor's elements.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        #[non_exhaustive]
        pub enum Dtype { $($dtype,)* $($own,)* }

        /// All types, in their order.
        static ROWS: &[Row] = &[
            $(Row { dtype: Dtype::$dtype, name: $name, torch_name: $torch, block: $block, ggml_id: $id, is_ggml_block: false },)*
            $(Row { dtype: Dtype::$own, name: $ggml, torch_name: $lower, block: $size, ggml_id: $number, is_ggml_block: true },)*
        ];
    };
}

// Numbers of ggml in between are retired, or never stored.
dtypes! {
    safetensors {
        Bool, "BOOL", "bool", (1, 1), None;
        F4, "F4", "float4_e2m1fn_x2", (2, 1), None;
        F6E2M3, "F6_E2M3", "float6_e2m3", (4, 3), None;
        F6E3M2, "F6_E3M2", "float6_e3m2", (4, 3), None;
        U8, "U8", "uint8", (1, 1), None;
        I8, "I8", "int8", (1, 1), Some(24);
        F8E5M2, "F8_E5M2", "float8_e5m2", (1, 1), None;
        F8E4M3, "F8_E4M3", "float8_e4m3fn", (1, 1), None;
        F8E8M0, "F8_E8M0", "float8_e8m0fnu", (1, 1), None;
        F8E4M3Fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz", (1, 1), None;
        F8E5M2Fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz", (1, 1), None;
        I16, "I16", "int16", (1, 2), Some(25);
        U16, "U16", "uint16", (1, 2), None;
        F16, "F16", "float16", (1, 2), Some(1);
        BF16, "BF16", "bfloat16", (1, 2), Some(30);
        I32, "I32", "int32", (1, 4), Some(26);
        U32, "U32", "uint32", (1, 4), None;
        F32, "F32", "float32", (1, 4), Some(0);
        C64, "C64", "complex64", (1, 8), None;
        F64, "F64", "float64", (1, 8), Some(28);
        I64, "I64", "int64", (1, 8), Some(27);
        U64, "U64", "uint64", (1, 8), None;
    }
    ggml {
        Q1_0, "Q1_0", "q1_0", (128, 18), Some(41);
        Q2_0, "Q2_0", "q2_0", (64, 18), Some(42);
        Q4_0, "Q4_0", "q4_0", (32, 18), Some(2);
        Q4_1, "Q4_1", "q4_1", (32, 20), Some(3);
        Q5_0, "Q5_0", "q5_0", (32, 22), Some(6);
        Q5_1, "Q5_1", "q5_1", (32, 24), Some(7);
        Q8_0, "Q8_0", "q8_0", (32, 34), Some(8);
        Q2K, "Q2_K", "q2_k", (256, 84), Some(10);
        Q3K, "Q3_K", "q3_k", (256, 110), Some(11);
        Q4K, "Q4_K", "q4_k", (256, 144), Some(12);
        Q5K, "Q5_K", "q5_k", (256, 176), Some(13);
        Q6K, "Q6_K", "q6_k", (256, 210), Some(14);
        IQ1S, "IQ1_S", "iq1_s", (256, 50), Some(19);
        IQ1M, "IQ1_M", "iq1_m", (256, 56), Some(29);
        IQ2XXS, "IQ2_XXS", "iq2_xxs", (256, 66), Some(16);
        IQ2XS, "IQ2_XS", "iq2_xs", (256, 74), Some(17);
        IQ2S, "IQ2_S", "iq2_s", (256, 82), Some(22);
        IQ3XXS, "IQ3_XXS", "iq3_xxs", (256, 98), Some(18);
        IQ3S, "IQ3_S", "iq3_s", (256, 110), Some(21);
        IQ4NL, "IQ4_NL", "iq4_nl", (32, 18), Some(20);
        IQ4XS, "IQ4_XS", "iq4_xs", (256, 136), Some(23);
        TQ1_0, "TQ1_0", "tq1_0", (256, 54), Some(34);
        TQ2_0, "TQ2_0", "tq2_0", (256, 66), Some(35);
        MXFP4, "MXFP4", "mxfp4", (32, 17), Some(39);
        NVFP4, "NVFP4", "nvfp4", (64, 36), Some(40);
    }
}

impl Dtype {
    fn row(self) -> &'static Row {
        // The macro makes a row of every variant.
        ROWS.get(self as usize).unwrap_or(&ROWS[0])
    }

    /// The types that safetensors names.
    fn of_safetensors() -> impl Iterator<Item = &'static Row> {
        ROWS.iter().filter(|row| !row.is_ggml_block)
    }

    /// The name in a safetensors header ("BF16"), or in ggml ("Q4_K").
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The name in PyTorch and in `config.json` ("bfloat16"); of a type that only ggml has, its name in lower case ("q4_k").
    pub fn torch_name(self) -> &'static str {
        self.row().torch_name
    }

    /// The fewest elements that take whole bytes, and those bytes: one and its size for most; types of 4 and 6 bits, and those that store some elements under a
    /// scale of their own, have larger blocks.
    pub fn block(self) -> (u64, u64) {
        self.row().block
    }

    /// Bytes of so many elements; `None` if they are no whole blocks, or too many.
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let (block, bytes) = self.block();
        if elements.is_multiple_of(block) { (elements / block).checked_mul(bytes) } else { None }
    }

    /// True for the types of ggml that store a block of elements under scales of its own. Blocks do not cross rows.
    pub fn is_ggml_block(self) -> bool {
        self.row().is_ggml_block
    }

    /// Its number in a GGUF file, where it has one.
    pub fn ggml_id(self) -> Option<u32> {
        self.row().ggml_id
    }

    /// The type of that number in a GGUF file; `None` for numbers that are retired, never stored, or newer than this.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        ROWS.iter().find(|row| row.ggml_id == Some(id)).map(|row| row.dtype)
    }

    /// Reads a safetensors name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::of_safetensors().find(|row| row.name == name).map(|row| row.dtype)
    }

    /// Reads a PyTorch name ("bfloat16", also "torch.bfloat16").
    pub fn from_torch_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("torch.").unwrap_or(name);
        Self::of_safetensors().find(|row| row.torch_name == name).map(|row| row.dtype)
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
    fn every_name_and_number_reads_back() {
        for (at, row) in ROWS.iter().enumerate() {
            let Row { dtype, name, torch_name, ggml_id, .. } = *row;
            assert_eq!((dtype as usize, dtype.name(), dtype.block()), (at, name, row.block));
            // What only ggml has is no name of a safetensors header.
            let read = (!row.is_ggml_block).then_some(dtype);
            assert_eq!((Dtype::from_name(name), Dtype::from_torch_name(torch_name)), (read, read));
            assert_eq!(ggml_id.and_then(Dtype::from_ggml_id), ggml_id.map(|_| dtype));
            assert!(!row.is_ggml_block || ggml_id.is_some() && torch_name == name.to_lowercase(), "{name}");
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
