//! Against bytes and values of ggml.

use super::*;

#[test]
fn random_blocks_decode_as_in_ggml_at_every_vector_level() {
    let random = golden("decode.safetensors");
    for format in TYPES {
        let want = bits(&floats(&random[&format!("{}.values", format.dtype.torch_name())]));
        let blocks = &random[&format!("{}.blocks", format.dtype.torch_name())];
        for (level, have) in crate::simd::forced::at_every_level(|| bits(&decoded(format, blocks))) {
            assert_eq!(have, want, "{} at {level:?}", format.id);
        }
    }
    // None is left out.
    assert!(TYPES.len() <= 25 && random.len() == 2 * 25);
}

/// The first block that differs.
fn difference(format: &Gguf, have: &[u8], want: &[u8]) -> Option<String> {
    let size = format.dtype.block().1 as usize;
    assert_eq!(have.len(), want.len(), "{}", format.id);
    let mut pairs = have.chunks(size).zip(want.chunks(size));
    pairs.position(|(a, b)| a != b).map(|at| {
        let place = at * size..(at + 1) * size;
        format!("{} block {at}: {:?}\nwanted {:?}", format.id, &have[place.clone()], &want[place])
    })
}

/// Values of all sizes with outliers, and rows that are hard: nothing but zeros, constants, ties, one sign, scales that are subnormal, values that are.
#[test]
fn values_become_the_bytes_that_ggml_makes_of_them() {
    let golden = golden("encode.safetensors");
    let mut wrong = Vec::new();
    for format in TYPES.iter().filter(|format| format.kernels.coder.is_some()) {
        for kind in ["random", "edge"] {
            let values = floats(&golden[&format!("{kind}.values")]);
            let importance = floats(&golden[&format!("{kind}.importance")]);
            for (level, have) in crate::simd::forced::at_every_level(|| encoded(format, &values, None)) {
                let found = difference(format, &have, &golden[&format!("{}.{kind}", format.dtype.torch_name())]);
                wrong.extend(found.map(|found| format!("{kind} at {level:?}: {found}")));
            }
            // Types without such bytes take no account of it.
            let plain = encoded(format, &values, None);
            let want = golden.get(&format!("{}.{kind}.weighted", format.dtype.torch_name())).unwrap_or(&plain);
            for (level, have) in crate::simd::forced::at_every_level(|| encoded(format, &values, Some(&importance))) {
                let found = difference(format, &have, want);
                wrong.extend(found.map(|found| format!("{kind} weighted at {level:?}: {found}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is next to a power of two belongs to the next exponent, as the C library rounds the logarithm.
#[test]
fn exponents_are_those_of_a_logarithm_that_is_rounded() {
    let golden = golden("encode.safetensors");
    let (most, want) = (floats(&golden["mxfp4.edges.values"]), &golden["mxfp4.edges.exponents"]);
    assert_eq!(most.len(), want.len());
    for (most, want) in most.iter().zip(want) {
        let mut values = [0.0; 32];
        values[3] = -most;
        assert_eq!(encoded(&MXFP4, &values, None)[0], *want, "{most:e}");
    }
}

/// The code of 4-bit floats is found by comparing; the definition is the first of the least errors.
#[test]
fn four_bit_floats_are_the_first_of_the_nearest() {
    let levels = [0.0_f32, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
    let nearest = |x: f32, scale: f32| {
        let (mut best, mut code) = (f32::INFINITY, 0);
        for (at, level) in levels.iter().enumerate() {
            let error = (level * scale - x).abs();
            if error < best {
                (best, code) = (error, at as u8);
            }
        }
        code
    };
    for seed in 0..200 {
        let mut x = numbers(32, seed);
        let exponent = seed as i32 % 40 - 20;
        x.iter_mut().for_each(|x| *x *= power(exponent));
        // Ties, at any exponent.
        for (k, tie) in [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0].iter().enumerate() {
            x[k] = tie * power(exponent - 4) * if seed % 2 == 0 { 1.0 } else { -1.0 };
        }
        let block = encoded(&MXFP4, &x, None);
        let scale = power(i32::from(block[0]) - 128);
        for (i, &x) in x.iter().enumerate() {
            let code = if i < 16 { block[1 + i] & 15 } else { block[1 + i - 16] >> 4 };
            assert_eq!(code, nearest(x, scale), "{x} {scale}");
        }
    }
}

#[test]
fn rows_are_encoded_by_the_importance_of_their_columns() {
    let values = numbers(3 * 512, 11);
    let importance: Vec<f32> = numbers(512, 12).iter().map(|x| x.abs()).collect();
    for format in TYPES {
        let mut out = vec![7];
        let done = encode_weighted(format.dtype, &values, &importance, &mut out);
        assert_eq!(done, format.kernels.coder.is_some(), "{}", format.id);
        if done {
            assert_eq!(out[1..], encoded(format, &values, Some(&importance)), "{}", format.id);
        }
        // No columns, no whole blocks, no whole rows.
        for (values, importance) in
            [(&values[..], &[][..]), (&values[..62], &importance[..31]), (&values[1..], &importance[..])]
        {
            assert!(!encode_weighted(format.dtype, values, importance, &mut Vec::new()), "{}", format.id);
        }
    }
    assert!(!encode_weighted(Dtype::F32, &values, &importance, &mut Vec::new()));
}
