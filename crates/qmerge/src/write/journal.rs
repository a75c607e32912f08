//! The list of finished steps, for `--resume`.
//!
//! One JSON object per line. The first says which merge it is: its inputs, options and layout. Sums are kept as the bits of their floats, so a
//! resumed merge reports the same figures to the last digit. An interruption may leave a part of a line; the list ends before it.

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use crate::error::{Error, Result, usage};
use crate::measure::Sums;
use crate::round::OutputKept;
use crate::simd::differences::Differences;

/// A finished step: its sums, where it was measured, and its parts that wait for the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finished {
    /// Number of the step in the plan.
    pub(crate) step: usize,
    /// What was measured.
    pub(crate) sums: Option<Sums>,
    /// What became of the adapter's output, where the inputs are known.
    pub(crate) kept: Option<OutputKept>,
    /// Part number and bytes of parts whose length was not known.
    pub(crate) late: Vec<(usize, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    step: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sums: Option<[u64; 8]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<[u64; 2]>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    late: Vec<(usize, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    merge: Fingerprint,
}

/// The line that says which merge it is.
pub(super) fn head(merge: &Fingerprint) -> Vec<u8> {
    line(&Head { merge: merge.clone() })
}

/// The lines that list steps as finished.
pub(super) fn lines(finished: &[Finished]) -> Vec<u8> {
    finished.iter().flat_map(|step| line(&Line::new(step))).collect()
}

/// What an interrupted run finished, and where its last whole line ends; `None` if it ended before its first line was whole. Errors if it is of
/// another merge.
pub(super) fn read(text: &[u8], merge: &Fingerprint) -> Result<Option<(Vec<Finished>, u64)>> {
    read_or(text, merge, another)
}

/// What a part of a merge finished, as [`read`] says it.
pub(super) fn read_part(text: &[u8], merge: &Fingerprint) -> Result<Option<(Vec<Finished>, u64)>> {
    read_or(text, merge, |differences| {
        usage(format!("this part is another merge's ({})", differences.join("; "))).with_hint(
            "give `qmerge finish` the inputs and options that the parts had, or merge the parts anew with --force",
        )
    })
}

fn read_or(text: &[u8], merge: &Fingerprint, another: fn(&[String]) -> Error) -> Result<Option<(Vec<Finished>, u64)>> {
    let mut lines = whole_lines(text);
    let Some(head) = lines.next() else { return Ok(None) };
    refuse_another(head, |begun| begun.differences(merge), another)?;
    let (mut finished, mut end) = (Vec::new(), head.len());
    for line in lines {
        let Ok(read) = serde_json::from_slice::<Line>(line) else { break };
        finished.push(read.read());
        end += line.len();
    }
    Ok(Some((finished, end as u64)))
}

/// Errors if what an interrupted run began is another merge, as far as that is known before a calibration.
pub(crate) fn refuse_before(text: &[u8], merge: &Fingerprint) -> Result<()> {
    match whole_lines(text).next() {
        Some(head) => refuse_another(head, |begun| begun.differences_before(merge), another),
        None => Ok(()),
    }
}

fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

fn refuse_another(
    head: &[u8],
    differences: impl Fn(&Fingerprint) -> Vec<String>,
    another: fn(&[String]) -> Error,
) -> Result<()> {
    let differences = match serde_json::from_slice::<Head>(head) {
        Ok(begun) => differences(&begun.merge),
        Err(_) => vec!["it was begun by another version of qmerge".to_owned()],
    };
    if differences.is_empty() { Ok(()) } else { Err(another(&differences)) }
}

fn another(differences: &[String]) -> Error {
    usage(format!("the unfinished output is another merge's ({})", differences.join("; "))).with_hint(
        "--resume takes the same inputs and options; --force in its place begins anew and gives up what was done",
    )
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Numbers, texts and lists of them: there is nothing that JSON could not hold.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}

impl Line {
    fn new(finished: &Finished) -> Self {
        let bits = |sums: &Sums| {
            let m = &sums.differences;
            [
                sums.elements,
                m.weight2.to_bits(),
                m.delta2.to_bits(),
                m.change_delta.to_bits(),
                m.error2.to_bits(),
                u64::from(m.max_error.to_bits()),
                m.changed,
                u64::from(m.finite),
            ]
        };
        Self {
            step: finished.step,
            sums: finished.sums.as_ref().map(bits),
            kept: finished.kept.map(|kept| [kept.output.to_bits(), kept.noise.to_bits()]),
            late: finished.late.clone(),
        }
    }

    fn read(self) -> Finished {
        let sums = self.sums.map(|bits| Sums {
            elements: bits[0],
            differences: Differences {
                weight2: f64::from_bits(bits[1]),
                delta2: f64::from_bits(bits[2]),
                change_delta: f64::from_bits(bits[3]),
                error2: f64::from_bits(bits[4]),
                max_error: f32::from_bits(bits[5] as u32),
                changed: bits[6],
                finite: bits[7] == 1,
            },
        });
        let kept = self
            .kept
            .map(|[output, noise]| OutputKept { output: f64::from_bits(output), noise: f64::from_bits(noise) });
        Finished { step: self.step, sums, kept, late: self.late }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(seed: &str) -> Fingerprint {
        let mut merge = Fingerprint::default();
        merge.add("seed", seed);
        merge
    }

    #[test]
    fn finished_steps_read_back_to_the_bit_after_every_interruption() {
        let differences =
            Differences { delta2: 0.1 + 0.2, max_error: 1e-40, changed: 7, finite: true, ..Differences::default() };
        let steps = [
            Finished {
                step: 3,
                sums: Some(Sums { elements: 9, differences }),
                kept: None,
                // Not UTF-8.
                late: vec![(5, b"{\"a\": 1}".to_vec()), (6, vec![0xff, 0, b'\n', 0x80])],
            },
            Finished { step: 4, sums: None, kept: Some(OutputKept { output: 0.1, noise: 0.2 }), late: vec![] },
        ];
        for torn in [&b""[..], b"{\"step\": 5, \"su", b"{\"step\":5}", &[0; 100], b"\0\0\n{\"step\":5}\n", b"{}\n"] {
            let mut text = [head(&merge("0")), lines(&steps[..1]), torn.to_vec()].concat();
            let (finished, end) = read(&text, &merge("0")).unwrap().unwrap();
            assert_eq!(finished, steps[..1], "{torn:?}");
            // What is listed after it is found the next time.
            text.truncate(end as usize);
            text.extend(lines(&steps[1..]));
            assert_eq!(read(&text, &merge("0")).unwrap().unwrap(), (steps.to_vec(), text.len() as u64), "{torn:?}");
        }
    }

    #[test]
    fn another_merge_is_an_error_that_says_in_what_it_differs() {
        let error = read(&head(&merge("0")), &merge("7")).unwrap_err();
        assert!(error.to_string().contains("seed: 0 before, 7 now"), "{error}");
        let error = read(b"{\"merge\":\"abc\"}\n{\"step\":0}\n", &merge("0")).unwrap_err();
        assert!(error.to_string().contains("another version"), "{error}");
        // A run that ended before its first line finished nothing.
        assert!(read(b"{\"merge\":[[\"se", &merge("0")).unwrap().is_none());
    }
}
