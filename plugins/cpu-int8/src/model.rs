//! A model as one kernel reads it: every linear layer packed, every shape checked.

pub mod config;
pub mod names;
pub mod smooth;
pub mod weights;

use crate::encoder::pointwise::{Activation, Norm};
use crate::gemm::pack::Packed;
use crate::kernel::Kernel;
use crate::quant::Code;
use config::{Config, Family};
use names::Names;
use smooth::{Calibration, Factors, scale_inputs};
use std::fmt;
use std::path::Path;
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
    /// From a row's first token to its logits, in f32 always.
    pub head: Head<K::Float>,
    /// A hash of the configuration and of every tensor that was read.
    pub fingerprint: u64,
}

/// Tables of f32, and what to look up in them.
pub struct Embeddings<F: Kernel> {
    /// vocab × embedding.
    pub words: Vec<f32>,
    /// positions × embedding.
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
}

/// One encoder layer.
pub struct Layer<K: Kernel> {
    /// hidden → hidden.
    pub query: Packed<K>,
    /// hidden → 2 hidden: keys, then values. Apart from the query, because the last layer needs
    /// keys and values of all tokens but the query of one.
    pub key_value: Packed<K>,
    /// hidden → hidden, added to the residual.
    pub output: Packed<K>,
    /// After attention.
    pub attention_norm: Norm,
    /// What divides each channel before it is encoded for `query` and `key_value`, as reciprocals;
    /// empty if nothing does. See [`smooth`].
    pub smooth_input: Vec<f32>,
    /// The same for `inner`.
    pub smooth_inner: Vec<f32>,
    /// hidden → inner.
    pub inner: Packed<K>,
    /// inner → hidden, added to the residual.
    pub outer: Packed<K>,
    /// After the feed-forward layer.
    pub output_norm: Norm,
}

/// dense → activation → classifier.
pub struct Head<F: Kernel> {
    /// hidden → hidden.
    pub dense: Packed<F>,
    /// The family's nonlinearity.
    pub activation: Activation,
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
            packed.iter().map(|packed| packed.n_bytes()).sum::<usize>()
        });
        tables * size_of::<f32>() + project + head + layers.sum::<usize>()
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
}

/// An encoder layer as the files have it.
struct RawLayer {
    query: Tensors,
    key_value: Tensors,
    output: Tensors,
    attention_norm: Norm,
    inner: Tensors,
    outer: Tensors,
    output_norm: Norm,
}

impl RawLayer {
    /// Multiplies the weights that meet what [`smooth`] divides.
    fn scale(&mut self, factors: &Factors) {
        scale_inputs(&mut self.query.weights, &factors.input);
        scale_inputs(&mut self.key_value.weights, &factors.input);
        scale_inputs(&mut self.inner.weights, &factors.inner);
    }

    fn pack<K: Kernel>(&self, factors: Option<Factors>) -> Layer<K> {
        let reciprocals = |factors: Vec<f32>| factors.into_iter().map(f32::recip).collect();
        let (smooth_input, smooth_inner) = factors.map_or_else(Default::default, |factors| {
            (reciprocals(factors.input), reciprocals(factors.inner))
        });
        Layer {
            query: self.query.pack(),
            key_value: self.key_value.pack(),
            output: self.output.pack(),
            attention_norm: self.attention_norm.clone(),
            smooth_input,
            smooth_inner,
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
        let table = |part: &str| format!("{}embeddings.{part}.weight", self.names.prefix);
        let (words, places, kinds) = (
            table("word_embeddings"),
            table("position_embeddings"),
            table("token_type_embeddings"),
        );
        let project = if embedding == hidden {
            None
        } else {
            Some(self.linear(
                &format!("{}embeddings_project", self.names.prefix),
                hidden,
                embedding,
            )?)
        };
        Ok(Embeddings {
            words: self.weights.read(&words, &[vocab, embedding])?,
            positions: self.weights.read(&places, &[positions, embedding])?,
            types: if types == 0 {
                Vec::new()
            } else {
                self.weights.read(&kinds, &[types, embedding])?
            },
            width: embedding,
            rule: match family {
                Family::Roberta => PositionRule::BehindPadding(pad_id),
                Family::Bert | Family::Electra | Family::DistilBert => PositionRule::FromZero,
            },
            norm: self.norm(
                &format!("{}embeddings.LayerNorm", self.names.prefix),
                embedding,
            )?,
            project,
        })
    }

    fn layer(&mut self, layer: usize) -> Result<RawLayer, LoadError> {
        let &Config { hidden, inner, .. } = self.config;
        let names = self.names;
        let name = |part: &str| format!("{}{}{layer}.{part}", names.prefix, names.layers);
        let mut key_value = self.tensors(&name(names.key), hidden, hidden)?;
        let value = self.tensors(&name(names.value), hidden, hidden)?;
        key_value.weights.extend(value.weights);
        key_value.bias.extend(value.bias);
        Ok(RawLayer {
            query: self.tensors(&name(names.query), hidden, hidden)?,
            key_value,
            output: self.tensors(&name(names.attention_output), hidden, hidden)?,
            attention_norm: self.norm(&name(names.attention_norm), hidden)?,
            inner: self.tensors(&name(names.inner), inner, hidden)?,
            outer: self.tensors(&name(names.outer), hidden, inner)?,
            output_norm: self.norm(&name(names.output_norm), hidden)?,
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
        Ok(Head {
            dense: self.linear(dense, hidden, hidden)?,
            activation: self.names.head_activation,
            classifier: self.linear(classifier, n_labels, hidden)?,
        })
    }

    fn linear<K: Kernel>(
        &mut self,
        name: &str,
        n_out: usize,
        n_in: usize,
    ) -> Result<Packed<K>, LoadError> {
        Ok(self.tensors(name, n_out, n_in)?.pack())
    }

    fn tensors(&mut self, name: &str, n_out: usize, n_in: usize) -> Result<Tensors, LoadError> {
        let weight = format!("{name}.weight");
        Ok(Tensors {
            n_in,
            weights: self.weights.read(&weight, &[n_out, n_in])?,
            bias: self.weights.read(&format!("{name}.bias"), &[n_out])?,
        })
    }

    /// A layer norm, whose parameters checkpoints from TensorFlow call gamma and beta.
    fn norm(&mut self, name: &str, width: usize) -> Result<Norm, LoadError> {
        let legacy = self.weights.has(&format!("{name}.gamma"));
        let (weight, bias) = if legacy {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Ok(Norm {
            weight: self.weights.read(&format!("{name}.{weight}"), &[width])?,
            bias: self.weights.read(&format!("{name}.{bias}"), &[width])?,
            epsilon: self.config.epsilon,
        })
    }
}
