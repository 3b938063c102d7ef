//! The steps between products on CPUs, in f32: one pass over memory each, in place where that can be, and
//! on the calling thread alone. candle's own elementwise operations are not used on CPUs, because above
//! 65,536 values they share one pool of spinning threads, as many as the machine has cores.

use super::activation::Activation;
use super::attention::Keys;
use super::loops;
use super::rotary::Angles;
use candle_core::{
    CpuStorage, CustomOp1, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Shape, bail,
};
use pulp::{Arch, Simd, WithSimd};

/// The values of a contiguous tensor.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused step on a tensor that is not contiguous"),
    }
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("a fused step in a tensor that is not contiguous f32"),
    }
}

/// A step's loop over its slices, compiled for each generation of SIMD.
macro_rules! vectorized {
    (|$($name:ident: $type:ty),*| -> $output:ty $body:block) => {{
        struct Step<'a> { $($name: $type,)* lifetime: std::marker::PhantomData<&'a ()> }
        impl<'a> WithSimd for Step<'a> {
            type Output = $output;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> $output {
                let Step { $($name,)* .. } = self;
                $body
            }
        }
        Arch::new().dispatch(Step { $($name,)* lifetime: std::marker::PhantomData })
    }};
}

/// x += y + bias.
pub(super) struct Add<'a> {
    pub(super) bias: &'a [f32],
}

impl InplaceOp2 for Add<'_> {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let (x, y) = (slice_mut(x, x_layout)?, slice(y, y_layout)?);
        let width = x_layout.dims().last().copied().unwrap_or(1);
        let bias = self.bias;
        vectorized!(
            |x: &'a mut [f32], y: &'a [f32], bias: &'a [f32], width: usize| -> () {
                for (x, y) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                    loops::add_bias(x, y);
                    loops::add_bias(x, bias);
                }
            }
        );
        Ok(())
    }
}

/// x = activation(x + bias).
pub(super) struct Activate<'a> {
    pub(super) bias: &'a [f32],
    pub(super) activation: Activation,
}

impl InplaceOp1 for Activate<'_> {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let x = slice_mut(x, layout)?;
        let width = layout.dims().last().copied().unwrap_or(1);
        let (bias, activation) = (self.bias, self.activation);
        vectorized!(|x: &'a mut [f32],
                     bias: &'a [f32],
                     width: usize,
                     activation: Activation|
         -> () {
            for x in x.chunks_exact_mut(width) {
                loops::add_bias(x, bias);
                loops::activate(activation, x);
            }
        });
        Ok(())
    }
}

/// Of rows (a, b) of one width: activation(a) · b.
pub(super) struct Gate<'a> {
    pub(super) bias: &'a [f32],
    pub(super) activation: Activation,
}

impl CustomOp1 for Gate<'_> {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, twice) = layout.shape().dims2()?;
        let width = twice / 2;
        let (x, bias, activation) = (slice(x, layout)?, self.bias, self.activation);
        let mut out = vec![0.0; n * width];
        let target = &mut out[..];
        vectorized!(|x: &'a [f32],
                     target: &'a mut [f32],
                     bias: &'a [f32],
                     width: usize,
                     activation: Activation|
         -> () {
            for (x, out) in x
                .chunks_exact(2 * width)
                .zip(target.chunks_exact_mut(width))
            {
                let (a, b) = x.split_at(width);
                out.copy_from_slice(a);
                if let Some((first, second)) = bias.split_at_checked(width) {
                    loops::add_bias(out, first);
                    loops::activate(activation, out);
                    for ((out, b), bias) in out.iter_mut().zip(b).zip(second) {
                        *out *= b + bias;
                    }
                } else {
                    loops::activate(activation, out);
                    for (out, b) in out.iter_mut().zip(b) {
                        *out *= b;
                    }
                }
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((n, width))))
    }
}

/// The parameters of a norm; `bias` may be empty.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) epsilon: f32,
    pub(super) centred: bool,
}

impl Norm<'_> {
    #[inline(always)]
    fn row(&self, x: &mut [f32]) {
        loops::norm(x, self.weight, self.bias, self.epsilon, self.centred);
    }
}

/// norm(x) as a tensor of its own.
impl CustomOp1 for Norm<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = slice(x, layout)?.to_vec();
        let (target, norm) = (&mut out[..], *self);
        vectorized!(|target: &'a mut [f32], norm: Norm<'a>| -> () {
            for x in target.chunks_exact_mut(norm.weight.len()) {
                norm.row(x);
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// x = norm(x + bias + residual).
pub(super) struct AddNorm<'a> {
    pub(super) bias: &'a [f32],
    pub(super) norm: Norm<'a>,
}

impl InplaceOp2 for AddNorm<'_> {
    fn name(&self) -> &'static str {
        "add-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<()> {
        let (x, residual) = (slice_mut(x, x_layout)?, slice(residual, residual_layout)?);
        let (bias, norm) = (self.bias, self.norm);
        vectorized!(|x: &'a mut [f32],
                     residual: &'a [f32],
                     bias: &'a [f32],
                     norm: Norm<'a>|
         -> () {
            let width = norm.weight.len();
            for (x, residual) in x.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
                loops::add_bias(x, residual);
                loops::add_bias(x, bias);
                norm.row(x);
            }
        });
        Ok(())
    }
}

/// Cells of `parts` × `n_kv` heads side by side to (parts, rows × heads, width, dim): bias added, and the
/// first part normed and turned. Heads that share a key get copies of it.
pub(super) struct Heads<'a> {
    pub(super) parts: usize,
    pub(super) n_rows: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv: usize,
    pub(super) dim: usize,
    pub(super) bias: &'a [f32],
    pub(super) norm: Option<Norm<'a>>,
    pub(super) angles: Option<&'a Angles>,
}

impl Heads<'_> {
    /// One cell's head of one part, into its place.
    #[inline(always)]
    fn head(&self, first: bool, position: usize, bias: &[f32], out: &mut [f32]) {
        loops::add_bias(out, bias);
        if !first {
            return;
        }
        if let Some(norm) = &self.norm {
            norm.row(out);
        }
        if let Some(angles) = self.angles {
            let (cos, sin) = angles.at(position);
            loops::rotate(&mut out[..2 * cos.len()], cos, sin);
        }
    }

    #[inline(always)]
    fn spread(&self, x: &[f32], out: &mut [f32]) {
        let (dim, n_kv) = (self.dim, self.n_kv);
        let copies = self.n_heads / n_kv;
        let cell = self.parts * n_kv * dim;
        let width = x.len() / cell / self.n_rows;
        for (place, x) in x.chunks_exact(cell).enumerate() {
            let (row, position) = (place / width, place % width);
            for (at, x) in x.chunks_exact(dim).enumerate() {
                let (part, kv) = (at / n_kv, at % n_kv);
                let bias = self.bias.get(at * dim..(at + 1) * dim).unwrap_or(&[]);
                let head = (part * self.n_rows + row) * self.n_heads + kv * copies;
                let start = (head * width + position) * dim;
                let first = &mut out[start..start + dim];
                first.copy_from_slice(x);
                self.head(part == 0, position, bias, first);
                for copy in 1..copies {
                    out.copy_within(start..start + dim, start + copy * width * dim);
                }
            }
        }
    }
}

impl CustomOp1 for Heads<'_> {
    fn name(&self) -> &'static str {
        "heads"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let n_cells = layout.shape().dims2()?.0;
        let mut out = vec![0.0; self.parts * n_cells * self.n_heads * self.dim];
        let (x, target, heads) = (slice(x, layout)?, &mut out[..], self);
        vectorized!(
            |x: &'a [f32], target: &'a mut [f32], heads: &'a Heads<'a>| -> () {
                heads.spread(x, target);
            }
        );
        let all = self.n_rows * self.n_heads;
        let shape = (self.parts, all, n_cells / self.n_rows, self.dim);
        Ok((CpuStorage::F32(out), Shape::from(shape)))
    }
}

/// Scores (rows × heads, queries, keys) become weights: of keys that a query sees, by softmax; of others 0.
impl InplaceOp1 for Keys<'_> {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (n, n_queries, n_keys) = layout.shape().dims3()?;
        let (x, keys) = (slice_mut(x, layout)?, self);
        vectorized!(|x: &'a mut [f32],
                     keys: &'a Keys<'a>,
                     n: usize,
                     n_queries: usize,
                     n_keys: usize|
         -> () {
            for (line, x) in x.chunks_exact_mut(n_keys).enumerate() {
                let (block, query) = (line / n_queries, line % n_queries);
                let seen = keys.seen(block / (n / keys.lens.len()), query, n_keys);
                let head = block % (n / keys.lens.len());
                let bias = keys.bias(head, query, &seen);
                x[..seen.start].fill(0.0);
                x[seen.end..].fill(0.0);
                loops::softmax(&mut x[seen], keys.scale, bias);
            }
        });
        Ok(())
    }
}

/// Adds a DeBERTa's terms: score[i][j] += by_query[i][row(i − j)] + by_key[j][row(i − j)].
pub(super) struct AddRelative<'a> {
    /// The table's row of each distance i − j, from −(keys − 1) on.
    pub(super) rows: &'a [u32],
    /// Rows of the table that the terms are of.
    pub(super) n_rows: usize,
    pub(super) by_query: bool,
    pub(super) by_key: bool,
    pub(super) first_query: usize,
}

impl InplaceOp3 for AddRelative<'_> {
    fn name(&self) -> &'static str {
        "add-relative"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        by_query: &CpuStorage,
        query_layout: &Layout,
        by_key: &CpuStorage,
        key_layout: &Layout,
    ) -> Result<()> {
        let (_, n_queries, n_keys) = x_layout.shape().dims3()?;
        let x = slice_mut(x, x_layout)?;
        let (queries, keys) = (slice(by_query, query_layout)?, slice(by_key, key_layout)?);
        let n_rows = self.n_rows;
        for (line, x) in x.chunks_exact_mut(n_keys).enumerate() {
            let (block, query) = (line / n_queries, self.first_query + line % n_queries);
            // For j from 0: the distances i − j fall.
            let rows = &self.rows[query..query + n_keys];
            let rows = rows.iter().rev().map(|&row| row as usize);
            if self.by_query {
                let terms = &queries[line * n_rows..(line + 1) * n_rows];
                for (x, row) in x.iter_mut().zip(rows.clone()) {
                    *x += terms[row];
                }
            }
            if self.by_key {
                let terms = keys[block * n_keys * n_rows..].chunks_exact(n_rows);
                for ((x, row), terms) in x.iter_mut().zip(rows).zip(terms) {
                    *x += terms[row];
                }
            }
        }
        Ok(())
    }
}
