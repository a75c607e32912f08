//! Models that were trained whole, merged as what they differ from their base by, against the stated formulas in f64.

use crate::folder::Folder;
use crate::written::{self, f32s};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::{Adapter, ReadOptions, Scales};
use qmerge::edit::{Joining, Majority};
use qmerge::error::{Error, Result};
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use qmerge::report::Report;
use safetensors::SafeTensors;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(folder: &Path) -> Tensors {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let floats = |data: &[u8]| data.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), floats(view.data())))).collect()
}

fn write(config: &Path, folder: &Path, tensors: &Tensors) -> PathBuf {
    let own = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| f32s(name, shape, values.iter().copied());
    let all: Vec<_> = tensors.iter().map(own).collect();
    written::model(folder, std::fs::read_to_string(config.join("config.json")).unwrap(), &all);
    folder.to_path_buf()
}

/// Values of a tuned model: each is moved by something of its own, and many by the same.
fn moved(tensors: &Tensors, number: usize) -> Tensors {
    let mut tensors = tensors.clone();
    for (name, (_, values)) in &mut tensors {
        for (at, x) in values.iter_mut().enumerate() {
            let mixed = (at * at * 7919 + at * (number + 3) + name.len() * number) % 23;
            *x += (mixed as f32 - 11.0) / 64.0;
        }
    }
    tensors
}

struct Case {
    folder: Folder,
    base: PathBuf,
}

impl Case {
    fn new(base: &str) -> Self {
        Self { folder: Folder::new(), base: data("peft-methods/bases").join(base) }
    }

    fn tuned(&self, number: usize) -> PathBuf {
        let path = self.folder.join(format!("tuned{number}"));
        write(&self.base, &path, &moved(&read(&self.base), number))
    }

    fn inputs(&self, base: &Path, tuned: &[(&Path, f64)]) -> Result<Inputs> {
        let adapters = tuned.iter().map(|(path, weight)| Adapter::tuned(path, *weight)).collect::<Result<_>>()?;
        Inputs::new(Checkpoint::open(base)?, adapters)
    }

    fn merged(&self, inputs: &Inputs, read: ReadOptions, to: Option<&str>, out: &str) -> Result<(PathBuf, Report)> {
        let to = to.map(|to| formats::by_id(to).unwrap());
        let plan = Plan::new(inputs, &Options { to, read, ..Options::default() })?;
        let out = self.folder.join(out);
        let report = merge::run(inputs, &plan, None, &out, &RunOptions::default(), &Silent)?;
        Ok((out, report))
    }

    fn joined(&self, tuned: &[(&Path, f64)], joining: Joining, out: &str) -> Tensors {
        let inputs = self.inputs(&self.base, tuned).unwrap();
        let read_options = ReadOptions { joining, ..ReadOptions::default() };
        let (out, _) = self.merged(&inputs, read_options, Some("f32"), out).unwrap_or_else(|error| panic!("{error:?}"));
        read(&out)
    }
}

fn pruned(values: &[f64], density: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
    let mut out = vec![0.0; values.len()];
    order[..(density * values.len() as f64) as usize].iter().for_each(|&at| out[at] = values[at]);
    out
}

fn ties(values: &[Vec<f64>], weights: &[f64], by_number: bool) -> Vec<f64> {
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let of = |at: usize| {
        let own = || values.iter().map(|values| values[at]);
        let vote: f64 = if by_number { own().map(sign).sum() } else { own().sum() };
        let elected = if vote >= 0.0 { 1.0 } else { -1.0 };
        let agree: Vec<f64> = own().zip(weights).filter(|(x, _)| sign(*x) == elected).map(|(x, w)| x * w).collect();
        agree.iter().sum::<f64>() / agree.len().max(1) as f64
    };
    (0..values[0].len()).map(of).collect()
}

fn assert_sums(got: &Tensors, base: &Tensors, joined: impl Fn(&str) -> Vec<f64>, what: &str) {
    assert!(got.keys().eq(base.keys()), "{what}");
    for (name, (shape, values)) in base {
        assert_eq!(got[name].0, *shape);
        let largest = values.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
        for ((got, base), joined) in got[name].1.iter().zip(values).zip(joined(name)) {
            let want = f64::from(*base) + joined;
            assert!((f64::from(*got) - want).abs() <= 4e-7 * f64::from(largest), "{what} {name}: {got} {want}");
        }
    }
}

#[test]
fn task_vectors_are_joined_as_the_formulas_say() {
    let case = Case::new("llama-f32");
    let (one, two) = (case.tuned(1), case.tuned(2));
    let (base, first, second) = (read(&case.base), read(&one), read(&two));
    let difference = |tuned: &Tensors, name: &str| -> Vec<f64> {
        tuned[name].1.iter().zip(&base[name].1).map(|(x, base)| f64::from(x - base)).collect()
    };
    let differences = |name: &str| [difference(&first, name), difference(&second, name)];
    let join = |id: &str, density, majority| Joining::new(id, density, majority, 5).unwrap();
    let both = [(one.as_path(), 0.5), (two.as_path(), -1.5)];

    let got = case.joined(&both, Joining::default(), "linear");
    let sum = |values: Vec<Vec<f64>>| -> Vec<f64> {
        (0..values[0].len()).map(|at| 0.5 * values[0][at] - 1.5 * values[1][at]).collect()
    };
    assert_sums(&got, &base, |name| sum(differences(name).to_vec()), "linear");

    let of_largest = |name: &str| differences(name).map(|values| pruned(&values, 0.3)).to_vec();
    let got = case.joined(&both, join("magnitude_prune", Some(0.3), Majority::Total), "magnitude");
    assert_sums(&got, &base, |name| sum(of_largest(name)), "magnitude_prune");

    for (majority, by_number) in [(Majority::Total, false), (Majority::Frequency, true)] {
        let got = case.joined(&both, join("ties", Some(0.3), majority), majority.id());
        assert_sums(&got, &base, |name| ties(&of_largest(name), &[0.5, -1.5], by_number), "ties");
    }

    // What is drawn is a part of each, larger by as much, and the same in every run.
    let one_alone = [(one.as_path(), 1.0)];
    let drawn = join("dare_linear", Some(0.25), Majority::Total);
    let got = case.joined(&one_alone, drawn, "dare");
    assert_eq!(got, case.joined(&one_alone, drawn, "dare-again"));
    let (mut kept, mut all) = (0, 0);
    for (name, (_, values)) in &base {
        for ((got, base), d) in got[name].1.iter().zip(values).zip(difference(&first, name)) {
            let d = d as f32;
            assert!(
                got == base || (got - (base + 4.0 * d)).abs() <= 1e-6 * base.abs().max(1.0),
                "{name} {got} {base} {d}"
            );
            kept += usize::from(got != base);
            all += usize::from(d != 0.0);
        }
    }
    assert!((kept as f64 / all as f64 - 0.25).abs() < 0.02, "{kept} of {all}");

    // As it is, a tuned model comes out whole.
    assert_sums(&case.joined(&one_alone, Joining::default(), "whole"), &base, |name| difference(&first, name), "whole");
}

#[test]
fn factors_by_module_and_adapters_beside() {
    let case = Case::new("llama-f32");
    let one = case.tuned(1);
    let (base, tuned) = (read(&case.base), read(&one));
    let mut inputs = case.inputs(&case.base, &[(&one, 0.5)]).unwrap();
    let rules = |rules: &[&str]| {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        ReadOptions { scales: Scales::new(&rules).unwrap(), ..ReadOptions::default() }
    };
    let (out, report) =
        case.merged(&inputs, rules(&[r"v_proj$=0.5", "proj=2", "norm=0"]), Some("f32"), "scaled").unwrap();
    assert_eq!(report.lora_scale, ["v_proj$=0.5", "proj=2", "norm=0"]);
    let factor = |name: &str| match name {
        _ if name.contains("v_proj") => 0.25,
        _ if name.contains("proj") => 1.0,
        _ if name.contains("norm") => 0.0,
        _ => 0.5,
    };
    let scaled = |name: &str| -> Vec<f64> {
        let pairs = tuned[name].1.iter().zip(&base[name].1);
        pairs.map(|(x, base)| factor(name) * f64::from(x - base)).collect()
    };
    assert_sums(&read(&out), &base, scaled, "scaled");
    let idle = case.merged(&inputs, rules(&["proj=2", "v_proj=3"]), None, "x").unwrap_err();
    assert!(idle.to_string().contains("`--lora-scale v_proj=3`: no module"), "{idle}");

    // Beside an adapter that maps the base's values, the difference is added to what that makes of them.
    let adapter = data("peft-methods/ia3-llama-f32/adapter");
    let alone = Inputs::new(Checkpoint::open(&case.base).unwrap(), vec![Adapter::open(&adapter, 1.0).unwrap()]);
    let (mapped, _) = case.merged(&alone.unwrap(), ReadOptions::default(), Some("f32"), "mapped").unwrap();
    inputs.adapters.insert(0, Adapter::open(&adapter, 1.0).unwrap());
    let (out, report) = case.merged(&inputs, ReadOptions::default(), Some("f32"), "both").unwrap();
    let half = |name: &str| -> Vec<f64> {
        tuned[name].1.iter().zip(&base[name].1).map(|(x, base)| 0.5 * f64::from(x - base)).collect()
    };
    assert_sums(&read(&out), &read(&mapped), half, "beside");
    assert!(report.verdict.text.contains("the merged delta"), "{}", report.verdict.text);
}

/// A base and a tuned model in other formats, one of which stores inputs as rows: the sum of factor 1 is the tuned model as it is decoded.
#[test]
fn formats_and_orders_may_differ() {
    let case = Case::new("llama-f32");
    let one = case.tuned(1);
    let converted = |from: &Path, to: &str, name: &str| {
        let inputs = Inputs::new(Checkpoint::open(from).unwrap(), Vec::new()).unwrap();
        case.merged(&inputs, ReadOptions::default(), Some(to), name).unwrap().0
    };
    let want = read(&one);
    for base in ["nf4", "int8", "bf16"] {
        let coded = converted(&case.base, base, &format!("base-{base}"));
        let inputs = case.inputs(&coded, &[(&one, 1.0)]).unwrap();
        let (out, report) = case.merged(&inputs, ReadOptions::default(), Some("f32"), &format!("out-{base}")).unwrap();
        for (name, (_, values)) in &want {
            let got = &read(&out)[name].1;
            assert!(got.iter().zip(values).all(|(got, want)| (got - want).abs() < 1e-6), "{base} {name}");
        }
        let told = report.warnings.iter().any(|text| text.contains(&format!("the base is stored as {base}")));
        assert_eq!(told, base != "bf16", "{:?}", report.warnings);
        assert!(!report.verdict.text.contains("adapter"), "{}", report.verdict.text);
    }
    // The same model turned: GPT-2 stores inputs as rows while it is plain, and outputs in NF4.
    let case = Case::new("gpt2-f32");
    let one = case.tuned(1);
    let coded = {
        let inputs = Inputs::new(Checkpoint::open(&case.base).unwrap(), Vec::new()).unwrap();
        case.merged(&inputs, ReadOptions::default(), Some("nf4"), "base-nf4").unwrap().0
    };
    let inputs = case.inputs(&coded, &[(&one, 1.0)]).unwrap();
    let (out, _) = case.merged(&inputs, ReadOptions::default(), Some("f32"), "out").unwrap();
    let (got, want) = (read(&out), read(&one));
    let name = "transformer.h.0.mlp.c_fc.weight";
    let (rows, cols) = (want[name].0[0], want[name].0[1]);
    let is_turned = got[name].0 == [cols, rows] && rows != cols;
    for r in 0..rows {
        for c in 0..cols {
            let at = if is_turned { c * rows + r } else { r * cols + c };
            assert!((got[name].1[at] - want[name].1[r * cols + c]).abs() < 1e-6, "{r} {c}");
        }
    }
}

#[test]
fn tied_embeddings_follow_the_tuned_model() {
    let case = Case::new("llama-f32");
    let (mut base, mut tuned) = (read(&case.base), moved(&read(&case.base), 1));
    let config = |tied: bool, name: &str, tensors: &Tensors| {
        let path = write(&case.base, &case.folder.join(name), tensors);
        let text = std::fs::read_to_string(path.join("config.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["tie_word_embeddings"] = tied.into();
        std::fs::write(path.join("config.json"), json.to_string()).unwrap();
        path
    };
    let untied = config(false, "untied", &tuned);
    let untied_base = config(false, "untied-base", &base);
    base.remove("lm_head.weight");
    let head = tuned.remove("lm_head.weight").unwrap().1;
    let (tied_base, tied) = (config(true, "tied-base", &base), config(true, "tied", &tuned));
    let embed = &tuned["model.embed_tokens.weight"].1;
    for (base, own, want) in
        [(&tied_base, &untied, Some(&head)), (&tied_base, &tied, None), (&untied_base, &tied, Some(embed))]
    {
        let inputs = case.inputs(base, &[(own, 1.0)]).unwrap();
        let (out, report) = case.merged(&inputs, ReadOptions::default(), None, "out").unwrap();
        let got = read(&out);
        let close = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&got["model.embed_tokens.weight"].1, embed));
        match (got.get("lm_head.weight"), want) {
            (Some((_, got)), Some(want)) => assert!(close(got, want)),
            (None, None) => {}
            _ => panic!("{} {}: {:?}", base.display(), own.display(), report.warnings),
        }
        std::fs::remove_dir_all(out).unwrap();
    }
}

#[test]
fn models_that_do_not_fit_are_named() {
    let case = Case::new("llama-f32");
    let base = read(&case.base);
    let refused = |name: &str, change: &dyn Fn(&mut Tensors)| -> Error {
        let mut tensors = moved(&base, 1);
        change(&mut tensors);
        let path = write(&case.base, &case.folder.join(name), &tensors);
        let inputs = case.inputs(&case.base, &[(&path, 1.0)]).unwrap();
        let plan = Plan::new(&inputs, &Options::default());
        let run = |plan: &Plan| {
            merge::run(&inputs, plan, None, &case.folder.join("x"), &RunOptions::default(), &Silent).map(drop)
        };
        let error = plan.and_then(|plan| run(&plan)).unwrap_err();
        assert!(!case.folder.join("x").exists());
        error
    };
    let assert_says = |error: Error, parts: &[&str]| {
        let text = format!("{error} {:?}", error.hint());
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    let embed = "model.embed_tokens.weight";
    assert_says(
        refused("vocabulary", &|tensors| {
            let (shape, values) = tensors.get_mut(embed).unwrap();
            shape[0] += 1;
            let width = shape[1];
            values.extend(vec![0.0; width]);
        }),
        &[embed, "vocabularies differ", "tokens"],
    );
    let up = "model.layers.0.mlp.up_proj.weight";
    assert_says(
        refused("shape", &|tensors| {
            let (shape, values) = tensors.get_mut(up).unwrap();
            shape[0] -= 1;
            values.truncate(shape[0] * shape[1]);
        }),
        &[up, "shape", "trained from another base"],
    );
    assert_says(refused("part", &|tensors| drop(tensors.remove(up))), &["no weight", up, "different families"]);
    assert_says(
        refused("more", &|tensors| drop(tensors.insert("model.extra.weight".into(), (vec![2], vec![1.0, 2.0])))),
        &["model.extra.weight", "of the tuned model's tensors match nothing"],
    );
    assert_says(
        refused("nan", &|tensors| tensors.get_mut(up).unwrap().1[5] = f32::NAN),
        &[up, "the tuned model holds NaN at [0, 5]", "earlier checkpoint"],
    );
    let adapter = Adapter::tuned(&data("peft-methods/ia3-llama-f32/adapter"), 1.0).unwrap_err();
    assert_says(adapter, &["an adapter, where a model", "--adapter"]);
    let nan = Adapter::tuned(&case.tuned(1), f64::NAN).unwrap_err();
    assert_says(nan, &["weight NaN is not a number"]);
}

/// The same bytes for every number of threads and every bound on memory, where which values stay depends on all of a tensor.
#[test]
fn threads_do_not_matter() {
    let case = Case::new("llama-f32");
    let (one, two) = (case.tuned(1), case.tuned(2));
    let inputs = case.inputs(&case.base, &[(&one, 1.0), (&two, 0.5)]).unwrap();
    let joining = Joining::new("ties", Some(0.4), Majority::Total, 0).unwrap();
    let read = ReadOptions { joining, ..ReadOptions::default() };
    let options = Options { to: Some(formats::by_id("bf16").unwrap()), read, ..Options::default() };
    let plan = Plan::new(&inputs, &options).unwrap();
    let bytes: Vec<Vec<u8>> = [(1, None), (3, Some(40 << 20))]
        .into_iter()
        .map(|(threads, max_memory)| {
            let out = case.folder.join(format!("out{threads}"));
            let run = RunOptions { threads, max_memory, ..RunOptions::default() };
            let report = merge::run(&inputs, &plan, None, &out, &run, &Silent).unwrap();
            assert!(report.summary.bytes_read > 2 * report.base.bytes);
            std::fs::read(out.join("model.safetensors")).unwrap()
        })
        .collect();
    assert!(bytes[0] == bytes[1]);
}
