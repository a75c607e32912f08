//! Which files of a repository a merge reads or copies.

use qmerge::open::SMALL_ENDINGS;

/// Files without which the rest may not be passed on, and the card that names the licence, by the start of their name.
const TERMS: &[&str] = &["README.md", "LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// Chooses among a repository's names, in its order. The weights are those that the library opens: `model.safetensors` before shards of an index before any
/// other `.safetensors`; the adapter's as safetensors before the pickle. An error says what there is instead of weights.
pub(super) fn needed(names: &[String]) -> Result<Vec<&str>, String> {
    let top = || names.iter().map(String::as_str).filter(|name| !name.contains('/'));
    let has = |wanted: &str| top().any(|name| name == wanted);
    let index = if has("model.safetensors") {
        None
    } else if has("model.safetensors.index.json") {
        Some("model.safetensors.index.json")
    } else {
        let mut found = top().filter(|name| name.ends_with(".safetensors.index.json"));
        found.next().filter(|_| found.next().is_none())
    };
    let adapter = qmerge::adapters::weight_files().find(|name| has(name));
    let tensors = |name: &str| name.ends_with(".safetensors") && !name.starts_with("adapter_");
    let model = |name: &str| match index.and_then(|index| index.strip_suffix(".safetensors.index.json")) {
        // Whole copies under other names, as `consolidated.safetensors`, stay where they are.
        Some(stem) => is_shard(name, stem),
        None if has("model.safetensors") => name == "model.safetensors",
        None => tensors(name),
    };
    // Of an adapter of another program than PEFT, what lies beside it is another adapter or an earlier one.
    let alone = adapter.is_some_and(|name| !name.starts_with("adapter_model.")) && !has("config.json");
    let weights = |name: &str| Some(name) == adapter || !alone && tensors(name) && model(name);
    // What a trainer wrote beside an adapter's own weights is merged with them.
    let beside = |name: &str| adapter.is_some() && qmerge::adapters::MERGED_BESIDE.contains(&name);
    if !top().any(weights) {
        return Err(instead(names));
    }
    let wanted = |name: &&str| match name.split_once('/') {
        // Modules of a sentence-transformers model: `1_Pooling/config.json`.
        Some((folder, file)) => file == "config.json" && folder.starts_with(|c: char| c.is_ascii_digit()),
        None if name.ends_with(".index.json") => Some(*name) == index,
        None => {
            weights(name)
                || beside(name)
                || SMALL_ENDINGS.iter().any(|ending| name.ends_with(ending))
                || TERMS.iter().any(|start| name.starts_with(start))
        }
    };
    Ok(names.iter().map(String::as_str).filter(wanted).collect())
}

/// True for `STEM-00001-of-00003.safetensors`.
fn is_shard(name: &str, stem: &str) -> bool {
    let numbers = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".safetensors"));
    numbers.and_then(|text| text.split_once("-of-")).is_some_and(|(number, of)| {
        [number, of].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn instead(names: &[String]) -> String {
    let kinds = [
        (".gguf", "GGUF files"),
        (".bin", "pickled weights (.bin)"),
        (".pth", "pickled weights (.pth)"),
        (".onnx", "ONNX files"),
    ];
    let found = kinds.iter().find(|(ending, _)| names.iter().any(|name| name.ends_with(ending)));
    let found = found.map_or(String::new(), |(_, words)| format!(", only {words}"));
    format!("no weights that can be chosen, neither a model's safetensors nor an adapter{found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        needed(&names).map(|chosen| chosen.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn weights_once_and_what_stands_beside_them() {
        let model = [
            ".gitattributes",
            "1_Pooling/config.json",
            "LICENSE",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "image.png",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "model.gguf",
            "onnx/config.json",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "tokenizer.json",
            "tokenizer.model",
        ];
        let want = [
            "1_Pooling/config.json",
            "LICENSE",
            "README.md",
            "config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer.model",
        ];
        assert_eq!(chosen(&model).unwrap(), want);
        let both =
            ["config.json", "model-00001-of-00001.safetensors", "model.safetensors", "model.safetensors.index.json"];
        assert_eq!(chosen(&both).unwrap(), ["config.json", "model.safetensors"]);
        assert_eq!(chosen(&["a.safetensors", "model.safetensors"]).unwrap(), ["model.safetensors"]);
        assert_eq!(chosen(&["a.safetensors", "b.safetensors"]).unwrap(), ["a.safetensors", "b.safetensors"]);
    }

    #[test]
    fn adapters() {
        let names = [
            "adapter_config.json",
            "adapter_model.bin",
            "adapter_model.safetensors",
            "non_lora_trainables.bin",
            "optimizer.pt",
            "checkpoint-5/adapter_model.bin",
        ];
        let want = ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"];
        assert_eq!(chosen(&names).unwrap(), want);
        assert_eq!(chosen(&names[..2]).unwrap(), ["adapter_config.json", "adapter_model.bin"]);
        let mlx = ["0000100_adapters.safetensors", "adapter_config.json", "adapters.safetensors"];
        assert_eq!(chosen(&mlx).unwrap(), mlx[1..]);
    }

    #[test]
    fn no_weights_at_all() {
        assert!(chosen(&["config.json", "a.gguf"]).unwrap_err().contains("only GGUF"));
        assert!(chosen(&["config.json"]).unwrap_err().ends_with("an adapter"));
    }
}
