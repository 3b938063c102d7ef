//! What all scores of a generation depend on, as a number.

/// Generations of equal identity give equal scores: the same files, numerics and bounds of a row. So what
/// one has scored may be kept for another, in another process too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity([u8; 32]);

/// Raised when the facts below mean another thing, or a row is made in another way.
const VERSION: &str = "crossgate identity 1";

impl Identity {
    /// BLAKE3 of facts in a fixed order, each with its length, so that no two lists look alike.
    pub fn new(facts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for fact in [VERSION.as_bytes()].iter().chain(facts) {
            hasher.update(&(fact.len() as u64).to_le_bytes());
            hasher.update(fact);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The number.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
