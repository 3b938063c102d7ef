//! A model as one kernel reads it: every linear layer packed, every shape checked.

pub mod config;
pub mod names;
pub mod smooth;
pub mod weights;

use crate::encoder::pointwise::{Activation, Norm, Stream};
use crate::encoder::rotary::Rotary;
use crate::gemm::pack::Packed;
use crate::kernel::Kernel;
use crate::quant::Code;
use config::{Config, Family, LayerKind};
use names::{Names, OutputNorm, Projections};
use smooth::{Calibration, Factors, scale_inputs};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use weights::Weights;

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

/// Tables of f32, and what to look up in them.
pub struct Embeddings<F: Kernel> {
    /// vocab × embedding.
    pub words: Vec<f32>,
    /// positions × embedding; empty for a family whose positions enter in attention.
    pub positions: Vec<f32>,
    /// types × embedding; empty for a family without token types.
    pub types: Vec<f32>,
    /// Values of an embedding.
    pub width: usize,
    /// How a token's position and type are found.
    pub rule: PositionRule,
    /// Applied to the sum.
    pub norm: Norm,
    /// ELECTRA's projection from embedding to hidden.
    pub project: Option<Packed<F>>,
}

/// How a family numbers positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionRule {
    /// 0, 1, 2, …
    FromZero,
    /// pad + 1, pad + 2, …; a padding token inside a row has position pad and does not count.
    BehindPadding(u32),
    /// The embedding has none: attention turns queries and keys.
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
    /// Loads and packs the model in `dir`.
    ///
    /// # Errors
    /// Names the file, and the key or tensor that is wrong.
    pub fn load(kernel: K, dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)
            .map_err(|error| LoadError::Bad(format!("{}: {error}", path.display())))?;
        let config = Config::parse(&text)?;
        let mut loader = Loader {
            weights: Weights::open(dir)?,
            names: Names::of(config.family),
            config: &config,
            rotaries: Vec::new(),
        };
        let head = loader.head::<K::Float>()?;
        let shape = Shape {
            hidden: config.hidden,
            embedding: config.embedding,
            n_heads: config.n_heads,
            head_dim: config.hidden / config.n_heads,
            inner: config.inner,
            n_labels: head.classifier.n_out,
            row_tokens_max: config.row_tokens_max(),
            activation: config.activation,
        };
        let embeddings = loader.embeddings()?;
        let mut calibration =
            (K::Left::QUANTISED).then(|| Calibration::new(kernel.float(), &shape, &embeddings));
        let mut layers = Vec::new();
        for layer in 0..config.n_layers {
            let mut raw = loader.layer(layer)?;
            let factors = calibration
                .as_mut()
                .map(|calibration| calibration.pass(&raw.pack(None)));
            if let Some(factors) = &factors {
                raw.scale(factors);
            }
            layers.push(raw.pack(factors));
        }
        let mut fingerprint = loader.weights.fingerprint();
        fingerprint.add(text.as_bytes());
        Ok(Self {
            shape,
            embeddings,
            layers,
            head,
            rotaries: loader.rotaries,
            fingerprint: fingerprint.value(),
        })
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        let tables = self.embeddings.words.len()
            + self.embeddings.positions.len()
            + self.embeddings.types.len();
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
        });
        let rotaries = self.rotaries.iter().map(|rotary| rotary.n_bytes());
        tables * size_of::<f32>() + project + head + layers.sum::<usize>() + rotaries.sum::<usize>()
    }
}

/// A linear layer as the files have it: `[n_out][n_in]` and `n_out`.
struct Tensors {
    n_in: usize,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Tensors {
    fn pack<K: Kernel>(&self) -> Packed<K> {
        Packed::new(&self.weights, &self.bias, self.n_in)
    }

    /// Keeps the first `n_out` outputs and returns the others.
    fn split_off(&mut self, n_out: usize) -> Self {
        Self {
            n_in: self.n_in,
            weights: self.weights.split_off(n_out * self.n_in),
            bias: self.bias.split_off(n_out),
        }
    }
}

/// An encoder layer as the files have it.
struct RawLayer {
    query: Tensors,
    key_value: Tensors,
    window: Option<usize>,
    rotary: Option<Arc<Rotary>>,
    output: Tensors,
    attention_norm: Norm,
    gate: Option<Tensors>,
    inner: Tensors,
    outer: Tensors,
    output_norm: Norm,
}

impl RawLayer {
    /// Multiplies the weights that meet what [`smooth`] divides.
    fn scale(&mut self, factors: &Factors) {
        scale_inputs(&mut self.query.weights, &factors.input);
        scale_inputs(&mut self.key_value.weights, &factors.input);
        for inner in self.gate.iter_mut().chain([&mut self.inner]) {
            scale_inputs(&mut inner.weights, &factors.inner);
        }
    }

    fn pack<K: Kernel>(&self, factors: Option<Factors>) -> Layer<K> {
        let reciprocals = |factors: Vec<f32>| factors.into_iter().map(f32::recip).collect();
        let (smooth_input, smooth_inner) = factors.map_or_else(Default::default, |factors| {
            (reciprocals(factors.input), reciprocals(factors.inner))
        });
        Layer {
            query: self.query.pack(),
            key_value: self.key_value.pack(),
            window: self.window,
            rotary: self.rotary.clone(),
            output: self.output.pack(),
            attention_norm: self.attention_norm.clone(),
            smooth_input,
            smooth_inner,
            gate: self.gate.as_ref().map(Tensors::pack),
            inner: self.inner.pack(),
            outer: self.outer.pack(),
            output_norm: self.output_norm.clone(),
        }
    }
}

/// Reads the parts of a model by the names of its family.
struct Loader<'a> {
    weights: Weights,
    names: Names,
    config: &'a Config,
    rotaries: Vec<Arc<Rotary>>,
}

impl Loader<'_> {
    fn embeddings<F: Kernel>(&mut self) -> Result<Embeddings<F>, LoadError> {
        let &Config {
            vocab,
            embedding,
            hidden,
            positions,
            types,
            family,
            pad_id,
            ..
        } = self.config;
        let table = |part: &str| format!("{}{part}.weight", self.names.prefix);
        let (words, places, kinds) = (
            table(self.names.words),
            table("embeddings.position_embeddings"),
            table("embeddings.token_type_embeddings"),
        );
        let project = if embedding == hidden {
            None
        } else {
            Some(self.linear(
                &format!("{}embeddings_project", self.names.prefix),
                hidden,
                embedding,
                true,
            )?)
        };
        let rule = match family {
            Family::Roberta => PositionRule::BehindPadding(pad_id),
            Family::Bert | Family::Electra | Family::DistilBert => PositionRule::FromZero,
            Family::ModernBert => PositionRule::InAttention,
        };
        Ok(Embeddings {
            words: self.weights.read(&words, &[vocab, embedding])?,
            positions: if rule == PositionRule::InAttention {
                Vec::new()
            } else {
                self.weights.read(&places, &[positions, embedding])?
            },
            types: if types == 0 {
                Vec::new()
            } else {
                self.weights.read(&kinds, &[types, embedding])?
            },
            width: embedding,
            rule,
            norm: self.norm(
                &format!("{}{}", self.names.prefix, self.names.embedding_norm),
                embedding,
                Stream::Normed,
            )?,
            project,
        })
    }

    fn layer(&mut self, layer: usize) -> Result<RawLayer, LoadError> {
        let &Config {
            hidden,
            inner,
            biases,
            ..
        } = self.config;
        let names = self.names;
        let of =
            |layer: usize, part: &str| format!("{}{}{layer}.{part}", names.prefix, names.layers);
        let name = |part: &str| of(layer, part);
        let (query, key_value) = self.projections(&name)?;
        let LayerKind { window, rope_theta } = self.config.layers[layer];
        let n_inner = if names.gated { 2 * inner } else { inner };
        let mut inner_rows = self.tensors(&name(names.inner), n_inner, hidden, biases.inner)?;
        // What the residual stream keeps, and the norm behind the layer: see `OutputNorm`.
        let last = layer + 1 == self.config.n_layers;
        let (stream, output_norm) = match names.output_norm {
            OutputNorm::Own(norm) => (Stream::Normed, name(norm)),
            OutputNorm::Following { last: norm, .. } if last => {
                (Stream::Sum, format!("{}{norm}", names.prefix))
            }
            OutputNorm::Following { next, .. } => (Stream::Sum, of(layer + 1, next)),
        };
        // Behind the last layer the head reads the stream.
        let output_stream = if last { Stream::Normed } else { stream };
        let output = name(names.attention_output);
        Ok(RawLayer {
            query,
            key_value,
            window,
            rotary: rope_theta.map(|theta| self.rotary(theta)),
            output: self.tensors(&output, hidden, hidden, biases.attention)?,
            attention_norm: self.norm(&name(names.attention_norm), hidden, stream)?,
            gate: names.gated.then(|| inner_rows.split_off(inner)),
            inner: inner_rows,
            outer: self.tensors(&name(names.outer), hidden, inner, biases.inner)?,
            output_norm: self.norm(&output_norm, hidden, output_stream)?,
        })
    }

    /// A layer's query, and its key and value as one.
    fn projections(
        &mut self,
        name: &impl Fn(&str) -> String,
    ) -> Result<(Tensors, Tensors), LoadError> {
        let (hidden, bias) = (self.config.hidden, self.config.biases.attention);
        match self.names.projections {
            Projections::Fused(fused) => {
                let mut query = self.tensors(&name(fused), 3 * hidden, hidden, bias)?;
                let key_value = query.split_off(hidden);
                Ok((query, key_value))
            }
            Projections::Three([query, key, value]) => {
                let mut key_value = self.tensors(&name(key), hidden, hidden, bias)?;
                let value = self.tensors(&name(value), hidden, hidden, bias)?;
                key_value.weights.extend(value.weights);
                key_value.bias.extend(value.bias);
                Ok((self.tensors(&name(query), hidden, hidden, bias)?, key_value))
            }
        }
    }

    /// The rotary table of this base, which the layers that have it share.
    fn rotary(&mut self, theta: f64) -> Arc<Rotary> {
        let found = self.rotaries.iter().find(|rotary| rotary.base() == theta);
        found.map(Arc::clone).unwrap_or_else(|| {
            let head_dim = self.config.hidden / self.config.n_heads;
            let rotary = Arc::new(Rotary::new(theta, head_dim, self.config.positions));
            self.rotaries.push(Arc::clone(&rotary));
            rotary
        })
    }

    fn head<F: Kernel>(&mut self) -> Result<Head<F>, LoadError> {
        let hidden = self.config.hidden;
        let (dense, classifier) = (self.names.head_dense, self.names.classifier);
        let weight = format!("{classifier}.weight");
        let n_labels = match (self.config.n_labels, self.weights.shape(&weight)?) {
            (Some(said), _) => said,
            (None, &[rows, _]) if 0 < rows => rows,
            (None, shape) => {
                return Err(LoadError::Bad(format!(
                    "{weight}: its shape is {shape:?}, not labels × {hidden}"
                )));
            }
        };
        let head = self.config.head;
        let norm = self.names.head_norm;
        Ok(Head {
            pooling: head.pooling,
            dense: self.linear(dense, hidden, hidden, self.config.biases.head)?,
            activation: head.activation.unwrap_or(self.names.head_activation),
            norm: norm
                .map(|norm| self.norm(norm, hidden, Stream::Normed))
                .transpose()?,
            classifier: self.linear(classifier, n_labels, hidden, true)?,
        })
    }

    fn linear<K: Kernel>(
        &mut self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<Packed<K>, LoadError> {
        Ok(self.tensors(name, n_out, n_in, bias)?.pack())
    }

    fn tensors(
        &mut self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<Tensors, LoadError> {
        Ok(Tensors {
            n_in,
            weights: self
                .weights
                .read(&format!("{name}.weight"), &[n_out, n_in])?,
            bias: self.bias(&format!("{name}.bias"), n_out, bias)?,
        })
    }

    /// A bias that the files hold, or zeros for one that they do not.
    fn bias(&mut self, name: &str, n_out: usize, held: bool) -> Result<Vec<f32>, LoadError> {
        if held {
            self.weights.read(name, &[n_out])
        } else {
            Ok(vec![0.0; n_out])
        }
    }

    /// A layer norm, whose parameters checkpoints from TensorFlow call gamma and beta.
    fn norm(&mut self, name: &str, width: usize, stream: Stream) -> Result<Norm, LoadError> {
        let legacy = self.weights.has(&format!("{name}.gamma"));
        let (weight, bias) = if legacy {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Ok(Norm {
            weight: self.weights.read(&format!("{name}.{weight}"), &[width])?,
            bias: self.bias(&format!("{name}.{bias}"), width, self.config.biases.norm)?,
            epsilon: self.config.epsilon,
            stream,
        })
    }
}
