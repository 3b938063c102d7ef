//! The types that tensors are stored in: floats, and ggml's blocks, whose bytes are kept as they are.

use super::le;
use candle_core::Result as Computed;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, Device};
use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use std::borrow::Cow;

/// A type of stored values.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) ggml: GgmlDType,
    /// As descriptions and refusals spell it.
    pub(crate) name: &'static str,
    /// What a GGUF header calls it.
    number: u32,
    /// Where a block's scales stand, in bytes: each an f16, and all that can make a value infinite or NaN.
    scales: &'static [usize],
}

/// All that is read. candle also knows Q8_1 and Q8_K, which are of activations: no file stores weights in them.
pub(crate) const KINDS: [Kind; 13] = [
    kind(GgmlDType::F32, "f32", 0, &[]),
    kind(GgmlDType::F16, "f16", 1, &[]),
    kind(GgmlDType::BF16, "bf16", 30, &[]),
    kind(GgmlDType::Q4_0, "q4_0", 2, &[0]),
    kind(GgmlDType::Q4_1, "q4_1", 3, &[0, 2]),
    kind(GgmlDType::Q5_0, "q5_0", 6, &[0]),
    kind(GgmlDType::Q5_1, "q5_1", 7, &[0, 2]),
    kind(GgmlDType::Q8_0, "q8_0", 8, &[0]),
    kind(GgmlDType::Q2K, "q2_k", 10, &[80, 82]),
    kind(GgmlDType::Q3K, "q3_k", 11, &[108]),
    kind(GgmlDType::Q4K, "q4_k", 12, &[0, 2]),
    kind(GgmlDType::Q5K, "q5_k", 13, &[0, 2]),
    kind(GgmlDType::Q6K, "q6_k", 14, &[208]),
];

const fn kind(ggml: GgmlDType, name: &'static str, number: u32, scales: &'static [usize]) -> Kind {
    Kind {
        ggml,
        name,
        number,
        scales,
    }
}

/// candle reads blocks where they lie, and its widest field has so many bytes.
const ALIGNMENT: usize = 4;

// === impl Kind ===

impl Kind {
    /// By the number in a GGUF header.
    pub(crate) fn numbered(number: u32) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.number == number)
    }

    /// By the name in a safetensors header.
    pub(crate) fn of_safetensors(dtype: &str) -> Option<&'static Self> {
        let floats = KINDS.iter().filter(|kind| kind.is_float());
        floats
            .into_iter()
            .find(|kind| kind.name.eq_ignore_ascii_case(dtype))
    }

    /// Whether each value stands for itself.
    pub(crate) fn is_float(&self) -> bool {
        self.ggml.block_size() == 1
    }

    /// Bytes of so many values, if they fill whole blocks.
    pub(crate) fn n_bytes(&self, n_values: u64) -> Option<u64> {
        let block = self.ggml.block_size() as u64;
        let is_whole = n_values.is_multiple_of(block);
        is_whole
            .then(|| (n_values / block).checked_mul(self.ggml.type_size() as u64))
            .flatten()
    }

    /// The first value that is not finite, or of blocks the first value of the first block whose scales are not.
    pub(crate) fn not_finite(&self, bytes: &[u8]) -> Option<usize> {
        match self.ggml {
            GgmlDType::F32 => le::f32s(bytes).position(|value| !value.is_finite()),
            GgmlDType::F16 => le::u16s(bytes).position(|bits| !f16::from_bits(bits).is_finite()),
            GgmlDType::BF16 => {
                le::u16s(bytes).position(|bits| !half::bf16::from_bits(bits).is_finite())
            }
            _ => {
                let mut blocks = bytes.chunks_exact(self.ggml.type_size());
                let bad = |block: &[u8]| {
                    let scale = |&at: &usize| f16::from_le_bytes([block[at], block[at + 1]]);
                    !self.scales.iter().map(scale).all(f16::is_finite)
                };
                Some(blocks.position(bad)? * self.ggml.block_size())
            }
        }
    }

    /// The values in f32.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Computed<Vec<f32>> {
        match self.ggml {
            GgmlDType::F32 => Ok(le::f32s(bytes).collect()),
            GgmlDType::F16 => {
                let bits: Vec<u16> = le::u16s(bytes).collect();
                Ok(bits.reinterpret_into::<f16>().to_f32_vec())
            }
            GgmlDType::BF16 => {
                let bits: Vec<u16> = le::u16s(bytes).collect();
                Ok(bits.reinterpret_into::<half::bf16>().to_f32_vec())
            }
            ggml => {
                let n_values = bytes.len() / ggml.type_size() * ggml.block_size();
                match ggml.from_data(aligned(bytes)).dequantize(n_values)? {
                    CpuStorage::F32(values) => Ok(values),
                    _ => candle_core::bail!("{} decodes to something else than f32", self.name),
                }
            }
        }
    }

    /// Outputs × inputs, without a change of the bytes.
    pub(crate) fn blocks(&self, bytes: &[u8], n_in: usize, device: &Device) -> Computed<QTensor> {
        let row_bytes = n_in / self.ggml.block_size() * self.ggml.type_size();
        let n_out = bytes.len() / row_bytes.max(1);
        let storage = QStorage::from_data(aligned(bytes), device, self.ggml)?;
        QTensor::new(storage, (n_out, n_in))
    }
}

/// Bytes where candle reads them: an allocation is aligned, the middle of one need not be.
fn aligned(bytes: &[u8]) -> Cow<'_, [u8]> {
    if bytes.as_ptr().align_offset(ALIGNMENT) == 0 {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;

    /// What a scale that is broken breaks: nothing else of a block does.
    #[test]
    fn scales_stand_where_they_are_looked_for() -> Computed<()> {
        for kind in KINDS.iter().filter(|kind| !kind.is_float()) {
            let n = 2 * kind.ggml.block_size();
            let values: Vec<f32> = (0..n).map(|at| (at as f32 * 0.7).sin()).collect();
            let blocks = QTensor::quantize(&Tensor::new(values, &Device::Cpu)?, kind.ggml)?;
            let good = blocks.data()?.into_owned();
            assert_eq!(kind.n_bytes(n as u64), Some(good.len() as u64));
            assert_eq!(kind.n_bytes(n as u64 - 1), None);
            assert_eq!(kind.not_finite(&good), None, "{}", kind.name);
            for at in 0..good.len() {
                let mut bytes = good.clone();
                bytes[at] = 0x7f;
                if let Some(next) = bytes.get_mut(at + 1) {
                    *next = 0xff;
                }
                let found = kind.decode(&bytes)?;
                let is_broken = found.iter().any(|value| !value.is_finite());
                assert_eq!(
                    kind.not_finite(&bytes).is_some(),
                    is_broken,
                    "{} with 7fff at {at}",
                    kind.name
                );
            }
        }
        Ok(())
    }

    #[test]
    fn bytes_at_odd_addresses_are_read() -> Computed<()> {
        for kind in &KINDS {
            let n = kind.ggml.block_size();
            let bytes: Vec<u8> = (0..=kind.ggml.type_size())
                .map(|at| at as u8 % 60)
                .collect();
            let tensor = kind.blocks(&bytes[1..], n, &Device::Cpu)?;
            let found = tensor.dequantize(&Device::Cpu)?.flatten_all()?;
            assert_eq!(
                found.to_vec1::<f32>()?,
                kind.decode(&bytes[1..])?,
                "{}",
                kind.name
            );
        }
        Ok(())
    }
}
