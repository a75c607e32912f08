//! An importance matrix of llama.cpp, in the old form or as GGUF, for a base of layers and of stacked experts.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use qmerge::adapters::Names;
use qmerge::plan::Inputs;
use qmerge::round::{Calibration, Imatrix};

fn model() -> &'static Inputs {
    static MODEL: OnceLock<Inputs> = OnceLock::new();
    MODEL.get_or_init(|| {
        let config = br#"{"model_type": "qwen3_moe", "num_experts": 2}"#;
        let base = [
            &b"BF16 32x64 model.layers.0.self_attn.q_proj.weight\n"[..],
            b"BF16 64x32 model.layers.0.self_attn.o_proj.weight\n",
            b"BF16 32x64 model.layers.0.mlp.experts.0.gate_proj.weight\n",
            b"BF16 32x64 model.layers.0.mlp.experts.1.gate_proj.weight\n",
            b"BF16 64x32 model.layers.0.mlp.experts.0.down_proj.weight\n",
            b"BF16 64x32 model.layers.0.mlp.experts.1.down_proj.weight",
        ];
        qmerge_fuzz::inputs([config, &base.concat(), b"", b""]).unwrap().unwrap()
    })
}

fuzz_target!(|data: &[u8]| {
    let inputs = model();
    let path = qmerge_fuzz::folder("imatrix").join("imatrix.dat");
    std::fs::write(&path, data).unwrap();
    let names = Names::new(&inputs.base, &inputs.inventory.weights, &[]).unwrap();
    match Imatrix::open(&path, &names) {
        Err(error) => qmerge_fuzz::honest(&error),
        Ok(imatrix) => assert!(!imatrix.about().is_empty() && imatrix.weights().count() > 0),
    }
});
