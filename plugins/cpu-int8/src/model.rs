//! A model as one kernel reads it: every linear layer packed, every shape checked.

pub mod config;
mod decode;
mod load;
pub mod names;
mod pipeline;
pub mod smooth;
pub mod weights;
pub mod words;

use crate::encoder::pointwise::{Activation, Norm};
use crate::encoder::relative::Relative;
use crate::encoder::rotary::Rotary;
use crate::gemm::pack::Packed;
use crate::kernel::Kernel;
use crate::quant::Code;
use crate::quant::narrow::Storage;
use config::Config;
use load::Loader;
use names::Names;
use smooth::Calibration;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use weights::Weights;
use words::{Words, WordsIn};

/// Why a folder does not become a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// A sound model that this engine does not compute.
    Unsupported(String),
    /// Files that are missing or wrong.
    Bad(String),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(text) | Self::Bad(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for LoadError {}

/// The numbers that say how a model computes and how large a worker's scratch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Values of a token between layers: `n_heads` × `head_dim`.
    pub hidden: usize,
    /// Values of an embedding.
    pub embedding: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Values of a token inside the feed-forward layer.
    pub inner: usize,
    /// Logits of a row.
    pub n_labels: usize,
    /// Tokens of the longest row: the positions the model has.
    pub row_tokens_max: usize,
    /// The feed-forward layers' nonlinearity.
    pub activation: Activation,
    /// Whether scores have terms of relative positions.
    pub relative: bool,
    /// How the encoder's weights are held.
    pub storage: Storage,
}

/// A model, packed for a kernel. Shared by all workers.
pub struct Model<K: Kernel> {
    /// Sizes.
    pub shape: Shape,
    /// From token ids to the first residual stream.
    pub embeddings: Embeddings<K::Float>,
    /// The encoder, in order.
    pub layers: Vec<Layer<K>>,
    /// From a row's last state to its logits, in f32 always.
    pub head: Head<K::Float>,
    /// The tables that layers turn queries and keys by.
    pub rotaries: Vec<Arc<Rotary>>,
    /// A hash of the configuration and of every tensor that was read.
    pub fingerprint: u64,
}

/// Tables, and what to look up in them.
pub struct Embeddings<F: Kernel> {
    /// vocab × embedding, no wider than what the kernel multiplies.
    pub words: Words,
    /// positions × embedding; empty for a family whose positions enter in attention.
    pub positions: Vec<f32>,
    /// types × embedding; empty for a family without token types.
    pub types: Vec<f32>,
    /// Values of an embedding.
    pub width: usize,
    /// How a token's position and type are found.
    pub rule: PositionRule,
    /// Applied to the sum, or to what is projected.
    pub norm: Norm,
    /// ELECTRA's and DeBERTa's projection from embedding to hidden.
    pub project: Option<Packed<F>>,
    /// Whether the norm stands behind the projection, as DeBERTa's, and not before it.
    pub norm_last: bool,
}

/// How a family numbers positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionRule {
    /// 0, 1, 2, …
    FromZero,
    /// pad + 1, pad + 2, …; a padding token inside a row has position pad and does not count.
    BehindPadding(u32),
    /// The embedding has none: attention turns queries and keys, or scores by distance.
    InAttention,
}

/// What the head reads of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    First,
    /// The mean of all tokens.
    Mean,
}

/// One encoder layer.
pub struct Layer<K: Kernel> {
    /// hidden → hidden.
    pub query: Packed<K>,
    /// hidden → 2 hidden: keys, then values. Apart from the query, because the last layer needs
    /// keys and values of all tokens but the query of one.
    pub key_value: Packed<K>,
    /// How far a token sees to either side; `None`: the whole row.
    pub window: Option<usize>,
    /// What turns queries and keys, if something does.
    pub rotary: Option<Arc<Rotary>>,
    /// What adds to scores by distance, if something does.
    pub relative: Option<Relative<K::Attend>>,
    /// What scores are multiplied with: 1 / √(head dim · terms).
    pub scale: f32,
    /// hidden → hidden, added to the residual.
    pub output: Packed<K>,
    /// Behind attention's addition, before the feed-forward layer.
    pub attention_norm: Norm,
    /// What divides each channel before it is encoded for `query` and `key_value`, as reciprocals;
    /// empty if nothing does. See [`smooth`].
    pub smooth_input: Vec<f32>,
    /// The same for `inner`.
    pub smooth_inner: Vec<f32>,
    /// hidden → inner: what is multiplied with `inner`'s activated result, if something is.
    pub gate: Option<Packed<K>>,
    /// hidden → inner.
    pub inner: Packed<K>,
    /// inner → hidden, added to the residual.
    pub outer: Packed<K>,
    /// Behind the feed-forward layer's addition, before the next layer.
    pub output_norm: Norm,
}

/// pool → dense → activation → norm, in some families → classifier.
pub struct Head<F: Kernel> {
    /// What is read of a row.
    pub pooling: Pooling,
    /// hidden → hidden.
    pub dense: Packed<F>,
    /// The family's nonlinearity.
    pub activation: Activation,
    /// Behind it, if there is one.
    pub norm: Option<Norm>,
    /// hidden → labels.
    pub classifier: Packed<F>,
}

// === impl Model ===

impl<K: Kernel> Model<K> {
    /// Loads and packs the model in `dir`, the encoder's weights to be held as `storage`, on `n_threads`,
    /// the caller's included. Neither the model nor the error depends on their number.
    ///
    /// # Errors
    /// Names the file, and the key or tensor that is wrong.
    pub fn load(
        kernel: K,
        storage: Storage,
        dir: &Path,
        n_threads: usize,
    ) -> Result<Self, LoadError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| LoadError::Bad(format!("{}: {error}", path.display())))?;
        let config = Config::parse(&text)?;
        let weights = Weights::open(dir)?;
        names::refuse_foreign(&weights)?;
        let mut loader = Loader {
            weights,
            names: Names::of(config.family),
            config: &config,
            rotaries: Vec::new(),
            layer_rotaries: Vec::new(),
            spare: Mutex::default(),
            distances: None,
        };
        let float = kernel.float();
        let head = loader.head(float)?;
        let shape = Shape {
            hidden: config.hidden,
            embedding: config.embedding,
            n_heads: config.n_heads,
            head_dim: config.hidden / config.n_heads,
            inner: config.inner,
            n_labels: head.classifier.n_out,
            row_tokens_max: config.row_tokens_max(),
            activation: config.activation,
            relative: config.relative.is_some(),
            storage,
        };
        let embeddings = loader.embeddings(float, WordsIn::of::<K>(), n_threads)?;
        loader.make_rotaries();
        loader.make_distances()?;
        let calibration =
            (K::Left::QUANTISED).then(|| Calibration::new(float, &shape, &embeddings));
        let layers = pipeline::load(kernel, storage, &loader, calibration, n_threads)?;
        let fingerprint = loader.weights.fingerprint();
        fingerprint.add("config.json", 0, text.as_bytes());
        Ok(Self {
            shape,
            embeddings,
            layers,
            head,
            fingerprint: fingerprint.value(),
            rotaries: loader.rotaries,
        })
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        let tables = self.embeddings.positions.len() + self.embeddings.types.len();
        let project = self.embeddings.project.as_ref().map_or(0, Packed::n_bytes);
        let head = self.head.dense.n_bytes() + self.head.classifier.n_bytes();
        let layers = self.layers.iter().map(|layer| {
            let packed = [
                &layer.query,
                &layer.key_value,
                &layer.output,
                &layer.inner,
                &layer.outer,
            ];
            let packed = packed.into_iter().chain(&layer.gate);
            packed.map(Packed::n_bytes).sum::<usize>()
                + layer.relative.as_ref().map_or(0, Relative::n_bytes)
        });
        let rotaries = self.rotaries.iter().map(|rotary| rotary.n_bytes());
        let words = self.embeddings.words.n_bytes();
        words
            + tables * size_of::<f32>()
            + project
            + head
            + layers.sum::<usize>()
            + rotaries.sum::<usize>()
    }
}
