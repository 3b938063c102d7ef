//! A tensor's bytes: hashed, decoded to f32 and checked, piece by piece while they are in L1.

use crate::quant::f16::F16;

/// A hash of bytes at a place, of which a [`Fingerprint`](super::weights::Fingerprint) is the sum.
/// Four chains side by side: one alone waits six cycles for each product.
pub(super) fn hash(name: &str, start: u64, bytes: &[u8]) -> u64 {
    let mut chains = [start, bytes.len() as u64, 2, 3];
    for bytes in [name.as_bytes(), bytes] {
        let (blocks, tail) = bytes.as_chunks::<32>();
        let mut last = [0; 32];
        last[..tail.len()].copy_from_slice(tail);
        for block in blocks.iter().chain([&last]) {
            for (chain, word) in chains.iter_mut().zip(block.as_chunks().0) {
                *chain = mix(*chain ^ u64::from_le_bytes(*word));
            }
        }
    }
    chains.into_iter().fold(0, |hash, chain| mix(hash ^ chain))
}

/// Multiplies by the golden ratio's odd 64 bits and folds the high half down.
fn mix(word: u64) -> u64 {
    let mixed = word.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}

/// Appends the numbers that bytes stand for.
pub(super) type Decoder = fn(&[u8], &mut Vec<f32>);

/// Bytes of a number, and what decodes them; `None` for a type that is not read here.
pub(super) fn decoder(dtype: &str) -> Option<(u64, Decoder)> {
    match dtype {
        "F32" => Some((4, |bytes, out| {
            let words = bytes.as_chunks().0.iter();
            out.extend(words.map(|&b| f32::from_le_bytes(b)));
        })),
        "F16" => Some((2, |bytes, out| {
            let halves = bytes.as_chunks().0.iter();
            out.extend(halves.map(|&b| F16::from_bits(u16::from_le_bytes(b)).get()));
        })),
        "BF16" => Some((2, |bytes, out| {
            let halves = bytes.as_chunks().0.iter();
            out.extend(halves.map(|&b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)));
        })),
        _ => None,
    }
}

/// The first value that is infinite or NaN.
pub(super) fn not_finite(values: &[f32]) -> Option<usize> {
    // Without an early end this is a few vector instructions; a position alone would be a loop of
    // single values.
    let infinity = f32::INFINITY.to_bits();
    let is_any = values
        .iter()
        .fold(false, |any, v| any | (v.to_bits() & infinity == infinity));
    is_any
        .then(|| values.iter().position(|v| !v.is_finite()))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        let mut values = vec![f32::MAX; 100];
        assert_eq!(not_finite(&values), None);
        values[99] = f32::NEG_INFINITY;
        values[41] = f32::NAN;
        assert_eq!(not_finite(&values), Some(41));
    }

    #[test]
    fn a_hash_depends_on_name_place_and_every_byte() {
        let bytes = [7; 71];
        let of = |name, start, bytes: &[u8]| hash(name, start, bytes);
        let first = of("a", 0, &bytes);
        assert_eq!(first, of("a", 0, &bytes));
        assert_ne!(first, of("b", 0, &bytes));
        assert_ne!(first, of("a", 1, &bytes));
        assert_ne!(first, of("a", 0, &bytes[1..]));
        for at in 0..71 {
            let mut other = bytes;
            other[at] ^= 1;
            assert_ne!(first, of("a", 0, &other), "byte {at}");
        }
    }
}
