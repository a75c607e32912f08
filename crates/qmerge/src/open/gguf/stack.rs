//! Experts of a layer, which lie in one tensor of a file, one behind the other: they are read as a tensor each, and written as one again.
//!
//! Expert 3 of `blk.0.ffn_up_exps.weight` is `blk.0.ffn_up_exps.3.weight`, a name that no file may have itself; the factors of an adapter lie likewise.

use crate::error::{Result, unsupported};
use crate::open::Entry;
use crate::open::container::Listed;

/// The end of a stack's name, in front of what it is of a module: experts, and what leads to Gemma 3n's streams and back.
const STACKS: &[&str] = &["_exps.", "altup_proj.", "altup_unembd_proj."];
/// What is taken apart.
const LEAVES: &[&str] = &["weight", "weight.lora_a", "weight.lora_b"];
/// A stack of more is taken as it lies: no model has as many experts.
const MOST: usize = 1 << 14;
/// Most experts of all stacks: each takes memory before it is used.
const MOST_IN_ALL: usize = 1 << 19;

/// The stack that an expert's tensor lies in, and its number; `None` for any other tensor.
pub(crate) fn expert(name: &str) -> Option<(String, usize)> {
    let (path, rest) = cut(name)?;
    let (number, leaf) = rest.split_once('.').filter(|(_, leaf)| LEAVES.contains(leaf))?;
    let number = number.parse::<usize>().ok().filter(|parsed| parsed.to_string() == number)?;
    Some((format!("{path}{leaf}"), number))
}

/// A name behind the end of a stack's.
fn cut(name: &str) -> Option<(&str, &str)> {
    STACKS.iter().find_map(|stack| name.split_at_checked(name.find(stack)?.saturating_add(stack.len())))
}

/// Path and leaf of a tensor that is a stack by its name.
fn parts(name: &str) -> Option<(&str, &str)> {
    cut(name).filter(|(_, leaf)| LEAVES.contains(leaf))
}

/// Takes stacks of matrices apart. Errors if a tensor has a name that one of theirs would have.
pub(super) fn apart(entries: Vec<Entry>) -> Result<Vec<Entry>> {
    let mut all = Vec::with_capacity(entries.len());
    let mut count = 0_usize;
    for entry in entries {
        if expert(&entry.name).is_some() {
            return Err(unsupported("an expert that is no part of a stack").in_tensor(&entry.name));
        }
        let (experts, shape) = match *entry.shape.as_slice() {
            [experts @ 1..=MOST, rows, cols] => (experts, vec![rows, cols]),
            // ggml leaves out a last dimension of one, who writes adapters does not.
            [rows, cols] if entry.name.ends_with(".weight") => (1, vec![rows, cols]),
            _ => (0, Vec::new()),
        };
        let Some((path, leaf)) = parts(&entry.name).filter(|_| experts > 0) else {
            all.push(entry);
            continue;
        };
        count = count.saturating_add(experts);
        if count > MOST_IN_ALL {
            return Err(unsupported(format!("more than {MOST_IN_ALL} experts")).in_tensor(&entry.name));
        }
        let each = entry.bytes.checked_div(experts as u64).unwrap_or(0);
        let one = |number: usize| Entry {
            name: format!("{path}{number}.{leaf}"),
            shape: shape.clone(),
            start: entry.start.saturating_add(each.saturating_mul(number as u64)),
            bytes: each,
            ..entry.clone()
        };
        all.extend((0..experts).map(one));
    }
    Ok(all)
}

/// True if a tensor lies directly behind another: both are experts of one stack.
pub(super) fn follows(before: &str, name: &str) -> bool {
    match (expert(before), expert(name)) {
        (Some((stack, number)), Some((own, next))) => stack == own && next == number.saturating_add(1),
        _ => false,
    }
}

/// Tensors as a header has them: experts that follow each other are one.
pub(super) fn together<'a>(tensors: &'a [Listed<'a>]) -> Vec<(String, Listed<'a>)> {
    let mut all: Vec<(String, Listed<'a>)> = Vec::with_capacity(tensors.len());
    let mut before: Option<&Listed<'a>> = None;
    for tensor in tensors {
        match (before.filter(|before| follows(before.name, tensor.name)), all.last_mut(), expert(tensor.name)) {
            (Some(_), Some((_, stack)), _) => {
                stack.end = tensor.end;
                if let Some(experts) = stack.shape.first_mut() {
                    *experts = experts.saturating_add(1);
                }
            }
            (None, _, Some((name, 0))) => {
                let shape = std::iter::once(1).chain(tensor.shape.iter().copied()).collect();
                all.push((name, Listed { shape, ..tensor.clone() }));
            }
            _ => all.push((tensor.name.to_owned(), tensor.clone())),
        }
        before = Some(tensor);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    fn entry(name: &str, shape: &[usize], bytes: u64) -> Entry {
        Entry { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), file: 0, start: 64, bytes }
    }

    #[test]
    fn stacks_are_taken_apart_and_put_together() {
        let stack = entry("blk.0.ffn_up_exps.weight", &[3, 2, 4], 96);
        let others = [entry("blk.0.attn_q.weight", &[2, 2], 16), entry("blk.0.ffn_up_exps.bias", &[3, 2], 24)];
        let all = apart([vec![stack], others.to_vec()].concat()).unwrap();
        let names: Vec<&str> = all.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(
            names[1..],
            [
                "blk.0.ffn_up_exps.1.weight",
                "blk.0.ffn_up_exps.2.weight",
                "blk.0.attn_q.weight",
                "blk.0.ffn_up_exps.bias"
            ]
        );
        assert_eq!((all[2].start, all[2].bytes, &all[2].shape[..]), (64 + 64, 32, &[2, 4][..]));
        let listed: Vec<Listed<'_>> = all
            .iter()
            .map(|entry| Listed {
                name: &entry.name,
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                start: entry.start,
                end: entry.start + entry.bytes,
            })
            .collect();
        let back = together(&listed);
        assert_eq!(back.len(), 3);
        assert_eq!(
            (back[0].0.as_str(), &back[0].1.shape[..], back[0].1.end),
            ("blk.0.ffn_up_exps.weight", &[3, 2, 4][..], 160)
        );
        assert_eq!(back[2].0, "blk.0.ffn_up_exps.bias");
    }

    #[test]
    fn what_leads_to_streams_is_a_stack() {
        let names = |name: &str| {
            let all = apart(vec![entry(name, &[2, 3, 4], 96)]).unwrap();
            all.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
        };
        assert_eq!(names("altup_proj.weight"), ["altup_proj.0.weight", "altup_proj.1.weight"]);
        assert_eq!(expert("altup_unembd_proj.1.weight"), Some(("altup_unembd_proj.weight".to_owned(), 1)));
        assert_eq!(names("blk.0.altup_router.weight"), ["blk.0.altup_router.weight"]);
    }

    #[test]
    fn names_of_experts_are_no_files_own() {
        assert!(apart(vec![entry("blk.0.ffn_up_exps.1.weight", &[2, 2], 16)]).is_err());
        assert_eq!(
            expert("blk.0.ffn_up_exps.12.weight.lora_b"),
            Some(("blk.0.ffn_up_exps.weight.lora_b".to_owned(), 12))
        );
        for other in [
            "blk.0.ffn_up_exps.1.bias",
            "blk.0.ffn_up_exps.01.weight",
            "blk.0.ffn_up.1.weight",
            "blk.0.ffn_up_exps.weight",
            "weight",
        ] {
            assert_eq!(expert(other), None, "{other}");
        }
        let many = vec![entry("blk.0.ffn_up_exps.weight", &[MOST, 0, 1], 0); 1 + MOST_IN_ALL / MOST];
        assert!(apart(many).unwrap_err().message().contains("experts"));
        // As it lies.
        for shape in [&[0, 2, 2][..], &[MOST + 1, 2, 2]] {
            assert_eq!(apart(vec![entry("blk.0.ffn_up_exps.weight", shape, 0)]).unwrap().len(), 1);
        }
    }
}
