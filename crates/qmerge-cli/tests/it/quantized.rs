//! The demo model in formats of quantized checkpoints: merged, inspected, verified, compared, and brought back to bf16.

use std::path::Path;

use safetensors::Dtype;

use crate::model::{Folder, Tensor, demo, read, run, stderr, stdout, write};

const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
const GROUP: usize = 32;

fn ok(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|pair| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16)).collect()
}

fn words(name: String, shape: &[usize], words: Vec<u32>) -> Tensor {
    (name, Dtype::I32, shape.to_vec(), words.into_iter().flat_map(u32::to_le_bytes).collect())
}

/// Codes, zeros less nothing, scales: 4 bits, with zeros, groups of inputs by `group_of`.
struct Codes {
    codes: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<f32>,
}

fn quantized(values: &[f32], outputs: usize, inputs: usize, group_of: &dyn Fn(usize) -> usize) -> Codes {
    let groups = inputs / GROUP;
    let (mut low, mut high) = (vec![0.0_f32; groups * outputs], vec![0.0_f32; groups * outputs]);
    let at = |o: usize, i: usize| group_of(i) * outputs + o;
    for (k, &x) in values.iter().enumerate() {
        let at = at(k / inputs, k % inputs);
        (low[at], high[at]) = (low[at].min(x), high[at].max(x));
    }
    // Cut off where an f16 ends.
    let cut = |x: f32| f32::from_bits(x.to_bits() & !0x1fff);
    let scales: Vec<f32> = low.iter().zip(&high).map(|(low, high)| cut((high - low) / 15.0)).collect();
    let zeros: Vec<u32> =
        low.iter().zip(&scales).map(|(low, scale)| (-low / scale).round().clamp(1.0, 15.0) as u32).collect();
    let code = |(k, x): (usize, &f32)| {
        let at = at(k / inputs, k % inputs);
        ((x / scales[at]).round() + zeros[at] as f32).clamp(0.0, 15.0) as u32
    };
    Codes { codes: values.iter().enumerate().map(code).collect(), zeros, scales }
}

fn scales(module: &str, codes: &Codes, groups: usize, outputs: usize) -> Tensor {
    let bytes = codes.scales.iter().flat_map(|x| (((x.to_bits() >> 13) - (112 << 10)) as u16).to_le_bytes()).collect();
    (format!("{module}.scales"), Dtype::F16, vec![groups, outputs], bytes)
}

/// GPTQ's tensors with act-order: eight inputs to a word, zeros less one.
fn gptq(module: &str, values: &[f32], outputs: usize, inputs: usize) -> Vec<Tensor> {
    let groups = inputs / GROUP;
    let group_of = |i: usize| i * 5 % groups;
    let own = quantized(values, outputs, inputs, &group_of);
    let code = |i: usize, o: usize| own.codes[o * inputs + i];
    let word = |at: usize| (0..8).fold(0, |word, j| word | code(at / outputs * 8 + j, at % outputs) << (4 * j));
    let zeros = own.zeros.chunks(8).map(|eight| (0..8).fold(0, |word, j| word | (eight[j] - 1) << (4 * j))).collect();
    vec![
        words(format!("{module}.qweight"), &[inputs / 8, outputs], (0..inputs / 8 * outputs).map(word).collect()),
        words(format!("{module}.qzeros"), &[groups, outputs / 8], zeros),
        scales(module, &own, groups, outputs),
        words(format!("{module}.g_idx"), &[inputs], (0..inputs).map(|i| group_of(i) as u32).collect()),
    ]
}

/// AWQ's: eight outputs to a word.
fn awq(module: &str, values: &[f32], outputs: usize, inputs: usize) -> Vec<Tensor> {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let groups = inputs / GROUP;
    let own = quantized(values, outputs, inputs, &|i| i / GROUP);
    let pack = |code: &dyn Fn(usize) -> u32| (0..8).fold(0, |word, p| word | code(ORDER[p]) << (4 * p));
    let eights = outputs / 8;
    let word = |at: usize| pack(&|j| own.codes[(at % eights * 8 + j) * inputs + at / eights]);
    let zeros = own.zeros.chunks(8).map(|eight| pack(&|j| eight[j])).collect();
    vec![
        words(format!("{module}.qweight"), &[inputs, eights], (0..inputs * eights).map(word).collect()),
        words(format!("{module}.qzeros"), &[groups, eights], zeros),
        scales(module, &own, groups, outputs),
    ]
}

/// The plain model with its linear layers as `store` makes them of a module's name, values, outputs and inputs.
fn stored(folder: &Path, name: &str, about: &str, store: fn(&str, &[f32], usize, usize) -> Vec<Tensor>) {
    let mut tensors = Vec::new();
    for tensor in read(&folder.join("bf16/model.safetensors")) {
        match tensor.0.strip_suffix("_proj.weight") {
            Some(module) => {
                tensors.extend(store(&format!("{module}_proj"), &floats(&tensor.3), tensor.2[0], tensor.2[1]))
            }
            None => tensors.push(tensor),
        }
    }
    crate::model::copy_folder(&folder.join("bf16"), &folder.join(name));
    write(&folder.join(name).join("model.safetensors"), &tensors);
    let path = folder.join(name).join("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["quantization_config"] = serde_json::from_str(about).unwrap();
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn quantized_checkpoints_are_merged_and_keep_their_format() {
    let folder = Folder::new();
    demo(folder.path());
    let at = folder.path();
    ok(at, &["convert", "--base", "base-nf4", "--to", "bf16", "-o", "bf16"]);
    ok(at, &["convert", "--base", "bf16", "--to", "fp8", "-o", "fp8"]);
    ok(at, &["convert", "--base", "bf16", "--to", "ct-int4", "--block-size", "64", "-o", "ct-int4"]);
    stored(at, "gptq", r#"{"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true}"#, gptq);
    std::fs::write(at.join("gptq/quantize_config.json"), r#"{"bits": 4, "desc_act": true}"#).unwrap();
    stored(at, "awq", r#"{"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}"#, awq);
    for (base, format) in [("fp8", "fp8"), ("ct-int4", "ct-int4"), ("gptq", "gptq"), ("awq", "awq")] {
        let inspected = ok(at, &["inspect", base]);
        assert!(inspected.contains(format) && inspected.contains("decodes to"), "{inspected}");
        let sources = ["--base", base, "--adapter", "adapter"];
        let config = |folder: &str| std::fs::read_to_string(at.join(folder).join("config.json")).unwrap();
        for (method, out) in [("nearest", "near"), ("auto", "best")] {
            let said = ok(at, &[&["merge"], &sources[..], &["--rounding", method, "-o", out, "--force"]].concat());
            assert!(said.contains(&format!("{format} + bf16 → {format} + bf16")), "{said}");
            assert_eq!(config(out), config(base), "{base}");
        }
        assert_eq!(at.join("best/quantize_config.json").is_file(), base == "gptq");
        ok(at, &[&["verify"], &sources[..], &["--merged", "best"]].concat());
        let merged = [
            "--merged",
            "near",
            "--merged",
            "best",
            "--text",
            EVAL,
            "--context",
            "128",
            "--windows",
            "6",
            "--continuation",
            "0",
            "--json",
        ];
        let found = ok(at, &[&["compare"], &sources[..], &merged].concat());
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        let model = |number: usize, key: &str| found["models"][number][key].as_f64().unwrap();
        assert!(model(1, "loss") < model(0, "loss") - 0.1, "{base}: {found:#}");
        assert!(model(3, "gain_kept") > 0.85 && model(3, "kl") < model(2, "kl"), "{base}: {found:#}");
        // What the format said is gone with it.
        ok(at, &["convert", "--base", "best", "--to", "bf16", "-o", "plain", "--force"]);
        assert!(!config("plain").contains("quantization_config") && !at.join("plain/quantize_config.json").exists());
        assert!(
            read(&at.join("plain/model.safetensors"))
                .iter()
                .all(|(name, dtype, ..)| name.ends_with(".weight") && *dtype == Dtype::BF16)
        );
    }
}

/// Every format that is made is described, is read again as what it was made of, and takes a merge.
#[test]
fn what_is_made_is_read_again() {
    let folder = Folder::new();
    demo(folder.path());
    let at = folder.path();
    ok(at, &["convert", "--base", "base-nf4", "--to", "bf16", "-o", "bf16"]);
    let plain: Vec<Tensor> = read(&at.join("bf16/model.safetensors"));
    for (to, settings, about, noise) in [
        ("gptq", &["--block-size", "64"][..], r#""bits": 4"#, 0.15),
        ("gptq", &["--block-size", "32", "--bits", "8"], r#""bits": 8"#, 0.01),
        ("mlx", &[], r#""quantization""#, 0.15),
        ("mlx", &["--bits", "6", "--block-size", "32"], r#""bits": 6"#, 0.03),
        ("hqq", &["--block-size", "32"], r#""skip_modules""#, 0.15),
        ("hqq", &["--bits", "3", "--block-size", "32"], r#""nbits": 3"#, 0.3),
        ("ct-nvfp4", &[], "nvfp4-pack-quantized", 0.12),
        ("ct-mxfp4", &[], "mxfp4-pack-quantized", 0.15),
        ("ct-int8", &[], "channel", 0.02),
    ] {
        let convert = ["convert", "--base", "bf16", "--to", to, "-o", "made", "--force"];
        ok(at, &[&convert[..], settings].concat());
        let inspected = ok(at, &["inspect", "made"]);
        assert!(inspected.contains(to), "{inspected}");
        let config = std::fs::read_to_string(at.join("made/config.json")).unwrap();
        assert!(config.contains(about), "{to}: {config}");
        ok(at, &["convert", "--base", "made", "--to", "bf16", "-o", "back", "--force"]);
        for (name, _, _, bytes) in read(&at.join("back/model.safetensors")) {
            let (_, _, _, own) = plain.iter().find(|(own, ..)| *own == name).unwrap();
            let (now, before) = (floats(&bytes), floats(own));
            let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>();
            let miss = sum(&mut now.iter().zip(&before).map(|(a, b)| a - b)) / sum(&mut before.iter().copied());
            let is_coded = name.ends_with("_proj.weight");
            assert!(if is_coded { miss.sqrt() < noise } else { miss == 0.0 }, "{to} {name}: {}", miss.sqrt());
        }
        let sources = ["--base", "base-nf4", "--adapter", "adapter"];
        let merge = ["merge", "--to", to, "-o", "merged", "--force"];
        ok(at, &[&merge[..], &sources, settings].concat());
        ok(at, &[&["verify", "--merged", "merged"], &sources[..]].concat());
    }
}

/// What AWQ is told of, and what makes no sense there.
#[test]
fn an_adapter_of_another_model_than_the_awq_one_is_told_of() {
    let folder = Folder::new();
    demo(folder.path());
    let at = folder.path();
    ok(at, &["convert", "--base", "base-nf4", "--to", "bf16", "-o", "bf16"]);
    stored(at, "awq", r#"{"quant_method": "awq", "bits": 4, "group_size": 32}"#, awq);
    let path = at.join("adapter/adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for (trained_on, warns) in [("org/Model-1B", true), ("org/Model-1B-AWQ", false), ("/home/someone/awq", false)] {
        config["base_model_name_or_path"] = trained_on.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let output = run(at, &["merge", "--base", "awq", "--adapter", "adapter", "-o", "out", "--dry-run", "--fast"]);
        let said = stdout(&output) + &stderr(&output);
        assert!(
            output.status.success() && said.contains("rescales the inputs of layers") == warns,
            "{trained_on}: {said}"
        );
    }
    // The difference to a model whose norms AWQ has not divided leads to it as a whole, and to no model in part.
    config["base_model_name_or_path"] = "org/Model-1B-AWQ".into();
    std::fs::write(&path, config.to_string()).unwrap();
    let merge = |more: &[&'static str]| {
        run(at, &[&["merge", "--base", "awq", "--tuned", "bf16", "-o", "out", "--dry-run", "--fast"], more].concat())
    };
    assert!(merge(&[]).status.success());
    for more in [&["--tuned", "bf16"][..], &["--adapter", "adapter"], &["--lora-scale", "mlp=0.5"]] {
        let output = merge(more);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {said}");
        assert!(said.contains("stored as AWQ") && said.contains("was quantized as --base"), "{said}");
    }
    let extract = ["extract", "--base", "bf16", "--tuned", "awq", "--rank", "4", "-o", "difference", "--force"];
    ok(at, &extract);
    let norms = at.join("awq/model.safetensors");
    let mut tensors = read(&norms);
    for tensor in tensors.iter_mut().filter(|tensor| tensor.0.ends_with("input_layernorm.weight")) {
        let halves: Vec<u8> =
            floats(&tensor.3).iter().flat_map(|x| ((x * 0.5).to_bits() >> 16).to_le_bytes()[..2].to_vec()).collect();
        tensor.3 = halves;
    }
    write(&norms, &tensors);
    let output = run(at, &extract);
    let said = stderr(&output);
    assert!(said.contains("input_layernorm.weight") && said.contains("50 %") && said.contains("before AWQ"), "{said}");
}

/// Groups that do not fit say which do.
#[test]
fn inputs_that_are_no_whole_groups() {
    let folder = Folder::new();
    crate::model::plain_model(folder.path(), 2, 40, 96);
    let convert = ["convert", "--base", "base", "--to", "ct-int4", "-o", "out"];
    let output = run(folder.path(), &convert);
    let said = stderr(&output);
    assert!(said.contains("q_proj") && said.contains("96 inputs") && said.contains("--block-size 32"), "{said}");
    ok(folder.path(), &[&convert[..], &["--block-size", "32"]].concat());
}
