//! Whether a library file is all there.
//!
//! Linux's loader maps what a file's headers promise without looking at the file's length. A truncated
//! library is then either a SIGBUS, which ends the server, or, when only what stands behind the loaded
//! segments is missing, a library like any other. macOS's loader compares them itself.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// `Elf64_Ehdr` and `Elf64_Phdr`, as the System V ABI lays them out.
const FILE_HEADER_BYTES: usize = 64;
const SEGMENT_HEADER_BYTES: usize = 56;

/// Refuses a file that cannot be read or is shorter than its own headers say.
///
/// A file that is no little-endian 64-bit ELF passes: the loader says better what is wrong with it.
///
/// # Errors
/// What is missing.
pub(super) fn check_whole(path: &Path) -> Result<(), String> {
    let cannot_read = |error: io::Error| format!("it cannot be read: {error}");
    let mut file = File::open(path).map_err(cannot_read)?;
    let file_bytes = file.metadata().map_err(cannot_read)?.len();
    let mut header = Vec::with_capacity(FILE_HEADER_BYTES);
    file.by_ref()
        .take(FILE_HEADER_BYTES as u64)
        .read_to_end(&mut header)
        .map_err(cannot_read)?;
    let Some(tables) = Tables::read(&header) else {
        return Ok(());
    };
    let segments_end = tables
        .segments_at
        .saturating_add(tables.n_segments * SEGMENT_HEADER_BYTES as u64);
    fits("its segment table", segments_end, file_bytes)?;
    let mut segments = vec![0; tables.n_segments as usize * SEGMENT_HEADER_BYTES];
    file.seek(SeekFrom::Start(tables.segments_at))
        .map_err(cannot_read)?;
    file.read_exact(&mut segments).map_err(cannot_read)?;
    for segment in segments.chunks_exact(SEGMENT_HEADER_BYTES) {
        let (offset, length) = (number(segment, 8, 8), number(segment, 32, 8));
        fits("a segment", offset.saturating_add(length), file_bytes)?;
    }
    // Linkers put the section table last, so this also notices what no segment holds.
    fits("its section table", tables.sections_end, file_bytes)
}

/// Where a file's own description of itself stands.
struct Tables {
    segments_at: u64,
    n_segments: u64,
    sections_end: u64,
}

impl Tables {
    fn read(header: &[u8]) -> Option<Self> {
        // Magic, then class 2 (64 bits) and data 1 (little-endian).
        if header.len() < FILE_HEADER_BYTES || !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (sections_at, section_bytes, n_sections) = (
            number(header, 40, 8),
            number(header, 58, 2),
            number(header, 60, 2),
        );
        Some(Self {
            segments_at: number(header, 32, 8),
            // An unusual size of an entry is left to the loader, which knows one size only.
            n_segments: if number(header, 54, 2) == SEGMENT_HEADER_BYTES as u64 {
                number(header, 56, 2)
            } else {
                0
            },
            sections_end: sections_at.saturating_add(section_bytes * n_sections),
        })
    }
}

/// The little-endian number in `bytes[at..at + width]`; `width` is at most 8.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width]
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn fits(what: &str, end: u64, file_bytes: u64) -> Result<(), String> {
    if file_bytes < end {
        return Err(format!(
            "it is truncated: {what} ends at byte {end}, but the file has {file_bytes} bytes"
        ));
    }
    Ok(())
}
