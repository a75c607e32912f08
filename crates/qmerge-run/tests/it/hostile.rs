//! A `config.json` that nobody wrote in good faith, or that belongs to another model: errors that say what is wrong, and never a panic.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use qmerge::arch::spec::Spec;
use qmerge::arch::spec_of;
use qmerge::error::{Error, Result};
use qmerge::open::{Checkpoint, ModelConfig};
use qmerge::plan::Inputs;
use qmerge_run::tensors::Tensors;
use qmerge_run::{Model, Options, Unwatched};
use serde_json::{Map, Value, json};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny")
}

fn open(case: &str) -> Inputs {
    Inputs::new(Checkpoint::open(&tiny().join(case)).unwrap(), Vec::new()).unwrap()
}

fn spec(config: &ModelConfig, json: &Map<String, Value>) -> Result<Spec> {
    let mut config = config.clone();
    config.json = json.clone();
    spec_of(&config)
}

/// A model with another configuration, run on some tokens.
fn run(inputs: &mut Inputs, json: &Map<String, Value>) -> Result<()> {
    let own = inputs.base.config.clone().unwrap();
    let mut config = own.clone();
    config.json = json.clone();
    inputs.base.config = Some(config);
    let tensors = Tensors::new(inputs, None);
    let options = Options { threads: 1, held: Some(0), progress: None };
    let done = Model::new(&tensors, options).and_then(|model| {
        let hidden = model.hidden(&[&[0, 1, 2], &[3]], &mut Unwatched)?;
        let mut logits = Vec::new();
        model.logits(&hidden, 2..3, &mut logits).map(|()| logits)
    });
    inputs.base.config = Some(own);
    done.map(|_| ())
}

fn says(error: &Error, texts: &[&str]) {
    let (said, hint) = (error.to_string(), error.hint().unwrap_or_default());
    for text in texts.iter().chain(&["config.json"]) {
        assert!(said.contains(text), "`{text}` is not in: {said}");
    }
    assert!(!hint.is_empty(), "no remedy: {said}");
}

#[test]
fn each_error_names_the_field_and_its_value() {
    let cases = [
        ("llama", json!({"head_dim": 7}), &["7 features", "pairs", "`head_dim`"][..]),
        ("llama", json!({"head_dim": 0}), &["`head_dim` is 0", "above zero"]),
        (
            "llama",
            json!({"head_dim": null, "num_attention_heads": 25}),
            &["`num_attention_heads` is 25", "`hidden_size`", "24"],
        ),
        ("llama", json!({"head_dim": 16_777_216}), &["16777216"]),
        ("llama", json!({"num_attention_heads": 0}), &["`num_attention_heads` is 0"]),
        ("llama", json!({"num_attention_heads": 5}), &["`num_attention_heads` is 5", "`num_key_value_heads`", "2"]),
        ("llama", json!({"num_key_value_heads": 0}), &["`num_key_value_heads` is 0"]),
        ("llama", json!({"num_hidden_layers": 1 << 24}), &["`num_hidden_layers` is 16777216", "16384"]),
        ("llama", json!({"num_hidden_layers": -1}), &["`num_hidden_layers` is -1", "not a count"]),
        ("llama", json!({"hidden_size": 1_u64 << 63}), &["`hidden_size` is 9223372036854775808", "16777216"]),
        ("llama", json!({"hidden_size": "24"}), &["`hidden_size` is \"24\"", "not a count"]),
        ("llama", json!({"hidden_size": null}), &["`hidden_size` is missing"]),
        ("llama", json!({"vocab_size": 0}), &["`vocab_size` is 0"]),
        ("llama", json!({"rms_norm_eps": -1e-5}), &["`rms_norm_eps` is -", "negative"]),
        ("llama", json!({"rms_norm_eps": "NaN"}), &["`rms_norm_eps` is \"NaN\"", "not a number"]),
        ("llama", json!({"rms_norm_eps": 1e300}), &["`rms_norm_eps` is 1e", "too large"]),
        ("llama", json!({"hidden_act": "mish"}), &["`hidden_act` is \"mish\""]),
        ("llama", json!({"hidden_act": 3}), &["`hidden_act` is 3"]),
        ("llama", json!({"max_position_embeddings": 0}), &["`max_position_embeddings` is 0"]),
        ("llama", json!({"rope_parameters": []}), &["`rope_parameters` is []", "not an object"]),
        ("llama", json!({"rope_parameters": {"rope_theta": 0}}), &["`rope_theta` is 0", "above zero"]),
        ("llama", json!({"rope_parameters": {"rope_theta": -3.5}}), &["`rope_theta` is -3.5", "above zero"]),
        ("llama", json!({"rope_parameters": {"partial_rotary_factor": 7}}), &["`partial_rotary_factor` is 7"]),
        ("llama", json!({"rope_parameters": {"rope_type": "linear"}}), &["lack `factor`"]),
        ("llama", json!({"rope_parameters": {"rope_type": "linear", "factor": -2}}), &["factor` is -2", "above zero"]),
        ("llama", json!({"rope_parameters": {"rope_type": "axial"}}), &["`rope_type` is \"axial\""]),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 0, "high_freq_factor": 4}}),
            &["low_freq_factor` is 0", "above zero"],
        ),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "yarn", "factor": 8, "attention_factor": 1e300}}),
            &["frequency or factor inf"],
        ),
        ("llama", json!({"rope_parameters": {"rope_type": "linear", "factor": 1e-310}}), &["frequency or factor inf"]),
        (
            "phi3_longrope",
            json!({"num_attention_heads": 1, "num_key_value_heads": 1}),
            &["short_factor`", "numbers above zero"],
        ),
        ("mistral", json!({"sliding_window": 0}), &["`sliding_window` is 0", "above zero"]),
        ("gemma2", json!({"layer_types": ["full_attention"]}), &["`layer_types` has 1 items"]),
        ("gemma3_text", json!({"layer_types": "full_attention"}), &["`layer_types`", "not a list"]),
        ("gemma2", json!({"query_pre_attn_scalar": 0}), &["`query_pre_attn_scalar` is 0"]),
        ("gemma2", json!({"final_logit_softcapping": 0.0}), &["`final_logit_softcapping` is 0.0"]),
        (
            "gemma4_text",
            json!({"num_kv_shared_layers": 1}),
            &["`num_kv_shared_layers` is 1", "no layer with no window"],
        ),
        ("gemma4_small", json!({"num_kv_shared_layers": 5}), &["`num_kv_shared_layers` is 5", "none of 5 layers"]),
        (
            "gemma4_small",
            json!({"per_layer_config": {"1": {"head_dim": 16}, "4": {"head_dim": 12}}}),
            &["`num_kv_shared_layers` is 2", "the same heads"],
        ),
        ("gemma4_small", json!({"num_kv_shared_layers": 9}), &["`num_kv_shared_layers` is 9"]),
        ("gemma4_experts", json!({"top_k_experts": 6}), &["6, but there are 5 experts"]),
        ("gemma4_text", json!({"per_layer_config": {"1": {"head_dim": 0}}}), &["`head_dim` is 0"]),
        ("gemma4_text", json!({"per_layer_config": {"1": 3}}), &["`per_layer_config`", "objects"]),
        ("gemma3n", json!({"altup_active_idx": 3}), &["`altup_active_idx` is 3", "3 streams"]),
        ("gemma3n", json!({"altup_num_inputs": 1 << 20}), &["1048576 streams"]),
        ("gemma3n", json!({"activation_sparsity_pattern": [1.0, 0, 0, 0, 0]}), &["`activation_sparsity_pattern` is 1"]),
        ("gemma3n", json!({"activation_sparsity_pattern": [0.5]}), &["`activation_sparsity_pattern` has 1 items"]),
        ("gemma3n", json!({"intermediate_size": [28, 0, 28, 28, 28]}), &["`intermediate_size` is 0"]),
        ("gpt2", json!({"n_head": 1000}), &["`n_head` is 1000", "`n_embd`"]),
        ("gpt2", json!({"n_inner": 0}), &["`n_inner` is 0"]),
        ("gpt2", json!({"scale_attn_weights": "no"}), &["`scale_attn_weights` is \"no\""]),
        ("gpt2", json!({"scale_attn_by_inverse_layer_idx": true}), &["`scale_attn_by_inverse_layer_idx` is true"]),
        ("mixtral", json!({"num_local_experts": 0}), &["`num_local_experts` is 0"]),
        ("mixtral", json!({"num_experts_per_tok": 99}), &["`num_experts_per_tok` is 99", "experts"]),
        ("mixtral", json!({"num_local_experts": 1 << 20}), &["layers of 1048576 experts"]),
        ("qwen3_moe_raw", json!({"decoder_sparse_step": 0}), &["`decoder_sparse_step` is 0"]),
        ("cohere", json!({"layer_norm_eps": -1}), &["`layer_norm_eps` is -1"]),
        ("cohere2", json!({"sliding_window_pattern": 0}), &["`sliding_window_pattern` is 0"]),
        (
            "exaone4",
            json!({"layer_types": null, "sliding_window_pattern": "LLLG"}),
            &["`sliding_window_pattern` is \"LLLG\""],
        ),
        ("falcon", json!({"alibi": true}), &["`alibi` is true"]),
        ("llama", json!({"is_causal": false}), &["`is_causal` is false", "cannot be run"]),
        ("gemma2", json!({"use_bidirectional_attention": true}), &["`use_bidirectional_attention` is true"]),
        ("falcon", json!({"num_ln_in_parallel_attn": 2}), &["`num_ln_in_parallel_attn` is 2"]),
        ("falcon_new", json!({"parallel_attn": false}), &["`parallel_attn` is false"]),
        ("falcon_new", json!({"num_kv_heads": 3}), &["`num_kv_heads` is 3", "`num_attention_heads`, 4"]),
        ("gpt_neox", json!({"rope_parameters": null, "rotary_pct": 2}), &["`rotary_pct` is 2", "between 0 and 1"]),
        ("hunyuan", json!({"rope_parameters": {"rope_type": "dynamic", "alpha": -1}}), &["alpha` is -1", "above zero"]),
        ("lfm2", json!({"layer_types": ["conv", "conv", "pool"]}), &["`layer_types` is \"pool\""]),
        ("lfm2", json!({"conv_L_cache": 0}), &["`conv_L_cache` is 0"]),
        ("lfm2_bias", json!({"block_ffn_dim_multiplier": -1}), &["`block_ffn_dim_multiplier` is -1"]),
        ("llava", json!({"text_config": {"model_type": "mamba"}}), &["`mamba` cannot be run"]),
        ("llava", json!({"text_config": {"model_type": "llama", "hidden_size": 0}}), &["`hidden_size` is 0"]),
        ("ministral3", json!({"rope_parameters": {}}), &["`llama_4_scaling_beta` is missing"]),
        (
            "ministral3",
            json!({"rope_parameters": {"llama_4_scaling_beta": 1e300}}),
            &["llama_4_scaling_beta` is 1e", "too large"],
        ),
        ("olmo", json!({"clip_qkv": 0}), &["`clip_qkv` is 0"]),
        ("stablelm", json!({"qk_layernorm": 1}), &["`qk_layernorm` is 1"]),
        ("olmoe", json!({"clip_qkv": 0}), &["`clip_qkv` is 0", "above zero"]),
        ("gpt_oss", json!({"swiglu_limit": -7}), &["`swiglu_limit` is -7", "above zero"]),
        ("phimoe", json!({"num_experts_per_tok": 3}), &["`num_experts_per_tok` is 3", "cannot be run"]),
        (
            "phimoe_longrope",
            json!({"rope_parameters": {
            "rope_type": "longrope", "short_factor": [1, 1, 1], "long_factor": [1, 1, 1], "short_mscale": 1.1, "long_mscale": 1.2}}),
            &["`long_mscale` is 1.2", "cannot be run"],
        ),
        ("deepseek_v3", json!({"n_group": 4}), &["6 experts in 4 groups", "`n_group`", "`topk_group`"]),
        ("deepseek_v3", json!({"n_group": 6}), &["6 experts in 6 groups"]),
        ("deepseek_v3", json!({"n_group": 2, "topk_group": 3}), &["of which 3 serve"]),
        ("deepseek_v3", json!({"topk_group": 1, "num_experts_per_tok": 3}), &["cannot give a token 3"]),
        ("deepseek_v3", json!({"scoring_func": "softmax"}), &["`scoring_func` is \"softmax\"", "cannot be run"]),
        ("deepseek_v3", json!({"topk_method": "greedy"}), &["`topk_method` is \"greedy\"", "cannot be run"]),
        ("deepseek_v3", json!({"qk_rope_head_dim": 7}), &["7 features", "pairs"]),
        ("deepseek_v3", json!({"qk_nope_head_dim": 1 << 20}), &["heads of 1048584 features"]),
        ("deepseek_v3", json!({"v_head_dim": 0}), &["`v_head_dim` is 0"]),
        ("deepseek_v3", json!({"kv_lora_rank": 1 << 24}), &["`kv_lora_rank` is 16777216"]),
        ("deepseek_v2", json!({"norm_topk_prob": true}), &["`norm_topk_prob` is true", "cannot be run"]),
        ("deepseek_v2", json!({"topk_method": "noaux_tc"}), &["`topk_method` is \"noaux_tc\"", "cannot be run"]),
        ("deepseek_v2", json!({"n_group": null}), &["`n_group` is missing"]),
        ("glm4_moe", json!({"n_routed_experts": 1}), &["`num_experts_per_tok` is 2, but there are 1 experts"]),
        ("ernie4_5_moe", json!({"moe_layer_interval": 0}), &["`moe_layer_interval` is 0"]),
        ("ernie4_5_moe", json!({"moe_layer_end_index": -2}), &["`moe_layer_end_index` is -2", "not a count"]),
        ("llama4_text", json!({"layer_types": ["chunked_attention"]}), &["`layer_types` has 1 items"]),
        ("llama4_text", json!({"attention_chunk_size": 0}), &["`attention_chunk_size` is 0"]),
        ("llama4_text", json!({"floor_scale": 0}), &["`floor_scale` is 0"]),
        ("qwen2_moe", json!({"shared_expert_intermediate_size": 0}), &["`shared_expert_intermediate_size` is 0"]),
        (
            "qwen3_next",
            json!({"linear_num_value_heads": 3}),
            &["`linear_num_value_heads` is 3", "which must divide it, is 2"],
        ),
        ("qwen3_next", json!({"linear_conv_kernel_dim": 4096}), &["`linear_conv_kernel_dim` is 4096"]),
        (
            "qwen3_next",
            json!({"linear_key_head_dim": 4096, "linear_value_head_dim": 4096}),
            &["4 heads that remember 4096 × 4096"],
        ),
        (
            "qwen3_next",
            json!({"layer_types": ["linear_attention", "sliding_attention", "full_attention"]}),
            &["`layer_types` is \"sliding_attention\"", "cannot be run"],
        ),
        ("qwen3_5_text", json!({"hidden_act": "gelu"}), &["`hidden_act` is \"gelu\"", "cannot be run"]),
        ("smollm3", json!({"no_rope_layers": [1]}), &["`no_rope_layers` has 1 items"]),
        ("smollm3", json!({"no_rope_layers": null, "no_rope_layer_interval": 0}), &["`no_rope_layer_interval` is 0"]),
    ];
    for (case, change, texts) in cases {
        let inputs = open(case);
        let config = inputs.base.config.as_ref().unwrap();
        let mut json = config.json.clone();
        change.as_object().unwrap().iter().for_each(|(key, value)| drop(json.insert(key.clone(), value.clone())));
        match spec(config, &json) {
            Ok(spec) => panic!("{case} with {change} became {spec:?}"),
            Err(error) => says(&error, texts),
        }
    }
}

/// Weights that do not fit what the configuration says are named, before anything is run.
#[test]
fn a_configuration_of_another_model_is_named() {
    for (case, change, tensor) in [
        ("gpt2", json!({"n_positions": 4096}), "wpe.weight"),
        ("llama", json!({"vocab_size": 4096}), "embed_tokens.weight"),
        ("llama", json!({"num_hidden_layers": 9}), "layers.2."),
        ("llama", json!({"head_dim": 10}), "q_proj.weight"),
        ("mixtral", json!({"num_local_experts": 64}), "gate.weight"),
        ("mixtral", json!({"intermediate_size": 2}), "experts"),
        ("gemma4_text", json!({"hidden_size_per_layer_input": 8}), "embed_tokens_per_layer.weight"),
        ("gemma4_small", json!({"hidden_size_per_layer_input": 8}), "embed_tokens_per_layer.weight"),
        ("gemma4_small", json!({"vocab_size_per_layer_input": 99}), "vocab_size_per_layer_input"),
    ] {
        let mut inputs = open(case);
        let mut json = inputs.base.config.as_ref().unwrap().json.clone();
        change.as_object().unwrap().iter().for_each(|(key, value)| drop(json.insert(key.clone(), value.clone())));
        let error = run(&mut inputs, &json).unwrap_err();
        assert!(error.to_string().contains(tensor), "{case} with {change}: {error}");
        assert!(error.hint().is_some(), "{error}");
    }
}

/// Every field of every family takes every value that is no field's own.
#[test]
fn no_value_of_any_field_is_a_panic() {
    let values = [
        json!(null),
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!(-1e-300),
        json!(u64::MAX),
        json!(1 << 24),
        json!("x"),
        json!(false),
        json!(true),
        json!([]),
        json!([0, 1]),
        json!({}),
        json!({"full_attention": {"rope_type": "yarn", "factor": 0.1}, "sliding_attention": {}}),
    ];
    let mut tried = 0;
    let ropes = ["llama_rope_yarn", "llama_rope_llama3", "llama_rope_dynamic", "phi3_longrope"];
    let families = [
        "cohere2",
        "cohere_norms",
        "exaone4",
        "falcon_new",
        "gemma2",
        "gemma3_text",
        "gemma4_text",
        "gpt2",
        "gpt_neox",
        "granite",
        "hunyuan",
        "lfm2_bias",
        "llava",
        "ministral3",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "phi_norms",
        "qwen2_window",
        "qwen3_moe_raw",
        "smollm3",
        "stablelm_parallel",
        "deepseek_v2",
        "deepseek_v3",
        "ernie4_5_moe",
        "gemma2",
        "gemma3_text",
        "glm4_moe",
        "gpt2",
        "gpt_oss",
        "granite",
        "granitemoeshared",
        "llama4_text",
        "minimax_m2",
        "mixtral",
        "olmo2",
        "olmoe",
        "phimoe",
        "phimoe_longrope",
        "qwen2_moe",
        "qwen2_window",
        "qwen3_5_moe_text",
        "qwen3_moe_raw",
        "qwen3_next",
        "smollm3",
    ];
    for case in ropes.into_iter().chain(families) {
        let mut inputs = open(case);
        let config = inputs.base.config.clone().unwrap();
        // What makes no difference, or the same, is run once.
        let mut seen = HashSet::from([format!("{:?}", spec(&config, &config.json).unwrap())]);
        let of_rope = |key: &&String| !ropes.contains(&case) || *key == "rope_parameters";
        for key in config.json.keys().filter(of_rope) {
            let inner: Vec<&String> = config.json[key].as_object().into_iter().flat_map(Map::keys).collect();
            for inner in std::iter::once(None).chain(inner.into_iter().map(Some)) {
                for value in &values {
                    let mut json = config.json.clone();
                    match inner {
                        None => json[key] = value.clone(),
                        Some(inner) => json[key][inner.as_str()] = value.clone(),
                    }
                    tried += 1;
                    match spec(&config, &json) {
                        Err(error) => says(&error, &[]),
                        Ok(spec) if seen.insert(format!("{spec:?}")) => drop(run(&mut inputs, &json)),
                        Ok(_) => {}
                    }
                }
            }
        }
    }
    assert!(tried > 13_000, "{tried}");
}
