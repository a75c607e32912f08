//! Adapters of diffusion models, against diffusers and LyCORIS.

use super::*;

/// A part of a diffusion pipeline, with what another program made of an adapter there.
fn of_pipeline(pipeline: &str, adapter: &str, part: &str, tolerance: f32) {
    let folder = data("diffusion").join(pipeline);
    let file = folder.join(format!("{adapter}.safetensors"));
    let got = merged(&folder.join(part), &file, 1.0).unwrap();
    let want = floats(&folder.join(format!("{adapter}.{part}.safetensors")));
    agrees(&got, &want, tolerance, &format!("{pipeline} {adapter} {part}"));
    let before = std::fs::read_dir(folder.join(part)).unwrap().map(|item| item.unwrap().path());
    let before = before.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    for (name, values) in before.flat_map(|path| floats(&path)) {
        assert!(want.contains_key(&name) || got[&name] == values, "{adapter}: {name} changed");
    }
}

#[test]
fn adapters_of_diffusion_models_are_merged_as_diffusers_fuses_them() {
    for (pipeline, adapter, parts) in [
        ("sd", "kohya", &["unet", "text_encoder"][..]),
        ("sd", "kohya-conv", &["unet"]),
        ("sd", "diffusers", &["unet", "text_encoder"]),
        ("sd", "diffusers-old", &["unet", "text_encoder"]),
        ("sdxl", "kohya", &["unet", "text_encoder", "text_encoder_2"]),
        // What was one matrix where the model was published lies in pieces.
        ("flux", "kohya", &["transformer"]),
    ] {
        parts.iter().for_each(|part| of_pipeline(pipeline, adapter, part, 2e-6));
    }
}

#[test]
fn adapters_of_lycoris_are_merged_as_it_merges_them() {
    for adapter in [
        "locon",
        "locon-tucker",
        "locon-dora",
        "loha",
        "loha-conv",
        "loha-tucker",
        "lokr",
        "lokr-full",
        "lokr-low",
        "lokr-conv",
        "lokr-tucker",
        "full",
    ] {
        of_pipeline("sd", adapter, "unet", 2e-6);
    }
}

/// A matrix whose outputs lie in several modules of the base has to be as large as they are together.
#[test]
fn pieces_that_do_not_fit_are_named() {
    let scratch = Scratch::new("flux");
    let folder = data("diffusion/flux");
    let file = scratch.join("style.safetensors");
    let mut tensors = floats(&folder.join("kohya.safetensors"));
    let up = tensors.get_mut("lora_unet_single_blocks_1_linear1.lora_up.weight").unwrap();
    *up = (vec![96, 2], vec![0.0; 192]);
    write(&file, &tensors);
    refused(&folder.join("transformer"), &file, &["single_blocks_1_linear1", "[96, 16]", "[112, 16]"]);
    // Halves of this one change places, which is nothing that this version knows.
    let mut tensors = floats(&folder.join("kohya.safetensors"));
    let added = tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].clone();
    tensors.insert("lora_unet_final_layer_adaLN_modulation_1.lora_down.weight".into(), added);
    tensors.insert("lora_unet_final_layer_adaLN_modulation_1.lora_up.weight".into(), (vec![32, 2], vec![0.0; 64]));
    write(&file, &tensors);
    refused(&folder.join("transformer"), &file, &["final_layer_adaLN_modulation_1", "matches nothing"]);
}

/// What is added whole to a matrix that the base has in pieces goes to each of them, and so do biases.
#[test]
fn additions_to_several_modules_are_their_rows() {
    const FUSED: &str = "lora_unet_double_blocks_0_img_attn_qkv";
    let scratch = Scratch::new("flux-diff");
    let folder = data("diffusion/flux");
    let file = scratch.join("diff.safetensors");
    let ramp = |shape: &[usize]| -> (Vec<usize>, Vec<f32>) {
        (shape.to_vec(), (0..shape.iter().product()).map(|at: usize| at as f32 * 1e-3).collect())
    };
    let (weight, bias) = (ramp(&[48, 16]), ramp(&[48]));
    let mut tensors = floats(&folder.join("kohya.safetensors"));
    let factors = merged(&folder.join("transformer"), &folder.join("kohya.safetensors"), 1.0).unwrap();
    tensors.insert(format!("{FUSED}.diff"), weight.clone());
    tensors.insert(format!("{FUSED}.diff_b"), bias.clone());
    write(&file, &tensors);
    let got = merged(&folder.join("transformer"), &file, 1.0).unwrap();
    for (number, name) in ["to_q", "to_k", "to_v"].into_iter().enumerate() {
        for (end, added, each) in [("weight", &weight.1, 256), ("bias", &bias.1, 16)] {
            let name = format!("transformer_blocks.0.attn.{name}.{end}");
            let added = &added[number * each..(number + 1) * each];
            for ((got, before), added) in got[&name].1.iter().zip(&factors[&name].1).zip(added) {
                assert!((got - before - added).abs() < 1e-6, "{name}: {got} {before} {added}");
            }
        }
    }
    for (end, shape) in [("diff", vec![47, 16]), ("diff_b", vec![16])] {
        let mut tensors = tensors.clone();
        tensors.insert(format!("{FUSED}.{end}"), ramp(&shape));
        write(&file, &tensors);
        refused(&folder.join("transformer"), &file, &[&format!("{FUSED}.{end}"), "[48", "another base"]);
    }
}

/// What is added whole may stand beside factors of any method, and takes an adapter's weight.
#[test]
fn factors_and_additions_in_one_file_are_summed() {
    const Q: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    const CONVOLUTION: &str = "mid_block.resnets.0.conv1.weight";
    const FLAT: &str = "lora_unet_mid_block_resnets_0_conv1";
    let scratch = Scratch::new("mixed");
    let folder = data("diffusion/sd");
    let base = floats(&folder.join("unet/diffusion_pytorch_model.safetensors"));
    let shape = base[CONVOLUTION].0.clone();
    let ramp = |shape: &[usize], step: f32| -> (Vec<usize>, Vec<f32>) {
        (shape.to_vec(), (0..shape.iter().product()).map(|at: usize| at as f32 * step).collect())
    };
    let mut own = floats(&folder.join("kohya.safetensors"));
    for (end, shape) in [("down", [&[2][..], &shape[1..]].concat()), ("up", vec![shape[0], 2, 1, 1])] {
        own.insert(format!("{FLAT}.lora_{end}.weight"), ramp(&shape, 1e-3));
    }
    let (factors, full) = (scratch.join("factors.safetensors"), folder.join("full.safetensors"));
    write(&factors, &own);
    let mut both = own;
    // A file has one prefix for a part.
    both.extend(floats(&full).into_iter().map(|(name, tensor)| (name.replace("lycoris_", "lora_unet_"), tensor)));
    let added = ramp(&shape, 1e-3);
    both.insert(format!("{FLAT}.diff"), added.clone());
    let file = scratch.join("both.safetensors");
    write(&file, &both);
    let merge = |file: &Path, weight| merged(&folder.join("unet"), file, weight).unwrap();
    let (one, other, sum) = (merge(&factors, 1.0), merge(&full, 0.5), merge(&file, 0.5));
    let parts = one[Q].1.iter().zip(&other[Q].1).zip(&base[Q].1);
    for (got, ((one, other), base)) in sum[Q].1.iter().zip(parts) {
        let want = base + (one - base) / 2.0 + (other - base);
        assert!((got - want).abs() < 1e-6 && other != base, "{got} {want}");
    }
    let parts = one[CONVOLUTION].1.iter().zip(&base[CONVOLUTION].1).zip(&added.1);
    for (got, ((one, base), added)) in sum[CONVOLUTION].1.iter().zip(parts) {
        let want = base + (one - base) / 2.0 + added / 2.0;
        assert!((got - want).abs() < 1e-6 * want.abs().max(1.0), "{got} {want}");
    }
    assert!(one[CONVOLUTION].1 != base[CONVOLUTION].1);
}

/// The same weights under the names of the file in which SDXL was published.
#[test]
fn a_checkpoint_in_one_file_takes_adapters_by_its_own_names() {
    let scratch = Scratch::new("single-file");
    let file = data("diffusion/sdxl/kohya.safetensors");
    let mut base = Values::new();
    for (name, (shape, _)) in floats(&file) {
        let Some(flat) = name.strip_prefix("lora_unet_").and_then(|name| name.strip_suffix(".lora_up.weight")) else {
            continue;
        };
        let rows = shape[0];
        let down = &floats(&file)[&format!("lora_unet_{flat}.lora_down.weight")].0;
        let shape = [&[rows], &down[1..]].concat();
        let path = dotted(flat);
        let n = shape.iter().product::<usize>();
        base.insert(format!("model.diffusion_model.{path}.weight"), (shape, vec![0.0; n]));
    }
    assert_eq!(base.len(), 56);
    write(&scratch.join("sdxl.safetensors"), &base);
    let got = merged(&scratch.join("sdxl.safetensors"), &file, 1.0).unwrap();
    // What is added to zeros is what diffusers added to its folder.
    let fused = floats(&data("diffusion/sdxl/kohya.unet.safetensors"));
    let before = floats(&data("diffusion/sdxl/unet/diffusion_pytorch_model.safetensors"));
    let pair = [
        (
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1"),
        ("output_blocks.3.0.skip_connection", "up_blocks.1.resnets.0.conv_shortcut"),
    ];
    for (own, other) in pair {
        let (fused, before) = (&fused[&format!("{other}.weight")].1, &before[&format!("{other}.weight")].1);
        let delta = &got[&format!("model.diffusion_model.{own}.weight")].1;
        let worst = crate::largest(delta.iter().zip(fused.iter().zip(before)).map(|(d, (a, b))| (d - (a - b)).abs()));
        assert!(worst < 1e-6 && delta.iter().any(|x| x.abs() > 1e-3), "{own}: {worst}");
    }
}

/// `input_blocks_4_1_x_y` with dots where this file's names have them.
fn dotted(flat: &str) -> String {
    let mut path = flat.to_owned();
    for word in [
        "input_blocks",
        "output_blocks",
        "middle_block",
        "transformer_blocks",
        "proj_in",
        "in_layers",
        "skip_connection",
        "to_q",
        "to_v",
        "to_out",
    ] {
        path = path.replace(word, &word.replace('_', "-"));
    }
    path.replace('_', ".").replace('-', "_")
}

#[test]
fn an_inspection_knows_adapters_of_diffusion_models() {
    let found = inspected(&data("diffusion/sd/kohya.safetensors"));
    assert_eq!((found.writer.as_str(), found.peft_type.as_str()), ("kohya's sd-scripts or LyCORIS", "LORA"));
    assert_eq!((found.r, found.lora_alpha), (Some(4), Some(2.0)));
    let found = inspected(&data("diffusion/sd/lokr-low.safetensors"));
    assert_eq!((found.peft_type.as_str(), found.r), ("LOKR", Some(2)));
    // Ranks differ.
    let found = inspected(&data("diffusion/sd/diffusers.safetensors"));
    assert_eq!((found.writer.as_str(), found.r, found.lora_alpha), ("diffusers", None, None));
}

#[test]
fn adapters_of_diffusion_models_that_are_wrong_are_named() {
    const Q: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    let scratch = Scratch::new("wrong-kohya");
    let unet = data("diffusion/sd/unet");
    let file = scratch.join("style.safetensors");
    let tensors = floats(&data("diffusion/sd/kohya.safetensors"));
    let refused_after = |words: &[&str], change: &dyn Fn(&mut Values)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        write(&file, &tensors);
        refused(&unet, &file, words);
    };
    let renamed = |tensors: &mut Values, from: &str, to: &str| {
        for end in ["lora_down.weight", "lora_up.weight", "alpha"] {
            let tensor = tensors.remove(&format!("{from}.{end}")).unwrap();
            tensors.insert(format!("{to}.{end}"), tensor);
        }
    };
    refused_after(&["lora_unet_mid_block_other", "matches nothing"], &|tensors| {
        renamed(tensors, Q, "lora_unet_mid_block_other")
    });
    refused_after(&[Q, "`oft_blocks`", "program that trained it"], &|tensors| {
        tensors.insert(format!("{Q}.oft_blocks"), (vec![16, 16], vec![0.0; 256]));
    });
    refused_after(&[Q, "diff", "shape [16, 8]", "another base"], &|tensors| {
        tensors.insert(format!("{Q}.diff"), (vec![16, 8], vec![0.0; 128]));
    });
    refused_after(&[Q, "diff_b", "matches nothing"], &|tensors| {
        tensors.insert(format!("{Q}.diff_b"), (vec![16], vec![0.0; 16]));
    });
    refused_after(&[Q, "diff", "inf"], &|tensors| {
        tensors.insert(format!("{Q}.diff"), (vec![16, 16], vec![f32::INFINITY; 256]));
    });
    refused_after(&["a tensor of LOHA", "one of LORA"], &|tensors| {
        tensors.insert("lora_unet_x.hada_w1_a".into(), (vec![2, 2], vec![0.0; 4]));
    });
    refused_after(&[Q, "alpha of 0"], &|tensors| tensors.get_mut(&format!("{Q}.alpha")).unwrap().1[0] = 0.0);
    refused_after(&[Q, "expected one number"], &|tensors| {
        tensors.insert(format!("{Q}.alpha"), (vec![2], vec![1.0; 2]));
    });
    refused_after(&[Q, "NaN"], &|tensors| tensors.get_mut(&format!("{Q}.alpha")).unwrap().1[0] = f32::NAN);
    refused_after(&["partner", "missing"], &|tensors| {
        tensors.remove(&format!("{Q}.lora_up.weight"));
    });
    refused_after(&["magnitudes of inputs", "dora_scale"], &|tensors| {
        tensors.insert(format!("{Q}.dora_scale"), (vec![1, 16], vec![1.0; 16]));
    });
    refused_after(&["a kernel between 4 and 4 channels"], &|tensors| {
        tensors.insert(format!("{Q}.lora_mid.weight"), (vec![3, 4, 3, 3], vec![1.0; 108]));
    });
    refused_after(&["alphas alone"], &|tensors| tensors.retain(|name, _| name.ends_with(".alpha")));
    refused_after(&["none of its tensors is for this part"], &|tensors| {
        tensors.retain(|name, _| name.starts_with("lora_te_"))
    });
    // A base that is no part of a pipeline, and a text encoder of which the folder does not say which it is.
    write(&file, &tensors);
    refused(&data("mlx/lora/base"), &file, &["no part of one", "diffusers pipeline"]);
    std::fs::create_dir(scratch.join("encoder")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(data("diffusion/sd/text_encoder").join(name), scratch.join("encoder").join(name)).unwrap();
    }
    refused(&scratch.join("encoder"), &file, &["does not say which", "text_encoder_2"]);
    // Several in a folder.
    write(&scratch.join("two/a.safetensors"), &tensors);
    write(&scratch.join("two/b.safetensors"), &tensors);
    refused(&unet, &scratch.join("two"), &["several adapters: a.safetensors, b.safetensors"]);
    std::fs::remove_file(scratch.join("two/b.safetensors")).unwrap();
    assert!(merged(&unet, &scratch.join("two"), 1.0).is_ok());
    // Names with underscores that stand for two modules.
    let mut base = floats(&unet.join("diffusion_pytorch_model.safetensors"));
    let name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let tensor = base[name].clone();
    base.insert(name.replace("attn1.to_q", "attn1_to.q"), tensor);
    write(&scratch.join("unet/x.safetensors"), &base);
    std::fs::copy(unet.join("config.json"), scratch.join("unet/config.json")).unwrap();
    refused(&scratch.join("unet"), &file, &["could be", "attn1_to.q"]);
}

#[test]
fn what_diffusers_says_of_scaling_is_held_to() {
    let scratch = Scratch::new("metadata");
    let unet = data("diffusion/sd/unet");
    let file = scratch.join("pytorch_lora_weights.safetensors");
    let tensors = floats(&data("diffusion/sd/diffusers.safetensors"));
    let with = |metadata: &str| {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let all: Vec<_> = tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
        let views = all.iter().map(|(name, shape, bytes)| {
            (
                (*name).clone(),
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes).unwrap(),
            )
        });
        let metadata = [("lora_adapter_metadata".to_owned(), metadata.to_owned())].into();
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), Some(metadata), &file).unwrap();
    };
    for (metadata, words) in [
        ("{", "not a JSON object"),
        (r#"{"unet.r": 8, "unet.lora_alpha": 8}"#, "the metadata says rank 8"),
        (r#"{"unet.r": "x"}"#, "`r` is \"x\", expected a number"),
        (r#"{"unet.alora_invocation_tokens": [1]}"#, "aLoRA"),
    ] {
        with(metadata);
        refused(&unet, &scratch.0, &[words, "pytorch_lora_weights.safetensors"]);
    }
    with(r#"{"other": 3}"#);
    assert!(merged(&unet, &scratch.0, 1.0).is_ok());
}
