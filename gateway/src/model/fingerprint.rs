//! A number for a model's files: equal files have equal numbers, on every machine.

use super::ModelError;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads hash pieces of so many bytes: a few for most models, 256 KiB of buffer each.
const PIECE_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// A part of a file.
struct Piece<'a> {
    path: &'a Path,
    start: u64,
    bytes: u64,
}

/// BLAKE3 over the names, lengths and contents of these files, read by as many threads as there are CPUs:
/// a gigabyte takes a second or less.
pub(super) fn of_files(mut files: Vec<PathBuf>) -> Result<[u8; 32], ModelError> {
    files.sort();
    let (mut whole, mut pieces) = (blake3::Hasher::new(), Vec::new());
    for path in &files {
        let found = std::fs::metadata(path).map_err(|e| ModelError::disk("read", path, &e))?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        whole.update(&(name.len() as u64).to_le_bytes());
        whole.update(name);
        whole.update(&found.len().to_le_bytes());
        for start in (0..found.len()).step_by(PIECE_BYTES as usize) {
            let bytes = PIECE_BYTES.min(found.len() - start);
            pieces.push(Piece { path, start, bytes });
        }
    }
    for hash in hash_all(&pieces)? {
        whole.update(&hash);
    }
    Ok(*whole.finalize().as_bytes())
}

fn hash_all(pieces: &[Piece<'_>]) -> Result<Vec<[u8; 32]>, ModelError> {
    let (next, hashes) = (AtomicUsize::new(0), Mutex::new(vec![[0; 32]; pieces.len()]));
    let work = || -> Result<(), ModelError> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(at) else {
                return Ok(());
            };
            let hash = piece
                .hash()
                .map_err(|error| ModelError::disk("read", piece.path, &error))?;
            let mut hashes = hashes
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            hashes[at] = hash;
        }
    };
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        // Where the system has no more threads, fewer do the same.
        let others: Vec<_> = (1..n_threads.min(pieces.len()))
            .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut done = work();
        for other in others {
            done = done.and(other.join().unwrap_or(Ok(())));
        }
        done
    })?;
    Ok(hashes
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner()))
}

impl Piece<'_> {
    fn hash(&self) -> std::io::Result<[u8; 32]> {
        use std::io::{Seek as _, SeekFrom};
        let mut file = File::open(self.path)?;
        file.seek(SeekFrom::Start(self.start))?;
        let mut rest = file.take(self.bytes);
        let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; BUFFER_BYTES]);
        loop {
            let n = rest.read(&mut buffer)?;
            if n == 0 {
                return Ok(*hasher.finalize().as_bytes());
            }
            hasher.update(&buffer[..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_name_counts_and_the_folder_does_not() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |dir: &Path, name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).unwrap();
            dir.join(name)
        };
        let mut large = vec![7; (2 * PIECE_BYTES + 5) as usize];
        let of = |files: &[&PathBuf]| of_files(files.iter().map(|&f| f.clone()).collect()).unwrap();
        let (a, b) = (
            write(here.path(), "a", b"one"),
            write(here.path(), "b", &large),
        );
        let first = of(&[&a, &b]);
        assert_eq!(first, of(&[&b, &a]));
        let (c, d) = (
            write(there.path(), "a", b"one"),
            write(there.path(), "b", &large),
        );
        assert_eq!(first, of(&[&c, &d]));
        assert_ne!(first, of(&[&c]));
        for at in [0, PIECE_BYTES as usize, large.len() - 1] {
            large[at] ^= 1;
            assert_ne!(first, of(&[&c, &write(there.path(), "b", &large)]), "{at}");
            large[at] ^= 1;
        }
        assert_ne!(first, of(&[&c, &write(there.path(), "e", &large)]));
        assert!(of_files(vec![there.path().join("none")]).is_err());
    }
}
