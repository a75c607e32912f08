//! What a file cannot say of a model is told of, or refused.

use super::*;

/// llama.cpp does not load a file with a bias that its graph of the architecture has no place for.
#[test]
fn a_bias_that_llama_cpp_has_no_place_for_is_told_of() {
    let folder = changed("qwen3", "config.json", |text| text.replacen('{', "{\"attention_bias\": true,", 1));
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let zeros = vec![0_u8; 2 * 128];
    let mut all: Vec<_> = tensors.tensors();
    for part in ["q_proj", "o_proj"] {
        let rows = if part == "q_proj" { 128 } else { 64 };
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![rows], &zeros[..2 * rows]);
        all.push((format!("model.layers.0.self_attn.{part}.bias"), view.unwrap()));
    }
    safetensors::serialize_to_file(all, None, &weights).unwrap();
    let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
    let options = Options { export: Some(export("f16")), ..Options::default() };
    let warnings = Plan::new(&inputs, &options).unwrap().warnings;
    assert!(warnings.iter().any(|text| text.ends_with("have no `blk.0.attn_output.bias`")), "{warnings:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// llama.cpp has no key for a window in this architecture.
#[test]
fn what_the_keys_lose_is_told_of() {
    let mistral =
        |text: String| text.replace("\"model_type\": \"llama\"", "\"model_type\": \"mistral\", \"sliding_window\": 16");
    let folder = changed("llama-pieces", "config.json", mistral);
    let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
    let options = Options { export: Some(export("f16")), ..Options::default() };
    let plan = Plan::new(&inputs, &options).unwrap();
    assert!(plan.warnings.iter().any(|text| text.ends_with(": the window of attention")), "{:?}", plan.warnings);
    std::fs::remove_dir_all(&folder).unwrap();
    for model in &models() {
        let inputs = Inputs::new(Checkpoint::open(&Path::new(MADE).join(model)).unwrap(), Vec::new()).unwrap();
        let mut warnings = Plan::new(&inputs, &options).unwrap().warnings;
        if model.ends_with("sees") || model.ends_with("hears") {
            assert!(warnings.pop().is_some_and(|text| text.contains("mmproj")), "{model}");
        }
        // Of widths that llama.cpp does not have (`gguf_loads`), or of as many layers as the tower adds to (`gguf_bounds`).
        let is_narrow = model.starts_with("gemma3n") || model.starts_with("qwen3vl") || model == "olmoe";
        let is_told = |text: &String| {
            text.starts_with("llama.cpp ") && text.contains("its models of the architecture")
                || text.starts_with("llama.cpp runs the model otherwise")
                || text.starts_with("llama.cpp does not load the file, or stops")
        };
        assert_eq!((warnings.is_empty(), warnings.iter().all(is_told)), (!is_narrow, true), "{model}: {warnings:?}");
    }
}

#[test]
fn what_cannot_be_said_is_refused_by_name() {
    let told = |folder: PathBuf| {
        let error = made(&folder, "f16", None, &RunOptions::default()).unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();
        (error.kind(), error.to_string())
    };
    let family = |text: String| text.replace("\"model_type\": \"qwen2\"", "\"model_type\": \"bloom\"");
    let (kind, text) = told(changed("qwen2", "config.json", family));
    assert!(kind == Kind::Unsupported && text.contains("`bloom`"), "{text}");
    let (kind, text) = told(changed("qwen2", "tokenizer.json", |text| text.replace("(?i:'s|", "(?i:'x|")));
    assert!(kind == Kind::Unsupported && text.contains("cuts text"), "{text}");
    let (kind, text) = told(changed("qwen2", "config.json", |text| text.replace("1000000.0", "\"high\"")));
    assert!(kind == Kind::Malformed && text.contains("rope_theta"), "{text}");
    let (kind, text) = told(changed("qwen2", "tokenizer.json", |text| text[..text.len() / 2].to_owned()));
    assert!(kind == Kind::Malformed && text.contains("tokenizer.json"), "{text}");
    let (kind, text) = told(changed("qwen2", "tokenizer.json", |text| text.replace("\"id\":289", "\"id\":4000000000")));
    assert!(kind == Kind::Mismatch && text.contains("4000000000"), "{text}");
    let without = changed("qwen2", "config.json", |text| text);
    std::fs::remove_file(without.join("tokenizer.json")).unwrap();
    let (kind, text) = told(without);
    assert!(kind == Kind::Mismatch && text.contains("no tokenizer"), "{text}");
    // Granite 4 with layers that a file of Granite has not.
    let mamba = |text: String| text.replacen("\"attention\"", "\"mamba\"", 1);
    let (kind, text) = told(changed("granitehybrid", "config.json", mamba));
    assert!(kind == Kind::Unsupported && text.contains("where all layers have attention"), "{text}");
    // Granite 4 without positions, as it is where nothing is said of them: llama.cpp's has a rope.
    let silent = |text: String| text.replace("\"position_embedding_type\": \"rope\",", "");
    let (kind, text) = told(changed("granitehybrid", "config.json", silent));
    assert!(kind == Kind::Unsupported && text.contains("position_embedding_type"), "{text}");
}
