//! Encoder and decoder layers: attention and a feed-forward layer, with norms behind them or before them.

use super::activation::Activation;
use super::attention::{Attention, Distances};
use super::linear::Linear;
use super::norm::Norm;
use crate::rows::Rows;
use candle_core::{Result, Tensor};

/// Two linear layers and a nonlinearity.
pub(crate) struct FeedForward {
    /// Twice as many outputs if gated: what is activated, then what it is multiplied with.
    pub(crate) inner: Linear,
    pub(crate) outer: Linear,
    pub(crate) activation: Activation,
    pub(crate) gated: bool,
}

impl FeedForward {
    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        if self.gated {
            self.inner.gated(x, self.activation)
        } else {
            self.inner.activated(x, self.activation)
        }
    }
}

/// A layer.
pub(crate) struct Layer {
    pub(crate) attention: Attention,
    /// Behind attention's addition; before attention, if norms come first. ModernBERT's first layer has
    /// none.
    pub(crate) attention_norm: Option<Norm>,
    pub(crate) feed_forward: FeedForward,
    pub(crate) output_norm: Norm,
}

/// Which cells a layer is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    All,
    /// The one of each row that the head reads: what the last layer of most encoders is asked for.
    Picks,
}

impl Layer {
    /// A layer whose norms stand behind its additions, as BERT's.
    pub(crate) fn post(
        &self,
        x: &Tensor,
        rows: &Rows,
        distances: Option<&Distances>,
        wanted: Wanted,
    ) -> Result<Tensor> {
        let queries = match wanted {
            Wanted::All => x.clone(),
            Wanted::Picks => rows.picked(x)?,
        };
        let mixed = self.attention.mix(&queries, x, rows, distances)?;
        let output = &self.attention.output;
        let x = match &self.attention_norm {
            Some(norm) => norm.behind(output, &mixed, &queries)?,
            None => super::add(output.forward(&mixed)?, &queries)?,
        };
        let inner = self.feed_forward.inner(&x)?;
        self.output_norm
            .behind(&self.feed_forward.outer, &inner, &x)
    }

    /// A layer whose norms come first: the stream is never normed itself.
    pub(crate) fn pre(
        &self,
        stream: Tensor,
        rows: &Rows,
        distances: Option<&Distances>,
        wanted: Wanted,
    ) -> Result<Tensor> {
        let (stream, mixed) = self.look(stream, rows, distances, wanted)?;
        let output = &self.attention.output;
        let (stream, normed) = self.output_norm.beside(output, &mixed, stream)?;
        let inner = self.feed_forward.inner(&normed)?;
        self.feed_forward.outer.add_to(stream, &inner)
    }

    /// The attending half of a layer whose norms come first.
    pub(crate) fn attend(
        &self,
        stream: Tensor,
        rows: &Rows,
        distances: Option<&Distances>,
        wanted: Wanted,
    ) -> Result<Tensor> {
        let (stream, mixed) = self.look(stream, rows, distances, wanted)?;
        self.attention.output.add_to(stream, &mixed)
    }

    /// The stream's cells that are wanted, and what their heads bring together.
    fn look(
        &self,
        stream: Tensor,
        rows: &Rows,
        distances: Option<&Distances>,
        wanted: Wanted,
    ) -> Result<(Tensor, Tensor)> {
        let normed = match &self.attention_norm {
            Some(norm) => norm.forward(&stream)?,
            // The stream will be added to in place.
            None => stream.copy()?,
        };
        let (queries, stream) = match wanted {
            Wanted::All => (normed.clone(), stream),
            Wanted::Picks => (rows.picked(&normed)?, rows.picked(&stream)?),
        };
        let mixed = self.attention.mix(&queries, &normed, rows, distances)?;
        Ok((stream, mixed))
    }

    /// Its feed-forward half.
    pub(crate) fn feed(&self, stream: Tensor) -> Result<Tensor> {
        let inner = self
            .feed_forward
            .inner(&self.output_norm.forward(&stream)?)?;
        self.feed_forward.outer.add_to(stream, &inner)
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let feed_forward = [&self.feed_forward.inner, &self.feed_forward.outer];
        self.attention.linears().into_iter().chain(feed_forward)
    }

    pub(crate) fn n_bytes(&self) -> usize {
        let feed_forward = [&self.feed_forward.inner, &self.feed_forward.outer];
        let linears = feed_forward.map(Linear::n_bytes).iter().sum::<usize>();
        linears + self.attention.n_bytes() + self.output_norm.n_bytes()
    }

    /// Values of a cell inside the feed-forward layer.
    pub(crate) fn n_inner(&self) -> usize {
        self.feed_forward.inner.n_out()
    }

    /// Bytes that its largest product takes for its weights.
    pub(crate) fn n_product_bytes(&self) -> usize {
        self.linears()
            .map(Linear::n_product_bytes)
            .max()
            .unwrap_or(0)
    }
}
