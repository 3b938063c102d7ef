//! A model's tokenizer: text to rows of tokens.

use super::cut::{Cut, Side, share};
use super::prompt::{Prompt, Token};
use super::template::Template;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tokenizers::{Tokenizer as Encoder, TruncationDirection};

/// Bytes of a text, for each token that a row may have, that are always encoded; the rest only if those
/// make less than a row. Ten times what the longest common words take.
const TOKEN_BYTES_MAX: usize = 64;

/// A model's tokenizer: the encoder of its `tokenizer.json`, and how it joins a pair.
pub struct Tokenizer {
    encoder: Encoder,
    template: Template,
    row_tokens_max: usize,
    side: Side,
}

/// Rows of tokens, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRows {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Token types.
    pub type_ids: Vec<u32>,
    /// Where each row ends among them.
    pub ends: Vec<u32>,
    /// What did not fit into each row; nothing is missing from rows that are not listed.
    pub cuts: Vec<Cut>,
}

/// A query, encoded once for all of a request's documents.
#[derive(Clone, Debug)]
pub struct Query {
    ids: Vec<u32>,
}

// === impl TokenRows ===

impl TokenRows {
    /// No rows yet.
    pub const fn none() -> Self {
        Self {
            input_ids: Vec::new(),
            type_ids: Vec::new(),
            ends: Vec::new(),
            cuts: Vec::new(),
        }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// No rows.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Tokens in a row.
    pub fn row_len(&self, row: usize) -> usize {
        self.range(row).len()
    }

    /// A row's ids and types.
    pub fn row(&self, row: usize) -> (&[u32], &[u32]) {
        let range = self.range(row);
        (&self.input_ids[range.clone()], &self.type_ids[range])
    }

    /// What did not fit into a row.
    pub fn cut(&self, row: usize) -> Cut {
        self.cuts.get(row).copied().unwrap_or_default()
    }

    /// Ends a row where the tokens end now.
    pub fn end_row(&mut self, cut: Cut) {
        // A request's tokens are bounded far below 2^32 by the intake.
        self.ends.push(self.input_ids.len() as u32);
        self.cuts.push(cut);
    }

    /// Appends the rows of another.
    pub fn append(&mut self, other: &Self) {
        let base = self.input_ids.len() as u32;
        self.input_ids.extend_from_slice(&other.input_ids);
        self.type_ids.extend_from_slice(&other.type_ids);
        self.ends.extend(other.ends.iter().map(|end| base + end));
        self.cuts.extend_from_slice(&other.cuts);
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        start as usize..self.ends[row] as usize
    }
}

// === impl Tokenizer ===

impl Tokenizer {
    /// Reads `tokenizer.json`. Truncation and padding that were saved with it are switched off: rows are
    /// ragged, and cut here to `row_tokens_max`, at the side that was saved. `n_types` is the model's number
    /// of token types; types it does not have become 0. Pairs are put into `prompt` where there is one.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(
        path: &Path,
        row_tokens_max: usize,
        n_types: u32,
        prompt: Option<&Prompt>,
    ) -> Result<Self, String> {
        let named = |what: String| format!("{}: {what}", path.display());
        let mut encoder =
            Encoder::from_file(path).map_err(|error| named(format!("not a tokenizer: {error}")))?;
        encoder.with_padding(None);
        let side = match encoder.get_truncation().map(|saved| saved.direction) {
            Some(TruncationDirection::Left) => Side::Left,
            Some(TruncationDirection::Right) | None => Side::Right,
        };
        encoder
            .with_truncation(None)
            .map_err(|error| named(error.to_string()))?;
        let template = match prompt {
            None => Template::learn(&encoder, n_types),
            Some(prompt) => Template::of_prompt(&encoder, prompt),
        };
        let template = template.map_err(named)?;
        if prompt.is_some() {
            // What stands in a client's text does not end its turn.
            encoder.set_encode_special_tokens(true);
        }
        let tokenizer = Self {
            encoder,
            template,
            row_tokens_max,
            side,
        };
        tokenizer.within(row_tokens_max).map_err(named)
    }

    /// The same, with texts cut at `side`.
    #[must_use]
    pub fn cutting_at(self, side: Side) -> Self {
        Self { side, ..self }
    }

    /// The id of a token.
    ///
    /// # Errors
    /// That a text is not one token.
    pub fn id(&self, token: &Token) -> Result<u32, String> {
        match token {
            Token::Id(id) => Ok(*id),
            Token::Text(text) => match self.encode(text)?[..] {
                [id] => Ok(id),
                ref ids => Err(format!("{text:?} is {} tokens, expected one", ids.len())),
            },
        }
    }

    /// Compares the ids that it makes with the `vocab_size` ids that the model has: rows with others could
    /// not be scored, whatever the client sends. Says so of added tokens beyond it, which are common where
    /// nothing but their own spelling makes them.
    ///
    /// # Errors
    /// The largest id of the vocabulary or of a row's special tokens, if it is beyond the model's.
    pub fn check_vocabulary(&self, vocab_size: u32) -> Result<Option<String>, String> {
        let beyond = |id: u32| {
            format!("tokenizer.json has id {id}, but the model's vocabulary ends at {vocab_size}")
        };
        let added = self.encoder.get_added_tokens_decoder();
        let vocabulary = self.encoder.get_vocab(false);
        // Some models list added tokens in the vocabulary as well.
        let own = vocabulary
            .into_values()
            .filter(|id| !added.contains_key(id));
        match own.chain(self.template.ids()).max() {
            Some(id) if vocab_size <= id => return Err(beyond(id)),
            _ => {}
        }
        let added = added.keys().max().filter(|id| vocab_size <= **id);
        Ok(added.map(|id| {
            format!(
                "{} as an added token; documents that spell it cannot be scored",
                beyond(*id)
            )
        }))
    }

    /// The same with rows of at most `row_tokens_max` tokens.
    ///
    /// # Errors
    /// When a row has no room for a pair then.
    pub fn within(self, row_tokens_max: usize) -> Result<Self, String> {
        let n_special = self.n_special();
        let row_tokens_max = row_tokens_max.min(self.row_tokens_max);
        if row_tokens_max < n_special + 2 {
            return Err(format!(
                "a row of {row_tokens_max} tokens has no room for a query and a document beside {n_special} special tokens"
            ));
        }
        Ok(Self {
            row_tokens_max,
            ..self
        })
    }

    /// Tokens that one row may have.
    pub fn row_tokens_max(&self) -> usize {
        self.row_tokens_max
    }

    /// Special tokens in each row.
    pub fn n_special(&self) -> usize {
        self.template.n_special()
    }

    /// Encodes a query whole; how much of it a row takes depends on the document.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn query(&self, text: &str) -> Result<Query, String> {
        Ok(Query {
            ids: self.ids(&self.template.query_text(text))?,
        })
    }

    /// Appends the pair of `query` and `document` to `rows`.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn push_pair(
        &self,
        query: &Query,
        document: &str,
        rows: &mut TokenRows,
    ) -> Result<(), String> {
        let document = self.template.document_text(document);
        let (query, document) = (&query.ids, self.ids(&document)?);
        // Which of two texts that both exceed a row is the longer one does not matter, and is not known:
        // long ones are not encoded to their ends. The encoder's own cutting takes them for equal, too.
        let [query_len, document_len] =
            [query, &document].map(|ids| ids.len().min(self.row_tokens_max));
        let (n_query, n_document) = share(self.room(), query_len, document_len);
        self.template.push(
            self.side.keep(query, n_query),
            self.side.keep(&document, n_document),
            rows,
        );
        rows.end_row(Cut {
            query: n_query < query.len(),
            document: n_document < document.len(),
        });
        Ok(())
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
        let mut rows = TokenRows::none();
        self.template.push(&[first], &vec![first; room], &mut rows);
        rows.end_row(Cut::default());
        Ok(rows)
    }

    /// Tokens that query and document may have together.
    fn room(&self) -> usize {
        self.row_tokens_max - self.n_special()
    }

    /// At least the tokens of `text` that a row can hold, and one more if there are more.
    fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        let part = self.side.part(text, TOKEN_BYTES_MAX * self.row_tokens_max);
        let ids = self.encode(part)?;
        // Words without end make few tokens of many bytes: then the rest counts.
        if part.len() < text.len() && ids.len() <= 2 * self.row_tokens_max {
            return self.encode(text);
        }
        Ok(ids)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        // Without special tokens: the template puts them. Without offsets: nobody asks for them.
        let encoding = self
            .encoder
            .encode_fast(text, false)
            .map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{TruncationParams, TruncationStrategy};

    fn path() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("starter/tokenizer.json")
    }

    fn open(row_tokens_max: usize) -> Tokenizer {
        Tokenizer::open(&path(), row_tokens_max, 2, None).unwrap()
    }

    fn pair(tokenizer: &Tokenizer, query: &str, document: &str) -> (TokenRows, Cut) {
        let mut rows = TokenRows::none();
        let query = tokenizer.query(query).unwrap();
        tokenizer.push_pair(&query, document, &mut rows).unwrap();
        let cut = rows.cut(0);
        (rows, cut)
    }

    /// `n` tokens, no two neighbours alike.
    fn words(word: &str, n: usize) -> String {
        let words = ["the", word, "of"].into_iter().cycle().take(n);
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rows_are_what_the_library_itself_cuts() {
        let sides = [
            (Side::Left, TruncationDirection::Left),
            (Side::Right, TruncationDirection::Right),
        ];
        let lengths = [5, 16, 17, 64];
        for ((side, direction), row_tokens_max) in sides
            .into_iter()
            .flat_map(|side| lengths.map(|length| (side, length)))
        {
            let ours = open(row_tokens_max).cutting_at(side);
            let mut theirs = Encoder::from_file(path()).unwrap();
            theirs.with_padding(None);
            let params = TruncationParams {
                max_length: row_tokens_max,
                direction,
                strategy: TruncationStrategy::LongestFirst,
                ..TruncationParams::default()
            };
            theirs.with_truncation(Some(params)).unwrap();
            for n_query in [0, 1, 2, 5, 6, 7, 8, 13, 14, 40, 61, 90] {
                for n_document in [0, 1, 2, 5, 6, 7, 8, 13, 14, 40, 61, 90] {
                    let (query, document) = (words("plants", n_query), words("light", n_document));
                    let (rows, cut) = pair(&ours, &query, &document);
                    let want = theirs.encode((query, document), true).unwrap();
                    let place = format!("{side:?} {row_tokens_max}: {n_query} and {n_document}");
                    assert_eq!(rows.input_ids, want.get_ids(), "{place}");
                    assert_eq!(rows.type_ids, want.get_type_ids(), "{place}");
                    let n_lost = n_query + n_document + ours.n_special() - rows.input_ids.len();
                    assert_eq!(cut.query || cut.document, 0 < n_lost, "{place}");
                }
            }
        }
    }

    #[test]
    fn what_was_cut_is_said() {
        let tokenizer = open(16);
        let (long, short) = ("light ".repeat(40), "light");
        let cut = |query: &str, document: &str| pair(&tokenizer, query, document).1;
        let say = |query, document| Cut { query, document };
        assert_eq!(cut(short, short), say(false, false));
        assert_eq!(cut(short, &long), say(false, true));
        assert_eq!(cut(&long, short), say(true, false));
        assert_eq!(cut(&long, &long), say(true, true));
        // Nine of thirteen tokens are more than half a row, and fit.
        assert_eq!(cut(&"light ".repeat(9), "a b"), say(false, false));
    }

    #[test]
    fn long_texts_come_out_as_if_encoded_whole() {
        let texts = [
            "plants need light ".repeat(2_000),
            // A word of more than 100 letters is one unknown token: few tokens, many bytes.
            format!("{} ", "x".repeat(500)).repeat(100),
            "x".repeat(50_000),
            format!("{} light", "é".repeat(40_000)),
        ];
        for side in [Side::Left, Side::Right] {
            let tokenizer = open(16).cutting_at(side);
            for text in &texts {
                let whole = tokenizer.encode(text).unwrap();
                let part = tokenizer.ids(text).unwrap();
                let n = whole.len().min(16);
                assert_eq!(side.keep(&part, part.len().min(16)), side.keep(&whole, n));
                assert_eq!(part.len() <= 16, whole.len() <= 16);
            }
            // Only a part was encoded where that is enough.
            let n_ids = tokenizer.ids(&"light ".repeat(10_000)).unwrap().len();
            assert!((32..1_000).contains(&n_ids), "{n_ids}");
        }
    }

    #[test]
    fn ids_that_the_model_has_not_are_found() {
        let text = std::fs::read_to_string(path()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let check = |json: &serde_json::Value, vocab_size: u32| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), json.to_string()).unwrap();
            let tokenizer = Tokenizer::open(file.path(), 32, 2, None).unwrap();
            tokenizer.check_vocabulary(vocab_size)
        };
        let n = json["model"]["vocab"].as_object().unwrap().len() as u32;
        assert_eq!(check(&json, n), Ok(None));
        let error = check(&json, n - 1).unwrap_err();
        let want = format!(
            "has id {}, but the model's vocabulary ends at {}",
            n - 1,
            n - 1
        );
        assert!(error.contains(&want), "{error}");

        let mut added = json.clone();
        let token = serde_json::json!({"id": n, "content": "<extra>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        added["added_tokens"].as_array_mut().unwrap().push(token);
        let warning = check(&added, n).unwrap().unwrap();
        assert!(warning.contains(&format!("has id {n}")), "{warning}");
        assert_eq!(check(&added, n + 1), Ok(None));

        let mut far = json;
        far["model"]["vocab"]["zzzzz"] = 40_000.into();
        let error = check(&far, 30_522).unwrap_err();
        assert!(
            error.contains("id 40000") && error.contains("30522"),
            "{error}"
        );
    }

    #[test]
    fn a_smaller_bound_is_kept_and_an_impossible_one_refused() {
        let tokenizer = open(64).within(16).unwrap();
        assert_eq!(tokenizer.row_tokens_max(), 16);
        assert_eq!(tokenizer.within(64).unwrap().row_tokens_max(), 16);
        assert!(open(64).within(4).is_err());
    }
}
