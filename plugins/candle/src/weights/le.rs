//! Numbers out of bytes in little endian.

/// The f32 in these bytes.
pub(super) fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().map(|&value| f32::from_le_bytes(value))
}

/// The u16 in these bytes.
pub(super) fn u16s(bytes: &[u8]) -> impl Iterator<Item = u16> {
    let (values, _) = bytes.as_chunks::<2>();
    values.iter().map(|&value| u16::from_le_bytes(value))
}
