//! Smoothing: what makes activations with outliers fit i8.
//!
//! A token's values share one scale, so a channel that is fifteen times larger than the median (they
//! exist in every BERT: channel 99 of MiniLM's layer 4) leaves the others four bits. Such channels
//! are the model's, not the text's. So each channel of a layer norm's result is divided by a factor
//! before it is quantised, and the weights that meet it are multiplied by it (Xiao and others 2023,
//! SmoothQuant): factor = (largest |value|)^¾.
//!
//! The largest values are found at load: a few rows of random tokens pass through the layer in f32.
//! Against real text of the same size the error is the same (MiniLM-L6, 128 pairs: 0.064 of the
//! first token's state beside 0.065; without smoothing 0.132). Attention's context and GELU's result
//! are left alone: their largest values differ from text to text, and smoothing them lost.

use crate::arena::Scratch;
use crate::encoder::{Queries, attend, embed, feed_forward};
use crate::kernel::Kernel;
use crate::model::{Embeddings, Layer, Shape};
use crate::quant::narrow::Storage;

/// Rows of the calibration, and tokens of each.
const N_ROWS: usize = 4;
const ROW_TOKENS: usize = 32;
/// The power of the largest value that becomes a factor: the rest of it stays in the activations.
const POWER: f32 = 0.75;

/// Random rows on their way through a model, in f32.
pub struct Calibration<F: Kernel> {
    kernel: F,
    shape: Shape,
    scratch: Scratch<F>,
    n_tokens: usize,
    /// The layer at hand, packed in f32; its memory is used again for the next.
    layer: Option<Layer<F>>,
}

/// Factors of a layer, one a channel.
pub struct Factors {
    /// Of what the layer reads.
    pub input: Vec<f32>,
    /// Of what its feed-forward part reads.
    pub inner: Vec<f32>,
}

impl<F: Kernel<Left = f32, Float = F>> Calibration<F> {
    /// Embeds the rows.
    pub fn new(kernel: F, shape: &Shape, embeddings: &Embeddings<F>) -> Self {
        let shape = &Shape {
            storage: Storage::Whole,
            ..*shape
        };
        let row_tokens = ROW_TOKENS.min(shape.row_tokens_max);
        let n_tokens = N_ROWS * row_tokens;
        let mut scratch = Scratch::new(shape, n_tokens, row_tokens);
        let mut random = Random(1);
        let vocab = embeddings.words.n_rows();
        let n_types = (embeddings.types.len() / embeddings.width).max(1);
        for row in 0..N_ROWS {
            let ids: Vec<u32> = (0..row_tokens).map(|_| random.below(vocab)).collect();
            // As in a pair: the first text, then the second.
            let kind = |token| u32::from(1 < n_types && row_tokens / 4 < token);
            let kinds: Vec<u32> = (0..row_tokens).map(kind).collect();
            embed::push_row(kernel, embeddings, &mut scratch, row, &ids, &kinds);
        }
        embed::finish_rows(kernel, embeddings, shape, &[], &mut scratch);
        Self {
            kernel,
            shape: *shape,
            scratch,
            n_tokens,
            layer: None,
        }
    }

    /// Passes the rows through a layer, and says what should smooth it. `pack` packs it, into the
    /// one before where there was one.
    pub fn pass(&mut self, pack: impl FnOnce(F, Option<Layer<F>>) -> Layer<F>) -> Factors {
        let layer = pack(self.kernel, self.layer.take());
        let factors = self.factors_of(&layer);
        self.layer = Some(layer);
        factors
    }

    fn factors_of(&mut self, layer: &Layer<F>) -> Factors {
        let (kernel, shape, n) = (self.kernel, &self.shape, self.n_tokens);
        let input = self.factors();
        attend(kernel, shape, layer, &mut self.scratch, n, Queries::All);
        let inner = self.factors();
        feed_forward(kernel, shape, layer, &[], &mut self.scratch, n);
        Factors { input, inner }
    }

    fn factors(&self) -> Vec<f32> {
        let mut largest = vec![0.0_f32; self.shape.hidden];
        // What the next linear layer reads, which need not be the residual stream.
        let read = &self.scratch.hidden_codes;
        for row in read.codes.chunks_exact(read.stride).take(self.n_tokens) {
            for (largest, v) in largest.iter_mut().zip(row) {
                *largest = largest.max(v.abs());
            }
        }
        largest.into_iter().map(factor).collect()
    }
}

/// A factor on a grid of quarter octaves, so that the last bits of a sum, which differ between
/// instruction sets, do not show. A channel that is never used, or not finite, is left alone.
fn factor(largest: f32) -> f32 {
    if !(1e-5..1e30).contains(&largest) {
        return 1.0;
    }
    ((POWER * 4.0 * largest.log2()).round() / 4.0).exp2()
}

/// A congruential generator: the same rows at every load.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n.max(1) as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_lie_on_a_grid_and_never_spoil_a_weight() {
        for (largest, expected) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (16.0, 8.0),
            (1.0 / 16.0, 0.125),
            (f32::NAN, 1.0),
            (f32::INFINITY, 1.0),
        ] {
            assert_eq!(factor(largest), expected, "{largest}");
        }
        assert_eq!(factor(3.0), factor(3.001));
    }
}
