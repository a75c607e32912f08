//! What `--to nf4` and `int8` quantize is what transformers' loader makes quantized layers of, family by family.
//!
//! `testdata/loaders.jsonl` is what `benches/peers/what_loaders_quantize.py` saw transformers 5.23 do.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use qmerge::formats;
use qmerge::open::Checkpoint;
use qmerge::plan::{Action, Inputs, Options, Plan};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

/// transformers' `should_convert_module`: an entry is a regular expression for the beginning of a path, up to a component's end, or the end of the path.
fn converts(module: &str, skipped: &[String]) -> bool {
    !skipped.iter().any(|entry| {
        let begins = Regex::new(&format!("^(?:{entry})")).unwrap().find(module).unwrap().is_some_and(|found| {
            let rest = &module[found.end()..];
            rest.is_empty() || rest.starts_with('.') || found.as_str().ends_with('.')
        });
        begins || module.ends_with(entry.as_str())
    })
}

/// A checkpoint of zeros with these matrices.
fn write(folder: &Path, case: &Value) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), case["config"].to_string()).unwrap();
    let zeros = vec![0_u8; 1 << 20];
    let tensors = case["tensors"].as_object().unwrap().iter().map(|(name, shape)| {
        let shape: Vec<usize> = shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let bytes = 2 * shape.iter().product::<usize>();
        (name.clone(), TensorView::new(Dtype::BF16, shape, &zeros[..bytes]).unwrap())
    });
    safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn what_is_quantized_is_what_the_loader_replaces() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/loaders.jsonl")).unwrap();
    let folder: PathBuf = std::env::temp_dir().join(format!("qmerge-loaders-{}", std::process::id()));
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = case["architecture"].as_str().unwrap();
        write(&folder, &case);
        for format in ["nf4", "int8"] {
            cases += 1;
            let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
            let to = Some(formats::by_id(format).unwrap());
            let plan = Plan::new(&inputs, &Options { to, ..Options::default() }).unwrap();
            let coded: HashMap<&str, &[usize]> = plan
                .steps
                .iter()
                .filter_map(|step| match &step.action {
                    Action::Recode(recode) if !recode.to.is_plain() => Some((step.name.as_str(), recode.to.shape())),
                    _ => None,
                })
                .collect();
            let config = plan.config.as_ref().unwrap();
            let list = &config.json["quantization_config"]["llm_int8_skip_modules"];
            let texts = |value: &Value| -> Vec<String> {
                value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
            };
            // The class's own list goes on top of whichever.
            let mut skipped = texts(list);
            skipped.extend(texts(&case["always_kept"]));
            let mut held: HashSet<&str> = HashSet::new();
            for linear in case["linears"].as_array().unwrap() {
                let (module, disk) = (linear[0].as_str().unwrap(), linear[1].as_str());
                let by_default = linear[2].as_bool().unwrap();
                let replaced = if list.is_null() { by_default } else { converts(module, &skipped) };
                let is_coded = disk.is_some_and(|disk| coded.contains_key(disk));
                held.extend(disk.filter(|_| replaced));
                if replaced != is_coded {
                    wrong.push(format!(
                        "{name} to {format}: the loader makes {module} quantized: {replaced}; {disk:?} is: {is_coded}"
                    ));
                }
                // Heads stay as they are, which is a choice; all else is quantized if the loader would.
                let is_head = ["score", "classifier", "pooler", "pre_classifier", "contact_head"]
                    .iter()
                    .any(|head| module.split('.').any(|part| part == *head));
                if by_default && !is_coded && !is_head {
                    wrong.push(format!(
                        "{name} to {format}: {module} ({disk:?}) stays plain, and the loader would quantize it"
                    ));
                }
            }
            for (tensor, shape) in coded {
                if !held.contains(tensor) {
                    wrong.push(format!(
                        "{name} to {format}: {tensor} is quantized, and no linear layer of the loader is it"
                    ));
                }
                let stored: Vec<u64> =
                    case["tensors"][tensor].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
                let conv1d = name.starts_with("GPT2");
                let want: Vec<usize> = stored.iter().map(|&n| n as usize).collect();
                let want: Vec<usize> = if conv1d { want.into_iter().rev().collect() } else { want };
                if shape != want {
                    wrong.push(format!(
                        "{name} to {format}: {tensor} has shape {shape:?}, and the loader wants {want:?}"
                    ));
                }
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(wrong.is_empty(), "{} of\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases > 100, "{cases}");
}

/// A head that is stored as codes is no layer that the loader may keep plain, as it does by default.
#[test]
fn a_quantized_head_is_quantized_for_the_loader() {
    let folder = std::env::temp_dir().join(format!("qmerge-packed-head-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let plan = |to: &str| {
        let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
        Plan::new(&inputs, &Options { to: Some(formats::by_id(to).unwrap()), ..Options::default() }).unwrap()
    };
    let skipped =
        |plan: &Plan| plan.config.as_ref().unwrap().json["quantization_config"]["llm_int8_skip_modules"].clone();
    let write = |head: &[(&str, Dtype, Vec<usize>, Vec<u8>)]| {
        let layer = ("model.layers.0.mlp.up_proj.weight", Dtype::BF16, vec![64, 64], vec![0; 8192]);
        let all = head.iter().chain([&layer]);
        let views =
            all.map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
        std::fs::write(folder.join("config.json"), r#"{"model_type": "llama", "tie_word_embeddings": false}"#).unwrap();
    };
    write(&[("lm_head.weight", Dtype::BF16, vec![64, 64], vec![0; 8192])]);
    assert_eq!(skipped(&plan("nf4")), Value::Null, "the loader's default");
    let scales: Vec<u8> = (0..64).flat_map(|_| 1_f32.to_le_bytes()).collect();
    write(&[("lm_head.weight", Dtype::I8, vec![64, 64], vec![1; 4096]), ("lm_head.SCB", Dtype::F32, vec![64], scales)]);
    let plan = plan("nf4");
    assert!(plan.steps.iter().any(|step| step.name == "lm_head.weight" && matches!(&step.action, Action::Recode(_))));
    assert_eq!(skipped(&plan), serde_json::json!([]));
    std::fs::remove_dir_all(&folder).unwrap();
}
