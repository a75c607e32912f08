//! What a GGUF file says of a model whatever it is.

use super::Model;
use super::gguf::is_copy;
use crate::arch;
use crate::arch::gguf::is_made;
use crate::error::Result;
use crate::open::gguf::{Field, Keys};
use crate::open::{MAX_CONFIG, json, small_text};

/// Its name, its size, and how its publisher draws from it. So many values lie beside the model's own.
pub(super) fn general(model: &Model<'_, '_>, beside: usize) -> Result<Keys> {
    let base = &model.inputs.base;
    let mut keys = Keys::default();
    keys.set("general.type", Field::Text("model".into()));
    if let Some(text) = small_text(&*base.store, "generation_config.json", MAX_CONFIG)?
        && let Ok(config) = json::parse_object(&text)
    {
        let number = |key: &str| config.get(key).and_then(serde_json::Value::as_f64);
        let sampling: &[(&str, &[&str], bool)] = &[
            ("top_k", &["top_k"], true),
            ("top_p", &["top_p"], false),
            ("min_p", &["min_p"], false),
            ("xtc_probability", &["xtc_probability"], false),
            ("xtc_threshold", &["xtc_threshold"], false),
            ("temp", &["temperature"], false),
            ("penalty_last_n", &["penalty_last_n"], true),
            ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], false),
            ("mirostat", &["mirostat"], true),
            ("mirostat_tau", &["mirostat_tau"], false),
            ("mirostat_eta", &["mirostat_eta"], false),
        ];
        for (key, fields, is_whole) in sampling {
            if let Some(x) = fields.iter().find_map(|field| number(field)) {
                let field = if *is_whole { Field::Signed(x as i32) } else { Field::Float(x as f32) };
                keys.set(format!("general.sampling.{key}"), field);
            }
        }
    }
    let given = base.config.as_ref().and_then(|config| config.json.get("_name_or_path")?.as_str());
    let given = given.filter(|name| !name.is_empty() && name.matches('/').count() <= 1);
    let folder = base.folder().canonicalize().unwrap_or_else(|_| base.folder().to_path_buf());
    let folder = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = given.map_or(folder, |name| name.rsplit('/').next().unwrap_or(name).to_owned());
    keys.set("general.name", Field::Text(title(&name)));
    let is_left_out = |name: &str| is_made(name) || is_copy(model, name) || model.is_left_out(name);
    let weights = model.weights.iter().filter(|(name, _)| !is_left_out(name));
    // As gguf-py counts, which takes biases of experts for what all have.
    let stacked = model.names.experts.map_or(["", ""], |experts| experts.stacked);
    let is_experts = |name: &str, shape: &[usize]| {
        let is_stack = shape.len() == 3 && stacked.iter().any(|stack| !stack.is_empty() && name.ends_with(stack));
        let of_mlx = name.split('.').any(|part| part == arch::SWITCH);
        (is_stack || of_mlx || name.contains(".experts.")) && !name.ends_with("bias")
    };
    let (of_experts, shared): (Vec<_>, Vec<_>) = weights.partition(|(name, shape)| is_experts(name, shape));
    let values = |weights: &[&(String, Vec<usize>)]| -> usize {
        weights.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    };
    let shared = values(&shared) + beside;
    let label = match model.experts() {
        0 => size_label(shared + values(&of_experts)),
        experts => format!("{experts}x{}", size_label(shared + values(&of_experts) / experts)),
    };
    keys.set("general.size_label", Field::Text(label));
    Ok(keys)
}

/// A name in words, each with a capital unless it is a version or has one already.
fn title(name: &str) -> String {
    let word = |word: &str| {
        let is_lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        let digits = word.strip_prefix('v').unwrap_or(word);
        let is_version = word.starts_with(|c: char| c.is_ascii_digit())
            || digits.len() < word.len()
                && digits.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
        if !is_lower || is_version {
            return word.to_owned();
        }
        // As Python titles: each run of letters.
        let mut titled = String::new();
        let mut is_first = true;
        for c in word.chars() {
            if is_first {
                titled.extend(c.to_uppercase())
            } else {
                titled.extend(c.to_lowercase())
            }
            is_first = !c.is_alphabetic();
        }
        titled
    };
    name.trim().replace('-', " ").split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// A number of values, as llama.cpp labels sizes: two digits at least.
fn size_label(values: usize) -> String {
    let (scale, unit) = match values as f64 {
        values if values > 1e12 => (1e-12, "T"),
        values if values > 1e9 => (1e-9, "B"),
        values if values > 1e6 => (1e-6, "M"),
        _ => (1e-3, "K"),
    };
    let scaled = values as f64 * scale;
    let whole = scaled.round_ties_even() as u64;
    let digits = if whole == 0 { 0 } else { whole.to_string().len() };
    format!("{scaled:.*}{unit}", 2_usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_labels() {
        assert_eq!(title("smol-lm2-v1.5-135M-instruct"), "Smol Lm2 v1.5 135M Instruct");
        assert_eq!(title("model_4x_big"), "Model_4X_Big");
        let labels = [
            (134_515_008, "135M"),
            (630_167_424, "630M"),
            (1_235_814_400, "1.2B"),
            (70_553_706_496, "71B"),
            (5_000, "5.0K"),
        ];
        for (values, label) in labels {
            assert_eq!(size_label(values), label);
        }
    }
}
