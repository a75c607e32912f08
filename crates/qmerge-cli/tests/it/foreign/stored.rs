//! Weights that are stored in ways that are not understood.

use super::*;

/// One quantized layer as a format stores it, by the ends of its tensors' names.
struct Case {
    /// What the error must name.
    name: &'static str,
    config: &'static str,
    tensors: &'static [(&'static str, Dtype, &'static [usize])],
}

const CASES: &[Case] = &[
    Case {
        name: "EETQ",
        config: r#""quantization_config": {"quant_method": "eetq"}"#,
        tensors: &[(".weight", Dtype::I8, &[48, 40]), (".weight_scales", Dtype::F16, &[40])],
    },
    Case {
        name: "torchao",
        config: "",
        tensors: &[("._weight_qdata", Dtype::U8, &[40, 24]), ("._weight_scale", Dtype::F32, &[40, 1])],
    },
    Case {
        name: "quanto",
        config: "",
        tensors: &[(".weight._data._data", Dtype::U8, &[40, 24]), (".weight._scale", Dtype::F32, &[120, 1])],
    },
    Case {
        name: "AQLM",
        config: r#""quantization_config": {"quant_method": "aqlm"}"#,
        tensors: &[(".codes", Dtype::I16, &[40, 6, 1]), (".codebooks", Dtype::F16, &[1, 256, 1, 8])],
    },
    Case {
        name: "EXL2",
        config: r#""quantization_config": {"quant_method": "exl2"}"#,
        tensors: &[(".q_weight", Dtype::I32, &[6, 40]), (".q_scale", Dtype::I32, &[3, 5])],
    },
    // Methods and layouts that stand in no table.
    Case {
        name: "`shiny`",
        config: r#""quantization_config": {"quant_method": "shiny"}"#,
        tensors: &[(".weight", Dtype::I8, &[40, 48])],
    },
    Case {
        name: "without a quant_method",
        config: r#""text_config": {"quantization_config": {"bits": 4}}"#,
        tensors: &[(".weight", Dtype::U8, &[40, 48])],
    },
    Case {
        name: "format that is not known",
        config: "",
        tensors: &[(".kernel", Dtype::I8, &[40, 48]), (".kernel_scale", Dtype::F16, &[40])],
    },
    Case { name: "format that is not known", config: "", tensors: &[(".weight", Dtype::I8, &[40, 48])] },
];

/// A plain model and adapter, and beside them a folder `foreign` that holds the same model with its first layer as in the case.
fn foreign(case: &Case, config: bool, tensors: bool) -> Folder {
    let folder = Folder::new();
    plain_model(folder.path(), 2, 40, 48);
    let mut all = read(&folder.join("base/model.safetensors"));
    if tensors {
        all.retain(|(name, ..)| !name.contains("layers.0"));
        all.extend(case.tensors.iter().map(|(end, dtype, shape)| tensor(&format!("{Q}{end}"), *dtype, shape)));
    }
    write(&folder.join("foreign/model.safetensors"), &all);
    let more = if config && !case.config.is_empty() { format!(", {}", case.config) } else { String::new() };
    std::fs::write(folder.join("foreign/config.json"), format!("{{\"model_type\": \"llama\"{more}}}")).unwrap();
    std::fs::write(folder.join("text.txt"), "some text").unwrap();
    folder
}

#[test]
fn every_command_refuses_what_is_stored_in_a_way_that_is_not_understood() {
    for case in CASES {
        let folder = foreign(case, !case.config.is_empty(), true);
        for args in [
            &["merge", "--base", "foreign", "--adapter", "adapter", "-o", "out"][..],
            &[
                "merge",
                "--base",
                "foreign",
                "--adapter",
                "adapter",
                "-o",
                "out",
                "--allow-unused",
                "--to",
                "bf16",
                "--dry-run",
            ],
            &["convert", "--base", "foreign", "--to", "bf16", "-o", "out"],
            &["verify", "--base", "foreign", "--adapter", "adapter", "--merged", "base"],
            &["verify", "--base", "base", "--adapter", "adapter", "--merged", "foreign"],
            &["compare", "--base", "foreign", "--adapter", "adapter", "--text", "text.txt"],
            &["generate", "--base", "foreign", "--prompt", "x"],
            &["calibrate", "--base", "foreign", "--text", "text.txt", "-o", "out"],
            &["truncate", "--base", "foreign", "--adapter", "adapter", "--rank", "1", "-o", "out"],
            &["merge", "--base", "base", "--original", "foreign", "--adapter", "adapter", "-o", "out"],
        ] {
            refused(folder.path(), args, &["foreign", case.name, "quantized from"]);
        }
        let output = run(folder.path(), &["inspect", "foreign"]);
        let text = stdout(&output);
        assert!(output.status.success() && text.contains("not supported") && text.contains(case.name), "{text}");
        assert!(!text.contains("parameters"), "what cannot be read is not counted: {text}");
    }
}

/// Each sign by itself is enough: the configuration, the tensors.
#[test]
fn one_sign_is_enough() {
    for case in CASES {
        let merge = ["merge", "--base", "foreign", "--adapter", "adapter", "-o", "out", "--to", "f16"];
        if !case.config.is_empty() {
            let folder = foreign(case, true, false);
            refused(folder.path(), &merge, &["config.json", case.name, "if the weights are plain already"]);
        }
        let folder = foreign(case, false, true);
        let name =
            if case.config.is_empty() || case.tensors.len() > 1 { case.name } else { "format that is not known" };
        refused(folder.path(), &merge, &["model.safetensors", Q, name]);
    }
}

/// Methods that are read have layouts that are not.
#[test]
fn variants_are_refused_with_the_reason() {
    for (config, words) in [
        (
            r#"{"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}"#,
            ["GPTQ", "checkpoint_format `marlin`"],
        ),
        (r#"{"quant_method": "gptq", "bits": 4, "is_marlin_format": true}"#, ["GPTQ", "Marlin"]),
        (r#"{"quant_method": "awq", "bits": 4, "version": "gemv"}"#, ["AWQ", "version `gemv`"]),
        (
            r#"{"quant_method": "auto-round", "packing_format": "auto_round:other"}"#,
            ["AutoRound", "`auto_round:other`"],
        ),
        (
            r#"{"quant_method": "compressed-tensors", "format": "pack-quantized", "transform_config": {"config_groups": {}}}"#,
            ["rotations", "transform_config"],
        ),
        (
            r#"{"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": {"format": "sparse-24-bitmask"}}"#,
            ["sparse", "sparse-24-bitmask"],
        ),
        (r#"{"quant_method": "bitnet", "quantization_mode": "online"}"#, ["BitNet", "in training"]),
        (
            r#"{"quant_method": "compressed-tensors", "format": "marlin-24"}"#,
            ["compressed-tensors", "format `marlin-24`"],
        ),
    ] {
        let folder = model();
        let text = format!(r#"{{"model_type": "llama", "quantization_config": {config}}}"#);
        std::fs::write(folder.join("base/config.json"), text).unwrap();
        let merge = ["merge", "--base", "base", "--adapter", "adapter", "-o", "out"];
        refused(folder.path(), &merge, &[&["config.json", "quantized from"], &words[..]].concat());
    }
}
