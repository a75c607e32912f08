//! Where a diffusion model has the modules that adapters name: by pipeline, part and path.
//!
//! A base is a part of a pipeline, in the folder that diffusers gives it, or a single file that holds all parts. kohya's names have underscores for dots, so they
//! are looked up among the base's own; and a U-Net goes by two sets of names, that of diffusers and that of the file it was first published in. Source: diffusers
//! 0.42, `loaders/lora_conversion_utils.py`, `loaders/single_file_utils.py`.

use std::collections::{HashMap, HashSet};

use super::flux;
use crate::adapters::Names;
use crate::error::{Result, mismatch, unsupported};

/// A part of a pipeline that adapters are trained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Component {
    /// The U-Net or transformer that removes noise.
    Denoiser,
    /// A text encoder, by number from 0.
    Text(usize),
}

/// Where a module that an adapter names is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::adapters) enum Whereabouts {
    /// At that path in the base.
    At(String),
    /// In several modules of the base, whose outputs follow each other.
    Split(Vec<String>),
    /// In another part of the pipeline than the base is.
    Elsewhere,
}

/// The parts that a base holds.
pub(super) struct Components<'a> {
    held: Vec<(Component, Index<'a>)>,
}

/// Modules of a part: what stands before their paths, and the paths behind that by their names with underscores for dots.
struct Index<'a> {
    prefix: &'static str,
    paths: HashMap<String, Vec<&'a str>>,
    /// By published names that are none of the base's own.
    published: HashMap<String, Vec<String>>,
}

/// Prefixes of the parts in single files: of Stable Diffusion 1 and 2, SDXL, and of those that hold a transformer alone.
const SINGLE_FILE: &[(&str, Component)] = &[
    ("model.diffusion_model.", Component::Denoiser),
    ("cond_stage_model.transformer.", Component::Text(0)),
    ("conditioner.embedders.0.transformer.", Component::Text(0)),
    ("conditioner.embedders.1.model.", Component::Text(1)),
];

impl<'a> Components<'a> {
    /// Those of a base. Errors if it is nothing that a pipeline consists of, as far as its names say.
    pub(super) fn of(names: &Names<'a>) -> Result<Self> {
        let modules: Vec<&'a str> =
            names.weights.iter().filter_map(|claim| claim.weight.name().strip_suffix(".weight")).collect();
        let mut held: Vec<(Component, Index<'a>)> = Vec::new();
        for (prefix, part) in SINGLE_FILE {
            let paths: Vec<&'a str> = modules.iter().filter_map(|module| module.strip_prefix(prefix)).collect();
            if !paths.is_empty() {
                held.push((*part, Index::new(prefix, &paths)));
            }
        }
        if held.is_empty() {
            let part = part_of(names)?;
            let mut index = Index::new("", &modules);
            if part == Component::Denoiser && class(names) == flux::CLASS {
                index.published = flux::published(&modules);
            }
            held.push((part, index));
            // kohya's scripts call T5 the third encoder, also where a pipeline has two (Flux).
            if names.model_type() == "t5" && part != Component::Text(2) {
                held.push((Component::Text(2), Index::new("", &modules)));
            }
        }
        Ok(Self { held })
    }

    /// The module of a part whose path is that, with underscores for dots. Errors if several are.
    pub(super) fn flat(&self, part: Component, flat: &str) -> Result<Option<Whereabouts>> {
        let Some(index) = self.index(part) else { return Ok(Some(Whereabouts::Elsewhere)) };
        match index.paths.get(flat).map_or(&[][..], Vec::as_slice) {
            [] => Ok(index.published.get(flat).map(|paths| match &paths[..] {
                [path] => Whereabouts::At(path.clone()),
                several => Whereabouts::Split(several.to_vec()),
            })),
            [path] => Ok(Some(Whereabouts::At(format!("{}{path}", index.prefix)))),
            [one, two, ..] => Err(mismatch(format!("`{flat}` could be `{one}` or `{two}` of the base"))
                .with_hint("rename the adapter's tensors so that their names have dots")),
        }
    }

    /// The module of a part at a path with dots.
    pub(super) fn dotted(&self, part: Component, path: &str) -> Result<Option<Whereabouts>> {
        let Some(index) = self.index(part) else { return Ok(Some(Whereabouts::Elsewhere)) };
        let flat = path.replace('.', "_");
        match index.paths.get(&flat).map_or(&[][..], Vec::as_slice) {
            // A path with dots says which of them is meant.
            several if several.contains(&path) => Ok(Some(Whereabouts::At(format!("{}{path}", index.prefix)))),
            _ => self.flat(part, &flat),
        }
    }

    fn index(&self, part: Component) -> Option<&Index<'a>> {
        self.held.iter().find(|(held, _)| *held == part).map(|(_, index)| index)
    }
}

impl<'a> Index<'a> {
    fn new(prefix: &'static str, modules: &[&'a str]) -> Self {
        let mut paths: HashMap<String, Vec<&'a str>> = HashMap::new();
        let mut add = |name: String, path: &'a str| {
            let named = paths.entry(name).or_default();
            if !named.contains(&path) {
                named.push(path);
            }
        };
        // Blocks of a U-Net have as many residual layers going down as the first.
        let layers =
            modules.iter().filter_map(|path| path.strip_prefix("down_blocks.0.resnets.")).filter_map(number).max();
        let layers = layers.map(|last| last.saturating_add(1));
        let attend = modules.iter().filter_map(|path| path.strip_prefix("up_blocks."));
        let attend = attend.filter(|rest| rest.contains(".attentions.")).filter_map(number).collect();
        for path in modules {
            add(path.replace('.', "_"), path);
            // A text encoder's file may lack the wrapper that the trainer's model had.
            let Some(bare) = path.strip_prefix("text_model.") else {
                if path.starts_with("encoder.layers.") {
                    add(format!("text_model.{path}").replace('.', "_"), path);
                }
                if let Some(first) = layers.and_then(|layers| first_published(path, layers, &attend)) {
                    add(first.replace('.', "_"), path);
                }
                continue;
            };
            add(bare.replace('.', "_"), path);
        }
        Self { prefix, paths, published: HashMap::new() }
    }
}

/// The number that a path goes on with.
fn number(path: &str) -> Option<usize> {
    path.split('.').next()?.parse().ok()
}

/// The name that a module of diffusers' U-Net has in the file in which Stable Diffusion was first published, by which SDXL is trained too. `layers` are the residual
/// layers of a block, `attend` the blocks going up that have attentions.
fn first_published(path: &str, layers: usize, attend: &HashSet<usize>) -> Option<String> {
    let outside = [
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
    ];
    if let Some((_, name)) = outside.iter().find(|(own, _)| *own == path) {
        return Some((*name).to_owned());
    }
    let blocks = layers.checked_add(1)?;
    let (side, rest) = path.split_once('.')?;
    let (block, rest) = if side == "mid_block" { (0, rest) } else { (number(rest)?, rest.split_once('.')?.1) };
    let (kind, rest) = rest.split_once('.')?;
    let (layer, inner) = (number(rest)?, rest.split_once('.')?.1);
    let at = |offset: usize| block.checked_mul(blocks)?.checked_add(offset);
    let inner = match kind {
        "resnets" => residual(inner)?,
        _ => inner.to_owned(),
    };
    let place = match (side, kind) {
        ("down_blocks", "resnets") => format!("input_blocks.{}.0", at(layer.checked_add(1)?)?),
        ("down_blocks", "attentions") => format!("input_blocks.{}.1", at(layer.checked_add(1)?)?),
        ("down_blocks", "downsamplers") if inner == "conv" => {
            return Some(format!("input_blocks.{}.0.op", at(blocks)?));
        }
        ("up_blocks", "upsamplers") if inner == "conv" => {
            let behind = if attend.contains(&block) { 2 } else { 1 };
            return Some(format!("output_blocks.{}.{behind}.conv", at(layers)?));
        }
        ("mid_block", "resnets") => format!("middle_block.{}", layer.checked_mul(2)?),
        ("mid_block", "attentions") => "middle_block.1".to_owned(),
        ("up_blocks", "resnets") => format!("output_blocks.{}.0", at(layer)?),
        ("up_blocks", "attentions") => format!("output_blocks.{}.1", at(layer)?),
        _ => return None,
    };
    Some(format!("{place}.{inner}"))
}

/// What a residual layer consists of.
fn residual(inner: &str) -> Option<String> {
    let names = [
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("time_emb_proj", "emb_layers.1"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("conv_shortcut", "skip_connection"),
    ];
    names.iter().find(|(own, _)| *own == inner).map(|(_, name)| (*name).to_owned())
}

/// The class that diffusers' configuration names.
fn class<'n>(names: &'n Names<'_>) -> &'n str {
    let config = names.checkpoint.config.as_ref();
    config.and_then(|config| config.json.get("_class_name")?.as_str()).unwrap_or_default()
}

/// Which part of a pipeline a folder holds: its name says so, else its configuration.
fn part_of(names: &Names<'_>) -> Result<Component> {
    let checkpoint = names.checkpoint;
    let folder = checkpoint.store.path();
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let named = folder.file_name().and_then(|name| by_folder(&name.to_string_lossy()));
    let class = class(names);
    let encodes = matches!(names.model_type(), "clip_text_model" | "t5" | "clip" | "umt5");
    match named {
        Some(part) if encodes || !class.is_empty() => Ok(part),
        _ if class.contains("UNet") || class.contains("Transformer") => Ok(Component::Denoiser),
        _ if encodes => Err(unsupported("a text encoder of a pipeline, whose folder's name does not say which")
            .in_file(&checkpoint.path)
            .with_hint("call the folder text_encoder, text_encoder_2 or text_encoder_3, as the pipeline does")),
        _ => Err(mismatch("the adapter is one of a diffusion model, and the base is no part of one that this version knows")
            .with_hint("the base is a folder of a diffusers pipeline (unet, transformer, text_encoder, …), or a checkpoint of Stable Diffusion in one file")),
    }
}

/// The part that diffusers gives a folder of that name to.
pub(super) fn by_folder(name: &str) -> Option<Component> {
    match name {
        "unet" | "transformer" => Some(Component::Denoiser),
        "text_encoder" => Some(Component::Text(0)),
        "text_encoder_2" => Some(Component::Text(1)),
        "text_encoder_3" => Some(Component::Text(2)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of SDXL's file, two residual layers to a block.
    #[test]
    fn modules_have_the_names_of_the_first_file() {
        for (own, want) in [
            ("conv_in", "input_blocks.0.0"),
            ("down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            (
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
                "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            ),
            ("down_blocks.2.resnets.1.time_emb_proj", "input_blocks.8.0.emb_layers.1"),
            ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
            ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
            ("up_blocks.0.attentions.2.proj_out", "output_blocks.2.1.proj_out"),
            ("up_blocks.2.resnets.0.conv_shortcut", "output_blocks.6.0.skip_connection"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            // Without attentions before it.
            ("up_blocks.2.upsamplers.0.conv", "output_blocks.8.1.conv"),
        ] {
            assert_eq!(first_published(own, 2, &HashSet::from([0, 1])).as_deref(), Some(want), "{own}");
        }
        for own in [
            "down_blocks.x.resnets.0.conv1",
            "down_blocks.0.resnets",
            "mid_block.other.0.x",
            "down_blocks.0.resnets.0.x",
            "",
        ] {
            assert_eq!(first_published(own, 2, &HashSet::new()), None, "{own}");
        }
        assert_eq!(first_published(&format!("down_blocks.{}.attentions.1.x", usize::MAX), 2, &HashSet::new()), None);
    }
}
