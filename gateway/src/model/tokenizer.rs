//! A model's tokenizer: text to rows of tokens.

use super::template::Template;
use std::path::Path;
use tokenizers::Tokenizer as Encoder;

/// Of a row, the share that a query may take before it is cut: a document needs room to be judged.
const QUERY_SHARE_MAX: f64 = 0.5;

/// A model's tokenizer: the encoder of its `tokenizer.json`, and how it joins a pair.
pub struct Tokenizer {
    encoder: Encoder,
    template: Template,
    row_tokens_max: usize,
}

/// Rows of tokens, one after the other: row `i` is `offsets[i]..offsets[i + 1]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRows {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Token types.
    pub type_ids: Vec<u32>,
    /// One more than rows, from 0.
    pub offsets: Vec<u32>,
}

/// A query, encoded once for all of a request's documents.
#[derive(Clone, Debug)]
pub struct Query {
    ids: Vec<u32>,
    /// Whether it was cut.
    pub truncated: bool,
}

// === impl TokenRows ===

impl TokenRows {
    /// Rows.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens in a row.
    pub fn row_len(&self, row: usize) -> usize {
        (self.offsets[row + 1] - self.offsets[row]) as usize
    }

    /// A row's ids and types.
    pub fn row(&self, row: usize) -> (&[u32], &[u32]) {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        (&self.input_ids[range.clone()], &self.type_ids[range])
    }
}

// === impl Tokenizer ===

impl Tokenizer {
    /// Reads `tokenizer.json`. Truncation and padding that were saved with it are switched off: rows are
    /// ragged, and cut here, on the document's side, to `row_tokens_max`. `n_types` is the model's number
    /// of token types; types it does not have become 0.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(path: &Path, row_tokens_max: usize, n_types: u32) -> Result<Self, String> {
        let named = |what: String| format!("{}: {what}", path.display());
        let mut encoder =
            Encoder::from_file(path).map_err(|error| named(format!("not a tokenizer: {error}")))?;
        encoder.with_padding(None);
        encoder
            .with_truncation(None)
            .map_err(|error| named(error.to_string()))?;
        let template = Template::learn(&encoder, n_types).map_err(named)?;
        if row_tokens_max < template.n_special() + 2 {
            return Err(named(format!(
                "a row of {row_tokens_max} tokens has no room for a query and a document beside {} special tokens",
                template.n_special()
            )));
        }
        Ok(Self {
            encoder,
            template,
            row_tokens_max,
        })
    }

    /// Tokens that one row may have.
    pub fn row_tokens_max(&self) -> usize {
        self.row_tokens_max
    }

    /// Encodes a query, cut to half a row.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn query(&self, text: &str) -> Result<Query, String> {
        let mut ids = self.ids(text)?;
        let room = self.row_tokens_max - self.template.n_special();
        let most = ((room as f64 * QUERY_SHARE_MAX) as usize).max(1);
        let truncated = most < ids.len();
        ids.truncate(most);
        Ok(Query { ids, truncated })
    }

    /// Appends the pair of `query` and `document` to `rows`; says whether the document was cut.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn push_pair(
        &self,
        query: &Query,
        document: &str,
        rows: &mut TokenRows,
    ) -> Result<bool, String> {
        let mut ids = self.ids(document)?;
        let room = self.row_tokens_max - self.template.n_special() - query.ids.len();
        let truncated = room < ids.len();
        ids.truncate(room);
        self.template.push(&query.ids, &ids, rows);
        Ok(truncated)
    }

    /// A row of exactly `n_tokens` tokens (bounded by the model's), for warming up.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn sample_row(&self, n_tokens: usize) -> Result<TokenRows, String> {
        let ids = self.ids("the")?;
        let first = *ids
            .first()
            .ok_or("the tokenizer makes no token of \"the\"")?;
        let n_specials = self.template.n_special();
        let room = n_tokens
            .min(self.row_tokens_max)
            .saturating_sub(n_specials + 1)
            .max(1);
        let mut rows = TokenRows {
            offsets: vec![0],
            ..TokenRows::default()
        };
        self.template.push(&[first], &vec![first; room], &mut rows);
        Ok(rows)
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        // Without special tokens: the template puts them. Without offsets: nobody asks for them.
        let encoding = self
            .encoder
            .encode_fast(text, false)
            .map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }
}
