//! Every kind of bad input ends with exit status 2 (3 where the system fails), names the file, the tensor and the cause, and leaves no output.

mod disk;
mod not_finite;

use std::path::Path;

use crate::model::{Folder, change, demo, f16s, f32s, noise, plain_model, read, run, stderr, write};

const ADAPTER: &str = "adapter/adapter_model.safetensors";
const BASE: &str = "base/model.safetensors";
const Q: &str = "base_model.model.model.layers.1.self_attn.q_proj";

/// Merges and expects a refusal with this status that says all of `words`; the output must not exist in any form.
fn refused(folder: &Folder, extra: &[&str], status: i32, words: &[&str]) -> String {
    let mut args = vec!["merge", "--base", "base", "--adapter", "adapter", "-o", "out"];
    args.extend(extra);
    let output = run(folder.path(), &args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
    assert!(!folder.join("out").exists(), "{text}");
    assert!(!folder.join("out.partial").exists(), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn model() -> Folder {
    let folder = Folder::new();
    plain_model(folder.path(), 3, 40, 48);
    folder
}

#[test]
fn wrong_shapes_and_ranks() {
    let folder = model();
    change(&folder.join(ADAPTER), |tensors| {
        let at = tensors.iter().position(|(name, ..)| name == &format!("{Q}.lora_A.weight")).unwrap();
        tensors[at] = f32s(&format!("{Q}.lora_A.weight"), &[8, 47], noise);
    });
    refused(&folder, &[], 2, &["adapter_model.safetensors", Q, "[40, 47]", "[40, 48]", "another base"]);
    let folder = model();
    std::fs::write(folder.join("adapter/adapter_config.json"), r#"{"peft_type": "LORA", "r": 4}"#).unwrap();
    refused(&folder, &[], 2, &["rank 8, but the configuration says 4"]);
}

#[test]
fn half_of_a_pair() {
    for (lost, kept) in [("lora_A", "lora_B"), ("lora_B", "lora_A")] {
        let folder = model();
        change(&folder.join(ADAPTER), |tensors| tensors.retain(|(name, ..)| *name != format!("{Q}.{lost}.weight")));
        refused(&folder, &[], 2, &[&format!("{Q}.{kept}.weight"), "partner", "missing"]);
    }
}

#[test]
fn adapter_tensors_that_match_nothing() {
    let folder = model();
    change(&folder.join(ADAPTER), |tensors| {
        tensors.push(f32s("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", &[8, 48], noise));
        tensors.push(f32s("base_model.model.model.layers.9.mlp.up_proj.lora_B.weight", &[40, 8], noise));
    });
    refused(&folder, &[], 2, &["layers.9.mlp.up_proj.lora_A.weight", "matches nothing", "2 of 8", "--allow-unused"]);
    let output = run(
        folder.path(),
        &["merge", "--base", "base", "--adapter", "adapter", "-o", "out", "--allow-unused", "--json"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["adapters"][0]["unused"], 2);
    assert_eq!(report["adapters"][0]["merged"], 6);
}

/// Leaving all of an adapter out is no way to merge it, so nobody is sent there.
#[test]
fn an_adapter_that_matches_nothing_at_all() {
    let folder = model();
    change(&folder.join(ADAPTER), |tensors| {
        tensors.iter_mut().for_each(|tensor| tensor.0 = tensor.0.replace("layers.", "blocks."));
    });
    for more in [&[][..], &["--allow-unused"]] {
        let said = refused(&folder, more, 2, &["6 of 6 adapter tensors match nothing", "--map"]);
        assert!(!said.contains("--allow-unused"), "{said}");
    }
}

#[test]
fn truncated_and_hostile_safetensors() {
    let cut = |n: u64| {
        let folder = model();
        let path = folder.join(BASE);
        let len = std::fs::metadata(&path).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len - n).unwrap();
        folder
    };
    refused(&cut(10), &[], 2, &["model.safetensors", "reach outside", "truncated"]);
    let header = |json: &str, claimed: Option<u64>| {
        let folder = model();
        let mut bytes = claimed.unwrap_or(json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend([0; 16]);
        std::fs::write(folder.join(BASE), bytes).unwrap();
        folder
    };
    refused(&header("{}", Some(1 << 60)), &[], 2, &["model.safetensors", "1152921504606846976"]);
    let overlap = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    refused(&header(overlap, None), &[], 2, &["`b`", "overlaps"]);
    let outside = r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}"#;
    refused(&header(outside, None), &[], 2, &["`a`", "reach outside"]);
    let twice = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    refused(&header(twice, None), &[], 2, &["`a` stands twice"]);
    refused(&header("{\"a\": ", None), &[], 2, &["broken safetensors header"]);
    // Things are kept by row, of which a tensor without elements may have many.
    for (dtype, shape) in [("F32", "1125899906842624,0"), ("I32", "0,1099511627776"), ("F32", "16777217,0,1")] {
        let rows = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[0,0]}}}}"#);
        refused(&header(&rows, None), &[], 2, &["`a`"]);
    }
}

#[test]
fn a_base_without_tensors() {
    let folder = model();
    change(&folder.join(BASE), Vec::clear);
    refused(&folder, &[], 2, &["base", "holds no tensors", "take the model again"]);
    refused(&folder, &["--allow-unused"], 2, &["base", "holds no tensors"]);
    // Nor does a head that the adapter brings along make one of it.
    change(&folder.join(ADAPTER), |tensors| tensors.push(f32s("base_model.model.score.weight", &[3, 48], |_| 0.1)));
    refused(&folder, &["--allow-unused"], 2, &["base", "holds no tensors"]);
}

#[test]
fn missing_and_misplaced_shards() {
    let index = |text: &str| {
        let folder = model();
        std::fs::rename(folder.join(BASE), folder.join("base/shard.safetensors")).unwrap();
        std::fs::write(folder.join("base/model.safetensors.index.json"), text).unwrap();
        folder
    };
    refused(&index(r#"{"weight_map": {"a": "gone.safetensors"}}"#), &[], 2, &["gone.safetensors", "missing"]);
    refused(
        &index(r#"{"weight_map": {"a": "../adapter/adapter_model.safetensors"}}"#),
        &[],
        2,
        &["not a plain file name"],
    );
    refused(&index(r#"{"weight_map": {"ghost": "shard.safetensors"}}"#), &[], 2, &["`ghost`", "does not hold it"]);
    refused(&index("[]"), &[], 2, &["index.json", "not a safetensors index"]);
}

#[test]
fn incomplete_quantized_weights() {
    for (suffix, words) in [
        (".absmax", ["absmax", "missing"]),
        (".nested_absmax", ["nested_absmax", "missing"]),
        (".quant_state.bitsandbytes__nf4", ["quant_state is missing", "incomplete"]),
        ("", ["layers.2.mlp.up_proj.weight", "missing"]),
    ] {
        let folder = Folder::new();
        demo(folder.path());
        std::fs::rename(folder.join("base-nf4"), folder.join("base")).unwrap();
        let name = format!("model.layers.2.mlp.up_proj.weight{suffix}");
        change(&folder.join(BASE), |tensors| tensors.retain(|(have, ..)| *have != name));
        refused(&folder, &[], 2, &words);
    }
    let folder = Folder::new();
    demo(folder.path());
    std::fs::rename(folder.join("base-nf4"), folder.join("base")).unwrap();
    change(&folder.join(BASE), |tensors| {
        let state =
            tensors.iter_mut().find(|(name, ..)| name.contains("layers.1.mlp.up_proj.weight.quant_state")).unwrap();
        state.3 = b"{\"quant_type\": \"nf4\", ".to_vec();
        state.2 = vec![state.3.len()];
    });
    refused(&folder, &[], 2, &["layers.1.mlp.up_proj.weight.quant_state", "not JSON"]);
}

#[test]
fn broken_configurations() {
    for (text, words) in [
        ("{", ["adapter_config.json", "not a JSON object"]),
        (r#"{"r": 8}"#, ["adapter_config.json", "peft_type"]),
        (r#"{"peft_type": "lora"}"#, ["`lora`", "not a peft_type"]),
        (r#"{"peft_type": "PROMPT_TUNING"}"#, ["PROMPT_TUNING", "virtual tokens"]),
        (r#"{"peft_type": "PSOFT"}"#, ["PSOFT", "is not in its file"]),
        (
            r#"{"peft_type": "ADALORA", "rank_pattern": {"q.lora_E": [true, false]}}"#,
            ["shape [8, 48]", "of different adapters"],
        ),
        (r#"{"peft_type": "LORA", "r": 8, "alora_invocation_tokens": [1, 2]}"#, ["aLoRA", "invocation tokens"]),
        (r#"{"peft_type": "LORA", "r": 8, "arrow_config": {"top_k": 2}}"#, ["Arrow", "every token"]),
        (r#"{"peft_type": "LORA", "r": 8, "use_qalora": true}"#, ["QA-LoRA", "not supported"]),
        (r#"{"peft_type": "LORA", "r": 8, "kasa_config": {"beta": 1}}"#, ["KaSA", "singular values"]),
        (r#"{"peft_type": "LORA", "r": 8, "layer_replication": [[0, 2]]}"#, ["layer_replication", "share"]),
        (r#"{"peft_type": "LORA", "r": 8, "init_lora_weights": "pissa"}"#, ["\"pissa\"", "--base-is-residual"]),
        (r#"{"peft_type": "LORA", "r": 8, "init_lora_weights": "pissa_niter_4"}"#, ["pissa_niter_4", "twice"]),
        (r#"{"peft_type": "LORA", "r": 8, "init_lora_weights": "olora"}"#, ["olora", "twice"]),
        (r#"{"peft_type": "LORA", "r": 8, "init_lora_weights": "corda"}"#, ["corda", "twice"]),
        (r#"{"peft_type": "LORA", "r": 8, "init_lora_weights": "loftq"}"#, ["loftq", "twice"]),
        (r#"{"peft_type": "LORA", "r": 8, "init_lora_weights": "lora_ga"}"#, ["lora_ga", "twice"]),
        (r#"{"peft_type": "LORA", "r": 8, "rank_pattern": {"(": 4}}"#, ["adapter_config.json", "regular expression"]),
    ] {
        let folder = model();
        std::fs::write(folder.join("adapter/adapter_config.json"), text).unwrap();
        refused(&folder, &[], 2, &words);
    }
    let folder = model();
    std::fs::write(
        folder.join("adapter/adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 8, "init_lora_weights": "pissa"}"#,
    )
    .unwrap();
    assert!(
        run(folder.path(), &["merge", "-m", "base", "--lora", "adapter", "-o", "out", "--base-is-residual"])
            .status
            .success()
    );
    let folder = model();
    std::fs::write(folder.join("base/config.json"), "{]").unwrap();
    refused(&folder, &[], 2, &["config.json", "not a JSON object"]);
}

#[test]
fn a_pickle_that_wants_to_run_code() {
    let folder = model();
    std::fs::remove_file(folder.join(ADAPTER)).unwrap();
    let evil = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01cposix\nsystem\nq\x02X\x10\x00\x00\x00touch /tmp/owned\nq\x03\x85q\x04Rq\x05s.";
    std::fs::write(folder.join("adapter/adapter_model.bin"), stored_zip("archive/data.pkl", evil)).unwrap();
    refused(&folder, &[], 2, &["adapter_model.bin", "posix.system", "nothing was executed"]);
    std::fs::write(folder.join("adapter/adapter_model.bin"), b"not a zip").unwrap();
    refused(&folder, &[], 2, &["adapter_model.bin", "not a torch archive"]);
}

/// A zip archive with one stored member.
fn stored_zip(name: &str, data: &[u8]) -> Vec<u8> {
    let mut crc = !0_u32;
    for &byte in data {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    let crc = !crc;
    let mut common = Vec::new();
    common.extend(0_u16.to_le_bytes());
    common.extend(0_u16.to_le_bytes());
    common.extend(0_u32.to_le_bytes());
    common.extend(crc.to_le_bytes());
    common.extend((data.len() as u32).to_le_bytes());
    common.extend((data.len() as u32).to_le_bytes());
    common.extend((name.len() as u16).to_le_bytes());
    common.extend(0_u16.to_le_bytes());
    let mut zip = b"PK\x03\x04\x14\x00".to_vec();
    zip.extend(&common);
    zip.extend(name.as_bytes());
    zip.extend(data);
    let directory = zip.len() as u32;
    zip.extend(b"PK\x01\x02\x14\x00\x14\x00");
    zip.extend(&common);
    zip.extend([0; 2 + 2 + 2 + 4]);
    zip.extend(0_u32.to_le_bytes());
    zip.extend(name.as_bytes());
    let size = zip.len() as u32 - directory;
    zip.extend(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    zip.extend(size.to_le_bytes());
    zip.extend(directory.to_le_bytes());
    zip.extend([0; 2]);
    zip
}

#[test]
fn an_existing_output_is_not_touched_without_force() {
    let folder = model();
    std::fs::create_dir(folder.join("out")).unwrap();
    std::fs::write(folder.join("out/precious"), "x").unwrap();
    let args = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"];
    let output = run(folder.path(), &args);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("exists already") && stderr(&output).contains("--force"));
    // Even by force, nothing is replaced that is not a model.
    let output = run(folder.path(), &[&args[..], &["--force"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(folder.join("out/precious")).unwrap(), "x");
    let output = run(folder.path(), &["merge", "--base", "base", "--adapter", "adapter", "-o", "base", "--force"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("would replace an input"));
}

#[test]
fn the_same_adapter_is_not_merged_twice() {
    let folder = model();
    assert!(run(folder.path(), &["merge", "-m", "base", "--adapter", "adapter", "-o", "once"]).status.success());
    let output = run(folder.path(), &["merge", "-m", "once", "--adapter", "adapter", "-o", "twice"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("merged into it already"));
    assert!(
        run(folder.path(), &["merge", "-m", "once", "--adapter", "adapter", "-o", "twice", "--force"]).status.success()
    );
}

#[test]
fn wrong_use() {
    let folder = model();
    refused(&folder, &["--to", "q4_k"], 2, &["invalid value 'q4_k' for '--to", "nf4"]);
    refused(&folder, &["--rounding", "magic"], 2, &["invalid value 'magic' for '--rounding", "nearest"]);
    refused(&folder, &["--rounding", "keep", "--to", "nf4"], 2, &["keeps the base's scales"]);
    refused(&folder, &["--to", "nf4", "--block-size", "63"], 2, &["block size 63"]);
    refused(&folder, &["--map", "no arrow"], 2, &["--map", "=>"]);
    refused(&folder, &["--max-memory", "1M"], 2, &["--max-memory", "at least"]);
    refused(&folder, &["--report", "x.txt"], 2, &["written as .json or .html"]);
    let output = run(folder.path(), &["merge", "--base", "nowhere", "--adapter", "adapter", "-o", "out"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("nowhere"));
    // The two swapped.
    let output = run(folder.path(), &["merge", "--base", "adapter", "--adapter", "base", "-o", "out"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("holds an adapter, not a model"));
}

#[test]
fn an_embedding_resized_at_one_end_only() {
    let folder = model();
    change(&folder.join(BASE), |tensors| {
        tensors.push(f16s("model.embed_tokens.weight", &[30, 48], 0x3c00));
        tensors.push(f16s("lm_head.weight", &[30, 48], 0x3c00));
    });
    change(&folder.join(ADAPTER), |tensors| {
        tensors.push(f32s("base_model.model.model.embed_tokens.weight", &[33, 48], noise))
    });
    refused(&folder, &[], 2, &["33 tokens", "30"]);
}

/// A file of two tensors with one name could not be opened.
#[test]
fn what_is_left_of_another_format_beside_a_weight() {
    for (left, format) in [("q_proj.SCB", "int8"), ("q_proj.weight.quant_map", "nf4")] {
        let folder = model();
        let name = format!("model.layers.1.self_attn.{left}");
        change(&folder.join(BASE), |tensors| tensors.push(f32s(&name, &[16], |_| 1.0)));
        refused(&folder, &["--to", format, "--rounding", "nearest"], 2, &["model.safetensors", &name, "left over"]);
    }
}

#[test]
fn a_report_beside_the_base_that_is_none() {
    let folder = model();
    std::fs::write(folder.join("base/qmerge-report.json"), r#"{"adapters":[{"weight":1}]}"#).unwrap();
    refused(&folder, &[], 2, &["qmerge-report.json", "sha256", "--force"]);
}
