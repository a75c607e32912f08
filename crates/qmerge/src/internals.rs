//! Entry points for fuzz targets and benchmarks (feature `internals`): each parser of hostile input on bytes alone, and each kernel by itself.

use std::path::Path;

/// A safetensors header. What is accepted must lie inside the data, without overlap.
pub fn safetensors_header(bytes: &[u8]) {
    const DATA: u64 = 4096;
    if let Ok(contents) = crate::open::parse_header(bytes, DATA, 8) {
        let mut ranges: Vec<_> =
            contents.entries.iter().map(|entry| (entry.start, entry.start + entry.bytes)).collect();
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

/// A GGUF file. What is accepted lies inside it without overlap, and its header is written as it was read.
pub fn gguf_header(bytes: &[u8]) {
    let Ok(contents) = crate::open::gguf::parse(bytes) else { return };
    let start = contents.entries.first().map_or(bytes.len() as u64, |entry| entry.start);
    let mut at = start;
    for entry in &contents.entries {
        assert!(entry.start >= at && entry.start + entry.bytes <= bytes.len() as u64);
        at = entry.start + entry.bytes;
    }
    let (Some(writer), Some(metadata)) = (contents.writer, contents.gguf) else { panic!("a file without a header") };
    let listed: Vec<_> = contents
        .entries
        .iter()
        .map(|entry| crate::open::container::Listed {
            name: &entry.name,
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            start: entry.start - start,
            end: entry.start - start + entry.bytes,
        })
        .collect();
    let header = writer.header(&[], &listed, None);
    // Numbers that no type of ggml has are refused, so nothing is lost; zeros stand up to the alignment.
    let written = header.len().min(bytes.len());
    let meant = header.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1).min(written);
    assert_eq!(header[..meant], bytes[..meant]);
    for key in ["general.architecture", "general.name", "x.arr_s"] {
        let _ = metadata.get(key);
    }
    let _ = crate::open::gguf::config(&metadata, &contents.entries, Path::new("model.gguf"), &|entry| {
        Ok(vec![0; entry.bytes as usize])
    });
}

/// Blocks of a type of ggml, which the first byte chooses, in one row: decoded, put back on their own grid, and the same bytes as values encoded. What was decoded
/// is on the grid as it is.
pub fn gguf_blocks(bytes: &[u8]) {
    use crate::formats::{FORMATS, gguf_row};

    let Some((choice, bytes)) = bytes.split_first() else { return };
    let formats: Vec<_> = FORMATS.iter().filter(|format| format.is_of_gguf()).collect();
    let format = formats[usize::from(*choice) % formats.len()];
    let row = |cols| gguf_row(format.id(), cols).expect("a type of ggml");
    let (block, width) = row(0).parts()[0].dtype.block();
    let blocks = (bytes.len() as u64 / width).min(16);
    if blocks == 0 {
        return;
    }
    let cols = (blocks * block) as usize;
    let bytes = &bytes[..(blocks * width) as usize];
    let weight = row(cols);
    let mut values = vec![0.0; cols];
    weight.decode(&[bytes], 0..1, &mut values);
    if let Some(on_grid) = weight.on_grid() {
        let grid = on_grid.grid(&[bytes], 0..1);
        let mut stored = vec![Vec::new()];
        on_grid.store(&[bytes], 0..1, &values, None, &mut stored);
        assert_eq!(stored[0].len(), bytes.len());
        if values.iter().all(|x| x.is_finite()) {
            let mut again = vec![0.0; cols];
            weight.decode(&[&stored[0]], 0..1, &mut again);
            assert_eq!(values, again, "{}", format.id());
        }
        on_grid.store(&[bytes], 0..1, &values, Some(&grid), &mut stored);
    }
    // What is encoded was found to be finite before.
    let floats = bytes.chunks(4).filter_map(|x| Some(f32::from_le_bytes(x.try_into().ok()?)));
    let floats: Vec<f32> = floats.filter(|x| x.is_finite()).cycle().take(cols).collect();
    if let (Some(writer), true) = (weight.writer(), floats.len() == cols) {
        let mut encoded = vec![Vec::new()];
        writer.encode(&[], 0..1, &floats, &mut encoded);
        assert_eq!(encoded[0].len(), bytes.len());
        weight.decode(&[&encoded[0]], 0..1, &mut values);
    }
}

/// The tokenizer in the keys of a GGUF file.
pub fn gguf_tokenizer(bytes: &[u8]) {
    let Ok(contents) = crate::open::gguf::parse(bytes) else { return };
    let Some(metadata) = contents.gguf else { panic!("a file without a header") };
    if let Ok(keys) = crate::open::read_tokenizer(&metadata) {
        assert!(keys.tokenizer.is_object());
    }
}

/// The JSON state of a 4-bit weight. What is accepted and written again reads back the same.
pub fn quant_state(bytes: &[u8]) {
    use crate::formats::bnb4::state::QuantState;
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
    let text = String::from_utf8_lossy(bytes);
    if let Ok(config) = crate::adapters::parse_config(&text, Path::new("adapter_config.json")) {
        for name in ["model.layers.0.self_attn.q_proj", "q_proj", ""] {
            crate::adapters::try_patterns(&config, name);
        }
    }
}

/// A kernel on data of its own, ready to run.
pub struct Kernel {
    /// Name in the benchmark.
    pub name: String,
    /// Values per run.
    pub values: usize,
    /// One run.
    pub run: Box<dyn FnMut()>,
}

/// Every kernel on `n` values (a multiple of 4096).
pub fn kernels(n: usize) -> Vec<Kernel> {
    use crate::dtype::Dtype;
    use crate::formats::bnb4::{FP4_BOOK, NF4_BOOK};
    use crate::simd::differences::{all_finite, differences};
    use crate::simd::low_rank::{Panels, Target, low_rank};
    use crate::simd::{codes, fields, floats, nibbles, rows8};

    fn kernel(name: impl Into<String>, values: usize, run: impl FnMut() + 'static) -> Kernel {
        Kernel { name: name.into(), values, run: Box::new(run) }
    }
    let wave: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1009) as f32 * 1e-4 - 0.05).collect();
    let mut kernels = Vec::new();
    {
        let (from, mut to) = (wave.clone(), vec![0.0; n]);
        kernels.push(kernel("copy f32 (the memory's own speed)", n, move || {
            to.copy_from_slice(std::hint::black_box(&from))
        }));
    }
    for (name, book, dtype) in
        [("nf4 decode to bf16", &NF4_BOOK, Dtype::BF16), ("fp4 decode to f32", &FP4_BOOK, Dtype::F32)]
    {
        let (codes, absmax, mut out): (Vec<u8>, _, _) =
            ((0..n / 2).map(|i| (i * 37) as u8).collect(), vec![0.05; n / 64], vec![0.0; n]);
        kernels.push(kernel(name, n, move || nibbles::decode(book, &codes, &absmax, 64, dtype, &mut out)));
    }
    for (name, book) in [("nf4 encode", &NF4_BOOK), ("fp4 encode", &FP4_BOOK)] {
        let (values, mut codes, mut absmax) = (wave.clone(), vec![0; n / 2], Vec::with_capacity(n / 64));
        kernels.push(kernel(name, n, move || {
            absmax.clear();
            nibbles::encode(book, &values, 64, &mut codes, &mut absmax);
        }));
    }
    {
        let (values, mut codes, mut scratch) = (wave.clone(), vec![0; 4096], vec![0.0; 4096]);
        kernels.push(kernel("int8 encode", n, move || {
            for row in values.chunks_exact(4096) {
                std::hint::black_box(rows8::encode_row(row, &mut scratch, &mut codes));
            }
        }));
        let (codes, mut out): (Vec<u8>, _) = ((0..n).map(|i| (i * 7) as u8).collect(), vec![0.0; n]);
        kernels.push(kernel("int8 decode", n, move || rows8::decode_row(&codes, 0.05, &mut out)));
    }
    for (name, bits) in [("fp8 decode to bf16, blocks of 128", 0), ("8-bit integers decode to bf16", 8)] {
        // As weights have them: few are of the least exponent, whose arithmetic is slow.
        let codes: Vec<u8> = match bits {
            8 => (0..n).map(|i| (i * 37) as u8).collect(),
            _ => wave.iter().map(|x| codes::to_e4m3(x * 8960.0)).collect(),
        };
        let (scales, mut out) = (vec![0.01; n / 128], vec![0.0; n]);
        kernels.push(kernel(name, n, move || {
            let done = match bits {
                8 => codes::byte_values(&codes, 0, 128, &scales, true, &mut out),
                _ => codes::e4m3_values(&codes, 128, &scales, true, &mut out),
            };
            assert!(done);
        }));
    }
    for bits in [2, 3, 4] {
        let codes: Vec<u8> = (0..n * bits / 8).map(|i| (i * 37) as u8).collect();
        let (scales, mut out) = (vec![0.01; n / 128], vec![0.0; n]);
        kernels.push(kernel(format!("{bits}-bit fields decode to bf16, groups of 128"), n, move || {
            fields::field_levels(bits, true, &codes, -2.0, &mut out);
            codes::scale(&mut out, 128, &scales, &[]);
            floats::round_to(Dtype::BF16, &mut out);
        }));
    }
    {
        let codes: Vec<u8> = (0..n / 2).map(|i| (i * 37) as u8).collect();
        let (scales, mut out) = (vec![0.01; n / 32], vec![0.0; n]);
        kernels.push(kernel("4-bit floats decode to bf16, groups of 32", n, move || {
            codes::e2m1_levels(&codes, &mut out);
            codes::scale(&mut out, 32, &scales, &[]);
            floats::round_to(Dtype::BF16, &mut out);
        }));
    }
    {
        const OUTPUTS: usize = 2048;
        let words: Vec<u8> = (0..4 * OUTPUTS).map(|i| (i * 37) as u8).collect();
        let (scales, zeros, mut out) = (vec![0.01; OUTPUTS], vec![8.0; OUTPUTS], vec![0.0; n]);
        kernels.push(kernel("gptq 4 bits decode to f16", n, move || {
            for (input, out) in out.chunks_exact_mut(OUTPUTS).enumerate() {
                crate::simd::words::down([&words, &[]], 4 * (input % 8) as u32, 4, &zeros, &scales, out);
                floats::round_to(Dtype::F16, out);
            }
        }));
    }
    for dtype in [Dtype::BF16, Dtype::F16] {
        let (values, mut bytes) = (wave.clone(), vec![0; 2 * n]);
        kernels.push(kernel(format!("{} encode", dtype.torch_name()), n, move || {
            floats::encode(dtype, &values, &mut bytes)
        }));
        let (bytes, mut out) = (vec![1; 2 * n], vec![0.0; n]);
        kernels
            .push(kernel(format!("{} decode", dtype.torch_name()), n, move || floats::decode(dtype, &bytes, &mut out)));
    }
    for rank in [8, 16, 64] {
        const COLS: usize = 2048;
        let rows = n / COLS;
        let (left, right) = (vec![0.01; rows * rank], Panels::new(&vec![0.02; rank * COLS], rank, COLS));
        let (base, mut values) = (wave.clone(), vec![0.0; rows * COLS]);
        kernels.push(kernel(format!("low rank {rank} onto base"), rows * COLS, move || {
            low_rank(&left, &right, 2.0, Target::Onto { base: &base[..rows * COLS], values: &mut values });
        }));
    }
    for dtype in [Dtype::BF16, Dtype::F16] {
        use crate::simd::feedback::{Around, Band, LANES, feed_back};
        const COLS: usize = 1024;
        let rank = 16;
        let band = Band::new(wave[..COLS * rank].to_vec(), rank);
        let (base, mut values) = (wave.clone(), vec![0.0; LANES * COLS]);
        kernels.push(kernel(format!("feedback to {}, rank {rank}", dtype.torch_name()), n, move || {
            for rows in base.chunks_exact(LANES * COLS) {
                values.copy_from_slice(rows);
                feed_back(&mut values, &band, 0.03, Around::Floats(dtype));
            }
        }));
    }
    {
        let (base, target, output) = (wave.clone(), wave.iter().map(|x| x * 1.01).collect::<Vec<_>>(), wave.clone());
        kernels.push(kernel("measure", n, move || {
            std::hint::black_box(differences(&base, &target, &output));
        }));
        let values = wave.clone();
        kernels.push(kernel("NaN and infinity scan", n, move || {
            std::hint::black_box(all_finite(&values));
        }));
    }
    kernels.extend(format_kernels(&wave));
    kernels
}

/// Decoding of whole weights by every format that codes are made in, in rows of 256.
fn format_kernels(values: &[f32]) -> Vec<Kernel> {
    use crate::dtype::Dtype;
    use crate::formats::{FORMATS, Settings};

    const COLS: usize = 256;
    let (rows, mut kernels) = (values.len() / COLS, Vec::new());
    for format in FORMATS.iter().filter(|format| format.is_made() && format.quantizes() && !format.is_of_gguf()) {
        let Ok(weight) = format.create("m.weight", &[rows, COLS], Dtype::BF16, &Settings::default()) else { continue };
        let (all, mut held) = (0..weight.geometry().rows, Vec::new());
        let Some(writer) = weight.writer() else { continue };
        writer.survey(all.clone(), values, &mut held);
        let settled = writer.settle(&held, &vec![None; weight.parts().len()]);
        let mut parts = vec![Vec::new(); weight.parts().len()];
        let Some(writer) = settled.weight.writer() else { continue };
        writer.encode(&settled.parts, all.clone(), values, &mut parts);
        let parts: Vec<Vec<u8>> =
            settled.parts.iter().zip(parts).map(|(told, own)| told.clone().unwrap_or(own)).collect();
        let (weight, mut out) = (settled.weight, vec![0.0; rows * COLS]);
        let run = move || {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            weight.decode(&parts, all.clone(), &mut out);
        };
        kernels.push(Kernel {
            name: format!("{}, whole weights decode", format.id()),
            values: rows * COLS,
            run: Box::new(run),
        });
    }
    kernels
}

/// Decoding and encoding of every type of ggml, on `n` values in rows of 1024.
pub fn ggml_kernels(n: usize) -> Vec<Kernel> {
    use crate::dtype::Dtype;
    use crate::formats::{FORMATS, Settings, encode_weighted};

    const COLS: usize = 1024;
    let rows = n / COLS;
    let values: std::sync::Arc<[f32]> =
        (0..rows * COLS).map(|i| (((i * 7919) % 1009) as f32 - 504.0) * (((i * 31) % 127) as f32) * 1e-6).collect();
    let mut kernels = Vec::new();
    for format in FORMATS.iter().filter(|format| format.is_of_gguf()) {
        let mut push = |name: &str, run: Box<dyn FnMut()>| {
            kernels.push(Kernel { name: format!("{} {name}", format.id()), values: rows * COLS, run });
        };
        let Ok(weight) = format.create("w", &[rows, COLS], Dtype::F32, &Settings::default()) else { continue };
        let (dtype, all) = (weight.parts()[0].dtype, 0..rows);
        let Some(writer) = weight.writer() else { continue };
        let mut blocks = vec![Vec::new()];
        writer.encode(&[], all.clone(), &values, &mut blocks);
        let (decoding, mut out) = (std::sync::Arc::clone(&weight), vec![0.0; rows * COLS]);
        let rows = all.clone();
        push("decode", Box::new(move || decoding.decode(&[&blocks[0]], rows.clone(), &mut out)));
        let (encoding, own, mut out) = (std::sync::Arc::clone(&weight), values.clone(), vec![Vec::new()]);
        push(
            "encode",
            Box::new(move || {
                out[0].clear();
                if let Some(writer) = encoding.writer() {
                    writer.encode(&[], all.clone(), &own, &mut out);
                }
            }),
        );
        let (own, importance, mut out) = (values.clone(), vec![1.0; COLS], Vec::new());
        push(
            "encode by importance",
            Box::new(move || {
                out.clear();
                encode_weighted(dtype, &own, &importance, &mut out);
            }),
        );
    }
    kernels
}
