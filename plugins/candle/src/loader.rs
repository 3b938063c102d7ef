//! Parts of models out of tensors by name.

use crate::block::Vector;
use crate::block::activation::Activation;
use crate::block::attention::QueryKeyValue;
use crate::block::embedding::Table;
use crate::block::head::Head;
use crate::block::linear::Linear;
use crate::block::norm::Norm;
use crate::config::Config;
use crate::numbers::{Dtype, Held, Numbers};
use crate::raw::{Piece, RawLinear};
use crate::weights::{Kind, Weights};
use backend_api::Fault;
use candle_core::{DType, Device, Result as Computed, Tensor};
use serde::Deserialize;
use std::fmt;
use std::path::Path;

/// Options of the open request, as JSON.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// The token whose logit says that a document is relevant, of a model that generates.
    pub(crate) yes_token: Option<Token>,
    /// The token whose logit says that it is not; without it the first one's logit is the score.
    pub(crate) no_token: Option<Token>,
    /// Computes in f64 by candle's own operations: what the fused loops are compared with.
    pub(crate) reference: bool,
    /// With dtype f16: computes in it, by candle's own operations, as candle-metal does. So that is tested where there is
    /// no such GPU.
    pub(crate) halves: bool,
    /// On CUDA: whether small batches are CUDA graphs. Left open, those for which it pays.
    pub(crate) graphs: Option<bool>,
    /// The GGUF file that is read, where there are several, or other weights beside it.
    pub(crate) file: Option<String>,
    /// Whether the host has read the tokens in the model's files.
    #[serde(skip)]
    are_hosts: bool,
}

/// A token by its id, or by its text in tokenizer.json.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Token {
    Id(u32),
    Text(String),
}

impl Options {
    /// With the tokens that the host names, where the options name none.
    pub(crate) fn or_answers(self, yes: Option<u32>, no: Option<u32>) -> Self {
        if self.yes_token.is_some() || self.no_token.is_some() {
            return self;
        }
        Self {
            yes_token: yes.map(Token::Id),
            no_token: no.map(Token::Id),
            are_hosts: true,
            ..self
        }
    }

    /// What is wrong with the tokens, as the mistake of whoever named them.
    pub(crate) fn wrong_answers(&self, why: &str) -> Fault {
        let are_named = self.yes_token.is_some() || self.no_token.is_some();
        match are_named && !self.are_hosts {
            true => Fault::bad_request(format!("options: {why}")),
            false => Fault::bad_model(format!(
                "its files name the tokens by which it answers, and they are wrong: {why}"
            )),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// What a family reads its parts with.
pub(crate) struct Loader<'a> {
    pub(crate) config: &'a Config,
    pub(crate) weights: &'a Weights,
    /// The model's folder.
    pub(crate) dir: &'a Path,
    pub(crate) numbers: &'a Numbers,
    pub(crate) options: &'a Options,
    /// Tokens of the longest row that the host will send.
    pub(crate) row_tokens_max: usize,
}

impl Loader<'_> {
    /// A linear layer's tensors: `name.weight`, and `name.bias` if it has one. Weights stay as they are stored, if
    /// that is what was asked for.
    pub(crate) fn raw(
        &self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<RawLinear, Fault> {
        let weight = format!("{name}.weight");
        let stored = self.weights.stored(&weight, &[n_out, n_in])?;
        self.weights.count(stored.kind, n_out * n_in);
        let piece = match self.keeps(&weight, stored.kind, n_in)? {
            true => Piece::Stored(stored),
            false => Piece::Values(stored.decoded()?),
        };
        self.with_bias(name, n_out, n_in, bias, piece)
    }

    /// Whether a layer that is `n_in` wide is held in the type that it is stored in. What was quantised is not
    /// quantised to another type: it would lose twice.
    fn keeps(&self, name: &str, kind: &Kind, n_in: usize) -> Result<bool, Fault> {
        let dtype = self.numbers.dtype;
        match dtype.held(n_in) {
            _ if dtype == Dtype::Stored => Ok(true),
            Held::Blocks(_) if kind.is_float() => Ok(false),
            Held::Blocks(_) if dtype.is_of(kind.ggml) => Ok(true),
            Held::Blocks(_) => Err(Fault::unsupported(format!(
                "{name}: it is stored in {}, and would lose again what {} rounds away; auto holds it as it is stored, \
                 f32, f16 and bf16 widen it",
                kind.name,
                dtype.name()
            ))),
            Held::Float(_) => Ok(false),
        }
    }

    fn with_bias(
        &self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
        piece: Piece,
    ) -> Result<RawLinear, Fault> {
        let bias = match bias {
            true => self.weights.read(&format!("{name}.bias"), &[n_out])?,
            false => Vec::new(),
        };
        Ok(RawLinear {
            n_in,
            weights: vec![piece],
            bias,
        })
    }

    /// A linear layer of the encoder, held as was asked for.
    pub(crate) fn linear(
        &self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<Linear, Fault> {
        self.held(self.raw(name, n_out, n_in, bias)?)
    }

    /// Holds a layer's tensors as was asked for.
    pub(crate) fn held(&self, raw: RawLinear) -> Result<Linear, Fault> {
        self.hold(self.numbers.dtype.held(raw.n_in), raw)
    }

    /// The layers that attention begins with. On CUDA they are parts of one.
    pub(crate) fn query_key_value(
        &self,
        query: RawLinear,
        key_value: RawLinear,
    ) -> Result<QueryKeyValue, Fault> {
        #[cfg(feature = "cuda")]
        if self.numbers.device.is_cuda() {
            let n_queries = query.n_out();
            let together = self.held(RawLinear::join([query, key_value]))?;
            return made(QueryKeyValue::parts_of(together, n_queries));
        }
        Ok(QueryKeyValue {
            query: self.held(query)?,
            key_value: self.held(key_value)?,
            #[cfg(feature = "cuda")]
            together: None,
        })
    }

    /// A linear layer of the head, which is neither halved nor quantised.
    pub(crate) fn whole(
        &self,
        name: &str,
        n_out: usize,
        n_in: usize,
        bias: bool,
    ) -> Result<Linear, Fault> {
        let values = self
            .weights
            .read(&format!("{name}.weight"), &[n_out, n_in])?;
        self.hold_whole(self.with_bias(name, n_out, n_in, bias, Piece::Values(values))?)
    }

    /// The same of tensors that were read.
    pub(crate) fn hold_whole(&self, raw: RawLinear) -> Result<Linear, Fault> {
        let numbers = Numbers {
            compute: self.numbers.exact(),
            ..self.numbers.clone()
        };
        self.hold_as(&numbers, Held::Float(DType::F32), raw)
    }

    fn hold(&self, held: Held, raw: RawLinear) -> Result<Linear, Fault> {
        self.hold_as(self.numbers, held, raw)
    }

    fn hold_as(&self, numbers: &Numbers, held: Held, raw: RawLinear) -> Result<Linear, Fault> {
        let bias = match raw.bias.is_empty() {
            true => None,
            false => Some(self.vector(raw.bias)?),
        };
        Linear::new(numbers, held, raw.weights, raw.n_in, bias)
    }

    pub(crate) fn vector(&self, values: Vec<f32>) -> Result<Vector, Fault> {
        made(Vector::new(self.numbers, values))
    }

    /// A layer norm, under its own names or under those of TensorFlow's checkpoints.
    pub(crate) fn layer_norm(
        &self,
        name: &str,
        n: usize,
        epsilon: f32,
        bias: bool,
    ) -> Result<Norm, Fault> {
        let legacy = self.weights.has(&format!("{name}.gamma"));
        let [weight_name, bias_name] = match legacy {
            true => ["gamma", "beta"],
            false => ["weight", "bias"],
        };
        let read = |part| self.vector(self.weights.read(&format!("{name}.{part}"), &[n])?);
        let bias = bias.then(|| read(bias_name)).transpose()?;
        Ok(Norm::new(read(weight_name)?, bias, epsilon, true))
    }

    /// A norm without mean and bias.
    pub(crate) fn rms_norm(&self, name: &str, n: usize, epsilon: f32) -> Result<Norm, Fault> {
        let weight = self.weights.read(&format!("{name}.weight"), &[n])?;
        Ok(Norm::new(self.vector(weight)?, None, epsilon, false))
    }

    /// A table of words: the largest tensor of most models, so held as it is stored, or in halves if linear layers
    /// are less than f32.
    pub(crate) fn words(&self, name: &str, n: usize, width: usize) -> Result<Table, Fault> {
        if self.numbers.dtype == Dtype::Stored {
            let stored = self.weights.stored(name, &[n, width])?;
            let device = &self.numbers.device;
            let blocks = made(stored.kind.blocks(&stored.bytes, width, device))?;
            return Ok(Table::of_blocks(blocks, self.numbers.compute));
        }
        let values = self.weights.read(name, &[n, width])?;
        let dtype = self.numbers.dtype.words();
        if dtype == DType::F16
            && let Some(value) = values.iter().find(|value| 65_504.0 < value.abs())
        {
            return Err(Fault::unsupported(format!(
                "{name}: {value} is beyond what f16 holds; open it in f32 or bf16"
            )));
        }
        let table = || {
            Tensor::from_vec(values, (n, width), &Device::Cpu)?
                .to_dtype(dtype)?
                .to_device(&self.numbers.device)
        };
        Ok(Table::new(made(table())?, self.numbers.compute))
    }

    /// A small table, in what is computed in.
    pub(crate) fn table(&self, name: &str, n: usize, width: usize) -> Result<Table, Fault> {
        let values = self.weights.read(name, &[n, width])?;
        let table = made(self.numbers.tensor_of(values, (n, width)))?;
        Ok(Table::new(table, self.numbers.compute))
    }

    /// A table of `n` positions. llama.cpp's converter cuts off the first `n_unused`, which no token has; zeros
    /// stand in for them.
    pub(crate) fn positions(
        &self,
        name: &str,
        n: usize,
        n_unused: usize,
        width: usize,
    ) -> Result<Table, Fault> {
        let n_left = n.saturating_sub(n_unused);
        if !self.weights.are_llama_cpp() || *self.weights.shape(name)? != [n_left, width] {
            return self.table(name, n, width);
        }
        let mut values = vec![0.0; (n - n_left) * width];
        values.extend(self.weights.read(name, &[n_left, width])?);
        let table = made(self.numbers.tensor_of(values, (n, width)))?;
        Ok(Table::new(table, self.numbers.compute))
    }

    /// Labels: what the configuration says, or else the classifier's rows.
    pub(crate) fn n_labels(&self, classifier: &str) -> Result<usize, Fault> {
        let weight = format!("{classifier}.weight");
        let shape = self.weights.shape(&weight).map_err(|missing| {
            Fault::bad_model(format!("{}: it has no head that scores", missing.text))
        })?;
        match (self.config.n_labels()?, shape) {
            (Some(said), _) => Ok(said),
            (None, &[rows, _]) if 0 < rows => Ok(rows),
            (None, shape) => Err(Fault::bad_model(format!(
                "{weight}: its shape is {shape:?}, not labels × hidden"
            ))),
        }
    }

    /// dense → activation → classifier: the head of most encoders.
    pub(crate) fn head(
        &self,
        dense: &str,
        activation: Activation,
        classifier: &str,
        hidden: usize,
    ) -> Result<(Head, usize), Fault> {
        let n_labels = self.n_labels(classifier)?;
        let head = Head {
            dense: Some(self.whole(dense, hidden, hidden, true)?),
            activation,
            norm: None,
            classifier: self.whole(classifier, n_labels, hidden, true)?,
        };
        Ok((head, n_labels))
    }
}

/// What candle makes while a model is loaded: it fails for want of memory, or by a mistake of ours.
pub(crate) fn made<T>(result: Computed<T>) -> Result<T, Fault> {
    result.map_err(|error| {
        #[cfg(feature = "cuda")]
        let code = crate::cuda::code_while_loading(&error);
        #[cfg(not(feature = "cuda"))]
        let code = backend_api::FaultCode::Internal;
        Fault::new(code, format!("candle, while loading: {error}"))
    })
}
