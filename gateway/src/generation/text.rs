//! How many tokens a text makes and how long that takes, before it is tokenized: learned from what was.

/// Weight that a request keeps with each later one: about the last 50 count.
const FORGETTING: f64 = 0.98;
/// What is believed before anything is known: English makes 0.3 tokens a byte with WordPiece. A first
/// request of a few kilobytes weighs as much.
const TOKENS_PER_BYTE: f64 = 0.3;
const BELIEVED_BYTES: f64 = 4_096.0;
/// Two megabytes a second, what one thread makes of English.
const SECONDS_PER_BYTE: f64 = 0.5e-6;

/// Tokens of rows from the bytes of their text: `rows·n_special + ratio·bytes`. Special tokens stand apart,
/// or requests of short rows would make all text look expensive.
#[derive(Clone, Debug)]
pub struct TextRatio {
    n_special: usize,
    // Sums over the last requests, so that each byte counts once, whoever sent it.
    tokens: f64,
    bytes: f64,
    seconds: f64,
    timed_bytes: f64,
}

impl TextRatio {
    /// Before anything is known of a tokenizer that puts `n_special` tokens into each row.
    pub fn new(n_special: usize) -> Self {
        Self {
            n_special,
            tokens: TOKENS_PER_BYTE * BELIEVED_BYTES,
            bytes: BELIEVED_BYTES,
            seconds: SECONDS_PER_BYTE * BELIEVED_BYTES,
            timed_bytes: BELIEVED_BYTES,
        }
    }

    /// Learns from a request whose rows of `n_bytes` of text in all came out as `n_tokens`, uncut.
    pub fn learn(&mut self, n_rows: usize, n_bytes: usize, n_tokens: usize) {
        let of_text = n_tokens.saturating_sub(n_rows * self.n_special);
        self.tokens = FORGETTING * self.tokens + of_text as f64;
        self.bytes = FORGETTING * self.bytes + n_bytes as f64;
    }

    /// Learns from texts of `n_bytes` that took all tokenizer threads together `seconds`.
    pub fn learn_time(&mut self, n_bytes: usize, seconds: f64) {
        self.seconds = FORGETTING * self.seconds + seconds;
        self.timed_bytes = FORGETTING * self.timed_bytes + n_bytes as f64;
    }

    /// Seconds that all tokenizer threads together take for so much text.
    pub fn seconds(&self, n_bytes: usize) -> f64 {
        n_bytes as f64 * self.seconds / self.timed_bytes.max(1.0)
    }

    /// Tokens that rows of so much text will make.
    pub fn tokens(&self, n_rows: usize, n_bytes: usize) -> usize {
        let per_byte = self.tokens / self.bytes.max(1.0);
        n_rows * self.n_special + (n_bytes as f64 * per_byte) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_anything_is_known() {
        assert_eq!(TextRatio::new(3).tokens(10, 1_000), 330);
        assert_eq!(TextRatio::new(0).tokens(1, 0), 0);
    }

    #[test]
    fn tiny_requests_do_not_make_long_texts_expensive() {
        let mut ratio = TextRatio::new(3);
        for _ in 0..200 {
            // A query of one byte and documents of one byte each: two tokens of text.
            ratio.learn(2, 4, 10);
            ratio.learn(10, 10_000, 2_530);
        }
        let found = ratio.tokens(10, 10_000);
        assert!((2_500..2_560).contains(&found), "{found}");
    }

    #[test]
    fn time_is_learned() {
        let mut ratio = TextRatio::new(3);
        assert!((ratio.seconds(2_000_000) - 1.0).abs() < 1e-9);
        for _ in 0..300 {
            ratio.learn_time(10_000, 1e-3);
        }
        assert!((ratio.seconds(1_000_000) - 0.1).abs() < 1e-3);
    }

    #[test]
    fn another_language_is_learned() {
        let mut ratio = TextRatio::new(3);
        for _ in 0..300 {
            ratio.learn(1, 1_000, 803);
        }
        let found = ratio.tokens(1, 1_000);
        assert!((795..=805).contains(&found), "{found}");
    }
}
