//! What an adapter's tensors mean for a base: which weight each lands on, what is tied, what is new, what is said of the rest.

mod paths;
mod ties;

use qmerge::adapters::Adapter;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use qmerge::report::Report;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::folder::Folder;
use crate::written::{self, Tensor};

const TOKENS: usize = 12;
const WIDTH: usize = 8;

/// Multiples of 1/64 below 1, another run for each name: sums of products of a few of them are exact in bf16 where the test needs it.
fn f32s(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().fold(7_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let value = |i: usize| (((seed >> 3) as usize + 37 * i) % 101) as f32 / 64.0 - 0.75;
    let bytes = (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect();
    (name.to_owned(), Dtype::F32, shape.to_vec(), bytes)
}

fn zeros(name: &str, shape: &[usize]) -> Tensor {
    (name.to_owned(), Dtype::F32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()])
}

fn bytes(name: &str, bytes: Vec<u8>) -> Tensor {
    (name.to_owned(), Dtype::U8, vec![bytes.len()], bytes)
}

fn renamed(tensor: &Tensor, name: &str) -> Tensor {
    (name.to_owned(), tensor.1, tensor.2.clone(), tensor.3.clone())
}

fn floats(tensor: &[u8]) -> Vec<f32> {
    tensor.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
}

/// A and B of one module, rank 2.
fn pair(module: &str, outputs: usize, inputs: usize) -> [Tensor; 2] {
    let name = |factor: &str| format!("base_model.model.{module}.lora_{factor}.weight");
    [f32s(&name("A"), &[2, inputs]), f32s(&name("B"), &[outputs, 2])]
}

fn embedding_pair(module: &str) -> [Tensor; 2] {
    let name = |factor: &str| format!("base_model.model.{module}.lora_embedding_{factor}");
    [f32s(&name("A"), &[2, TOKENS]), f32s(&name("B"), &[WIDTH, 2])]
}

/// A base in f32, its configuration, an adapter, and what is merged out of them.
struct Case {
    folder: Folder,
    base: Vec<Tensor>,
    adapters: usize,
    options: Options,
}

struct Merged {
    output: Checkpoint,
    config: Value,
    report: Report,
}

impl Case {
    fn new(base: Vec<Tensor>, config: Value) -> Self {
        let folder = Folder::new();
        written::model(&folder.join("base"), config, &base);
        Self { folder, base, adapters: 0, options: Options::default() }
    }

    fn adapter(mut self, tensors: &[Tensor], config: Value) -> Self {
        let folder = self.folder.join(format!("adapter-{}", self.adapters));
        self.adapters += 1;
        let mut all = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        written::adapter(&folder, all, tensors);
        self
    }

    fn plan(&self) -> qmerge::error::Result<(Inputs, Plan)> {
        let base = Checkpoint::open(&self.folder.join("base"))?;
        let open = |number| Adapter::open(&self.folder.join(format!("adapter-{number}")), 1.0);
        let inputs = Inputs::new(base, (0..self.adapters).map(open).collect::<qmerge::error::Result<_>>()?)?;
        let plan = Plan::new(&inputs, &self.options)?;
        Ok((inputs, plan))
    }

    fn merge(&self) -> Merged {
        let (inputs, plan) = self.plan().unwrap();
        let out = self.folder.join("out");
        let _ = std::fs::remove_dir_all(&out);
        let run = RunOptions { threads: 1, ..RunOptions::default() };
        let report = merge::run(&inputs, &plan, None, &out, &run, &Silent).unwrap();
        let config = serde_json::from_str(&std::fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
        Merged { output: Checkpoint::open(&out).unwrap(), config, report }
    }

    fn error(&self) -> String {
        let error = self.plan().map(|_| ()).unwrap_err();
        format!("{error:?}")
    }

    fn warnings(&self) -> String {
        self.plan().unwrap().1.warnings.join("\n")
    }

    fn base(&self, name: &str) -> Vec<f32> {
        floats(&self.base.iter().find(|tensor| tensor.0 == name).unwrap().3)
    }
}

impl Merged {
    fn get(&self, name: &str) -> Vec<f32> {
        let entry = self.output.get(name).unwrap_or_else(|| panic!("{name} is not stored"));
        floats(&self.output.read_small(entry, 1 << 20).unwrap())
    }
}

/// `base + 2 · B·A`, or its transpose for an embedding.
fn with_delta(base: &[f32], [a, b]: &[Tensor; 2], cols: usize, is_embedding: bool) -> Vec<f32> {
    let (inner, outer) = (a.2[1], b.2[0]);
    let (a, b) = (floats(&a.3), floats(&b.3));
    let product = |o: usize, i: usize| (0..2).map(|k| b[o * 2 + k] * a[k * inner + i]).sum::<f32>();
    assert_eq!(base.len(), inner * outer);
    let at = |n: usize| if is_embedding { product(n % cols, n / cols) } else { product(n / cols, n % cols) };
    base.iter().enumerate().map(|(n, value)| value + 2.0 * at(n)).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

const Q: &str = "layers.0.self_attn.q_proj";

fn llama(prefix: &str) -> Vec<Tensor> {
    vec![
        f32s(&format!("{prefix}embed_tokens.weight"), &[TOKENS, WIDTH]),
        f32s(&format!("{prefix}{Q}.weight"), &[WIDTH, WIDTH]),
    ]
}

fn config(model_type: &str, more: Value) -> Value {
    let mut config = json!({"model_type": model_type, "vocab_size": TOKENS});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn packed(name: &str, rows: usize, cols: usize) -> Vec<Tensor> {
    // As Python writes it.
    let state = format!(r#"{{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [{rows}, {cols}]}}"#);
    let map: [f32; 16] = [
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ];
    let mut codes = bytes(name, (0..rows * cols / 2).map(|i| (i * 29 % 251) as u8).collect());
    codes.2 = vec![rows * cols / 2, 1];
    let map = map.iter().flat_map(|x| x.to_le_bytes()).collect();
    vec![
        codes,
        f32s(&format!("{name}.absmax"), &[rows * cols / 64]),
        (format!("{name}.quant_map"), Dtype::F32, vec![16], map),
        bytes(&format!("{name}.quant_state.bitsandbytes__nf4"), state.into_bytes()),
    ]
}

/// The head's tokens are those of its quant_state, and the packed copy in the adapter only came along.
#[test]
fn a_packed_head_has_the_tokens_of_its_state() {
    let head = packed("lm_head.weight", 16, WIDTH);
    let mut base = vec![f32s("model.embed_tokens.weight", &[16, WIDTH])];
    base.extend(head.clone());
    base.push(f32s(&format!("model.{Q}.weight"), &[WIDTH, WIDTH]));
    let config = json!({"model_type": "llama", "vocab_size": 16, "tie_word_embeddings": false});
    let q = pair(&format!("model.{Q}"), WIDTH, WIDTH);
    Case::new(base.clone(), config.clone()).adapter(&q, json!({})).merge();
    let copies =
        head.iter().map(|part| renamed(part, &part.0.replace("lm_head.", "base_model.model.lm_head.base_layer.")));
    let tensors: Vec<Tensor> = pair("lm_head", 16, WIDTH).into_iter().chain(copies).collect();
    let merged = Case::new(base, config).adapter(&tensors, json!({})).merge();
    let adapter = &merged.report.adapters[0];
    assert_eq!((adapter.merged, adapter.ignored.len(), adapter.replaced), (2, 4, 0));
    assert!(adapter.ignored.iter().all(|ignored| ignored.reason.contains("packed")));
}

#[test]
fn a_classifier_s_head_is_added() {
    let score = f32s("base_model.model.score.weight", &[3, WIDTH]);
    let tensors = [&pair(&format!("model.{Q}"), WIDTH, WIDTH)[..], std::slice::from_ref(&score)].concat();
    let base = json!({"architectures": ["LlamaForCausalLM"]});
    let trained = json!({"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]});
    let merged = Case::new(llama("model."), config("llama", base.clone())).adapter(&tensors, trained).merge();
    assert_eq!(merged.get("score.weight"), floats(&score.3));
    assert_eq!(merged.config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(merged.config["id2label"], json!({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}));
    assert_eq!((merged.report.adapters[0].added, merged.report.adapters[0].unused), (1, 0));
    // RoBERTa's head has two layers and biases; the labels are those of the last. A list of what is not quantized grows.
    let names = ["dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"];
    let shapes: [&[usize]; 4] = [&[WIDTH, WIDTH], &[WIDTH], &[5, WIDTH], &[5]];
    let head =
        names.iter().zip(shapes).map(|(name, shape)| f32s(&format!("base_model.model.classifier.{name}"), shape));
    let more = json!({
        "architectures": ["RobertaForMaskedLM"],
        "quantization_config": {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head"]},
    });
    let tensors: Vec<Tensor> =
        pair("roberta.encoder.layer.0.attention.self.query", WIDTH, WIDTH).into_iter().chain(head).collect();
    let base = vec![f32s("roberta.encoder.layer.0.attention.self.query.weight", &[WIDTH, WIDTH])];
    let case = Case::new(base, config("roberta", more)).adapter(&tensors, json!({"task_type": "TOKEN_CLS"}));
    let merged = case.merge();
    assert_eq!(merged.config["architectures"], json!(["RobertaForTokenClassification"]));
    assert_eq!(merged.config["id2label"].as_object().unwrap().len(), 5);
    let skipped = &merged.config["quantization_config"]["llm_int8_skip_modules"];
    assert_eq!(skipped, &json!(["lm_head", "classifier.dense", "classifier.out_proj"]));
    // Of images PEFT knows no task, and notes the class. A ViT's layers are called otherwise in memory.
    let layer = "encoder.layer.0.attention.attention.query.weight";
    let base = || {
        let config = config("vit", json!({"architectures": ["ViTModel"]}));
        Case::new(vec![f32s(layer, &[WIDTH, WIDTH])], config)
    };
    let head = f32s("base_model.model.classifier.weight", &[4, WIDTH]);
    let tensors: Vec<Tensor> = pair("vit.layers.0.attention.q_proj", WIDTH, WIDTH).into_iter().chain([head]).collect();
    let class = json!({"base_model_class": "ViTForImageClassification", "parent_library": "transformers.models.vit"});
    let merged = base().adapter(&tensors, json!({"modules_to_save": ["classifier"], "auto_mapping": class})).merge();
    assert_eq!(merged.config["architectures"], json!(["ViTForImageClassification"]));
    assert_eq!(merged.config["id2label"].as_object().unwrap().len(), 4);
    assert_eq!((merged.report.adapters[0].added, merged.report.weights.len()), (1, 2));
    // Without either it is no one's, and the error says what it is.
    let error = base().adapter(&tensors, json!({"modules_to_save": ["classifier"]})).error();
    assert!(error.contains("trained whole") && error.contains("task_type"), "{error}");
    let tensors = [&pair(&format!("model.{Q}"), WIDTH, WIDTH)[..], std::slice::from_ref(&score)].concat();
    let case =
        Case::new(llama("model."), config("llama", json!({}))).adapter(&tensors, json!({"modules_to_save": ["score"]}));
    let error = case.error();
    assert!(error.contains("trained whole") && error.contains("task_type"), "{error}");
}

/// PEFT passes over fields that it does not know; whoever merges is told of them.
#[test]
fn what_is_set_and_not_known_is_said() {
    let q = pair(&format!("model.{Q}"), WIDTH, WIDTH);
    let said = |more: Value| {
        let merged = Case::new(llama("model."), config("llama", json!({}))).adapter(&q, more).merge();
        let warnings: Vec<String> = merged.report.warnings.into_iter().filter(|text| text.contains("sets")).collect();
        warnings
    };
    let known = json!({"init_lora_weights": "gaussian", "lora_dropout": 0.1, "megatron_core": "megatron.core", "use_unheard_of": false});
    assert_eq!(said(known), [""; 0]);
    let [field] = &said(json!({"use_unheard_of": true}))[..] else { panic!() };
    assert!(field.contains("`use_unheard_of`"), "{field}");
    let [init] = &said(json!({"init_lora_weights": "unheard_of"}))[..] else { panic!() };
    assert!(init.contains("unheard_of"), "{init}");
}

#[test]
fn trained_files_beside_an_adapter_are_merged_or_named() {
    let q = pair(&format!("model.{Q}"), WIDTH, WIDTH);
    let projector = f32s("model.mm_projector.0.weight", &[WIDTH, 4]);
    let trained = f32s("base_model.model.model.mm_projector.0.weight", &[WIDTH, 4]);
    let base = [llama("model."), vec![projector]].concat();
    let mut case = Case::new(base, config("llama", json!({}))).adapter(&q, json!({}));
    let beside = |name: &str| case.folder.join("adapter-0").join(name);
    written::tensors(&beside("non_lora_trainables.safetensors"), std::slice::from_ref(&trained));
    written::tensors(&beside("value_head.safetensors"), &[f32s("v_head.summary.weight", &[1, WIDTH])]);
    std::fs::write(beside("optimizer.pt"), "state").unwrap();
    std::fs::write(beside("rng_state_0.pth"), "state").unwrap();
    let merged = case.merge();
    assert_eq!(merged.get("model.mm_projector.0.weight"), floats(&trained.3));
    let adapter = &merged.report.adapters[0];
    assert_eq!((adapter.tensors, adapter.merged, adapter.replaced), (3, 2, 1));
    assert_eq!(
        (&adapter.beside[..], &adapter.left_out[..]),
        (&["non_lora_trainables.safetensors".to_owned()][..], &["value_head.safetensors".to_owned()][..])
    );
    assert!(merged.report.warnings.iter().any(|text| text.contains("value_head.safetensors")));
    assert!(!merged.report.warnings.iter().any(|text| text.contains("optimizer") || text.contains("rng_state")));
    // Of a module that the base lacks: the error names the file.
    written::tensors(
        &beside("non_lora_trainables.safetensors"),
        &[renamed(&trained, "base_model.model.model.other.weight")],
    );
    assert!(case.error().contains("non_lora_trainables.safetensors"), "{}", case.error());
    std::fs::remove_file(beside("non_lora_trainables.safetensors")).unwrap();
    // Rows of new tokens are needed, so the merge stops.
    written::tensors(&beside("new_embeddings.safetensors"), &[f32s("input_embeddings", &[2, WIDTH])]);
    assert!(case.error().contains("new_embeddings.safetensors"), "{}", case.error());
    case.options.allow_unused = true;
    assert!(case.warnings().contains("new_embeddings.safetensors"));
}

#[test]
fn the_same_adapter_twice_and_one_that_was_not_trained_are_named() {
    let q = pair(&format!("model.{Q}"), WIDTH, WIDTH);
    let case = Case::new(llama("model."), config("llama", json!({}))).adapter(&q, json!({}));
    assert!(!case.warnings().contains("zero"));
    let adapter = case.folder.join("adapter-0");
    let open = || Adapter::open(&adapter, 1.0).unwrap();
    let inputs = Inputs::new(Checkpoint::open(&case.folder.join("base")).unwrap(), vec![open(), open()]).unwrap();
    let plan = Plan::new(&inputs, &Options::default()).unwrap();
    assert!(plan.warnings.iter().any(|text| text.contains("given 2 times")), "{:?}", plan.warnings);
    let [a, b] = q;
    let case = Case::new(llama("model."), config("llama", json!({}))).adapter(&[a, zeros(&b.0, &b.2)], json!({}));
    let report = case.merge().report;
    assert_eq!(report.warnings.iter().filter(|text| text.contains("zero")).count(), 1, "{:?}", report.warnings);
}

#[test]
fn another_base_than_the_adapter_s_is_named() {
    let q = pair(&format!("model.{Q}"), WIDTH, WIDTH);
    for (base, trained_on, warned) in [
        ("org/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B", true),
        ("unsloth/Llama-3.2-1B-bnb-4bit", "meta-llama/Llama-3.2-1B", false),
        ("", "meta-llama/Llama-3.2-1B", false),
    ] {
        let case = Case::new(llama("model."), config("llama", json!({"_name_or_path": base})))
            .adapter(&q, json!({"base_model_name_or_path": trained_on}));
        let warnings = case.warnings();
        assert_eq!(warnings.contains(trained_on) && warnings.contains(base), warned, "{warnings}");
    }
}

/// BD-LoRA whose rows cannot be cut into its blocks.
#[test]
fn blocks_that_do_not_divide_a_factor_are_refused() {
    for (key, rank, outputs) in [("target_modules_bd_a", 2, WIDTH), ("target_modules_bd_b", 2, 7)] {
        for blocks in [3_u64, 1 << 20, u64::MAX] {
            let name = |factor: &str| format!("base_model.model.model.{Q}.lora_{factor}.weight");
            let tensors = [f32s(&name("A"), &[rank, 4]), f32s(&name("B"), &[outputs, 2])];
            let base = vec![f32s(&format!("model.{Q}.weight"), &[outputs, WIDTH])];
            let bd = json!({"use_bdlora": {key: ["q_proj"], "nblocks": blocks}});
            let error = Case::new(base, config("llama", json!({}))).adapter(&tensors, bd).error();
            assert!(error.contains("equal blocks"), "{error}");
        }
    }
}
