//! Tokens become logits.

use std::path::PathBuf;

use qmerge::allocator::keep_activations;
use qmerge::arch;
use qmerge::arch::spec::{PerLayerEmbeddings, Spec};
use qmerge::error::{Error, Kind, Result};
use qmerge::progress::{Progress, stopped};
use qmerge::round::LayerInputs;

use crate::activation::softcap;
use crate::layer::Layer;
use crate::linear::{Input, Linear, Manner, Precision, Unwatched, Watch};
use crate::mixer::{Pass, Sequence, State};
use crate::norm::Normalize;
use crate::per_layer::PerLayer;
use crate::streams::Streams;
use crate::tensors::Tensors;
use crate::work;

/// How a model is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Worker threads; 0 for one per processor.
    pub threads: usize,
    /// Bytes of stored weights that may be held in memory; what does not fit is read whenever it is used. `None` for half of what is free.
    pub held: Option<u64>,
    /// Asked before every layer, and every weight that is loaded, whether to go on.
    pub progress: Option<&'a dyn Progress>,
}

/// A decoder, ready to run.
#[derive(Debug)]
pub struct Model<'a> {
    spec: Spec,
    /// Where it was read.
    config: PathBuf,
    embed: Linear<'a>,
    positions: Option<Linear<'a>>,
    per_layer: Option<PerLayer<'a>>,
    streams: Option<Streams<'a>>,
    layers: Vec<Layer<'a>>,
    norm: Normalize,
    /// `None` where the embedding is the head too.
    head: Option<Linear<'a>>,
    /// The head's bias where the embedding is the head.
    bias: Option<Vec<f32>>,
    pool: rayon::ThreadPool,
    held: u64,
    progress: Option<&'a dyn Progress>,
}

/// What layers keep of the positions so far, of one sequence or of several of the same length.
#[derive(Debug)]
pub struct Cache {
    states: Vec<State>,
    sequences: usize,
    len: usize,
    capacity: usize,
    manner: Manner,
}

impl Cache {
    /// Room for `capacity` positions of one sequence.
    pub fn new(model: &Model<'_>, capacity: usize) -> Self {
        Self::of_several(model, 1, capacity)
    }

    /// Room for `capacity` positions of each of several sequences.
    pub fn of_several(model: &Model<'_>, sequences: usize, capacity: usize) -> Self {
        let states = model.layers.iter().map(|_| State::empty()).collect();
        Self { states, sequences: sequences.max(1), len: 0, capacity, manner: Manner::default() }
    }

    /// For passes that are run so.
    pub(crate) fn at(self, manner: impl Into<Manner>) -> Self {
        Self { manner: manner.into(), ..self }
    }

    /// Positions so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<'a> Model<'a> {
    /// Finds all tensors and loads the small ones.
    pub fn new(tensors: &Tensors<'a>, options: Options<'a>) -> Result<Self> {
        keep_activations();
        let checkpoint = tensors.checkpoint();
        let (arch, config) = (tensors.arch(), arch::config(checkpoint)?);
        let spec = arch::spec_of(config)?;
        let stored = |module: &&str| tensors.has(&weight_name(module));
        let tie = arch::find_tie(config.model_type(), |module| stored(&module));
        let found = tie.and_then(|tie| Some((tie, tie.inputs().iter().copied().find(stored)?)));
        let (tie, tokens) = found.ok_or_else(|| {
            Error::new(Kind::Mismatch, "no tensor has a name that an input embedding is known by")
                .in_file(&checkpoint.path)
                .with_hint("the checkpoint is incomplete, or its tensors were renamed")
        })?;
        // The rest of the decoder lies beside its embedding.
        let beside = |name: &str| match tokens.rsplit_once('.') {
            Some((prefix, _)) => format!("{prefix}.{name}"),
            None => name.to_owned(),
        };
        // The table may have more rows than the configuration says tokens, if a tokenizer grew; never fewer.
        let table = |path: &str, features: usize, least: usize, what: &str| -> Result<Linear<'a>> {
            let weight = tensors.get(&weight_name(path))?;
            let rows = weight.base().claim().weight.shape().first().copied().unwrap_or(0);
            if rows < least {
                return Err(tensors.misfit(&weight_name(path), format!("{rows} rows, but {what} is {least}")));
            }
            Linear::from_weight(tensors, path, weight, rows, features)
        };
        let embed = table(tokens, spec.hidden, spec.vocab, "vocab_size")?;
        let positions = |name: &str| table(&beside(name), spec.hidden, spec.max_positions, "the number of positions");
        let positions = arch.positions.map(positions).transpose()?;
        let per_layer = |own: &PerLayerEmbeddings| -> Result<PerLayer<'a>> {
            let features = spec.layers.len() * own.width;
            let table = table(&beside(own.names[0]), features, own.vocab, "vocab_size_per_layer_input")?;
            PerLayer::new(tensors, &spec, own, table, beside)
        };
        let per_layer = spec.per_layer.as_ref().map(per_layer).transpose()?;
        let streams = spec.streams.as_ref().map(|own| Streams::new(tensors, &spec, own, beside)).transpose()?;
        let untied = arch::is_untied(config)?;
        let head = match arch.heads(Some(tie)).find(stored) {
            Some(path) => Some(Linear::new(tensors, path, embed.outputs(), spec.hidden)?),
            None if untied => return Err(tensors.missing(&weight_name(tie.head()))),
            None => None,
        };
        let bias = format!("{}.bias", tie.head());
        let bias = if head.is_none() { tensors.vector(&bias, embed.outputs())? } else { None };
        let norm = Normalize::new(tensors, &beside(arch.norm), spec.hidden, spec.norm, spec.eps)?;
        let list = beside(arch.layers);
        let layer = |(i, layer)| Layer::new(tensors, &spec, layer, &format!("{list}.{i}"));
        let layers = spec.layers.iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let spec = Spec { vocab: embed.outputs(), ..spec };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .build()
            .map_err(|error| Error::new(Kind::Io, format!("cannot start threads: {error}")))?;
        let mut model = Self {
            spec,
            config: config.path.clone(),
            embed,
            positions,
            per_layer,
            streams,
            layers,
            norm,
            head,
            bias,
            pool,
            held: 0,
            progress: options.progress,
        };
        model.hold(options.held.unwrap_or_else(half_of_free_memory))?;
        Ok(model)
    }

    /// Holds weights in the order in which they are shown while they fit.
    fn hold(&mut self, limit: u64) -> Result<()> {
        if limit > 0
            && let Some(progress) = self.progress
        {
            progress.phase("reading the weights", "");
        }
        let (progress, held) = (self.progress, &mut self.held);
        let mut hold = |linear: &mut Linear<'_>| -> Result<()> {
            if progress.is_some_and(|progress| progress.cancelled()) {
                return Err(stopped());
            }
            if *held + linear.bytes() <= limit {
                linear.hold()?;
                *held += linear.bytes();
            }
            Ok(())
        };
        hold(self.head.as_mut().unwrap_or(&mut self.embed))?;
        self.per_layer.iter_mut().try_for_each(|own| own.each(&mut hold))?;
        self.streams.iter_mut().try_for_each(|own| own.each(&mut hold))?;
        self.layers.iter_mut().try_for_each(|layer| layer.each(&mut hold))
    }

    /// Who watches.
    pub fn progress(&self) -> Option<&dyn Progress> {
        self.progress
    }

    /// What the model consists of.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// All linear layers in the order in which they are shown.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'_>> {
        let beside = self.per_layer.iter().flat_map(PerLayer::linears);
        let beside = beside.chain(self.streams.iter().flat_map(Streams::linears));
        std::iter::once(&self.embed).chain(beside).chain(self.layers.iter().flat_map(Layer::linears)).chain(&self.head)
    }

    /// Bytes of stored weights that are held in memory.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Bytes of stored weights that a token's way through the model reads.
    pub fn bytes_per_token(&self) -> u64 {
        let head = self.head.as_ref().unwrap_or(&self.embed).bytes();
        let per_layer = self.per_layer.as_ref().map_or(0, |own| own.linears()[1].bytes());
        let streams: u64 = self.streams.iter().flat_map(Streams::linears).map(Linear::bytes).sum();
        head + per_layer + streams + self.layers.iter().flat_map(Layer::linears).map(Linear::bytes).sum::<u64>()
    }

    /// What linear layers are given, layer by layer, in the order of [`Watch::input`].
    pub fn inputs(&self) -> Vec<Vec<LayerInputs>> {
        self.layers.iter().map(Layer::inputs).collect()
    }

    /// Layers up to the last that has a wanted weight.
    pub(crate) fn layers_for(&self, wanted: &(dyn Fn(&str) -> bool + Sync)) -> usize {
        let has = |layer: &Vec<LayerInputs>| layer.iter().flat_map(|inputs| &inputs.weights).any(|name| wanted(name));
        self.inputs().iter().rposition(has).map_or(0, |last| last + 1)
    }

    /// Values that a cache holds for a sequence of so many positions.
    pub(crate) fn cached(&self, positions: usize) -> usize {
        self.layers.iter().map(|layer| layer.cached(positions)).sum()
    }

    /// Values per token that a pass has in memory at once beside the residual stream, at most.
    pub fn activations(&self) -> usize {
        let layers = self.layers.iter().map(Layer::activations).max().unwrap_or(0);
        let lent: usize = self.layers.iter().map(Layer::lent).sum();
        // All streams but the first, and what they are joined of.
        let streams = self.spec.streams.as_ref().map_or(0, |own| (own.count + 2) * self.spec.hidden);
        // While a table is looked up, the rows stand beside what the matrix gave.
        layers + lent + streams + self.per_layer.as_ref().map_or(0, |own| 2 * own.features())
    }

    /// Work of a pass of `tokens` tokens that see `seen` positions on average, in nanoseconds of one thread.
    pub(crate) fn pass_work(&self, precision: Precision, tokens: usize, seen: usize) -> u64 {
        self.layers.iter().map(|layer| precision.work(layer.work(tokens, seen))).sum()
    }

    /// Work of the logits of some columns.
    pub(crate) fn logits_work(&self, precision: Precision, columns: usize) -> u64 {
        precision.work(work::linear(self.spec.vocab * self.spec.hidden, columns as f64) as u64)
    }

    fn advanced(&self, work: u64) {
        if let Some(progress) = self.progress {
            progress.advance(work);
        }
    }

    /// Module paths of the linear layers that a [`Watch`] is shown.
    pub fn watched(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().flat_map(Layer::linears).map(Linear::name)
    }

    /// The residual stream behind the last norm, (hidden, tokens), of several sequences beside each other, each from its start.
    pub fn hidden(&self, sequences: &[&[u32]], watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let mut columns = Vec::new();
        let mut tokens = Vec::new();
        for sequence in sequences {
            columns.push(Sequence { columns: tokens.len()..tokens.len() + sequence.len(), past: 0 });
            tokens.extend_from_slice(sequence);
        }
        self.on_pool(|| self.pass(&tokens, columns, None, watch))
    }

    /// The same for the next tokens of the cache's sequences, as many of each, one sequence behind the other.
    pub fn advance(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let each = tokens.len() / cache.sequences;
        if cache.len + each > cache.capacity {
            return Err(Error::new(Kind::Usage, format!("more than {} positions", cache.capacity)));
        }
        let sequences: Vec<Sequence> = (0..cache.sequences)
            .map(|number| Sequence { columns: number * each..(number + 1) * each, past: cache.len })
            .collect();
        let hidden = self.on_pool(|| self.pass(tokens, sequences, Some(cache), &mut Unwatched))?;
        cache.len += each;
        Ok(hidden)
    }

    /// On the pool that the caller belongs to, or the model's own.
    fn on_pool<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if rayon::current_thread_index().is_some() { work() } else { self.pool.install(work) }
    }

    fn pass(
        &self,
        tokens: &[u32],
        sequences: Vec<Sequence>,
        mut cache: Option<&mut Cache>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let spec = &self.spec;
        self.check(tokens, &sequences)?;
        let manner = cache.as_ref().map_or(watch.manner(), |cache| cache.manner);
        let pass = Pass::new(sequences, &spec.ropes, cache.as_ref().map_or(0, |cache| cache.capacity), manner);
        let count = tokens.len();
        let mut x = self.embed.lookup(tokens)?;
        if spec.embed_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= spec.embed_scale);
        }
        if let Some(positions) = &self.positions {
            let numbers: Vec<u32> = pass.positions().map(|position| position as u32).collect();
            x.iter_mut().zip(positions.lookup(&numbers)?).for_each(|(x, p)| *x += p);
        }
        let parts = self.per_layer.as_ref().map(|own| own.of(tokens, &x, manner)).transpose()?.unwrap_or_default();
        if let Some(streams) = &self.streams {
            x = streams.spread(x, count, manner)?;
        }
        let seen = pass.seen();
        for (number, layer) in self.layers.iter().enumerate() {
            if self.progress.is_some_and(|progress| progress.cancelled()) {
                return Err(stopped());
            }
            let state = cache.as_deref_mut().map(|cache| &mut cache.states[number]);
            let part = self.per_layer.as_ref().map_or(0..0, |own| own.part(number, count));
            layer.forward(&mut x, &parts[part], count, &pass, state, watch)?;
            self.advanced(manner.precision.work(layer.work(count, seen)));
            if watch.layer()?.is_break() {
                let left =
                    self.layers[number + 1..].iter().map(|layer| manner.precision.work(layer.work(count, seen))).sum();
                self.progress.iter().for_each(|progress| progress.skip(left));
                break;
            }
        }
        if let Some(streams) = &self.streams {
            x = streams.joined(x, count, manner)?;
        }
        self.norm.apply(&mut x, count);
        Ok(x)
    }

    fn check(&self, tokens: &[u32], sequences: &[Sequence]) -> Result<()> {
        let known = self.spec.vocab;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= known) {
            return Err(Error::new(Kind::Mismatch, format!("token id {token}, but the model knows {known}"))
                .with_hint("the tokenizer belongs to another model"));
        }
        self.fits(sequences.iter().map(Sequence::end).max().unwrap_or(0))
    }

    /// Errors if a sequence of this length is longer than any that the model was made for.
    pub fn fits(&self, positions: usize) -> Result<()> {
        let most = self.spec.max_positions;
        if positions <= most {
            return Ok(());
        }
        Err(Error::new(Kind::Usage, format!("{positions} positions, but the model was made for {most}"))
            .in_file(&self.config)
            .with_hint("give a smaller --context, or a shorter prompt"))
    }

    /// Logits (vocab, columns) of some columns of `hidden` (hidden, tokens), into a buffer that callers use again: they may take much memory, which costs time
    /// where it is fresh.
    pub fn logits(&self, hidden: &[f32], columns: std::ops::Range<usize>, logits: &mut Vec<f32>) -> Result<()> {
        self.logits_at(Precision::Full, hidden, columns, logits)
    }

    /// The same, as exact as is said.
    pub(crate) fn logits_at(
        &self,
        precision: Precision,
        hidden: &[f32],
        columns: std::ops::Range<usize>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let tokens = hidden.len() / self.spec.hidden;
        let some: Vec<f32> = hidden.chunks_exact(tokens).flat_map(|row| row[columns.clone()].iter().copied()).collect();
        let head = self.head.as_ref().unwrap_or(&self.embed);
        logits.clear();
        logits.resize(head.outputs() * columns.len(), 0.0);
        self.on_pool(|| head.forward_into(&Input::new(&some, self.spec.hidden, precision), logits))?;
        for (row, bias) in logits.chunks_exact_mut(columns.len().max(1)).zip(self.bias.iter().flatten()) {
            row.iter_mut().for_each(|x| *x += bias);
        }
        if self.spec.logit_scale != 1.0 {
            logits.iter_mut().for_each(|x| *x *= self.spec.logit_scale);
        }
        if let Some(cap) = self.spec.logit_cap {
            softcap(logits, cap);
        }
        self.advanced(self.logits_work(precision, columns.len()));
        Ok(())
    }
}

/// Name of the weight at a module path. A matrix of a stack, which is no module, has a name of its own.
pub(crate) fn weight_name(path: &str) -> String {
    if path.ends_with(']') { path.to_owned() } else { format!("{path}.weight") }
}

/// What may be taken for stored weights where nobody set a bound.
pub fn half_of_free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(2 << 30, |kib| kib * 1024 / 2)
}
