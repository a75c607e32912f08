//! Writes a random Llama in NF4 (or bf16) and a random LoRA for it: the input of the whole-program benchmark.
//!
//! `cargo run --release -p qmerge --example random_llama -- OUT [1b|7b|tiny] [nf4|bf16] [RANK]` makes `OUT/base` and `OUT/adapter`. Codes
//! are uniform over NF4's quantiles, so decoded weights are close to normal, as trained ones are.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

struct Size {
    hidden: usize,
    layers: usize,
    intermediate: usize,
    kv: usize,
    vocab: usize,
}

fn size(name: &str) -> Size {
    match name {
        "7b" => Size { hidden: 4096, layers: 32, intermediate: 11008, kv: 4096, vocab: 32000 },
        "tiny" => Size { hidden: 256, layers: 2, intermediate: 512, kv: 128, vocab: 1000 },
        _ => Size { hidden: 2048, layers: 22, intermediate: 5632, kv: 256, vocab: 32000 },
    }
}

/// A tensor to be written: name, type, shape, and what fills it.
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    fill: Fill,
}

enum Fill {
    Bytes(Vec<u8>),
    /// Uniform random bytes.
    Random,
    /// bf16 with this standard deviation.
    Bf16(f32),
    /// f32 with this standard deviation.
    F32(f32),
}

fn bytes_of(tensor: &Tensor) -> usize {
    let item = match tensor.dtype {
        "F32" => 4,
        "BF16" => 2,
        _ => 1,
    };
    tensor.shape.iter().product::<usize>() * item
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Roughly normal: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: f32 = (0..4).map(|i| (bits >> (16 * i) & 0xffff) as f32 / 65536.0).sum();
        (sum - 2.0) * 1.732
    }
}

fn write(path: &Path, mut tensors: Vec<Tensor>, random: &mut Random) -> std::io::Result<()> {
    let rank = |dtype: &str| ["F32", "BF16", "U8"].iter().position(|have| *have == dtype);
    tensors.sort_by(|a, b| (rank(a.dtype), &a.name).cmp(&(rank(b.dtype), &b.name)));
    let mut at = 0;
    let mut items = vec!["\"__metadata__\":{\"format\":\"pt\"}".to_owned()];
    for tensor in &tensors {
        let end = at + bytes_of(tensor);
        items.push(format!(
            "\"{}\":{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{at},{end}]}}",
            tensor.name, tensor.dtype, tensor.shape
        ));
        at = end;
    }
    let mut header = format!("{{{}}}", items.join(","));
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for tensor in &tensors {
        let elements: usize = tensor.shape.iter().product();
        match &tensor.fill {
            Fill::Bytes(bytes) => out.write_all(bytes)?,
            Fill::Random => {
                for _ in 0..elements / 8 {
                    out.write_all(&random.next().to_le_bytes())?;
                }
                out.write_all(&vec![0; elements % 8])?;
            }
            Fill::Bf16(sigma) => {
                for _ in 0..elements {
                    out.write_all(&((random.normal() * sigma).to_bits() >> 16).to_le_bytes()[..2])?;
                }
            }
            Fill::F32(sigma) => {
                for _ in 0..elements {
                    out.write_all(&(random.normal() * sigma).to_le_bytes())?;
                }
            }
        }
    }
    out.flush()
}

const NF4: [u32; 16] = [
    0xbf80_0000,
    0xbf32_39b1,
    0xbf06_6b30,
    0xbeca_32a0,
    0xbe91_a24d,
    0xbe3d_353f,
    0xbdba_7871,
    0,
    0x3da2_faff,
    0x3e24_cae3,
    0x3e7c_04dd,
    0x3ead_033a,
    0x3ee1_a4b8,
    0x3f10_07ab,
    0x3f39_13b3,
    0x3f80_0000,
];

/// A double-quantized NF4 weight with random codes; absmax is 0.045 ± 0.02.
fn nf4(name: &str, rows: usize, cols: usize) -> Vec<Tensor> {
    let blocks = (rows * cols).div_ceil(64);
    let floats = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let tensor = |suffix: &str, dtype, shape, fill| Tensor { name: format!("{name}{suffix}"), dtype, shape, fill };
    let map: Vec<f32> = (0..256).map(|i| (i as f32 - 127.0) / 128.0).collect();
    let state = format!(
        "{{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [{rows}, {cols}], \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.045}}"
    );
    let levels: Vec<f32> = NF4.iter().map(|&bits| f32::from_bits(bits)).collect();
    vec![
        tensor("", "U8", vec![rows * cols / 2, 1], Fill::Random),
        tensor(".absmax", "U8", vec![blocks], Fill::Random),
        tensor(".quant_map", "F32", vec![16], Fill::Bytes(floats(&levels))),
        tensor(
            ".nested_absmax",
            "F32",
            vec![blocks.div_ceil(256)],
            Fill::Bytes(floats(&vec![0.02; blocks.div_ceil(256)])),
        ),
        tensor(".nested_quant_map", "F32", vec![256], Fill::Bytes(floats(&map))),
        tensor(".quant_state.bitsandbytes__nf4", "U8", vec![state.len()], Fill::Bytes(state.into_bytes())),
    ]
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &'static str| args.get(i).cloned().unwrap_or_else(|| default.to_owned());
    let out = Path::new(args.first().expect("usage: random_llama OUT [1b|7b|tiny] [nf4|bf16] [RANK]"));
    let (name, format, rank) = (arg(1, "1b"), arg(2, "nf4"), arg(3, "16").parse::<usize>().expect("RANK is a number"));
    let size = size(&name);
    let mut base = Vec::new();
    let mut adapter = Vec::new();
    let plain = |name: &str, shape: Vec<usize>, sigma| Tensor {
        name: name.to_owned(),
        dtype: "BF16",
        shape,
        fill: Fill::Bf16(sigma),
    };
    base.push(plain("model.embed_tokens.weight", vec![size.vocab, size.hidden], 0.02));
    base.push(plain("lm_head.weight", vec![size.vocab, size.hidden], 0.02));
    base.push(plain("model.norm.weight", vec![size.hidden], 1.0));
    for layer in 0..size.layers {
        let path = format!("model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            base.push(plain(&format!("{path}.{norm}.weight"), vec![size.hidden], 1.0));
        }
        for (module, rows, cols) in [
            ("self_attn.q_proj", size.hidden, size.hidden),
            ("self_attn.k_proj", size.kv, size.hidden),
            ("self_attn.v_proj", size.kv, size.hidden),
            ("self_attn.o_proj", size.hidden, size.hidden),
            ("mlp.gate_proj", size.intermediate, size.hidden),
            ("mlp.up_proj", size.intermediate, size.hidden),
            ("mlp.down_proj", size.hidden, size.intermediate),
        ] {
            let weight = format!("{path}.{module}.weight");
            if format == "nf4" {
                base.extend(nf4(&weight, rows, cols));
            } else {
                base.push(plain(&weight, vec![rows, cols], 0.02));
            }
            let factor = |name: &str, shape, sigma| Tensor {
                name: format!("base_model.model.{path}.{module}.{name}.weight"),
                dtype: "F32",
                shape,
                fill: Fill::F32(sigma),
            };
            adapter.push(factor("lora_A", vec![rank, cols], 0.02));
            adapter.push(factor("lora_B", vec![rows, rank], 0.002));
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for folder in ["base", "adapter"] {
        std::fs::create_dir_all(out.join(folder))?;
    }
    write(&out.join("base/model.safetensors"), base, &mut random)?;
    write(&out.join("adapter/adapter_model.safetensors"), adapter, &mut random)?;
    let Size { hidden, layers, intermediate, kv, vocab } = size;
    let heads = hidden / 64;
    let quantization = if format == "nf4" {
        "\"quantization_config\":{\"_load_in_4bit\":true,\"_load_in_8bit\":false,\"bnb_4bit_compute_dtype\":\"bfloat16\",\"bnb_4bit_quant_storage\":\"uint8\",\"bnb_4bit_quant_type\":\"nf4\",\"bnb_4bit_use_double_quant\":true,\"load_in_4bit\":true,\"load_in_8bit\":false,\"quant_method\":\"bitsandbytes\"},"
    } else {
        ""
    };
    std::fs::write(
        out.join("base/config.json"),
        format!(
            "{{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"dtype\":\"bfloat16\",{quantization}\"hidden_size\":{hidden},\"num_hidden_layers\":{layers},\"intermediate_size\":{intermediate},\"num_attention_heads\":{heads},\"num_key_value_heads\":{},\"vocab_size\":{vocab},\"max_position_embeddings\":4096,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,\"hidden_act\":\"silu\",\"tie_word_embeddings\":false}}\n",
            kv / 64
        ),
    )?;
    std::fs::write(
        out.join("adapter/adapter_config.json"),
        format!(
            "{{\"peft_type\":\"LORA\",\"task_type\":\"CAUSAL_LM\",\"r\":{rank},\"lora_alpha\":{},\"target_modules\":[\"q_proj\",\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\",\"up_proj\",\"down_proj\"],\"base_model_name_or_path\":\"random\"}}\n",
            2 * rank
        ),
    )
}
