//! Tensors of an adapter as numbers.

use crate::dtype::Dtype;
use crate::error::{Kind, Result, malformed, mismatch};
use crate::open::{self, Checkpoint};

/// Reads a whole adapter tensor as f32 and checks that it is finite.
pub(crate) fn read_floats(tensors: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let entry = tensors.get(name).ok_or_else(|| malformed("missing").in_tensor(name))?;
    if !entry.dtype.is_plain_float() {
        return Err(tensors.error(
            entry,
            Kind::Unsupported,
            format!("stored as {}, expected F32, F16 or BF16", entry.dtype),
        ));
    }
    let mut bytes = vec![0; entry.bytes as usize];
    tensors.read_at(entry, 0, &mut bytes)?;
    let mut values = vec![0.0; entry.elements() as usize];
    crate::simd::floats::decode(entry.dtype, &bytes, &mut values);
    crate::check::adapter_tensor(tensors, entry, &values)?;
    Ok(values)
}

/// Reads the one number of an adapter tensor, of any type that programs store numbers in.
pub(super) fn read_number(tensors: &Checkpoint, entry: &open::Entry) -> Result<f64> {
    if entry.elements() != 1 {
        return Err(mismatch(format!("shape {:?}, expected one number", entry.shape)).in_tensor(&entry.name));
    }
    let mut bytes = [0; 8];
    let bytes = bytes.get_mut(..entry.bytes as usize).unwrap_or_default();
    let number = match entry.dtype {
        Dtype::F64 | Dtype::I64 | Dtype::I32 => {
            tensors.read_at(entry, 0, bytes)?;
            match *bytes {
                [a, b, c, d] => f64::from(i32::from_le_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] if entry.dtype == Dtype::I64 => {
                    i64::from_le_bytes([a, b, c, d, e, f, g, h]) as f64
                }
                [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => f64::NAN,
            }
        }
        _ => read_floats(tensors, &entry.name)?.first().copied().map_or(f64::NAN, f64::from),
    };
    match number.is_finite() {
        true => Ok(number),
        false => Err(malformed(format!("holds {number}, expected a number")).in_tensor(&entry.name)),
    }
}

/// Reads a whole adapter tensor of numbers from 0 on. PEFT on Windows stores them as floats.
pub(super) fn read_integers(tensors: &Checkpoint, name: &str) -> Result<Vec<u64>> {
    let entry = tensors.get(name).ok_or_else(|| malformed("missing").in_tensor(name))?;
    let wrong = |value: String| {
        tensors.error(entry, Kind::Malformed, format!("holds {value}, expected whole numbers from 0 on"))
    };
    if entry.dtype.is_plain_float() {
        let whole = |value: &f32| value.fract() == 0.0 && *value >= 0.0;
        let values = read_floats(tensors, name)?;
        return match values.iter().find(|value| !whole(value)) {
            Some(value) => Err(wrong(value.to_string())),
            None => Ok(values.into_iter().map(|value| value as u64).collect()),
        };
    }
    let mut bytes = vec![0; entry.bytes as usize];
    tensors.read_at(entry, 0, &mut bytes)?;
    let size = match entry.dtype {
        Dtype::U8 => 1,
        Dtype::I16 => 2,
        Dtype::I32 => 4,
        Dtype::I64 => 8,
        other => {
            return Err(tensors.error(entry, Kind::Unsupported, format!("stored as {other}, expected whole numbers")));
        }
    };
    let number = |bytes: &[u8]| {
        let negative = size > 1 && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if negative { Err(wrong("a negative number".into())) } else { Ok(value) }
    };
    bytes.chunks_exact(size).map(number).collect()
}
