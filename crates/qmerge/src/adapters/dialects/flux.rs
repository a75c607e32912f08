//! Modules of Flux' transformer by the names that it was published with, where diffusers has other ones: kohya's files go by the former.
//!
//! Queries, keys and values were one matrix there, in single blocks with the feed-forward layer below them; in diffusers each is its own. Source: diffusers 0.42,
//! `loaders/lora_conversion_utils.py`, `loaders/single_file_utils.py`. `final_layer.adaLN_modulation`, whose halves change places, is not among them.

use std::collections::{BTreeSet, HashMap};

/// The class of the transformer in `config.json`.
pub(super) const CLASS: &str = "FluxTransformer2DModel";

/// Names behind a block's number: as published, and in diffusers, whose outputs follow each other.
type Names = &'static [(&'static str, &'static [&'static str])];

/// Blocks, as published and in diffusers, and what is in them.
const BLOCKS: &[(&str, &str, Names)] = &[
    (
        "double_blocks",
        "transformer_blocks",
        &[
            ("img_attn_qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
            ("img_attn_proj", &["attn.to_out.0"]),
            ("img_mlp_0", &["ff.net.0.proj"]),
            ("img_mlp_2", &["ff.net.2"]),
            ("img_mod_lin", &["norm1.linear"]),
            ("txt_attn_qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
            ("txt_attn_proj", &["attn.to_add_out"]),
            ("txt_mlp_0", &["ff_context.net.0.proj"]),
            ("txt_mlp_2", &["ff_context.net.2"]),
            ("txt_mod_lin", &["norm1_context.linear"]),
        ],
    ),
    (
        "single_blocks",
        "single_transformer_blocks",
        &[
            ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
            ("linear2", &["proj_out"]),
            ("modulation_lin", &["norm.linear"]),
        ],
    ),
];

/// The same of what is outside of blocks.
const OUTSIDE: Names = &[
    ("img_in", &["x_embedder"]),
    ("txt_in", &["context_embedder"]),
    ("time_in_in_layer", &["time_text_embed.timestep_embedder.linear_1"]),
    ("time_in_out_layer", &["time_text_embed.timestep_embedder.linear_2"]),
    ("vector_in_in_layer", &["time_text_embed.text_embedder.linear_1"]),
    ("vector_in_out_layer", &["time_text_embed.text_embedder.linear_2"]),
    ("guidance_in_in_layer", &["time_text_embed.guidance_embedder.linear_1"]),
    ("guidance_in_out_layer", &["time_text_embed.guidance_embedder.linear_2"]),
    ("final_layer_linear", &["proj_out"]),
];

/// The published names that stand for some of these modules of diffusers', with underscores for dots, and for which in what order.
pub(super) fn published(modules: &[&str]) -> HashMap<String, Vec<String>> {
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    let all: BTreeSet<&str> = modules.iter().copied().collect();
    let mut take = |name: String, paths: Vec<String>| {
        if paths.iter().all(|path| all.contains(path.as_str())) {
            found.insert(name, paths);
        }
    };
    for (name, paths) in OUTSIDE {
        take((*name).to_owned(), paths.iter().map(|path| (*path).to_owned()).collect());
    }
    for (blocks, own, names) in BLOCKS {
        let number = |path: &&str| path.strip_prefix(own)?.strip_prefix('.')?.split('.').next()?.parse::<usize>().ok();
        for block in modules.iter().filter_map(number).collect::<BTreeSet<usize>>() {
            for (name, paths) in *names {
                let paths = paths.iter().map(|path| format!("{own}.{block}.{path}")).collect();
                take(format!("{blocks}_{block}_{name}"), paths);
            }
        }
    }
    found
}
