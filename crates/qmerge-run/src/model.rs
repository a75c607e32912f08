//! Tokens become logits.

use std::path::PathBuf;

use qmerge::error::{Error, Kind, Result};
use qmerge::progress::{Progress, stopped};
use qmerge::round::Inputs;

use crate::attention::{Attention, Past, Sequence, softcap};
use crate::families;
use crate::feed_forward::FeedForward;
use crate::linear::{Input, Linear, Unwatched, Watch};
use crate::norm::Normalize;
use crate::spec::Spec;
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
    layers: Vec<Layer<'a>>,
    norm: Normalize,
    /// `None` where the embedding is the head too.
    head: Option<Linear<'a>>,
    pool: rayon::ThreadPool,
    held: u64,
    progress: Option<&'a dyn Progress>,
}

#[derive(Debug)]
struct Layer<'a> {
    attention: Attention<'a>,
    feed_forward: FeedForward<'a>,
    attention_in: Option<Normalize>,
    attention_out: Option<Normalize>,
    feed_forward_in: Option<Normalize>,
    feed_forward_out: Option<Normalize>,
}

/// Keys and values of the positions so far, of one sequence or of several of the same length.
#[derive(Clone, Debug)]
pub struct Cache {
    past: Vec<Past>,
    sequences: usize,
    len: usize,
    capacity: usize,
}

impl Cache {
    /// Room for `capacity` positions of one sequence.
    pub fn new(model: &Model<'_>, capacity: usize) -> Self {
        Self::of_several(model, 1, capacity)
    }

    /// Room for `capacity` positions of each of several sequences.
    pub fn of_several(model: &Model<'_>, sequences: usize, capacity: usize) -> Self {
        Self { past: vec![Past::default(); model.layers.len()], sequences: sequences.max(1), len: 0, capacity }
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

/// What stands before names in checkpoints: plain, of a bare decoder, and of a language model inside a larger one.
const PREFIXES: &[&str] =
    &["model.", "", "transformer.", "model.language_model.", "language_model.model.", "language_model."];

impl<'a> Model<'a> {
    /// Finds all tensors and loads the small ones.
    pub fn new(tensors: &Tensors<'a>, options: Options<'a>) -> Result<Self> {
        let checkpoint = tensors.checkpoint();
        let config = families::config(checkpoint)?;
        let spec = families::spec(config)?;
        let prefix = PREFIXES.iter().find(|prefix| tensors.has(&format!("{prefix}{}.weight", spec.names.embed)));
        let prefix = prefix.ok_or_else(|| tensors.missing(&format!("{}{}.weight", PREFIXES[0], spec.names.embed)))?;
        let table = |name: &str, rows| -> Result<Linear<'a>> {
            let path = format!("{prefix}{name}");
            let weight = tensors.get(&format!("{path}.weight"))?;
            Linear::from_weight(tensors, &path, weight, rows, spec.hidden, false)
        };
        // The table may have more rows than the configuration says tokens, if a tokenizer grew; never fewer.
        let rows = |name: &str, least: usize, what: &str| -> Result<usize> {
            let name = format!("{prefix}{name}.weight");
            let known = tensors.get(&name)?.base().claim().weight.shape().first().copied().unwrap_or(0);
            match known < least {
                true => Err(tensors.misfit(&name, format!("{known} rows, but {what} is {least}"))),
                false => Ok(known),
            }
        };
        let known = rows(spec.names.embed, spec.vocab, "vocab_size")?;
        let spec = Spec { vocab: known, ..spec };
        let positions = match spec.names.positions {
            Some(name) => Some(table(name, rows(name, spec.max_positions, "the number of positions")?)?),
            None => None,
        };
        let heads = ["lm_head", "language_model.lm_head", "model.lm_head"];
        let head = heads.iter().find(|head| tensors.has(&format!("{head}.weight")));
        let head = match head {
            Some(path) => Some(Linear::new(tensors, path, spec.vocab, spec.hidden, false)?),
            None if config.tied() == Some(false) => return Err(tensors.missing("lm_head.weight")),
            None => None,
        };
        let embed = table(spec.names.embed, spec.vocab)?;
        let norm = Normalize::new(tensors, &format!("{prefix}{}", spec.names.norm), spec.hidden, spec.norm, spec.eps)?;
        let layer = |i: usize| Layer::new(tensors, &spec, &format!("{prefix}{}.{i}", spec.names.layers), i);
        let layers = (0..spec.layers.len()).map(layer).collect::<Result<Vec<_>>>()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .build()
            .map_err(|error| Error::new(Kind::Io, format!("cannot start threads: {error}")))?;
        let mut model = Self {
            spec,
            config: config.path.clone(),
            embed,
            positions,
            layers,
            norm,
            head,
            pool,
            held: 0,
            progress: options.progress,
        };
        model.hold(options.held.unwrap_or_else(half_of_free_memory))?;
        Ok(model)
    }

    /// Holds weights in the order of their use while they fit.
    fn hold(&mut self, limit: u64) -> Result<()> {
        if limit > 0
            && let Some(progress) = self.progress
        {
            progress.phase("reading the weights", "");
        }
        let head = self.head.as_mut().unwrap_or(&mut self.embed);
        let layers = self.layers.iter_mut().flat_map(Layer::linears_mut);
        for linear in std::iter::once(head).chain(layers) {
            if self.progress.is_some_and(|progress| progress.cancelled()) {
                return Err(stopped());
            }
            if self.held + linear.bytes() <= limit {
                linear.hold()?;
                self.held += linear.bytes();
            }
        }
        Ok(())
    }

    /// Who watches.
    pub fn progress(&self) -> Option<&dyn Progress> {
        self.progress
    }

    /// What the model consists of.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// All linear layers in the order of their use.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        std::iter::once(&self.embed).chain(self.layers.iter().flat_map(Layer::linears)).chain(&self.head)
    }

    /// Bytes of stored weights that are held in memory.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Bytes of stored weights that a token's way through the model reads.
    pub fn bytes_per_token(&self) -> u64 {
        let head = self.head.as_ref().unwrap_or(&self.embed).bytes();
        head + self.layers.iter().flat_map(Layer::linears).map(Linear::bytes).sum::<u64>()
    }

    /// What linear layers are given, layer by layer, in the order of [`Watch::input`].
    pub fn inputs(&self) -> Vec<Vec<Inputs>> {
        self.layers.iter().map(Layer::inputs).collect()
    }

    /// Largest width between the matrices of a feed-forward.
    pub fn width(&self) -> usize {
        self.layers.iter().map(|layer| layer.feed_forward.width()).max().unwrap_or(0)
    }

    /// Work of a pass of `tokens` tokens that see `seen` positions on average, in nanoseconds of one thread.
    pub fn pass_work(&self, tokens: usize, seen: usize) -> u64 {
        (0..self.layers.len()).map(|number| self.layer_work(number, tokens, seen)).sum()
    }

    /// Work of the logits of some columns.
    pub fn logits_work(&self, columns: usize) -> u64 {
        work::linear(self.spec.vocab * self.spec.hidden, columns as f64) as u64
    }

    fn layer_work(&self, number: usize, tokens: usize, seen: usize) -> u64 {
        let (spec, layer) = (&self.spec, &self.layers[number]);
        let seen = spec.layers[number].window.map_or(seen, |window| window.min(seen));
        let linears = layer.attention.inputs.iter().chain([&layer.attention.output]);
        let attention: f64 = linears.map(|linear| work::linear(linear.values(), tokens as f64)).sum();
        let mixed = work::attention(spec.heads * spec.head_dim, tokens, seen);
        (attention + mixed + layer.feed_forward.work(tokens)) as u64
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
        self.on_pool(|| self.pass(&tokens, &columns, None, watch))
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
        let hidden = self.on_pool(|| self.pass(tokens, &sequences, Some(cache), &mut Unwatched))?;
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
        sequences: &[Sequence],
        mut cache: Option<&mut Cache>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let spec = &self.spec;
        self.check(tokens, sequences)?;
        let count = tokens.len();
        let mut x = self.embed.lookup(tokens)?;
        if spec.embed_scale != 1.0 {
            x.iter_mut().for_each(|x| *x *= spec.embed_scale);
        }
        if let Some(positions) = &self.positions {
            let numbers: Vec<u32> =
                sequences.iter().flat_map(|s| (s.past..s.past + s.columns.len()).map(|p| p as u32)).collect();
            x.iter_mut().zip(positions.lookup(&numbers)?).for_each(|(x, p)| *x += p);
        }
        let angles: Vec<Vec<_>> = spec
            .ropes
            .iter()
            .map(|rope| {
                sequences
                    .iter()
                    .map(|s| rope.angles(s.past..s.past + s.columns.len(), s.past + s.columns.len()))
                    .collect()
            })
            .collect();
        let seen = seen(sequences);
        for (number, (layer, kind)) in self.layers.iter().zip(&spec.layers).enumerate() {
            if self.progress.is_some_and(|progress| progress.cancelled()) {
                return Err(stopped());
            }
            let angles = kind.rope.map(|rope| angles[rope].as_slice());
            let past = cache.as_deref_mut().map(|cache| (&mut cache.past[number], cache.capacity));
            // Nothing of a block stays when the next one begins, or while a watch works on the layer.
            {
                let input = normalized(&layer.attention_in, &x, count);
                let mut y = layer.attention.forward(spec, kind, &input, sequences, angles, past, watch)?;
                drop(input);
                add(&mut x, &mut y, &layer.attention_out, count, spec.residual_scale);
            }
            {
                let input = normalized(&layer.feed_forward_in, &x, count);
                let mut y = layer.feed_forward.forward(&input, spec.hidden, watch)?;
                drop(input);
                add(&mut x, &mut y, &layer.feed_forward_out, count, spec.residual_scale);
            }
            self.advanced(self.layer_work(number, count, seen));
            watch.layer()?;
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
        self.fits(sequences.iter().map(|s| s.past + s.columns.len()).max().unwrap_or(0))
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
        let tokens = hidden.len() / self.spec.hidden;
        let some: Vec<f32> = hidden.chunks_exact(tokens).flat_map(|row| row[columns.clone()].iter().copied()).collect();
        let head = self.head.as_ref().unwrap_or(&self.embed);
        logits.clear();
        logits.resize(head.outputs() * columns.len(), 0.0);
        self.on_pool(|| head.forward_into(&Input::new(&some, self.spec.hidden), logits))?;
        if self.spec.logit_scale != 1.0 {
            logits.iter_mut().for_each(|x| *x *= self.spec.logit_scale);
        }
        if let Some(cap) = self.spec.logit_cap {
            softcap(logits, cap);
        }
        self.advanced(self.logits_work(columns.len()));
        Ok(())
    }
}

impl<'a> Layer<'a> {
    fn new(tensors: &Tensors<'a>, spec: &Spec, path: &str, number: usize) -> Result<Self> {
        let norm = |name: Option<&str>| {
            let new = |name| Normalize::new(tensors, &format!("{path}.{name}"), spec.hidden, spec.norm, spec.eps);
            name.map(new).transpose()
        };
        Ok(Self {
            attention: Attention::new(tensors, spec, path)?,
            feed_forward: FeedForward::new(tensors, spec, path, spec.layers[number].experts)?,
            attention_in: norm(spec.norms.attention_in)?,
            attention_out: norm(spec.norms.attention_out)?,
            feed_forward_in: norm(spec.norms.feed_forward_in)?,
            feed_forward_out: norm(spec.norms.feed_forward_out)?,
        })
    }

    fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        let attention = self.attention.inputs.iter().chain(std::iter::once(&self.attention.output));
        attention.chain(self.feed_forward.linears())
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear<'a>> {
        let attention = self.attention.inputs.iter_mut().chain(std::iter::once(&mut self.attention.output));
        attention.chain(self.feed_forward.linears_mut())
    }

    fn inputs(&self) -> Vec<Inputs> {
        let attention = [self.attention.inputs.iter().collect(), vec![&self.attention.output]];
        let together = attention.into_iter().chain(self.feed_forward.together());
        together
            .filter_map(|linears: Vec<&Linear<'a>>| {
                let features = linears.first()?.inputs();
                Some(Inputs { features, weights: linears.iter().map(|linear| weight_name(linear.name())).collect() })
            })
            .collect()
    }
}

/// Name of the weight at a module path.
pub(crate) fn weight_name(path: &str) -> String {
    format!("{path}.weight")
}

/// Positions that a token of these sequences sees, on average.
fn seen(sequences: &[Sequence]) -> usize {
    let (mut tokens, mut sum) = (0, 0);
    for sequence in sequences {
        let len = sequence.columns.len();
        tokens += len;
        sum += len * (sequence.past + len.div_ceil(2));
    }
    sum / tokens.max(1)
}

fn normalized<'x>(norm: &Option<Normalize>, x: &'x [f32], tokens: usize) -> std::borrow::Cow<'x, [f32]> {
    match norm {
        None => x.into(),
        Some(norm) => {
            let mut x = x.to_vec();
            norm.apply(&mut x, tokens);
            x.into()
        }
    }
}

/// Adds a block's result to the residual stream.
fn add(x: &mut [f32], y: &mut [f32], norm: &Option<Normalize>, tokens: usize, scale: f32) {
    if let Some(norm) = norm {
        norm.apply(y, tokens);
    }
    if scale == 1.0 {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += *y);
    } else {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += *y * scale);
    }
}

/// What may be taken for stored weights where nobody set a bound.
pub fn half_of_free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(2 << 30, |kib| kib * 1024 / 2)
}
