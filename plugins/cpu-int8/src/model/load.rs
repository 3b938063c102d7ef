//! From tensors by their family's names to layers: what [`Model::load`](super::Model::load) does.

use super::config::{Config, Family, LayerKind};
use super::names::{Names, OutputNorm, Projections};
use super::smooth::{Factors, scale_inputs};
use super::weights::Weights;
use super::{Embeddings, Head, Layer, LoadError, PositionRule};
use crate::encoder::pointwise::{Norm, Stream};
use crate::encoder::rotary::Rotary;
use crate::gemm::pack::Packed;
use crate::kernel::Kernel;
use crate::quant::narrow::Storage;
use std::sync::Arc;

/// A linear layer as the files have it: `[n_out][n_in]` and `n_out`.
struct Tensors {
    n_in: usize,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Tensors {
    fn pack<K: Kernel>(&self, storage: Storage) -> Packed<K> {
        Packed::new(storage, &self.weights, &self.bias, self.n_in)
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
pub(super) struct RawLayer {
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
    pub(super) fn scale(&mut self, factors: &Factors) {
        scale_inputs(&mut self.query.weights, &factors.input);
        scale_inputs(&mut self.key_value.weights, &factors.input);
        for inner in self.gate.iter_mut().chain([&mut self.inner]) {
            scale_inputs(&mut inner.weights, &factors.inner);
        }
    }

    pub(super) fn pack<K: Kernel>(&self, storage: Storage, factors: Option<Factors>) -> Layer<K> {
        let reciprocals = |factors: Vec<f32>| factors.into_iter().map(f32::recip).collect();
        let (smooth_input, smooth_inner) = factors.map_or_else(Default::default, |factors| {
            (reciprocals(factors.input), reciprocals(factors.inner))
        });
        Layer {
            query: self.query.pack(storage),
            key_value: self.key_value.pack(storage),
            window: self.window,
            rotary: self.rotary.clone(),
            output: self.output.pack(storage),
            attention_norm: self.attention_norm.clone(),
            smooth_input,
            smooth_inner,
            gate: self.gate.as_ref().map(|gate| gate.pack(storage)),
            inner: self.inner.pack(storage),
            outer: self.outer.pack(storage),
            output_norm: self.output_norm.clone(),
        }
    }
}

/// Reads the parts of a model by the names of its family.
pub(super) struct Loader<'a> {
    pub(super) weights: Weights,
    pub(super) names: Names,
    pub(super) config: &'a Config,
    pub(super) rotaries: Vec<Arc<Rotary>>,
}

impl Loader<'_> {
    pub(super) fn embeddings<F: Kernel>(&mut self) -> Result<Embeddings<F>, LoadError> {
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

    pub(super) fn layer(&mut self, layer: usize) -> Result<RawLayer, LoadError> {
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

    pub(super) fn head<F: Kernel>(&mut self) -> Result<Head<F>, LoadError> {
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

    /// A layer outside of the encoder's.
    fn linear<K: Kernel>(
        &mut self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<Packed<K>, LoadError> {
        Ok(self.tensors(name, n_out, n_in, bias)?.pack(Storage::Whole))
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
