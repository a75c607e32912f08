//! What `--to nf4` and `int8` quantize is what transformers' loader makes quantized layers of, family by family.
//!
//! `testdata/loaders.jsonl` is what `benches/peers/what_loaders_quantize.py` saw transformers 5.23 and 5.24 do.

mod list;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use fancy_regex::Regex;
use qmerge::adapters::Names;
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Action, Inputs, Options, Plan};
use qmerge::progress::Silent;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::written::{self, Tensor, f32s};

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

/// `{0-3}` in a name stands for all numbers from 0 to 3.
fn expanded(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.to_owned()] };
    let (range, after) = rest.split_once('}').unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let afters = expanded(after);
    (first.parse::<usize>().unwrap()..=last.parse().unwrap())
        .flat_map(|number| afters.iter().map(move |after| format!("{before}{number}{after}")))
        .collect()
}

/// A linear layer in the loader's memory.
struct Linear {
    module: String,
    /// The tensor on disk that holds its weight.
    tensor: Option<String>,
    /// What the loader does where no list tells it what to leave alone.
    replaced: bool,
}

/// What the loader of an architecture does.
struct Case {
    architecture: String,
    config: Value,
    linears: Vec<Linear>,
    /// Tensors on disk.
    shapes: BTreeMap<String, Vec<usize>>,
    /// Entries that the class puts on top of any list.
    always_kept: Vec<String>,
}

impl Case {
    fn read(line: &str) -> Self {
        let case: Value = serde_json::from_str(line).unwrap();
        let shape = |value: &Value| -> Vec<usize> { serde_json::from_value(value.clone()).unwrap() };
        let (mut linears, mut shapes) = (Vec::new(), BTreeMap::new());
        for linear in case["linears"].as_array().unwrap() {
            let (module, own) = (linear[0].as_str().unwrap(), format!("{}.weight", linear[0].as_str().unwrap()));
            let (tensor, dims, replaced) = match linear.as_array().unwrap().as_slice() {
                [_, replaced] => (None, None, replaced),
                // A layer that is made only where the checkpoint is quantized has no tensor.
                [_, dims, replaced] => (Some(own.as_str()), Some(dims), replaced),
                [_, tensor, dims, replaced] => (tensor.as_str(), Some(dims), replaced),
                _ => panic!("{linear}"),
            };
            let tensors = tensor.map(expanded);
            for (at, module) in expanded(module).into_iter().enumerate() {
                let tensor = tensors.as_ref().map(|tensors| tensors[at].clone());
                shapes.extend(tensor.clone().map(|tensor| (tensor, shape(dims.unwrap()))));
                linears.push(Linear { module, tensor, replaced: replaced.as_bool().unwrap() });
            }
        }
        for (names, dims) in case["others"].as_object().unwrap() {
            shapes.extend(expanded(names).into_iter().map(|name| (name, shape(dims))));
        }
        let always_kept = serde_json::from_value(case["always_kept"].clone()).unwrap();
        let architecture = case["architecture"].as_str().unwrap().to_owned();
        Self { architecture, config: case["config"].clone(), linears, shapes, always_kept }
    }

    fn model_type(&self) -> &str {
        self.config["model_type"].as_str().unwrap()
    }

    /// True for a tensor that several layers are rows of.
    fn holds_several(&self, tensor: &str) -> bool {
        let holders = self.linears.iter().filter(|linear| linear.tensor.as_deref() == Some(tensor)).count();
        // A gate of AXK2 is the second half of the layer whose name the tensor has.
        holders > 1 || self.model_type() == "axk2" && tensor.ends_with(".q_b_proj.weight")
    }

    /// A checkpoint of zeros with these tensors.
    fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let largest = self.shapes.values().map(|shape| shape.iter().product::<usize>()).max().unwrap();
        let zeros = vec![0_u8; 2 * largest];
        let tensors = self.shapes.iter().map(|(name, shape)| {
            let bytes = 2 * shape.iter().product::<usize>();
            (name.clone(), TensorView::new(Dtype::BF16, shape.clone(), &zeros[..bytes]).unwrap())
        });
        safetensors::serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
    }

    /// What the plan and the loader do not agree on. `plain` gets the entries of [`STAYS`] that account for the rest.
    fn disagreements(&self, plan: &Plan, plain: &mut BTreeSet<String>) -> Vec<String> {
        let mut wrong = Vec::new();
        let coded: HashMap<&str, &[usize]> = plan
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Recode(recode) if !recode.to.is_plain() => Some((step.name.as_str(), recode.to.shape())),
                _ => None,
            })
            .collect();
        let list = &plan.config.as_ref().unwrap().json["quantization_config"]["llm_int8_skip_modules"];
        let listed: Option<Vec<String>> = serde_json::from_value(list.clone()).unwrap();
        let skipped: Option<Vec<String>> = listed.map(|list| list.iter().chain(&self.always_kept).cloned().collect());
        let mut held: HashSet<&str> = HashSet::new();
        for Linear { module, tensor, replaced } in &self.linears {
            let quantized = skipped.as_ref().map_or(*replaced, |skipped| converts(module, skipped));
            let is_coded = tensor.as_ref().is_some_and(|tensor| coded.contains_key(tensor.as_str()));
            held.extend(tensor.as_deref().filter(|_| quantized));
            if quantized != is_coded {
                wrong.push(format!("the loader makes {module} quantized: {quantized}; {tensor:?} is: {is_coded}"));
            }
            // A loader splits values, not codes.
            if *replaced && !is_coded && !tensor.as_ref().is_some_and(|tensor| self.holds_several(tensor)) {
                match stays(self.model_type(), module) {
                    Some(part) => drop(plain.insert(part.to_owned())),
                    None => wrong.push(format!("{module} ({tensor:?}) stays plain, and the loader would quantize it")),
                }
            }
        }
        for (tensor, shape) in coded {
            if !held.contains(tensor) {
                wrong.push(format!("{tensor} is quantized, and no linear layer of the loader is it"));
            }
            let mut want = self.shapes[tensor].clone();
            if ["gpt2", "openai-gpt"].contains(&self.model_type()) {
                want.reverse();
            }
            if shape != want {
                wrong.push(format!("{tensor} has shape {shape:?}, and the loader wants {want:?}"));
            }
        }
        wrong
    }
}

/// What stays plain although the loader would quantize it, by components of paths, with the families; none for any. This is a choice of the program's, not the
/// loader's rule, and the loader is told of it.
const STAYS: &[(&[&str], &str)] = &[
    // Heads. A loader keeps the output embedding and what the model's last parameter belongs to if that is a weight, so that `score` is plain in Llama's classifier
    // of sequences, which has no bias, and quantized in that of tokens, which has one. Here all are plain: an error in them is one in the result, they are small,
    // and adapters bring them plain (`modules_to_save`).
    (&[], "lm_head cls classifier pre_classifier classification_head score qa_outputs"),
    // Routers: most loaders have bare tensors for them.
    (&[], "router gate"),
    // What a model multiplies with itself: quantized, it could not be run.
    (&["mamba", "falcon_mamba", "jamba"], "dt_proj"),
    (&["reformer"], "query_key query key value"),
];

/// The component for which a module stays plain.
fn stays<'m>(model_type: &str, module: &'m str) -> Option<&'m str> {
    let of = |(families, parts): &(&[&str], &'static str)| {
        (families.is_empty() || families.contains(&model_type)).then(|| parts.split(' '))
    };
    let parts: Vec<&str> = STAYS.iter().filter_map(of).flatten().collect();
    module.split('.').find(|part| parts.contains(part))
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/loaders.jsonl");
    std::fs::read_to_string(path).unwrap().lines().map(Case::read).collect()
}

fn plan(folder: &Path, format: &str) -> qmerge::error::Result<Plan> {
    let inputs = Inputs::new(Checkpoint::open(folder).unwrap(), Vec::new()).unwrap();
    Plan::new(&inputs, &Options { to: Some(formats::by_id(format).unwrap()), ..Options::default() })
}

/// transformers' loaders of these formats replace linear layers, and pass over GPT-2's `Conv1D`; those of bitsandbytes' do not.
#[test]
fn conv1d_stays_plain_where_loaders_pass_over_it() {
    let folder = std::env::temp_dir().join(format!("qmerge-loaders-conv1d-{}", std::process::id()));
    let case = cases().into_iter().find(|case| case.architecture == "GPT2LMHeadModel").unwrap();
    case.write(&folder);
    for format in ["fp8", "ct-int4", "ct-int8", "hqq"] {
        let error = plan(&folder, format).unwrap_err().to_string();
        assert!(error.contains("Conv1D"), "{format}: {error}");
    }
    // Neither does it go there from a format whose loaders know it.
    let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
    let coded = folder.join("int8");
    let int8 = plan(&folder, "int8").unwrap();
    merge::run(&inputs, &int8, None, &coded, &RunOptions::default(), &Silent).unwrap();
    let error = plan(&coded, "fp8").unwrap_err().to_string();
    assert!(error.contains("Conv1D"), "{error}");
    assert!(plan(&coded, "nf4").is_ok());
    let _ = std::fs::remove_dir_all(&folder);
}

/// Families with layers that are rows of one tensor together with others on disk, whose rows are not known: an adapter on them is refused by name.
const UNKNOWN: &[&str] = &["axk2", "lara_mini"];

#[test]
fn a_layer_of_the_loader_is_found_on_disk() {
    let folder: PathBuf = std::env::temp_dir().join(format!("qmerge-loaders-names-{}", std::process::id()));
    let (mut wrong, mut unknown) = (BTreeMap::new(), BTreeSet::new());
    let cases = cases();
    for case in &cases {
        case.write(&folder);
        let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
        let names = Names::new(&inputs.base, &inputs.inventory.weights, &[]).unwrap();
        let mut taken = BTreeMap::new();
        for Linear { module, tensor, .. } in &case.linears {
            let Some(tensor) = tensor else { continue };
            let mut deny = |problem: String| {
                wrong.entry(case.model_type().to_owned()).or_insert_with(BTreeSet::new).insert(problem);
            };
            if names.in_memory(module) != *module {
                deny(format!("{module} is taken for a name on disk, of {}", names.in_memory(module)));
            }
            // Without a head's class in its configuration, the file of one begins as that of a model without.
            if let Some(disk) = tensor.strip_suffix(".weight").filter(|_| !case.holds_several(tensor)) {
                let memory = names.in_memory(disk);
                let is_bare = case.model_type() == "vit_msn" && module.strip_prefix("vit.") == Some(memory.as_str());
                if memory != *module && !is_bare {
                    deny(format!("{disk} is called {memory} in memory, not {module}"));
                }
            }
            let found = names.find(&format!("{module}.weight")).unwrap().map(|claim| claim.weight.name());
            if found.is_none() && case.holds_several(tensor) {
                match names.within(&format!("{module}.weight")).unwrap() {
                    Some((claim, rows)) if claim.weight.name() == tensor => {
                        taken.entry(tensor).or_insert_with(Vec::new).push(rows);
                    }
                    Some((claim, _)) => deny(format!("{module} is in {tensor}, found {}", claim.weight.name())),
                    None => {
                        unknown.insert(case.model_type());
                    }
                }
            } else if found != Some(tensor) {
                deny(format!("{module} is {tensor}, found {found:?}"));
            }
        }
        // Together they are the tensor, and no row is of two.
        for (tensor, mut rows) in taken {
            rows.sort_by_key(|rows| rows.start);
            let ends = rows.iter().map(|rows| rows.end);
            assert!(rows.iter().map(|rows| rows.start).eq(std::iter::once(0).chain(ends).take(rows.len())), "{tensor}");
            assert_eq!(rows.last().map(|rows| rows.end), case.shapes[tensor].first().copied(), "{tensor}");
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(unknown.iter().eq(UNKNOWN), "{unknown:?}");
}

#[test]
fn what_is_quantized_is_what_the_loader_replaces() {
    let folder: PathBuf = std::env::temp_dir().join(format!("qmerge-loaders-{}", std::process::id()));
    let (mut wrong, mut refused, mut plain) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let cases = cases();
    for case in &cases {
        case.write(&folder);
        for format in ["nf4", "int8"] {
            match plan(&folder, format) {
                Ok(plan) => wrong.extend(
                    case.disagreements(&plan, &mut plain)
                        .into_iter()
                        .map(|text| format!("{} to {format}: {text}", case.architecture)),
                ),
                Err(_) => {
                    refused.insert(case.model_type());
                }
            }
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(wrong.is_empty(), "{} of\n{}", wrong.len(), wrong.join("\n"));
    // No loader makes a quantized layer of the first two; the experts of the others are one by one in memory, and stacked on disk.
    assert_eq!(refused, BTreeSet::from(["falcon", "ibert", "llama4", "llama4_text"]));
    let all: BTreeSet<String> = STAYS.iter().flat_map(|(_, parts)| parts.split(' ')).map(str::to_owned).collect();
    assert_eq!(plain, all, "nothing is left out in vain");
    assert!(cases.len() > 300, "{}", cases.len());
}
