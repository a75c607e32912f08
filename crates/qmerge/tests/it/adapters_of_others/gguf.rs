//! Adapters in GGUF, against the PEFT folders that llama.cpp made them of.

use super::*;

/// A GGUF file with these keys and f32 tensors.
fn gguf(path: &Path, keys: &[Vec<u8>], tensors: &Values) {
    let mut bytes = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    bytes.extend(keys.concat());
    let (mut data, mut offset) = (Vec::new(), 0_u64);
    for (name, (shape, values)) in tensors {
        bytes.extend(text(name));
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| bytes.extend((*size as u64).to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        values.iter().for_each(|x| data.extend(x.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
        offset = data.len() as u64;
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    std::fs::write(path, [bytes, data].concat()).unwrap();
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn string(key: &str, value: &str) -> Vec<u8> {
    [text(key), 8_u32.to_le_bytes().to_vec(), text(value)].concat()
}

fn float(key: &str, value: f32) -> Vec<u8> {
    [text(key), 6_u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
}

/// A llama whose embedding and keys the adapters of the test data fit.
fn llama(folder: &Path, model_type: &str) {
    let values = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect::<Vec<f32>>();
    let tensors = Values::from([
        ("model.embed_tokens.weight".to_owned(), (vec![64, 256], values(64 * 256))),
        ("model.layers.0.self_attn.k_proj.weight".to_owned(), (vec![128, 256], values(128 * 256))),
    ]);
    write(&folder.join("model.safetensors"), &tensors);
    let config = json!({"model_type": model_type, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// The PEFT adapter and what llama.cpp's converter made of it mean the same, of a folder and of a GGUF file: to the bit.
#[test]
fn gguf_adapters_are_what_they_were_made_from() {
    let scratch = Scratch::new("gguf");
    llama(&scratch.join("base"), "llama");
    let adapter = |name: &str| data("gguf").join(name);
    let got = merged(&scratch.join("base"), &adapter("adapter-f32.gguf"), 0.75).unwrap();
    let want = merged(&scratch.join("base"), &adapter("adapter_model.safetensors"), 0.75).unwrap();
    // The head parts from the embedding.
    assert_eq!(want.len(), 3);
    assert!(got == want);
    let before = floats(&scratch.join("base/model.safetensors"));
    assert!(before.iter().all(|(name, values)| name == "model.embed_tokens.weight" || want[name] != *values));
    let into_file = |adapter: &Path, out: &str| {
        let base = Checkpoint::open(&data("gguf/base_q4k.gguf")).unwrap();
        let inputs = Inputs::new(base, vec![Adapter::open(adapter, 1.0).unwrap()]).unwrap();
        let plan = Plan::new(&inputs, &Options::default()).unwrap();
        merge::run(&inputs, &plan, None, &scratch.join(out), &RunOptions::default(), &Silent).unwrap();
        std::fs::read(scratch.join(out)).unwrap()
    };
    let got = into_file(&adapter("adapter-f32.gguf"), "a.gguf");
    assert!(got == into_file(&adapter("adapter_model.safetensors"), "b.gguf"));
    assert!(got != std::fs::read(data("gguf/base_q4k.gguf")).unwrap());
    let found = inspected(&adapter("adapter-f32.gguf"));
    assert_eq!((found.writer.as_str(), found.r, found.lora_alpha), ("llama.cpp", Some(4), Some(6.0)));
    let targets: Vec<&str> = found.targets.iter().map(|target| target.module.as_str()).collect();
    assert_eq!(targets, ["embed_tokens", "k_proj"]);
}

#[test]
fn gguf_adapters_that_are_wrong_are_named() {
    let scratch = Scratch::new("wrong-gguf");
    llama(&scratch.join("base"), "llama");
    let path = scratch.join("adapter.gguf");
    let keys = || {
        vec![
            string("general.architecture", "llama"),
            string("general.type", "adapter"),
            string("adapter.type", "lora"),
            float("adapter.lora.alpha", 0.0),
        ]
    };
    let pair = |name: &str, a: [usize; 2], b: [usize; 2]| {
        let values = |n: usize| (0..n).map(|i| (i % 7) as f32 / 8.0).collect::<Vec<f32>>();
        Values::from([
            (format!("{name}.weight.lora_a"), (a.to_vec(), values(a[0] * a[1]))),
            (format!("{name}.weight.lora_b"), (b.to_vec(), values(b[0] * b[1]))),
        ])
    };
    let good = || pair("blk.0.attn_k", [2, 256], [128, 2]);
    let base = scratch.join("base");
    // Without alpha the product counts as it is.
    gguf(&path, &keys(), &good());
    let one = merged(&base, &path, 1.0).unwrap();
    gguf(&path, &keys()[..3], &good());
    assert!(one == merged(&base, &path, 1.0).unwrap());
    let alpha = |alpha| [&keys()[..3], &[float("adapter.lora.alpha", alpha)]].concat();
    gguf(&path, &alpha(2.0), &good());
    assert!(one == merged(&base, &path, 1.0).unwrap(), "alpha / rank is 1");
    gguf(&path, &alpha(f32::NAN), &good());
    refused(&base, &path, &["adapter.gguf", "no finite float"]);
    let refused_with = |keys: &[Vec<u8>], tensors: &Values, words: &[&str]| {
        gguf(&path, keys, tensors);
        refused(&base, &path, &[words, &["adapter.gguf"]].concat());
    };
    let with = |at: usize, key: Vec<u8>| {
        let mut keys = keys();
        keys[at] = key;
        keys
    };
    refused_with(&with(2, string("adapter.type", "control")), &good(), &["type `control`", "PEFT folder"]);
    refused_with(&with(2, string("x", "y")), &good(), &["adapter.type"]);
    refused_with(&with(3, string("adapter.lora.alpha", "y")), &good(), &["no finite float"]);
    refused_with(
        &with(0, string("general.architecture", "falcon")),
        &good(),
        &["architecture `falcon`", "PEFT folder"],
    );
    refused_with(
        &with(0, string("general.architecture", "qwen2")),
        &good(),
        &["architecture `qwen2` (qwen2)", "of the type `llama`"],
    );
    refused_with(&with(1, string("general.type", "model")), &good(), &["not an adapter"]);
    let tokens = [
        text("adapter.alora.invocation_tokens"),
        9_u32.to_le_bytes().to_vec(),
        4_u32.to_le_bytes().to_vec(),
        1_u64.to_le_bytes().to_vec(),
        5_u32.to_le_bytes().to_vec(),
    ]
    .concat();
    refused_with(&with(3, tokens), &good(), &["aLoRA"]);
    refused_with(
        &keys(),
        &pair("blk.0.ffn_gate_exps", [2, 256], [128, 2]),
        &["blk.0.ffn_gate_exps.weight", "no model"],
    );
    refused_with(&keys(), &pair("blk.0.attn_k", [3, 256], [128, 2]), &["the other factor"]);
    refused_with(&keys(), &pair("blk.0.attn_k", [2, 256], [130, 2]), &["[130, 256]"]);
    refused_with(&keys(), &pair("blk.0.attn_k", [0, 256], [128, 0]), &["no rank"]);
    refused_with(&keys(), &pair("blk.1.attn_k", [2, 256], [128, 2]), &["matches nothing"]);
    let mut half = good();
    half.remove("blk.0.attn_k.weight.lora_b");
    refused_with(&keys(), &half, &["partner", "missing"]);
    // What llama.cpp passes over.
    let mut norm = good();
    norm.insert("blk.0.attn_norm.weight".into(), (vec![256], vec![1.0; 256]));
    gguf(&path, &keys(), &norm);
    assert!(one == merged(&base, &path, 1.0).unwrap());
    // The order of rows goes by heads, of which the base must tell.
    std::fs::write(base.join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    refused(&base, &path, &["how many heads", "attn_k"]);
    std::fs::write(base.join("config.json"), r#"{"model_type": "llama", "num_attention_heads": 128}"#).unwrap();
    refused(&base, &path, &["not 128 heads of pairs of rows", "attn_k"]);
}
