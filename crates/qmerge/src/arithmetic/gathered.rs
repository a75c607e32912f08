//! What several adapters hold, module by module, apart from any base.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::adapters::{Adapter, LoraTensors, Pair, ReadOptions, plain_config, read_floats};
use crate::error::{Error, Kind, Result, mismatch, unsupported};
use crate::open::{Checkpoint, Entry, model_order};
use crate::write::{Data, NewTensor};

/// What PEFT puts before the path of a module, behind that of one with factors, and behind that of a table with trained rows.
const PREFIX: &str = "base_model.model.";
const WRAPPED: &str = ".base_layer";
const TOKENS: &str = ".token_adapter";

/// The factors of one adapter for a module.
#[derive(Debug)]
pub(super) struct Member {
    /// Number of the adapter.
    pub(super) adapter: usize,
    pub(super) pair: Pair,
    /// What the user asked for, here.
    pub(super) weight: f64,
}

/// A module that at least one adapter changes.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) module: String,
    /// Names of the new factors and of B's bias.
    pub(super) a: String,
    pub(super) b: String,
    pub(super) bias: String,
    /// Dimensions behind the first two: of a convolution's kernel.
    a_kernel: Vec<usize>,
    b_kernel: Vec<usize>,
    pub(super) members: Vec<Member>,
}

impl Site {
    fn first(&self) -> &Pair {
        &self.members[0].pair
    }

    pub(super) fn experts(&self) -> usize {
        self.first().experts
    }

    pub(super) fn inputs(&self) -> usize {
        self.first().inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.first().outputs
    }

    pub(super) fn is_embedding(&self) -> bool {
        self.first().embedding
    }

    /// The ranks of all members together.
    pub(super) fn rank(&self) -> usize {
        self.members.iter().map(|member| member.pair.rank).sum()
    }

    pub(super) fn a_shape(&self, rank: usize) -> Vec<usize> {
        let inputs = self.inputs() / self.a_kernel.iter().product::<usize>().max(1);
        [&[rank * self.experts(), inputs], &self.a_kernel[..]].concat()
    }

    pub(super) fn b_shape(&self, rank: usize) -> Vec<usize> {
        [&[self.outputs(), rank * self.experts()], &self.b_kernel[..]].concat()
    }
}

/// All that the adapters hold.
#[derive(Debug, Default)]
pub(super) struct Gathered<'a> {
    /// In the model's order.
    pub(super) sites: Vec<Site>,
    /// What is no factor, by its new name.
    pub(super) others: Vec<(String, &'a Checkpoint, &'a Entry)>,
    /// Which of these stands for a parameter.
    parameters: HashMap<String, usize>,
    pub(super) training_only: Vec<String>,
}

impl<'a> Gathered<'a> {
    /// Sorts the tensors of LoRAs. `weight` says what the user wants of an adapter in a module.
    pub(super) fn of(
        adapters: &'a [Adapter],
        options: &ReadOptions,
        weight: impl Fn(usize, &str) -> Result<f64>,
    ) -> Result<Self> {
        let mut found = Self::default();
        let mut by_name: HashMap<String, usize> = HashMap::new();
        let mut others = Vec::new();
        for (number, adapter) in adapters.iter().enumerate() {
            refuse(adapter, &adapters[0])?;
            let tensors = LoraTensors::of(adapter, options)?;
            for pair in tensors.pairs {
                let name = adapter.as_peft_writes(&pair.a);
                let weight = weight(number, &pair.module)?;
                let at = *by_name.entry(name).or_insert_with_key(|name| {
                    found.sites.push(site(adapter, &pair, name));
                    found.sites.len() - 1
                });
                let site = &mut found.sites[at];
                fit(adapters, site, adapter, &pair)?;
                site.members.push(Member { adapter: number, pair, weight });
            }
            found.training_only.extend(tensors.training_only);
            for name in tensors.others {
                let entry = adapter.tensors.get(&name).ok_or_else(|| mismatch("missing").in_tensor(&name))?;
                others.push((adapter, adapter.as_peft_writes(&name), entry));
            }
        }
        let modules: HashSet<String> = found.sites.iter().map(|site| site.module.clone()).collect();
        for (adapter, name, entry) in others {
            found.take_other(&modules, adapter, name, entry)?;
        }
        if found.sites.is_empty() {
            return Err(mismatch("they have no factors A and B to combine").in_file(adapters[0].file()));
        }
        found.sites.sort_by(|a, b| model_order(&a.module, &b.module).then_with(|| a.a.cmp(&b.a)));
        Ok(found)
    }

    /// Takes a tensor that is no factor, under the name that PEFT has for it where its module is one of those with factors, of whichever adapter. Two adapters
    /// may have the same.
    fn take_other(
        &mut self,
        modules: &HashSet<String>,
        adapter: &'a Adapter,
        name: String,
        entry: &'a Entry,
    ) -> Result<()> {
        let own = name.strip_prefix(PREFIX).unwrap_or(&name);
        let parameter = own.replace(WRAPPED, "");
        let (module, leaf) = parameter.rsplit_once('.').unwrap_or(("", &parameter));
        let holder = module.split_once(TOKENS).map_or(module, |(embedding, _)| embedding);
        let has_factors = modules.contains(holder);
        let problem = if has_factors && (holder != module || leaf == "weight" && !own.contains(WRAPPED)) {
            "there are factors for it too, and one adapter has either those or a trained copy"
        } else if let Some(&at) = self.parameters.get(&parameter) {
            let (_, tensors, before) = self.others[at];
            if is_same((tensors, before), (&adapter.tensors, entry))? {
                return Ok(());
            }
            "another adapter has a trained copy of its own, and two copies cannot be added without the base that both replace"
        } else {
            let is_wrapped = has_factors && !own.contains(WRAPPED) && leaf != "weight";
            let name = if is_wrapped { format!("{PREFIX}{module}{WRAPPED}.{leaf}") } else { name };
            self.parameters.insert(parameter, self.others.len());
            self.others.push((name, &adapter.tensors, entry));
            return Ok(());
        };
        Err(mismatch(problem).in_file(adapter.file()).in_tensor(&entry.name).with_hint(
            "merge each adapter, and take what the merges differ from the base by; or take the tensor out of one of them",
        ))
    }

    /// The tensors that are copied.
    pub(super) fn copies(&self) -> impl Iterator<Item = NewTensor<'a>> + '_ {
        self.others.iter().map(|(name, tensors, entry)| NewTensor {
            name: name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: Data::Entry(tensors, entry),
        })
    }
}

/// Refuses what acts on other terms than factors do, or on other terms than the first.
fn refuse(adapter: &Adapter, first: &Adapter) -> Result<()> {
    if adapter.config.is_set("alora_invocation_tokens") {
        return Err(unsupported("an aLoRA acts only behind its invocation tokens, and a sum would act everywhere")
            .in_file(&adapter.config.path));
    }
    let sorted = |adapter: &Adapter| adapter.config.target_parameters.iter().cloned().collect::<BTreeSet<_>>();
    let same_layers = |key: &str| {
        let own = |adapter: &Adapter| adapter.config.json.get(key).filter(|_| adapter.config.is_set(key)).cloned();
        own(adapter) == own(first)
    };
    let differs = if sorted(adapter) != sorted(first) {
        // Which parameter a nested factor belongs to depends on how many are targeted.
        Some("target_parameters")
    } else if !same_layers("layer_replication") {
        Some("layer_replication")
    } else {
        None
    };
    let Some(key) = differs else { return Ok(()) };
    Err(mismatch(format!(
        "`{key}` is not that of {}, so equal names stand for different parameters",
        first.path.display()
    ))
    .in_file(&adapter.config.path))
}

fn site(adapter: &Adapter, pair: &Pair, a: &str) -> Site {
    let kernel =
        |name: &str| adapter.tensors.get(name).and_then(|entry| entry.shape.get(2..)).unwrap_or_default().to_vec();
    let b = adapter.as_peft_writes(&pair.b);
    let bias = b.strip_suffix("weight").map_or_else(|| format!("{b}.bias"), |stem| format!("{stem}bias"));
    Site {
        module: pair.module.clone(),
        a: a.to_owned(),
        b,
        bias,
        a_kernel: kernel(&pair.a),
        b_kernel: kernel(&pair.b),
        members: Vec::new(),
    }
}

/// Errors if a pair of factors is of another matrix than those before.
fn fit(adapters: &[Adapter], site: &Site, adapter: &Adapter, pair: &Pair) -> Result<()> {
    let Some(before) = site.members.last() else { return Ok(()) };
    let sizes = |pair: &Pair| (pair.outputs, pair.inputs, pair.experts);
    let shape = |name: &str| adapter.tensors.get(name).and_then(|entry| entry.shape.get(2..)).unwrap_or_default();
    let first = &adapters[before.adapter];
    if sizes(&before.pair) == sizes(pair) && shape(&pair.a) == site.a_kernel && shape(&pair.b) == site.b_kernel {
        return Ok(());
    }
    Err(mismatch(format!(
        "{} × {} for `{}`, which is {} × {} in {}",
        pair.outputs,
        pair.inputs,
        pair.module,
        before.pair.outputs,
        before.pair.inputs,
        first.path.display()
    ))
    .in_file(adapter.file())
    .in_tensor(&pair.a)
    .with_hint("the adapters are of different bases"))
}

/// True if two tensors have the same bytes.
fn is_same((one, a): (&Checkpoint, &Entry), (two, b): (&Checkpoint, &Entry)) -> Result<bool> {
    if (a.dtype, &a.shape, a.bytes) != (b.dtype, &b.shape, b.bytes) {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    const PIECE: u64 = 1 << 20;
    for at in (0..a.bytes).step_by(PIECE as usize) {
        let size = PIECE.min(a.bytes - at) as usize;
        left.resize(size, 0);
        right.resize(size, 0);
        one.read_at(a, at, &mut left)?;
        two.read_at(b, at, &mut right)?;
        if left != right {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The factors of one matrix: `left` turned, (rank, outputs), and `right` (rank, inputs).
pub(super) fn factors(adapters: &[Adapter], member: &Member, expert: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let Pair { a, b, rank, experts, inputs, outputs, .. } = &member.pair;
    let tensors = &adapters[member.adapter].tensors;
    let in_file = |error: Error| error.in_file(adapters[member.adapter].file());
    let (a, b) = (read_floats(tensors, a).map_err(in_file)?, read_floats(tensors, b).map_err(in_file)?);
    let left =
        (0..rank * outputs).map(|at| b[at % outputs * rank * experts + at / outputs * experts + expert]).collect();
    Ok((left, a[expert * rank * inputs..(expert + 1) * rank * inputs].to_vec()))
}

/// The bias of B that all members make together, if one has one.
pub(super) fn bias(adapters: &[Adapter], site: &Site) -> Result<Option<Vec<f32>>> {
    let mut sum: Option<Vec<f64>> = None;
    for member in &site.members {
        let Some(name) = &member.pair.bias else { continue };
        let sum = sum.get_or_insert_with(|| vec![0.0; site.outputs()]);
        // PEFT scales it with the product.
        let factor = member.weight * member.pair.scale;
        let own = read_floats(&adapters[member.adapter].tensors, name)?;
        sum.iter_mut().zip(own).for_each(|(sum, x)| *sum += factor * f64::from(x));
    }
    Ok(sum.map(|sum| sum.into_iter().map(|x| x as f32).collect()))
}

/// Fields that say which modules are targeted.
const TARGETS: &[&str] = &["target_modules", "layers_to_transform", "layers_pattern", "exclude_modules"];

/// The configuration of all together.
pub(super) fn config(
    adapters: &[Adapter],
    gathered: &Gathered<'_>,
    rank: usize,
    has_bias: bool,
) -> Result<Map<String, Value>> {
    let mut config = plain_config(&adapters[0].config.json, rank);
    let values = |key: &str| {
        adapters
            .iter()
            .filter_map(move |adapter| adapter.config.json.get(key))
            .filter(|value| !value.is_null())
            .collect::<Vec<_>>()
    };
    let is_set = |key: &str| adapters.iter().any(|adapter| adapter.config.is_set(key));
    let targets =
        |adapter: &Adapter| TARGETS.iter().map(|key| adapter.config.json.get(*key).cloned()).collect::<Vec<_>>();
    let same = adapters.iter().all(|adapter| targets(adapter) == targets(&adapters[0]));
    if !same {
        let lists: Option<Vec<_>> =
            adapters.iter().map(|adapter| adapter.config.json.get("target_modules")?.as_array()).collect();
        let names: BTreeSet<String> = match lists.filter(|_| !TARGETS[1..].iter().any(|key| is_set(key))) {
            Some(lists) => lists.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            // Path by path, which needs no rule.
            None => {
                // A parameter is targeted by its name.
                let modules = gathered.sites.iter().filter(|site| !site.first().is_parameter);
                modules.map(|site| site.module.clone()).collect()
            }
        };
        config.insert("target_modules".into(), json!(names));
        for key in &TARGETS[1..] {
            config.insert((*key).to_owned(), Value::Null);
        }
    }
    let whole: BTreeSet<&String> = adapters.iter().flat_map(|adapter| &adapter.config.modules_to_save).collect();
    config.insert("modules_to_save".into(), if whole.is_empty() { Value::Null } else { json!(whole) });
    let biases = values("bias");
    let bias =
        ["all", "lora_only"].into_iter().find(|bias| biases.iter().any(|value| *value == bias)).unwrap_or("none");
    config.insert("bias".into(), json!(bias));
    for (key, value) in [
        ("lora_bias", json!(has_bias)),
        ("use_dora", json!(false)),
        ("ensure_weight_tying", json!(is_set("ensure_weight_tying"))),
        ("inference_mode", json!(true)),
    ] {
        config.insert(key.into(), value);
    }
    let tokens = values("trainable_token_indices");
    if tokens.iter().any(|value| *value != tokens[0]) {
        return Err(Error::new(
            Kind::Mismatch,
            "the adapters trained different tokens, and one adapter has one list of them",
        )
        .in_file(&adapters[0].config.path));
    }
    for key in ["trainable_token_indices", "task_type", "base_model_name_or_path"] {
        config.insert(key.into(), values(key).first().map_or(Value::Null, |value| (*value).clone()));
    }
    Ok(config)
}

/// What the user should know of adapters that go together.
pub(super) fn warnings(adapters: &[Adapter], gathered: &Gathered<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut bases = adapters
        .iter()
        .filter_map(|adapter| Some((adapter, adapter.config.base_model.as_deref().filter(|name| !name.is_empty())?)));
    if let Some((first, base)) = bases.next()
        && let Some((other, another)) = bases.find(|(_, name)| *name != base)
    {
        warnings.push(format!(
            "{} was trained on {base} and {} on {another}: unless those are the same model, their sum means nothing",
            first.path.display(),
            other.path.display()
        ));
    }
    for adapter in adapters.iter().filter(|adapter| adapter.weight != 1.0) {
        if gathered.others.iter().any(|(_, tensors, _)| std::ptr::eq(*tensors, &adapter.tensors)) {
            warnings.push(format!(
                "{}: modules trained whole and biases are taken as they are; the weight {} applies to the rest only",
                adapter.path.display(),
                adapter.weight
            ));
        }
    }
    warnings
}
