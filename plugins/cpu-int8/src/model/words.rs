//! The table of word embeddings, held no wider than what the kernel multiplies.
//!
//! It is the largest tensor of a multilingual model: 250,002 × 1,024 for XLM-R large, 1 GB in f32,
//! which is 256 MB in i8 beside 303 MB of encoder.

use crate::kernel::lanes::Lanes;
use crate::kernel::{Inside, Kernel, Op};
use crate::model::LoadError;
use crate::model::weights::Tensor;
use crate::quant::{Bf16, Code, Plain};
use crate::threads::for_each;

/// Values of the rows that are read together, as f32 256 KiB: they stay in L2.
const PART_VALUES: usize = 64 * 1024;

/// How a table is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordsIn {
    /// f32, exactly.
    F32,
    /// Rounded.
    Bf16,
    /// Symmetric quanta, one scale a row.
    Int8,
}

/// Rows of embeddings.
pub struct Words {
    width: usize,
    held: Held,
}

enum Held {
    F32(Vec<f32>),
    Bf16(Vec<Bf16>),
    Int8 { codes: Vec<i8>, scales: Vec<f32> },
}

// === impl WordsIn ===

impl WordsIn {
    /// What suits a kernel: no wider than the weights that it multiplies.
    pub fn of<K: Kernel>() -> Self {
        if K::Left::QUANTISED {
            Self::Int8
        } else if size_of::<K::Right>() < size_of::<f32>() {
            Self::Bf16
        } else {
            Self::F32
        }
    }
}

// === impl Words ===

impl Words {
    /// Reads the rows of `tensor`, each of `width` values, on `n_threads`. No part of it is ever held
    /// in f32 but the rows at hand.
    ///
    /// # Errors
    /// Names the tensor and what is wrong with it.
    pub(super) fn read<F: Kernel + Lanes>(
        float: F,
        tensor: &Tensor<'_>,
        width: usize,
        words_in: WordsIn,
        n_threads: usize,
    ) -> Result<Self, LoadError> {
        let part_rows = (PART_VALUES / width).max(1);
        let part_len = part_rows * width;
        let n_values = tensor.n_values();
        let starts = (0..n_values).step_by(part_len);
        // A part's values in f32, in a buffer of the thread's own.
        let room = || Vec::with_capacity(part_len.min(n_values));
        let read = |values: &mut Vec<f32>, start: usize| {
            values.clear();
            tensor.read(start..n_values.min(start + part_len), values)
        };
        let held = match words_in {
            WordsIn::F32 => {
                let mut table = vec![0.0; n_values];
                let jobs = starts.zip(table.chunks_mut(part_len));
                for_each(n_threads, jobs, room, |values, (start, out)| {
                    read(values, start)?;
                    out.copy_from_slice(values);
                    Ok(())
                })?;
                Held::F32(table)
            }
            WordsIn::Bf16 => {
                let mut table = vec![Bf16::default(); n_values];
                let jobs = starts.zip(table.chunks_mut(part_len));
                for_each(n_threads, jobs, room, |values, (start, out)| {
                    read(values, start)?;
                    float.vectorize(EncodeRows {
                        width: values.len(),
                        values,
                        out,
                        scales: &mut [1.0],
                    });
                    Ok(())
                })?;
                Held::Bf16(table)
            }
            WordsIn::Int8 => {
                let mut codes = vec![0; n_values];
                let mut scales = vec![0.0; n_values / width];
                let parts = codes.chunks_mut(part_len).zip(scales.chunks_mut(part_rows));
                for_each(
                    n_threads,
                    starts.zip(parts),
                    room,
                    |values, (start, (out, scales))| {
                        read(values, start)?;
                        float.vectorize(EncodeRows {
                            width,
                            values,
                            out,
                            scales,
                        });
                        Ok(())
                    },
                )?;
                Held::Int8 { codes, scales }
            }
        };
        Ok(Self { width, held })
    }

    /// Rows: the vocabulary.
    pub fn n_rows(&self) -> usize {
        let n_values = match &self.held {
            Held::F32(table) => table.len(),
            Held::Bf16(table) => table.len(),
            Held::Int8 { codes, .. } => codes.len(),
        };
        n_values / self.width
    }

    /// Bytes on the heap.
    pub fn n_bytes(&self) -> usize {
        match &self.held {
            Held::F32(table) => size_of_val(&table[..]),
            Held::Bf16(table) => size_of_val(&table[..]),
            Held::Int8 { codes, scales } => size_of_val(&codes[..]) + size_of_val(&scales[..]),
        }
    }

    /// Writes a row to `out`, which has its width.
    #[inline(always)]
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.width..(row + 1) * self.width;
        match &self.held {
            Held::F32(table) => out.copy_from_slice(&table[range]),
            Held::Bf16(table) => {
                for (out, value) in out.iter_mut().zip(&table[range]) {
                    *out = value.get();
                }
            }
            Held::Int8 { codes, scales } => {
                let scale = scales[row];
                for (out, &code) in out.iter_mut().zip(&codes[range]) {
                    *out = f32::from(code) * scale;
                }
            }
        }
    }
}

struct EncodeRows<'a, C> {
    values: &'a [f32],
    width: usize,
    out: &'a mut [C],
    scales: &'a mut [f32],
}

impl<F: Kernel + Lanes, C: Code> Op<F> for EncodeRows<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(self, inside: &Inside<F>) {
        let rows = self.values.chunks_exact(self.width);
        let outs = self.out.chunks_exact_mut(self.width);
        for ((values, out), scale) in rows.zip(outs).zip(self.scales) {
            *scale = C::encode(inside.kernel(), values, out);
        }
    }
}
