//! What a pair's scores depend on, as a number: equal keys have equal scores.

use crate::generation::Identity;
use crate::score::{Form, Texts};
use std::hash::{BuildHasherDefault, Hasher};

/// 128 bits of BLAKE3 over everything that a pair's logits depend on: the generation's identity (model
/// files, numerics, how rows are cut), the request's form, the query, the document. Two different pairs have the same key once
/// in 2^64 pairs, and nobody can look for two on purpose: that takes as many hashes.
pub type Key = u128;

/// The key of each row.
pub fn keys(identity: &Identity, form: &Form, rows: &[Texts]) -> Vec<Key> {
    // Each hash is the key under which the next text is hashed: none can run into another.
    let form = form.to_bytes();
    let base = match form.is_empty() {
        true => *identity.as_bytes(),
        // No query is hashed under this key of a key.
        false => hash(hash(identity.as_bytes(), b"form").as_bytes(), &form).into(),
    };
    let mut query: Option<(&Texts, blake3::Hash)> = None;
    let key = |row| {
        let known = query.filter(|(last, _)| last.shares_query(row));
        let under = known.map_or_else(|| under(&base, row), |(_, hash)| hash);
        query = Some((row, under));
        let document = hash(under.as_bytes(), row.document.as_bytes());
        let (lower, _) = document
            .as_bytes()
            .split_first_chunk()
            .unwrap_or((&[0; 16], &[]));
        u128::from_le_bytes(*lower)
    };
    rows.iter().map(key).collect()
}

/// The key under which a row's document is hashed.
fn under(base: &[u8; 32], row: &Texts) -> blake3::Hash {
    match &row.query {
        Some(query) => hash(base, query.as_bytes()),
        // No query has this hash: it is not made under the same key.
        None => blake3::hash(base),
    }
}

fn hash(key: &[u8; 32], text: &[u8]) -> blake3::Hash {
    blake3::keyed_hash(key, text)
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
        let forms = [
            Form::default(),
            Form {
                row_tokens_max: Some(9),
                ..Form::default()
            },
        ];
        for facts in [&[b"ab".as_slice(), b"c"], &[b"a", b"bc"], &[b"abc", b""]] {
            for form in &forms {
                let pairs = [("q", "d"), ("qd", ""), ("", "qd"), ("d", "q"), ("q", "d ")];
                let rows = [Texts::of_pairs(pairs), Texts::alone(["d", "qd"])].concat();
                for (key, row) in keys(&Identity::new(facts), form, &rows).iter().zip(&rows) {
                    assert!(seen.insert(*key), "{facts:?} {form:?} {row:?}");
                }
            }
        }
        assert_eq!(seen.len(), 42);
    }

    #[test]
    fn what_stands_beside_a_row_changes_nothing() {
        let identity = Identity::new(&[b"a"]);
        let together = Texts::of_query("q", ["a", "b"]);
        let apart = Texts::of_pairs([("q", "a"), ("q", "b")]);
        let form = Form::default();
        assert_eq!(
            keys(&identity, &form, &together),
            keys(&identity, &form, &apart)
        );
    }
}
