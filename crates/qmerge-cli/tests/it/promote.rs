//! Weights of a GGUF file that take a wider type: those that lose most, within a budget, and those whose own cannot be written.

use std::collections::BTreeMap;
use std::path::Path;

use qmerge::dtype::Dtype;
use qmerge::open::Checkpoint;
use serde_json::Value;

use crate::model::{Folder, copy_folder, demo, done, f32s, noise, run, stderr, write};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");

/// Type and bytes of each tensor of a file.
fn tensors(path: &Path) -> BTreeMap<String, (Dtype, Vec<u8>)> {
    let file = Checkpoint::open(path).unwrap();
    let all = file.entries.iter();
    all.map(|entry| (entry.name.clone(), (entry.dtype, file.read_small(entry, 1 << 30).unwrap()))).collect()
}

fn report(folder: &Folder, out: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(&format!("{out}.qmerge-report.json"))).unwrap()).unwrap()
}

fn promoted(report: &Value) -> Vec<String> {
    let names = report["promoted"].as_array().map_or(&[][..], Vec::as_slice);
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// A Llama's name of a tensor in the file.
fn stored(name: &str) -> String {
    let short = [("model.layers.", "blk."), ("self_attn.o_proj", "attn_output"), ("self_attn.", "attn_")];
    let short = short.iter().chain(&[("mlp.", "ffn_"), ("_proj.", ".")]);
    short.fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[test]
fn the_weights_that_lose_most_go_first_and_no_further_than_the_budget() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &["convert", "--base", "base-nf4", "--to", "q4_0", "-o", "base.gguf"]);
    let merge = ["merge", "--base", "base.gguf", "--adapter", "adapter", "--calibrate", TEXT, "--measure", "never"];
    let merge = [&merge[..], &["--calibration-tokens", "1024", "--quiet", "-o"]].concat();
    done(&folder, &[&merge[..], &["plain.gguf"]].concat());
    let promote = ["--promote", "auto", "--budget", "6%"];
    done(&folder, &[&merge[..], &["out.gguf", "--threads", "1"], &promote[..]].concat());
    let (plain, wide) = (report(&folder, "plain"), report(&folder, "out"));
    let (before, after) = (tensors(&folder.join("plain.gguf")), tensors(&folder.join("out.gguf")));
    // What the plain merge says of each weight decides: the worst first, 34 bytes in place of 18 for 32 values, as long as they fit.
    let figures = plain["weights"].as_array().unwrap();
    let mut worst: Vec<(f64, &str)> = figures
        .iter()
        .map(|weight| (weight["noise_output"].as_f64().unwrap(), weight["name"].as_str().unwrap()))
        .collect();
    worst.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut left = 0.06 * std::fs::metadata(folder.join("plain.gguf")).unwrap().len() as f64;
    let mut expected = Vec::new();
    for (_, name) in worst {
        let more = before[&stored(name)].1.len() as f64 / 18.0 * 16.0;
        if more <= left {
            left -= more;
            expected.push(name.to_owned());
        }
    }
    assert!(expected.len() > 1 && expected.len() < figures.len(), "{expected:?}");
    let mut names = promoted(&wide);
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    let wide: BTreeMap<&str, &Value> =
        wide["weights"].as_array().unwrap().iter().map(|weight| (weight["name"].as_str().unwrap(), weight)).collect();
    for weight in figures {
        let name = weight["name"].as_str().unwrap();
        if names.contains(&name.to_owned()) {
            assert_eq!((wide[name]["from"].as_str(), wide[name]["to"].as_str()), (Some("q4_0"), Some("q8_0")));
            let noise = |weight: &Value| weight["noise_output"].as_f64().unwrap();
            assert!(noise(wide[name]) < 0.2 * noise(weight), "{name}: {} {}", noise(wide[name]), noise(weight));
            assert_eq!(after[&stored(name)].0, Dtype::Q8_0);
        } else {
            assert!(before[&stored(name)] == after[&stored(name)], "{name}");
        }
    }
    // Whoever does the work.
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    done(&folder, &[&merge[..], &["threads.gguf", "--threads", "3"], &promote[..]].concat());
    assert!(bytes("threads.gguf") == bytes("out.gguf"));
    for part in ["1/2", "2/2"] {
        done(&folder, &[&merge[..], &["parts.gguf", "--part", part], &promote[..]].concat());
    }
    let finish = [&["finish"], &merge[1..], &["parts.gguf"], &promote[..]].concat();
    done(&folder, &finish);
    assert!(bytes("parts.gguf") == bytes("out.gguf"));
    // Without the model, and from another container.
    let fast = ["merge", "--base", "base-nf4", "--adapter", "adapter", "--to", "q4_0", "--fast", "-o", "fast.gguf"];
    done(&folder, &[&fast[..], &["--promote", "f16", "--budget", "0.2"]].concat());
    let names = promoted(&report(&folder, "fast"));
    assert!(!names.is_empty());
    let types = tensors(&folder.join("fast.gguf"));
    assert!(names.iter().all(|name| types[&stored(name)].0 == Dtype::F16));
}

/// A file one of whose tensors is in IQ3_S, which has Q3_K's size, and an adapter that changes it.
fn coarse() -> Folder {
    let folder = Folder::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge/testdata/gguf/made/llama-wide");
    copy_folder(&from, &folder.join("base"));
    done(&folder, &["convert", "--base", "base", "--to", "q3_k_s", "-o", "base.gguf"]);
    let file = Checkpoint::open(&folder.join("base.gguf")).unwrap();
    let entry = file.get("blk.0.ffn_gate.weight").unwrap().clone();
    assert_eq!(entry.dtype, Dtype::Q3K);
    drop(file);
    let mut bytes = std::fs::read(folder.join("base.gguf")).unwrap();
    let name = b"blk.0.ffn_gate.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    // Behind the number of dimensions and two of them.
    assert_eq!(bytes[at + 20], 11);
    bytes[at + 20] = 21;
    for block in bytes[entry.start as usize..][..entry.bytes as usize].chunks_exact_mut(110) {
        // The scale, 2⁻¹².
        block[..2].copy_from_slice(&[0, 12]);
    }
    std::fs::write(folder.join("base.gguf"), bytes).unwrap();
    let adapter: Vec<_> = ["mlp.gate_proj", "self_attn.q_proj"]
        .iter()
        .flat_map(|module| {
            let stem = format!("base_model.model.model.layers.0.{module}");
            [
                f32s(&format!("{stem}.lora_A.weight"), &[2, 256], |i| 0.1 * noise(i)),
                f32s(&format!("{stem}.lora_B.weight"), &[64, 2], |i| 0.1 * noise(i + 5)),
            ]
        })
        .collect();
    write(&folder.join("adapter/adapter_model.safetensors"), &adapter);
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;
    std::fs::write(folder.join("adapter/adapter_config.json"), config).unwrap();
    folder
}

#[test]
fn a_type_that_cannot_be_written_gives_way() {
    let folder = coarse();
    let merge = ["merge", "--base", "base.gguf", "--adapter", "adapter", "--rounding", "nearest", "-o"];
    let output = run(folder.path(), &[&merge[..], &["out.gguf"]].concat());
    assert_eq!(output.status.code(), Some(2));
    for word in ["iq3_s", "gate_proj", "--promote"] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
    done(&folder, &[&merge[..], &["exact", "--to", "f32"]].concat());
    let exact = tensors(&folder.join("exact/model.safetensors"));
    let exact: Vec<f32> = exact["model.layers.0.mlp.gate_proj.weight"]
        .1
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    for (to, name) in [("auto", "q4_k"), ("q6_k", "q6_k"), ("Q8_0", "q8_0")] {
        let out = format!("{name}.gguf");
        done(&folder, &[&merge[..], &[&out, "--promote", to, "--budget", "0"]].concat());
        assert_eq!(promoted(&report(&folder, name)), ["model.layers.0.mlp.gate_proj.weight"]);
        let (base, merged) = (tensors(&folder.join("base.gguf")), tensors(&folder.join(&out)));
        let changed: Vec<&str> = base.keys().filter(|name| base[*name] != merged[*name]).map(String::as_str).collect();
        assert_eq!(changed, ["blk.0.attn_q.weight", "blk.0.ffn_gate.weight"]);
        assert_eq!(merged["blk.0.attn_q.weight"].0, Dtype::Q3K);
        // What ggml's encoder makes of base and delta.
        let format = qmerge::formats::by_id(name).unwrap();
        let made = format.create("w", &[64, 256], Dtype::F32, &qmerge::formats::Settings::default()).unwrap();
        let mut encoded = vec![Vec::new()];
        made.writer().unwrap().encode(&[None], 0..64, &exact, &mut encoded);
        assert!(encoded[0] == merged["blk.0.ffn_gate.weight"].1, "{name}");
        let said =
            done(&folder, &["verify", "--base", "base.gguf", "--adapter", "adapter", "--merged", &out, "--json"]);
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["answer"], "yes", "{said}");
    }
    // What is not written needs no other type.
    done(&folder, &["convert-adapter", "base.gguf", "adapter", "--to", "gguf-lora", "-o", "lora.gguf"]);
    let lora = std::fs::read(folder.join("lora.gguf")).unwrap();
    let name = b"blk.0.ffn_gate.weight.lora_a";
    assert!(lora.windows(name.len()).any(|window| window == name));
}

#[test]
fn only_files_that_name_each_tensors_type_take_it() {
    let folder = Folder::new();
    demo(folder.path());
    let merge = ["merge", "--base", "base-nf4", "--adapter", "adapter", "--fast", "-o", "out"];
    for (more, words) in [
        (&["--promote", "auto"][..], &["--promote", "GGUF", "--to q4_k_m"][..]),
        (&["--promote", "q8_0", "--to", "bf16"], &["--promote", "GGUF"]),
        (&["--promote", "iq3_s"], &["iq3_s"]),
        (&["--budget", "2%"], &["--promote"]),
        (&["--promote", "auto", "--budget=-1%"], &["--budget", "like 2%"]),
    ] {
        let output = run(folder.path(), &[&merge[..], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        words.iter().for_each(|word| assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output)));
        assert!(!folder.join("out").exists());
    }
}
