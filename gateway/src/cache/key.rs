//! What a pair's scores depend on, as a number: equal keys have equal scores.

use crate::generation::Identity;
use std::hash::{BuildHasherDefault, Hasher};

/// 128 bits of BLAKE3 over everything that a pair's logits depend on: the generation's identity (model
/// files, numerics, how rows are cut), the query, the document. Two different pairs have the same key once
/// in 2^64 pairs, and nobody can look for two on purpose: that takes as many hashes.
pub type Key = u128;

/// The keys of a query with each of the documents.
pub fn keys<'a>(
    identity: &Identity,
    query: &str,
    documents: impl Iterator<Item = &'a String>,
) -> impl Iterator<Item = Key> {
    // The query's hash is the key under which each document is hashed: neither can run into the other.
    let query = blake3::keyed_hash(identity.as_bytes(), query.as_bytes());
    documents.map(move |document| {
        let hash = blake3::keyed_hash(query.as_bytes(), document.as_bytes());
        let (lower, _) = hash
            .as_bytes()
            .split_first_chunk()
            .unwrap_or((&[0; 16], &[]));
        u128::from_le_bytes(*lower)
    })
}

/// Keys are even already: their lower half is the hash.
pub(super) type BuildKeyHasher = BuildHasherDefault<KeyHasher>;

/// See [`BuildKeyHasher`].
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 ^= key as u64;
    }

    fn write_usize(&mut self, n: usize) {
        self.0 ^= n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn whatever_differs_has_another_key() {
        let mut seen = BTreeSet::new();
        for facts in [&[b"ab".as_slice(), b"c"], &[b"a", b"bc"], &[b"abc", b""]] {
            for (query, document) in [("q", "d"), ("qd", ""), ("", "qd"), ("d", "q"), ("q", "d ")] {
                let documents = [document.to_owned()];
                let key = keys(&Identity::new(facts), query, documents.iter()).next();
                assert!(seen.insert(key), "{facts:?} {query:?} {document:?}");
            }
        }
        assert_eq!(seen.len(), 15);
    }
}
