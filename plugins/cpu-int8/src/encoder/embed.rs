//! From token ids to the first residual stream: word + position + type, layer norm, ELECTRA's
//! projection; or DeBERTa's, and then the norm.

use crate::arena::Scratch;
use crate::encoder::pointwise::{NormAndEncode, add_to, layer_norm};
use crate::gemm::Linear;
use crate::gemm::finish::Finish;
use crate::kernel::lanes::Lanes;
use crate::kernel::{Inside, Kernel, Op};
use crate::model::{Embeddings, PositionRule, Shape};

/// Whether every id and type of a row is in its table. One that is not fails its row alone.
pub fn is_known<F: Kernel>(
    embeddings: &Embeddings<F>,
    input_ids: &[u32],
    type_ids: &[u32],
) -> bool {
    let (vocab, types) = (
        embeddings.words.n_rows(),
        embeddings.types.len() / embeddings.width,
    );
    // A model with one type or none does not look at them: tokenizers of RoBERTa's relatives number
    // the second text 1, and `transformers` does not pass that on.
    input_ids.iter().all(|&id| (id as usize) < vocab)
        && (types <= 1 || type_ids.iter().all(|&t| (t as usize) < types))
}

/// Appends a row to the micro-batch in `scratch`: its embeddings to the residual stream, `row` to
/// its rows.
///
/// The caller has checked that the ids are known, the positions suffice and the tokens fit.
pub fn push_row<K: Kernel>(
    kernel: K,
    embeddings: &Embeddings<K::Float>,
    scratch: &mut Scratch<K>,
    row: usize,
    input_ids: &[u32],
    type_ids: &[u32],
) {
    let width = embeddings.width;
    let start = scratch.offsets.last().copied().unwrap_or(0);
    let end = start + input_ids.len();
    if scratch.offsets.is_empty() {
        scratch.offsets.push(0);
    }
    scratch.offsets.push(end);
    scratch.rows.push(row);
    let stream = if embeddings.project.is_some() {
        &mut scratch.embedded
    } else {
        &mut scratch.hidden
    };
    let out = &mut stream[start * width..end * width];
    kernel.float().vectorize(SumAndNorm {
        embeddings,
        input_ids,
        type_ids,
        out,
    });
}

/// Makes the micro-batch that [`push_row`] gathered ready for the first layer.
/// `smoothing` is the first layer's.
pub fn finish_rows<K: Kernel>(
    kernel: K,
    embeddings: &Embeddings<K::Float>,
    shape: &Shape,
    smoothing: &[f32],
    s: &mut Scratch<K>,
) {
    let n_rows = s.offsets.last().copied().unwrap_or(0);
    if let Some(project) = &embeddings.project {
        let (float, width, codes) = (kernel.float(), embeddings.width, &mut s.float_codes);
        codes.stride = width;
        float.vectorize(NormAndEncode {
            norm: None,
            smoothing: &[],
            aside: &mut [],
            x: &mut s.embedded,
            width,
            n_rows,
            codes,
        });
        Linear {
            left: codes,
            rows: 0..n_rows,
            weights: project,
            finish: Finish::Store,
            sums: &mut s.float_tile,
            out: &mut s.hidden[..],
        }
        .run(float);
    }
    let (width, codes) = (shape.hidden, &mut s.hidden_codes);
    kernel.vectorize(NormAndEncode {
        norm: embeddings.norm_last.then_some(&embeddings.norm),
        smoothing,
        aside: &mut s.aside,
        x: &mut s.hidden,
        width,
        n_rows,
        codes,
    });
}

struct SumAndNorm<'a, F: Kernel> {
    embeddings: &'a Embeddings<F>,
    input_ids: &'a [u32],
    type_ids: &'a [u32],
    out: &'a mut [f32],
}

impl<F: Kernel + Lanes> Op<F> for SumAndNorm<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, inside: &Inside<F>) {
        let Self {
            embeddings,
            input_ids,
            type_ids,
            out,
        } = self;
        let width = embeddings.width;
        let n_types = embeddings.types.len() / width;
        let mut next = 0;
        for ((&id, &kind), out) in input_ids
            .iter()
            .zip(type_ids)
            .zip(out.chunks_exact_mut(width))
        {
            embeddings.words.row(id as usize, out);
            let position = match embeddings.rule {
                PositionRule::BehindPadding(pad) if id == pad => Some(pad as usize),
                PositionRule::BehindPadding(pad) => Some(pad as usize + 1 + next),
                PositionRule::FromZero => Some(next),
                PositionRule::InAttention => None,
            };
            next += usize::from(embeddings.rule != PositionRule::BehindPadding(id));
            let kind = match n_types {
                0 => None,
                1 => Some(0),
                _ => Some(kind as usize),
            };
            let positions = position.map(|at| &embeddings.positions[at * width..][..width]);
            let types = kind.map(|at| &embeddings.types[at * width..][..width]);
            // In the order of BERT in `transformers`: word + type, then + position. Another order moves the last bits.
            if let Some(types) = types {
                add_to(out, types);
            }
            if let Some(positions) = positions {
                add_to(out, positions);
            }
            if !embeddings.norm_last {
                layer_norm(inside.kernel(), &embeddings.norm, out);
            }
        }
    }
}
