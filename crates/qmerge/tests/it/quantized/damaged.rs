//! Cases that were damaged: what is said of them.

use super::*;

/// What is said of a case that was damaged; `None` if it is taken as it is.
fn said(number: usize, tensors: &[Tensor], config: &Value) -> Option<qmerge::error::Error> {
    let own = std::env::temp_dir().join(format!("qmerge-damaged-{}-{number}", std::process::id()));
    written::model(&own, config, tensors);
    let error = formats::inventory(&Checkpoint::open(&own).unwrap()).err();
    std::fs::remove_dir_all(&own).unwrap();
    error
}

/// Tensors that may be missing, since others say the same or nothing is lost.
const OPTIONAL: &[&str] = &["g_idx", "weight_g_idx", "weight_zero_point", "_weight_zero_point"];

/// A tensor that is missing or has another size is an error that names it, the cause and a way out.
#[test]
fn damaged_companions_are_named() {
    let (mut number, mut failed) = (0, Vec::new());
    for case in cases().iter().filter(|case| !REFUSED.contains(&case["name"].as_str().unwrap())) {
        let name = case["name"].as_str().unwrap();
        let golden = Checkpoint::open(&folder().join(format!("{name}.safetensors"))).unwrap();
        for (names, config) in layouts(case) {
            let whole = tensors(case, &names, &golden);
            for at in 0..whole.len() {
                let leaf = whole[at].0.rsplit('.').next().unwrap();
                let mut lacking = whole.clone();
                let lost = lacking.remove(at);
                let mut longer = whole.clone();
                let (_, dtype, shape, bytes) = &mut longer[at];
                match shape.last_mut() {
                    Some(last) => *last += 1,
                    None => *shape = vec![2],
                }
                bytes.resize(shape.iter().product::<usize>() * dtype.bitsize() / 8, 0);
                for (damage, tensors) in [("missing", lacking), ("longer", longer)] {
                    number += 1;
                    let error = said(number, &tensors, &config);
                    // A byte per value with a scale per row has any number of columns.
                    let is_byte = matches!(whole[at].1, safetensors::Dtype::I8 | safetensors::Dtype::F8_E4M3);
                    let is_byte = is_byte || case["format"] == "bitnet";
                    let is_fine =
                        at == 0 && (damage == "missing" || is_byte) || damage == "missing" && OPTIONAL.contains(&leaf);
                    // Without its codes a weight is no weight, and what is left is plain or refused; zeros of torchao only have to be 0.
                    let read = ["nbits", "shape", "axis", "packing"].contains(&leaf);
                    let kept = leaf == "_weight_zero_point" || SETTINGS.contains(&leaf) && !read;
                    match error {
                        None if is_fine || kept => {}
                        Some(error) => {
                            let text = error.to_string();
                            let names_it = text.contains(&lost.0) || text.contains(MODULE) || text.contains("experts");
                            if !names_it || error.hint().is_none() {
                                failed.push(format!("{name}: {leaf} {damage}: {text}"));
                            }
                        }
                        None => failed.push(format!("{name}: {leaf} {damage}: taken")),
                    }
                }
            }
        }
    }
    assert!(failed.is_empty() && number > 100, "{number}: {failed:#?}");
}

/// What would divide by nothing or reach outside of a table is an error that names it.
#[test]
fn groups_that_cannot_be() {
    let damaged = |name: &str, change: &dyn Fn(&mut Vec<Tensor>, &mut Value)| {
        let cases = cases();
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let golden = Checkpoint::open(&folder().join(format!("{name}.safetensors"))).unwrap();
        let (names, mut config) = layouts(case).remove(0);
        let mut tensors = tensors(case, &names, &golden);
        change(&mut tensors, &mut config);
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1 << 20);
        let error = said(COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed), &tensors, &config);
        error.unwrap_or_else(|| panic!("{name} is taken"))
    };
    let index = |at: usize, group: i32| {
        move |tensors: &mut Vec<Tensor>, _: &mut Value| {
            let (_, _, _, bytes) = tensors.iter_mut().find(|(name, ..)| name.ends_with("g_idx")).unwrap();
            bytes[4 * at..4 * at + 4].copy_from_slice(&group.to_le_bytes());
        }
    };
    let text = |error: qmerge::error::Error| format!("{error} {}", error.hint().unwrap());
    for group in [4, -1, i32::MAX, i32::MIN] {
        let text = text(damaged("gptq_w4_asym_g32_act", &index(5, group)));
        assert!(text.contains("g_idx") && text.contains("input 5") && text.contains(&group.to_string()), "{text}");
    }
    let group_size = |path: &'static str| {
        move |_: &mut Vec<Tensor>, config: &mut Value| *config.pointer_mut(path).unwrap() = json!(0)
    };
    for (name, path) in [
        ("gptq_w4_sym_g64", "/quantization_config/group_size"),
        ("awq_g64", "/quantization_config/group_size"),
        ("mlx_affine_b4_g64", "/quantization/group_size"),
        ("ct_w4_sym_g128", "/quantization_config/config_groups/group_0/weights/group_size"),
    ] {
        let text = text(damaged(name, &group_size(path)));
        assert!(text.contains("`group_size` is 0") && text.contains("config.json"), "{text}");
    }
    for block in [json!([0, 128]), json!([128]), json!("128"), json!([-1, 128]), json!([1.5, 2])] {
        let change = |_: &mut Vec<Tensor>, config: &mut Value| {
            config["quantization_config"]["weight_block_size"] = block.clone();
        };
        let text = text(damaged("fp8_block_float_128x256", &change));
        assert!(text.contains("weight_block_size") && text.contains("config.json"), "{text}");
    }
    let shape = |dims: [i64; 2]| {
        move |tensors: &mut Vec<Tensor>, _: &mut Value| {
            let (_, _, _, bytes) = tensors.iter_mut().find(|(name, ..)| name.ends_with("weight_shape")).unwrap();
            *bytes = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        }
    };
    for dims in [[0, 256], [16, 0], [-16, 256], [16, 255 * 128], [i64::MAX, 256], [1 << 40, 1 << 40]] {
        let text = text(damaged("ct_w4_sym_g128", &shape(dims)));
        assert!(text.contains("model.layers.0.mlp.up_proj"), "{text}");
    }
}
