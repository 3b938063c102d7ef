//! From tensors by their family's names to layers: what [`Model::load`](super::Model::load) does.

pub(super) mod distances;

use self::distances::DistanceTable;
use super::config::{Config, Family, LayerKind};
use super::names::{Names, OutputNorm, Projections};
use super::smooth::Factors;
use super::weights::Weights;
use super::words::{Words, WordsIn};
use super::{Embeddings, Head, Layer, LoadError, PositionRule};
use crate::encoder::pointwise::{Norm, Stream};
use crate::encoder::relative::{Relative, Tables};
use crate::encoder::rotary::Rotary;
use crate::gemm::pack::Packed;
use crate::kernel::Kernel;
use crate::kernel::lanes::Lanes;
use crate::quant::narrow::Storage;
use crate::threads::lock;
use std::sync::{Arc, Mutex};

/// A linear layer as the files have it: `[n_out][n_in]` and `n_out`.
struct Tensors {
    n_in: usize,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Tensors {
    /// Packs them, each input multiplied by its factor if there are any, into `room` if there is some.
    fn pack<K: Kernel>(
        &self,
        kernel: K,
        storage: Storage,
        factors: &[f32],
        room: Option<Packed<K>>,
    ) -> Packed<K> {
        let mut packed = room.unwrap_or_else(|| Packed::empty(storage, self.bias.len(), self.n_in));
        packed.fill(kernel, &self.weights, factors, &self.bias);
        packed
    }
}

/// An encoder layer as the files have it.
pub(super) struct RawLayer {
    query: Tensors,
    key_value: Tensors,
    window: Option<usize>,
    rotary: Option<Arc<Rotary>>,
    relative: Option<Tables>,
    scale: f32,
    output: Tensors,
    attention_norm: Norm,
    gate: Option<Tensors>,
    inner: Tensors,
    outer: Tensors,
    output_norm: Norm,
}

impl RawLayer {
    /// Packs it, into another layer of the same shape if there is one; what [`smooth`](super::smooth)
    /// divides by factors, the weights are multiplied by.
    pub(super) fn pack<K: Kernel>(
        &self,
        kernel: K,
        storage: Storage,
        factors: Option<Factors>,
        room: Option<Layer<K>>,
    ) -> Layer<K> {
        let (input, inner) = match &factors {
            Some(factors) => (&factors.input[..], &factors.inner[..]),
            None => (&[][..], &[][..]),
        };
        let [query, key_value, output, gate, inner_room, outer] = match room {
            Some(room) => [
                Some(room.query),
                Some(room.key_value),
                Some(room.output),
                room.gate,
                Some(room.inner),
                Some(room.outer),
            ],
            None => [const { None }; 6],
        };
        let reciprocals = |factors: &[f32]| factors.iter().map(|factor| factor.recip()).collect();
        Layer {
            query: self.query.pack(kernel, storage, input, query),
            key_value: self.key_value.pack(kernel, storage, input, key_value),
            window: self.window,
            rotary: self.rotary.clone(),
            relative: self
                .relative
                .as_ref()
                .map(|tables| Relative::new(kernel.attend(), tables)),
            scale: self.scale,
            output: self.output.pack(kernel, storage, &[], output),
            attention_norm: self.attention_norm.clone(),
            smooth_input: reciprocals(input),
            smooth_inner: reciprocals(inner),
            gate: self
                .gate
                .as_ref()
                .map(|tensors| tensors.pack(kernel, storage, inner, gate)),
            inner: self.inner.pack(kernel, storage, inner, inner_room),
            outer: self.outer.pack(kernel, storage, &[], outer),
            output_norm: self.output_norm.clone(),
        }
    }
}

/// Reads the parts of a model by the names of its family; layers, on any thread.
pub(super) struct Loader<'a> {
    pub(super) weights: Weights,
    pub(super) names: Names,
    pub(super) config: &'a Config,
    pub(super) rotaries: Vec<Arc<Rotary>>,
    /// Each layer's, if it has one.
    pub(super) layer_rotaries: Vec<Option<Arc<Rotary>>>,
    /// Weights in f32 that were packed: the next layer's go where they were. Fresh memory would
    /// cost more than reading does, and the allocator keeps what it got in pieces.
    pub(super) spare: Mutex<Vec<Vec<f32>>>,
    /// What relative attention projects, if the model has it.
    pub(super) distances: Option<DistanceTable>,
}

impl Loader<'_> {
    /// Makes the rotary tables of all layers, which are read behind it.
    pub(super) fn make_rotaries(&mut self) {
        for kind in &self.config.layers {
            let rotary = kind.rope_theta.map(|theta| self.rotary(theta));
            self.layer_rotaries.push(rotary);
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

    /// `words_in` is how the table of words is to be held, `n_threads` how many read it.
    pub(super) fn embeddings<F: Kernel<Float = F> + Lanes>(
        &self,
        float: F,
        words_in: WordsIn,
        n_threads: usize,
    ) -> Result<Embeddings<F>, LoadError> {
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
                float,
                &format!("{}{}", self.names.prefix, self.names.embedding_project),
                hidden,
                embedding,
                !self.names.project_first,
            )?)
        };
        let rule = match family {
            _ if !self.config.position_table => PositionRule::InAttention,
            Family::Roberta => PositionRule::BehindPadding(pad_id),
            _ => PositionRule::FromZero,
        };
        let words = self.weights.tensor(&words, &[vocab, embedding])?;
        Ok(Embeddings {
            words: Words::read(float, &words, embedding, words_in, n_threads)?,
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
                if self.names.project_first {
                    hidden
                } else {
                    embedding
                },
                Stream::Normed,
            )?,
            norm_last: self.names.project_first && project.is_some(),
            project,
        })
    }

    pub(super) fn layer<F>(&self, float: F, layer: usize) -> Result<RawLayer, LoadError>
    where
        F: Kernel<Left = f32, Element = f32>,
    {
        let &Config {
            hidden,
            n_heads,
            inner,
            biases,
            score_terms,
            ..
        } = self.config;
        let names = self.names;
        let of =
            |layer: usize, part: &str| format!("{}{}{layer}.{part}", names.prefix, names.layers);
        let name = |part: &str| of(layer, part);
        let (query, key_value) = self.projections(&name)?;
        let relative = self.relative(float, &name, &query, &key_value)?;
        let LayerKind { window, .. } = self.config.layers[layer];
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
            rotary: self.layer_rotaries[layer].clone(),
            relative,
            scale: 1.0 / ((hidden / n_heads * score_terms) as f32).sqrt(),
            output: self.tensors(&output, hidden, hidden, biases.attention)?,
            attention_norm: self.norm(&name(names.attention_norm), hidden, stream)?,
            gate: names.gated.then(|| self.split_off(&mut inner_rows, inner)),
            inner: inner_rows,
            outer: self.tensors(&name(names.outer), hidden, inner, biases.inner)?,
            output_norm: self.norm(&output_norm, hidden, output_stream)?,
        })
    }

    /// A layer's query, and its key and value as one.
    fn projections(&self, name: &impl Fn(&str) -> String) -> Result<(Tensors, Tensors), LoadError> {
        let (hidden, bias) = (self.config.hidden, self.config.biases.attention);
        match self.names.projections {
            Projections::Fused(fused) => {
                let mut query = self.tensors(&name(fused), 3 * hidden, hidden, bias)?;
                let key_value = self.split_off(&mut query, hidden);
                Ok((query, key_value))
            }
            Projections::Three([query, key, value]) => {
                // Memory only for what the files do hold.
                let of_key = format!("{}.weight", name(key));
                self.weights.tensor(&of_key, &[hidden, hidden])?;
                let mut key_value = Tensors {
                    n_in: hidden,
                    weights: self.room(2 * hidden * hidden),
                    bias: Vec::with_capacity(2 * hidden),
                };
                for part in [key, value] {
                    self.append(&name(part), hidden, bias, &mut key_value)?;
                }
                Ok((self.tensors(&name(query), hidden, hidden, bias)?, key_value))
            }
        }
    }

    pub(super) fn head<F: Kernel>(&self, float: F) -> Result<Head<F>, LoadError> {
        let hidden = self.config.hidden;
        let (dense, classifier) = (self.names.head_dense, self.names.classifier);
        let weight = format!("{classifier}.weight");
        if !self.weights.has(&weight) {
            return Err(LoadError::Bad(format!(
                "{weight}: no such tensor, so it has no head that scores: name a reranker or a sequence classifier, not \
                 the model that it was made of"
            )));
        }
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
            dense: self.linear(float, dense, hidden, hidden, self.config.biases.head)?,
            activation: head.activation.unwrap_or(self.names.head_activation),
            norm: norm
                .map(|norm| self.norm(norm, hidden, Stream::Normed))
                .transpose()?,
            classifier: self.linear(float, classifier, n_labels, hidden, true)?,
        })
    }

    /// A layer outside of the encoder's.
    fn linear<K: Kernel>(
        &self,
        kernel: K,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<Packed<K>, LoadError> {
        let tensors = self.tensors(name, n_out, n_in, bias)?;
        Ok(tensors.pack(kernel, Storage::Whole, &[], None))
    }

    fn tensors(
        &self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<Tensors, LoadError> {
        let mut tensors = Tensors {
            n_in,
            weights: Vec::new(),
            bias: Vec::new(),
        };
        self.append(name, n_out, bias, &mut tensors)?;
        Ok(tensors)
    }

    /// Appends `n_out` outputs to `tensors`.
    fn append(
        &self,
        name: &str,
        n_out: usize,
        bias: bool,
        tensors: &mut Tensors,
    ) -> Result<(), LoadError> {
        let name_of_weights = format!("{name}.weight");
        let found = self
            .weights
            .tensor(&name_of_weights, &[n_out, tensors.n_in])?;
        if tensors.weights.capacity() == 0 {
            tensors.weights = self.room(found.n_values());
        }
        found.read(0..found.n_values(), &mut tensors.weights)?;
        let bias = self.bias(&format!("{name}.bias"), n_out, bias)?;
        tensors.bias.extend(bias);
        Ok(())
    }

    /// Keeps the first `n_out` outputs and returns the others.
    fn split_off(&self, tensors: &mut Tensors, n_out: usize) -> Tensors {
        let others = &tensors.weights[n_out * tensors.n_in..];
        let mut weights = self.room(others.len());
        weights.extend_from_slice(others);
        tensors.weights.truncate(n_out * tensors.n_in);
        Tensors {
            n_in: tensors.n_in,
            weights,
            bias: tensors.bias.split_off(n_out),
        }
    }

    /// An empty vector with room for `n_values`: the smallest spare one that has it.
    fn room(&self, n_values: usize) -> Vec<f32> {
        let mut spare = lock(&self.spare);
        let large_enough = spare.iter().enumerate();
        let large_enough = large_enough.filter(|(_, room)| n_values <= room.capacity());
        let smallest = large_enough.min_by_key(|(_, room)| room.capacity());
        match smallest.map(|(at, _)| at) {
            Some(at) => spare.swap_remove(at),
            None => Vec::with_capacity(n_values),
        }
    }

    /// Keeps the memory of a layer that was packed.
    pub(super) fn recycle(&self, layer: RawLayer) {
        let RawLayer {
            query,
            key_value,
            output,
            gate,
            inner,
            outer,
            ..
        } = layer;
        let tensors = [query, key_value, output, inner, outer];
        let mut spare = lock(&self.spare);
        for mut tensors in tensors.into_iter().chain(gate) {
            tensors.weights.clear();
            spare.push(tensors.weights);
        }
    }

    /// A bias that the files hold, or zeros for one that they do not.
    fn bias(&self, name: &str, n_out: usize, held: bool) -> Result<Vec<f32>, LoadError> {
        if held {
            self.weights.read(name, &[n_out])
        } else {
            Ok(vec![0.0; n_out])
        }
    }

    /// A layer norm, whose parameters checkpoints from TensorFlow call gamma and beta.
    fn norm(&self, name: &str, width: usize, stream: Stream) -> Result<Norm, LoadError> {
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
