//! Which type each tensor of a GGUF file has: llama.cpp's file types are mixtures, in which tensors that suffer most have more bits.
//!
//! The order of tensors matters, since the first of a kind are counted; it is llama-quantize's, by layers and within one by names. What is known of
//! architectures that no file is made of is left out. Source: llama.cpp, `src/llama-quant.cpp`.

use crate::dtype::Dtype;
use crate::open::gguf::{HEAD_WEIGHT, LAYERS_TABLE, TABLE, expert};

/// A file type.
#[derive(Debug)]
pub(crate) struct FileType {
    pub(crate) id: &'static str,
    pub(crate) about: &'static str,
    /// `general.file_type`.
    pub(crate) number: u32,
    /// The type of most tensors.
    pub(crate) dtype: Dtype,
    /// Its size among those of one type: the letter behind the name.
    size: Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    /// The type has one mixture.
    Only,
    S,
    M,
    L,
}

macro_rules! file_types {
    ($($name:ident $id:literal $number:literal $dtype:ident $size:ident $about:literal;)*) => {
        $(pub(crate) const $name: FileType =
            FileType { id: $id, about: $about, number: $number, dtype: Dtype::$dtype, size: Size::$size };)*

        #[cfg(test)]
        const ALL: &[FileType] = &[$($name),*];
    };
}

file_types! {
    F32 "f32" 0 F32 Only "GGUF, all 32-bit floats";
    F16 "f16" 1 F16 Only "GGUF, matrices of 16-bit IEEE floats";
    BF16 "bf16" 32 BF16 Only "GGUF, matrices of bfloat16";
    Q8_0 "q8_0" 7 Q8_0 Only "GGUF, 8.5 bits per weight";
    Q6_K "q6_k" 18 Q6K Only "GGUF, 6.6 bits per weight";
    Q5_K_M "q5_k_m" 17 Q5K M "GGUF, 5.7 bits per weight, some tensors at 6 bits";
    Q5_K_S "q5_k_s" 16 Q5K S "GGUF, 5.5 bits per weight";
    Q5_1 "q5_1" 9 Q5_1 Only "GGUF, 6 bits per weight";
    Q5_0 "q5_0" 8 Q5_0 Only "GGUF, 5.5 bits per weight";
    Q4_K_M "q4_k_m" 15 Q4K M "GGUF, 4.9 bits per weight, some tensors at 6 bits";
    Q4_K_S "q4_k_s" 14 Q4K S "GGUF, 4.6 bits per weight, some tensors at 5 bits";
    Q4_1 "q4_1" 3 Q4_1 Only "GGUF, 5 bits per weight";
    Q4_0 "q4_0" 2 Q4_0 Only "GGUF, 4.5 bits per weight";
    IQ4_NL "iq4_nl" 25 IQ4NL Only "GGUF, 4.5 bits per weight, uneven levels";
    IQ4_XS "iq4_xs" 30 IQ4XS Only "GGUF, 4.3 bits per weight, uneven levels";
    Q3_K_L "q3_k_l" 13 Q3K L "GGUF, 4.2 bits per weight, some tensors at 5 bits";
    Q3_K_M "q3_k_m" 12 Q3K M "GGUF, 3.9 bits per weight, some tensors at 4 and 5 bits";
    Q3_K_S "q3_k_s" 11 Q3K S "GGUF, 3.5 bits per weight";
    Q2_K "q2_k" 10 Q2K Only "GGUF, 3 bits per weight, some tensors at 3 and 4 bits";
}

/// What types depend on beside the tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) layers: usize,
    /// Heads of queries that share one of keys.
    pub(crate) shared: usize,
    /// One whose values are so few that they have more bits (Llama and Qwen 2 of 70 billion weights).
    pub(crate) is_large: bool,
    /// The head is a tensor of its own.
    pub(crate) has_head: bool,
    pub(crate) has_importance: bool,
    /// Experts of a layer; 0 for none.
    pub(crate) experts: usize,
    /// Falcon's mixtures are its own: a head of eight bits, and fewer for what leads out of its blocks.
    pub(crate) is_falcon: bool,
}

/// True if a tensor is one of those that have a type of the mixture.
pub(crate) fn takes(name: &str, shape: &[usize]) -> bool {
    let has_rows = shape.split_last().is_some_and(|(_, rows)| rows.iter().any(|rows| *rows > 1));
    // A router is small, and which experts act hangs on it; a convolution is smaller.
    let kept = ["_norm.weight", "ffn_gate_inp.weight", "shortconv.conv.weight", "ssm_conv1d", "altup_"];
    let is_kept = kept.iter().chain(FLOATS).any(|part| name.contains(part)) || name == POSITIONS;
    has_rows && name.ends_with("weight") && !is_kept
}

/// What llama-quantize leaves as it is, in the floats of the file that it is given.
const FLOATS: &[&str] =
    &["per_layer_model_proj", "altup_proj.", "altup_unembd_proj.", "altup_router.", "laurel_l.", "laurel_r."];

/// The table of learned positions.
const POSITIONS: &str = "position_embd.weight";

impl FileType {
    /// True if tensors lie in llama-quantize's order, and its keys come last; a file that is not quantized is as the converter writes it.
    pub(crate) fn is_quantized(&self) -> bool {
        self.dtype.is_ggml_block()
    }

    /// The type of a tensor that `takes` none of the mixture's, in a file that is made of a folder: that of a file in bf16 which is quantized.
    pub(crate) fn untaken(&self, name: &str) -> Dtype {
        match FLOATS.iter().any(|part| name.contains(part)) {
            true if self.is_quantized() => Dtype::BF16,
            true => self.dtype,
            false => Dtype::F32,
        }
    }

    /// The types of matrices whose names are those in the file, in the order in which they lie there, by name and width of a row. Experts of a stack have one.
    pub(crate) fn types(&self, tensors: &[(&str, usize)], model: Model) -> Vec<Dtype> {
        let values = tensors.iter().filter(|(name, _)| is_values(name)).count();
        let mut count = Counts { values, ..Counts::default() };
        let mut types: Vec<Dtype> = Vec::with_capacity(tensors.len());
        for (name, width) in tensors {
            let dtype = match (expert(name), types.last()) {
                (Some((_, 1..)), Some(first)) => *first,
                _ => self.dtype(name, *width, model, &mut count),
            };
            types.push(dtype);
        }
        types
    }

    fn dtype(&self, name: &str, width: usize, model: Model, count: &mut Counts) -> Dtype {
        if !self.is_quantized() {
            return self.dtype;
        }
        let is_head = name == HEAD_WEIGHT || [TABLE, LAYERS_TABLE].contains(&name) && !model.has_head;
        let dtype = if is_head {
            if model.is_falcon || !width.is_multiple_of(self.block()) {
                Dtype::Q8_0
            } else if self.dtype == Dtype::Q8_0 {
                self.dtype
            } else {
                Dtype::Q6K
            }
        } else if is_values(name) {
            let number = count.seen_values;
            count.seen_values += 1;
            self.of_values(number, count.values, model)
        } else if name.contains("attn_k.weight") && model.experts == OF_MIXTRAL {
            Dtype::Q8_0
        } else if name.contains("ffn_down") {
            let number = count.seen_down;
            count.seen_down += 1;
            let layer = super::importance::layer(name).filter(|_| model.experts > 1);
            self.of_down(layer.unwrap_or(number), model)
        } else if name.contains("attn_output.weight") {
            match (self.dtype, self.size) {
                (Dtype::Q3K, Size::L) if model.is_falcon => Dtype::Q4K,
                _ if model.is_falcon => self.dtype,
                (Dtype::Q2K | Dtype::IQ4NL | Dtype::IQ4XS, _) | (Dtype::Q3K | Dtype::Q4K, Size::S | Size::M)
                    if model.experts == OF_MIXTRAL =>
                {
                    Dtype::Q5K
                }
                _ if model.experts == OF_MIXTRAL => self.dtype,
                (Dtype::Q2K, _) => Dtype::Q3K,
                (Dtype::Q3K, Size::M) => Dtype::Q4K,
                (Dtype::Q3K, Size::L) => Dtype::Q5K,
                _ => self.dtype,
            }
        } else {
            self.dtype
        };
        fallback(dtype, width)
    }

    fn block(&self) -> usize {
        self.dtype.block().0 as usize
    }

    /// Of what values are made by, alone or together with queries and keys.
    fn of_values(&self, number: usize, all: usize, model: Model) -> Dtype {
        let dtype = match (self.dtype, self.size) {
            (Dtype::Q2K, _) if model.shared >= 4 => Dtype::Q4K,
            (Dtype::Q2K, _) => Dtype::Q3K,
            (Dtype::Q3K, Size::M) if number < 2 => Dtype::Q5K,
            (Dtype::Q3K, Size::M) => Dtype::Q4K,
            (Dtype::Q3K, Size::L) => Dtype::Q5K,
            (Dtype::IQ4NL | Dtype::IQ4XS, _) if model.shared >= 4 => Dtype::Q5K,
            (Dtype::Q4K | Dtype::Q5K, Size::M) if has_more_bits(number, all) => Dtype::Q6K,
            (Dtype::Q4K, Size::S) if number < 4 => Dtype::Q5K,
            _ => self.dtype,
        };
        match dtype {
            _ if model.experts == OF_MIXTRAL => Dtype::Q8_0,
            Dtype::Q3K | Dtype::Q4K if model.is_large => Dtype::Q5K,
            other => other,
        }
    }

    /// Of what leads out of a feed-forward.
    fn of_down(&self, number: usize, model: Model) -> Dtype {
        let is_early = number < model.layers / 8;
        let (first, more) = (number < model.layers / 16, has_more_bits(number, model.layers));
        match (self.dtype, self.size) {
            (Dtype::Q3K, Size::M) if model.is_falcon && !first && !more => Dtype::Q3K,
            (Dtype::Q3K, Size::L) if model.is_falcon => Dtype::Q4K,
            (Dtype::Q4K, Size::M) if model.is_falcon && !first => {
                if more {
                    Dtype::Q5K
                } else {
                    Dtype::Q4K
                }
            }
            (Dtype::Q4K, Size::M) if model.is_falcon => Dtype::Q6K,
            (Dtype::Q4K, Size::S) if model.is_falcon => Dtype::Q4K,
            (Dtype::Q2K, _) => Dtype::Q3K,
            (Dtype::Q3K, Size::M) if first => Dtype::Q5K,
            (Dtype::Q3K, Size::M) => Dtype::Q4K,
            (Dtype::Q3K, Size::L) => Dtype::Q5K,
            (Dtype::Q4K | Dtype::Q5K, Size::M) if more => Dtype::Q6K,
            (Dtype::Q4K, Size::S) if is_early => Dtype::Q5K,
            (Dtype::IQ4NL | Dtype::IQ4XS, _) if is_early && !model.has_importance => Dtype::Q5K,
            (Dtype::Q4_0, _) if is_early && model.has_importance => Dtype::Q4_1,
            (Dtype::Q5_0, _) if is_early && model.has_importance => Dtype::Q5_1,
            _ => self.dtype,
        }
    }
}

/// So many experts make keys and values a small part of the model, which has more bits.
const OF_MIXTRAL: usize = 8;

/// How many of a kind there are, and how many were met.
#[derive(Default)]
struct Counts {
    values: usize,
    seen_values: usize,
    seen_down: usize,
}

fn is_values(name: &str) -> bool {
    ["attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"].iter().any(|part| name.contains(part))
}

/// The first and the last eighth of the layers, and every third in between.
fn has_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// What a tensor takes whose rows are no whole blocks of a type.
fn fallback(dtype: Dtype, width: usize) -> Dtype {
    let fits = |dtype: Dtype| width.is_multiple_of(dtype.block().0 as usize);
    if fits(dtype) {
        return dtype;
    }
    let smaller = match dtype {
        Dtype::IQ4XS => Dtype::IQ4NL,
        Dtype::Q2K | Dtype::Q3K => Dtype::Q4_0,
        Dtype::Q4K => Dtype::Q5_0,
        Dtype::Q5K => Dtype::Q5_1,
        Dtype::Q6K => Dtype::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { Dtype::F16 }
}

/// llama-quantize's order of tensors: those outside the layers first, and among those of a layer by name; experts in their stack by number.
pub(crate) fn order(one: &str, other: &str) -> std::cmp::Ordering {
    let key = |name: &str| {
        let layer = super::importance::layer(name).map_or(0, |layer| layer.saturating_add(1));
        let (name, number) = expert(name).unwrap_or_else(|| (name.to_owned(), 0));
        (layer, name, number)
    };
    key(one).cmp(&key(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against llama-quantize's own choice: `testdata/gen/gguf_files.py`.
    #[test]
    fn types_are_those_of_llama_quantize() {
        let text = std::fs::read_to_string("testdata/gguf/made/types.json").unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut met = 0;
        for (model, about) in document["models"].as_object().unwrap() {
            let count = |key: &str| about[key].as_u64().unwrap() as usize;
            let flag = |key: &str| about[key].as_bool().unwrap();
            let (layers, width) = (count("layers"), count("width"));
            let own = Model {
                layers,
                shared: count("shared"),
                is_large: flag("large"),
                has_head: flag("head"),
                has_importance: flag("weighted"),
                experts: about.get("experts").map_or(0, |count| count.as_u64().unwrap() as usize),
                is_falcon: about.get("falcon").is_some(),
            };
            for file in ALL.iter().filter(|file| file.is_quantized()) {
                let types = about["types"][file.id].as_object().unwrap();
                let mut names: Vec<String> = Vec::new();
                for part in types.keys() {
                    match part.as_str() {
                        "token_embd" | "output" => names.push(format!("{part}.weight")),
                        _ => names.extend((0..layers).map(|layer| format!("blk.{layer}.{part}.weight"))),
                    }
                }
                names.sort_by(|one, other| order(one, other));
                let tensors: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), width)).collect();
                for (name, dtype) in names.iter().zip(file.types(&tensors, own)) {
                    let layer = crate::arch::gguf::importance::layer(name);
                    let part = name.rsplit('.').nth(1).unwrap();
                    let said = types[part].as_str().unwrap();
                    let want = match layer {
                        None => said.to_owned(),
                        Some(layer) => {
                            let letter = said.chars().nth(if said.len() == 1 { 0 } else { layer }).unwrap();
                            document["letters"][letter.to_string()].as_str().unwrap().to_owned()
                        }
                    };
                    assert_eq!(dtype.torch_name(), want, "{model}, {}: {name}", file.id);
                    met += 1;
                }
            }
        }
        assert!(met > 20_000, "{met}");
    }

    const MODEL: Model = Model {
        layers: 32,
        shared: 4,
        is_large: false,
        has_head: true,
        has_importance: false,
        experts: 0,
        is_falcon: false,
    };

    #[test]
    fn a_row_that_is_no_whole_blocks_takes_another_type() {
        let types = |file: &FileType, name: &str, width| file.types(&[(name, width)], MODEL)[0];
        assert_eq!(types(&Q4_K_M, "blk.9.attn_q.weight", 576), Dtype::Q5_0);
        assert_eq!(types(&Q4_K_M, "output.weight", 576), Dtype::Q8_0);
        assert_eq!(types(&Q4_K_M, "output.weight", 512), Dtype::Q6K);
        assert_eq!(types(&Q4_0, "output.weight", 512), Dtype::Q6K);
        // A head of rows that Q4_0 has blocks for and Q6_K has not.
        assert_eq!(types(&Q4_0, "output.weight", 576), Dtype::Q8_0);
        assert_eq!(types(&Q8_0, "output.weight", 48), Dtype::F16);
        assert_eq!(types(&Q3_K_S, "blk.0.attn_k.weight", 48), Dtype::F16);
    }

    #[test]
    fn routers_norms_and_single_rows_keep_their_type() {
        assert!(takes("blk.0.ffn_up_exps.weight", &[4, 8, 16]) && takes("token_embd.weight", &[2, 16]));
        for (name, shape) in [
            ("blk.0.ffn_gate_inp.weight", &[4, 16][..]),
            ("blk.0.attn_q_norm.weight", &[4, 16]),
            ("blk.0.ffn_gate_inp_shexp.weight", &[1, 16]),
            ("blk.0.attn_q.bias", &[4, 16]),
            ("output_norm.weight", &[16]),
            ("altup_proj.1.weight", &[16, 16]),
            ("blk.0.altup_correct_coef.weight", &[4, 4]),
            ("per_layer_model_proj.weight", &[8, 16]),
        ] {
            assert!(!takes(name, shape), "{name}");
        }
        let untaken = |name| [F16.untaken(name), Q4_K_M.untaken(name)];
        assert_eq!(untaken("altup_proj.1.weight"), [Dtype::F16, Dtype::BF16]);
        assert_eq!(untaken("blk.0.altup_correct_coef.weight"), [Dtype::F32; 2]);
    }

    #[test]
    fn the_order_is_by_layers() {
        let mut names = ["blk.10.a", "blk.2.b", "token_embd.weight", "blk.2.a", "output.weight"];
        names.sort_by(|a, b| order(a, b));
        assert_eq!(names, ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]);
        let mut names = ["blk.0.x_exps.10.weight", "blk.0.x_exps.9.weight", "blk.0.x_shexp.weight", "blk.0.w.weight"];
        names.sort_by(|a, b| order(a, b));
        assert_eq!(
            names,
            ["blk.0.w.weight", "blk.0.x_exps.9.weight", "blk.0.x_exps.10.weight", "blk.0.x_shexp.weight"]
        );
    }
}
