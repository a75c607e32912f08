//! Entry points for the fuzz targets (feature `fuzzing`): each parser of hostile input, on bytes alone.

use std::path::Path;

/// A safetensors header. What is accepted must lie inside the data, without overlap.
pub fn safetensors_header(bytes: &[u8]) {
    const DATA: u64 = 4096;
    if let Ok(contents) = crate::open::parse_header(bytes, DATA, 8) {
        let mut ranges: Vec<_> = contents.entries.iter().map(|entry| (entry.start, entry.start + entry.bytes)).collect();
        ranges.sort_unstable();
        assert!(ranges.iter().all(|&(start, end)| start >= 8 && end <= 8 + DATA));
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        // A weight of any claimed shape can be described without overflow.
        for entry in &contents.entries {
            let weight = crate::formats::plain::PlainWeight::new(&entry.name, &entry.shape, entry.dtype);
            let _ = crate::formats::Weight::geometry(&weight);
        }
    }
}

/// The JSON state of a 4-bit weight. What is accepted and written again reads back the same.
pub fn quant_state(bytes: &[u8]) {
    use crate::formats::bnb4_state::QuantState;
    if let Ok(state) = QuantState::parse(bytes) {
        let again = QuantState::parse(state.to_json().as_bytes());
        let nan = state.nested.is_some_and(|nested| nested.offset.is_nan());
        let plain = matches!(state.quant_type.as_str(), "nf4" | "fp4");
        assert!(nan || !plain || again.is_ok_and(|again| again == state), "{}", state.to_json());
        assert!(state.max_json_len() >= state.to_json().len() as u64);
    }
}

/// The pickle of a torch archive.
pub fn unpickler(bytes: &[u8]) {
    let _ = crate::open::parse_pickle(bytes);
}

/// An adapter's configuration, and its patterns on some names.
pub fn adapter_config(bytes: &[u8]) {
    if let Ok(config) = crate::adapters::parse_config(bytes, Path::new("adapter_config.json")) {
        for name in ["model.layers.0.self_attn.q_proj", "q_proj", ""] {
            crate::adapters::try_patterns(&config, name);
        }
    }
}
