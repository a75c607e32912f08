//! Moments that others took: in training, beside the adapter, and in llama.cpp's importance matrices.

use std::path::Path;

use serde_json::Value;

use crate::model::{Folder, copy_folder, demo, read, run, stderr, stdout};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/calibration.txt");
const MERGE: [&str; 6] = ["merge", "base-nf4", "adapter", "-o", "out", "--json"];
const FILE: &str = "adapter/qmerge_calibration.safetensors";

/// The demo with what `qmerge calibrate` takes of it.
fn calibrated() -> Folder {
    let folder = Folder::new();
    demo(folder.path());
    let output = run(
        folder.path(),
        &["calibrate", "--base", "base-nf4", "--adapter", "adapter", "--text", TEXT, "-o", "moments.safetensors"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    folder
}

/// The same file as torch writes it: known by values of the model, under the names that modules have there.
fn as_torch(folder: &Folder, to: &str, model: &Value, adapter: Option<&Value>) {
    let bytes = std::fs::read(folder.join("moments.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
    let text = text.replace("model.layers.", "language_model.model.layers.");
    let mut header: Value = serde_json::from_str(&text).unwrap();
    let metadata = header["__metadata__"].as_object_mut().unwrap();
    metadata.remove("qmerge.base");
    metadata.insert("qmerge.model".into(), model.to_string().into());
    metadata.insert("qmerge.taken_from".into(), "12 tokens collected in training".into());
    adapter.map(|marks| metadata.insert("qmerge.adapter".into(), marks.to_string().into()));
    let header = header.to_string();
    let data = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..]].concat();
    std::fs::write(folder.join(to), data).unwrap();
}

/// The first values of a tensor in bf16 or f32.
fn first_values(path: &Path, tensor: &str) -> Vec<f32> {
    let tensors = read(path);
    let (_, dtype, _, bytes) = tensors.iter().find(|found| found.0 == tensor).unwrap();
    match dtype {
        safetensors::Dtype::F32 => {
            bytes.chunks_exact(4).take(8).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
        }
        safetensors::Dtype::BF16 => {
            let wide = |x: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes(x.try_into().unwrap())) << 16);
            bytes.chunks_exact(2).take(8).map(wide).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn report(folder: &Folder, more: &[&str]) -> Value {
    let _ = std::fs::remove_dir_all(folder.join("out"));
    let output = run(folder.path(), &[&MERGE[..], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn what_training_left_beside_the_adapter_is_found() {
    const NORM: &str = "model.norm.weight";
    const FACTOR: &str = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight";
    let folder = calibrated();
    report(&folder, &["--calibration", "moments.safetensors", "--measure", "never"]);
    let want = read(&folder.join("out/model.safetensors"));
    let norm = first_values(&folder.join("base-nf4/model.safetensors"), NORM);
    let factor = first_values(&folder.join("adapter/adapter_model.safetensors"), FACTOR);
    let model = serde_json::json!({ NORM: norm, "of.another.part": [1.0] });
    let adapter = serde_json::json!({ FACTOR: factor });
    as_torch(&folder, FILE, &model, Some(&adapter));
    let found = report(&folder, &["--measure", "never"]);
    let about = "12 tokens collected in training, stored in qmerge_calibration.safetensors";
    assert_eq!(found["rounding"]["calibration"], about);
    assert_eq!(found["warnings"], serde_json::json!([]));
    assert!(read(&folder.join("out/model.safetensors")) == want);
    // An option that says otherwise wins.
    for more in [&["--rounding", "nearest"], &["--to", "bf16"]] {
        assert_eq!(report(&folder, more)["rounding"]["calibration"], Value::Null, "{more:?}");
    }
    assert_eq!(report(&folder, &["--fast"])["rounding"]["calibration"], "384 tokens that the model wrote (seed 0)");
    let text = report(&folder, &["--calibrate", TEXT, "--measure", "never"]);
    assert!(text["rounding"]["calibration"].as_str().unwrap().ends_with("calibration.txt"));
    // What does not belong there is told of, and the merge goes on without it; by name it is an error.
    let other = serde_json::json!({ NORM: norm.iter().map(|x| x * 1.1).collect::<Vec<_>>() });
    let another = serde_json::json!({ FACTOR: factor.iter().map(|x| -x).collect::<Vec<_>>() });
    let nothing = serde_json::json!({ "of.another.part": [1.0] });
    for (model, adapter, says) in [
        (&other, &adapter, "belongs to another model: `model.norm.weight` has other values there"),
        (&nothing, &adapter, "none of the tensors that it is known by"),
        (&model, &another, "belongs to another adapter"),
    ] {
        as_torch(&folder, FILE, model, Some(adapter));
        let found = report(&folder, &["--measure", "never"]);
        let warning = found["warnings"][0].as_str().unwrap();
        assert!(warning.contains("are not used") && warning.contains(says), "{warning}");
        assert!(found["rounding"]["calibration"].as_str().unwrap().contains("the model wrote"));
    }
    as_torch(&folder, "wrong.safetensors", &other, None);
    let output = run(folder.path(), &[&MERGE[..], &["--force", "--calibration", "wrong.safetensors"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("qmerge.torch.calibrate"), "{}", stderr(&output));
    // With two adapters neither alone is what layers are given.
    as_torch(&folder, FILE, &model, Some(&adapter));
    copy_folder(&folder.join("adapter"), &folder.join("second"));
    let found = report(&folder, &["--adapter", "second", "--measure", "never"]);
    assert!(found["warnings"].to_string().contains("it was taken with one of 2 adapters alone"), "{found:#}");
}

/// What a file says of itself is not believed where it is added to others: the error names it, and nothing is written.
#[test]
fn damaged_moments_are_not_added() {
    let folder = calibrated();
    let bytes = std::fs::read(folder.join("moments.safetensors")).unwrap();
    let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&bytes[8..length]).unwrap();
    let tokens = text.split_once(r#"\"tokens\":"#).unwrap().1.split_once(',').unwrap().0;
    let counted = |count: &str| {
        let old = format!(r#"\"tokens\":{tokens},"#);
        text.replacen(&old, &format!(r#"\"tokens\":{count},"#), 1).into_bytes()
    };
    let hash = text.split_once(r#""qmerge.content":""#).unwrap().1.split_once('"').unwrap().0;
    let unsaid = text.replace(r#""qmerge.content""#, r#""of.another""#).into_bytes();
    let first = |value: f32| [&value.to_le_bytes()[..], &bytes[length + 4..]].concat();
    let whole = bytes[length..].to_vec();
    let cut = whole[..whole.len() - 4].to_vec();
    let mut other = whole.clone();
    other[100] ^= 1;
    for (header, data, said) in [
        (counted("NaN"), whole.clone(), "not understood"),
        (counted("-1"), whole.clone(), "not understood"),
        (counted("1e30"), whole.clone(), "not understood"),
        (counted("18446744073709551616"), whole.clone(), "not understood"),
        (counted("18446744073709551615"), whole.clone(), "more than can be counted"),
        (counted("9007199254740993"), whole.clone(), "more than can be counted"),
        (unsaid.clone(), first(f32::NAN), "is NaN"),
        (unsaid.clone(), first(f32::NEG_INFINITY), "is -inf"),
        (unsaid, first(-1.0), "no square is"),
        (text.as_bytes().to_vec(), first(f32::NAN), "not those that it was written with"),
        (text.as_bytes().to_vec(), other, "not those that it was written with"),
        (text.replace(hash, &"0".repeat(64)).into_bytes(), whole.clone(), "not those that it was written with"),
        (text.as_bytes().to_vec(), cut, "truncated"),
    ] {
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        std::fs::write(folder.join("damaged.safetensors"), file).unwrap();
        for files in [["moments.safetensors", "damaged.safetensors"], ["damaged.safetensors", "moments.safetensors"]] {
            let words = ["calibrate", "--base", "base-nf4", "-o", "all.safetensors", "--add"];
            let output = run(folder.path(), &[&words[..], &files].concat());
            let told = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{said}: {told}");
            assert!(told.contains("damaged.safetensors") && told.contains(said), "{said}: {told}");
            assert!(!folder.join("all.safetensors").exists() && !folder.join("all.safetensors.partial").exists());
        }
    }
}

/// The old form of an importance matrix, from the diagonals of the moments.
fn imatrix(folder: &Folder, rename: &[(&str, &str)], extra: bool) -> Vec<u8> {
    let bytes = std::fs::read(folder.join("moments.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let inputs: Value = serde_json::from_str(header["__metadata__"]["qmerge.inputs"].as_str().unwrap()).unwrap();
    let mut entries: Vec<(String, Vec<f32>)> = Vec::new();
    for kept in inputs.as_array().unwrap() {
        let names: Vec<&str> = kept["weights"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let at = 8 + length + header[names[0]]["data_offsets"][0].as_u64().unwrap() as usize;
        let features = header[names[0]]["shape"][0].as_u64().unwrap() as usize;
        let value = |i: usize| f32::from_le_bytes(bytes[at + 4 * i..][..4].try_into().unwrap());
        let diagonal: Vec<f32> = (0..features).map(|i| value(i * features + i)).collect();
        for name in names {
            let named = rename.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
            entries.push((named, diagonal.clone()));
        }
    }
    if extra {
        entries.push(("blk.0.ssm_in.weight".into(), vec![1.0; 4]));
    }
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, values) in entries {
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(3_i32.to_le_bytes());
        out.extend((values.len() as i32).to_le_bytes());
        values.iter().for_each(|x| out.extend((3.0 * x).to_le_bytes()));
    }
    out
}

#[test]
fn an_importance_matrix_is_a_diagonal() {
    let folder = calibrated();
    let names = [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    std::fs::write(folder.join("imatrix.dat"), imatrix(&folder, &names, true)).unwrap();
    let found = report(&folder, &["--imatrix", "imatrix.dat", "--measure", "never"]);
    assert_eq!(found["rounding"]["method"], "adapter");
    assert_eq!(found["rounding"]["calibration"], "the importance matrix in imatrix.dat");
    let warning = found["warnings"][0].as_str().unwrap();
    assert!(
        warning.ends_with("1 of its tensors match no weight of the base; first `blk.0.ssm_in.weight`"),
        "{warning}"
    );
    let weights = found["weights"].as_array().unwrap();
    assert!(weights.iter().filter(|weight| weight["rounding"] == "adapter").count() == 28);
    // What it is of no use to, and what it does not belong to.
    let refused = |more: &[&str], text: &str| {
        let output = run(folder.path(), &[&MERGE[..], &["--force"], more].concat());
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(stderr(&output).contains(text), "{more:?}: {}", stderr(&output));
    };
    refused(&["--imatrix", "imatrix.dat", "--rounding", "nearest"], "--imatrix is of no use to rounding nearest");
    refused(&["--imatrix", "imatrix.dat", "--fast"], "--fast");
    refused(&["--imatrix", "nothing.dat"], "no such file");
    refused(&["--imatrix", "base-nf4/model.safetensors"], "not an importance matrix");
    std::fs::write(folder.join("strange.dat"), imatrix(&folder, &[("model.layers.", "part.")], false)).unwrap();
    refused(&["--imatrix", "strange.dat"], "none of the base's weights");
    // Two names changed places.
    let swap = |to| match to {
        "ffn_down" => "attn_output",
        "attn_output" => "ffn_down",
        other => other,
    };
    let halves: Vec<_> = names.iter().map(|&(from, to)| (from, swap(to))).collect();
    std::fs::write(folder.join("other.dat"), imatrix(&folder, &halves, false)).unwrap();
    refused(&["--imatrix", "other.dat"], "belongs to another model");
}

/// Moments of two machines, added up before or by the merge that takes them, are the same; and twice the same is the same.
#[test]
fn moments_of_several_files_add_up() {
    let folder = calibrated();
    std::fs::create_dir(folder.join("moments")).unwrap();
    std::fs::rename(folder.join("moments.safetensors"), folder.join("moments/1.safetensors")).unwrap();
    let own = ["--text", TEXT, "--calibration-tokens", "1024", "-o", "moments/2.safetensors"];
    let sources = ["calibrate", "--base", "base-nf4"];
    assert!(run(folder.path(), &[&sources[..], &own].concat()).status.success());
    let add = |files: &[&str], to: &str| {
        let output = run(folder.path(), &[&sources[..], &["--add"], files, &["-o", to]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let text = add(&["moments/1.safetensors", "moments/2.safetensors"], "all.safetensors");
    assert!(text.contains("stored in 1.safetensors; ") && text.contains("stored in 2.safetensors"), "{text}");
    let merged = |calibration: &str| {
        report(&folder, &["--calibration", calibration, "--measure", "never"]);
        std::fs::read(folder.join("out/model.safetensors")).unwrap()
    };
    let all = merged("all.safetensors");
    assert!(all == merged("moments") && all != merged("moments/1.safetensors"));
    add(&["moments/1.safetensors", "moments/1.safetensors"], "twice.safetensors");
    assert!(merged("twice.safetensors") == merged("moments/1.safetensors"));
    let wrong = run(folder.path(), &["merge", "base-nf4", "adapter", "-o", "x", "--calibration", "adapter"]);
    assert!(stderr(&wrong).contains("not a calibration"), "{}", stderr(&wrong));
}

/// At half of its weight the demo's adapter hardly shows in what the model writes. Moments of text that shows it lose less of it on a text of its task; what is measured is written by
/// the adapter as it is, so whether it is measured does not change a byte.
#[test]
fn an_adapter_that_hardly_shows_is_stronger_while_the_model_writes() {
    const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");
    let folder = Folder::new();
    demo(folder.path());
    let merge = |name: &str, more: &[&str]| -> Value {
        let args = ["merge", "--base", "base-nf4", "--adapter", "adapter=0.5", "--json", "-o", name];
        let output = run(folder.path(), &[&args[..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    let text =
        "tokens that the model wrote (seed 0, with the adapter up to 2.5 times as strong, so that it shows more)";
    let found = merge("measured", &[]);
    assert_eq!(found["rounding"]["calibration"], format!("3072 {text}"));
    assert_eq!(found["behaviour"]["text"], "that the model wrote, not calibrated on (seed 0)");
    merge("unmeasured", &["--measure", "never", "--threads", "1"]);
    merge("bounded", &["--measure", "never", "--max-memory", "64M"]);
    let few = merge("few", &["--fast"])["rounding"]["calibration"].to_string();
    assert!(few.contains("384 tokens that the model wrote (seed 0, with the adapter up to 2 times"), "{few}");
    let bytes = |name: &str| std::fs::read(folder.join(name).join("model.safetensors")).unwrap();
    assert!(bytes("measured") == bytes("unmeasured") && bytes("measured") == bytes("bounded"));
    // Text that the base writes without an adapter shows nothing of it.
    let moments = ["calibrate", "--base", "base-nf4", "-o", "base.safetensors"];
    assert!(run(folder.path(), &moments).status.success());
    merge("by-base", &["--calibration", "base.safetensors", "--measure", "never"]);
    let args = ["compare", "--base", "base-nf4", "--adapter", "adapter=0.5", "--merged", "measured"];
    let rest = ["--merged", "by-base", "--text", EVAL, "--windows", "8", "--continuation", "0", "--json"];
    let output = run(folder.path(), &[&args[..], &rest].concat());
    let found: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let kl = |at: usize| found["models"][at]["kl"].as_f64().unwrap();
    assert!(kl(2) < 0.006 && kl(2) < 0.8 * kl(3), "{} {}", kl(2), kl(3));
}
