//! A model's tokenizer: text to rows of tokens.

use super::cut::{Cut, part, share};
use super::prompt::{Prompt, Token};
use super::rows::TokenRows;
use super::template::Template;
use super::windows::Span;
use crate::load::Piece;
use crate::score::{Form, ScoreError, Side};
use std::path::Path;
use std::sync::Arc;
use tokenizers::{Tokenizer as Encoder, TruncationDirection};

/// Bytes of a text, for each token that a row may have, that are always encoded; the rest only if those
/// make less than a row. Ten times what the longest common words take.
const TOKEN_BYTES_MAX: usize = 64;

/// A model's tokenizer: the encoder of its `tokenizer.json`, and how it joins a pair.
pub struct Tokenizer {
    encoder: Encoder,
    template: Arc<Template>,
    /// Of texts without a query; or why there is none.
    alone: Result<Arc<Template>, String>,
    row_tokens_max: usize,
    side: Side,
}

/// A query, encoded once for all of a request's documents; or what stands for one.
#[derive(Clone, Debug)]
pub struct Query {
    ids: Vec<u32>,
    /// Whether it was longer than its form allows.
    is_cut: bool,
    template: Arc<Template>,
    /// Tokens that it and a document may have together.
    room: usize,
    document_tokens_max: usize,
    side: Side,
}

// === impl Query ===

impl Query {
    /// Those of a document's tokens that count.
    pub(super) fn kept<'a, T>(&self, tokens: &'a [T]) -> &'a [T] {
        self.side.kept(tokens, self.document_tokens_max)
    }

    /// Tokens that a row has for a document that needs all that it can have.
    pub(super) fn document_room(&self) -> usize {
        let (_, n_document) = share(self.room, self.ids.len().min(self.room), self.room);
        n_document
    }

    /// Tokens of a row beside the document's.
    pub fn n_tokens(&self) -> usize {
        self.template.n_special() + self.ids.len().min(self.room - self.document_room())
    }

    /// Whether the query itself is cut beside a document that is long.
    pub fn is_cut(&self) -> bool {
        self.is_cut || self.room - self.document_room() < self.ids.len()
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
        let template = Arc::new(template.map_err(named)?);
        let alone = match prompt {
            None => Template::learn_alone(&encoder, n_types),
            Some(_) => Err("it reads a query and a document in a prompt".to_owned()),
        };
        if prompt.is_some() {
            // What stands in a client's text does not end its turn.
            encoder.set_encode_special_tokens(true);
        }
        let tokenizer = Self {
            encoder,
            template,
            alone: alone.map(Arc::new),
            row_tokens_max,
            side,
        };
        tokenizer.within(row_tokens_max).map_err(named)
    }

    /// The same with texts before each query and each document of a query.
    #[must_use]
    pub fn with_prefixes(mut self, query: &str, document: &str) -> Self {
        let template = Arc::unwrap_or_clone(self.template);
        self.template = Arc::new(template.with_prefixes(query, document));
        self
    }

    /// The same, with texts cut at `side` where a request says nothing of it.
    #[must_use]
    pub fn cutting_at(self, side: Side) -> Self {
        Self { side, ..self }
    }

    /// What it puts around texts and where it cuts them, as bytes that differ where that does.
    pub fn frame(&self) -> Vec<u8> {
        format!("{:?}{:?}{:?}", self.template, self.alone, self.side).into_bytes()
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

    /// Whether rows can be made in this form, of texts without a query if they are `alone`.
    ///
    /// # Errors
    /// `Invalid`, naming what is not possible.
    pub fn check(&self, form: &Form, alone: bool) -> Result<(), ScoreError> {
        if alone && let Err(why) = &self.alone {
            let why = format!("this model takes no text without a query: {why}");
            return Err(ScoreError::invalid("documents", why));
        }
        if form.instruction.is_some() && !self.takes_instructions() {
            let why = "this model's prompt has no place for one; leave it out";
            return Err(ScoreError::invalid("instruction", why));
        }
        let least = self.n_special() + 2;
        match form.row_tokens_max {
            Some(max) if (max as usize) < least => Err(ScoreError::invalid(
                "row_tokens_max",
                format!(
                    "{max} tokens have no room for two texts and {} special tokens; allow {least} or more",
                    least - 2
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether an instruction of a client's own has a place in its prompt.
    pub fn takes_instructions(&self) -> bool {
        self.template.is_instructed()
    }

    /// Encodes a query whole; how much of it a row takes depends on the document. Without one, documents
    /// stand alone.
    ///
    /// # Errors
    /// `Invalid` for a form that is not [possible](Self::check), and `Internal` for the encoder's own.
    pub fn query(&self, text: Option<&str>, form: &Form) -> Result<Query, ScoreError> {
        self.check(form, text.is_none())?;
        let mut template = match (text, &self.alone) {
            (None, Ok(alone)) => Arc::clone(alone),
            _ => Arc::clone(&self.template),
        };
        if let Some(instruction) = &form.instruction {
            let encode = |text: &str| self.encode(text);
            let own = template.with_instruction(instruction, encode);
            template = own.map_err(failed)?.map_or(template, Arc::new);
        }
        let row_tokens_max = or_all(form.row_tokens_max).min(self.row_tokens_max);
        let n_special = template.n_special();
        if row_tokens_max < n_special + 2 {
            let why = format!(
                "is too long: it leaves no room for a query and a document in the {row_tokens_max} tokens of a row"
            );
            return Err(ScoreError::invalid("instruction", why));
        }
        let mut query = Query {
            ids: Vec::new(),
            is_cut: false,
            room: row_tokens_max - n_special,
            template,
            document_tokens_max: or_all(form.document_tokens_max),
            side: form.side.unwrap_or(self.side),
        };
        if let Some(text) = text {
            let text = query.template.query_text(text);
            let ids = self.ids(&text, query.side).map_err(failed)?;
            let max = or_all(form.query_tokens_max);
            query.is_cut = max < ids.len();
            query.ids = query.side.kept(&ids, max).to_vec();
        }
        Ok(query)
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
        let Query {
            ids: query,
            is_cut,
            template,
            room,
            document_tokens_max,
            side,
        } = query;
        let all = self.ids(&template.document_text(document), *side)?;
        let document = side.kept(&all, *document_tokens_max);
        // Which of two texts that both exceed a row is the longer one does not matter, and is not known:
        // long ones are not encoded to their ends. The encoder's own cutting takes them for equal, too.
        let [query_len, document_len] =
            [query.len(), document.len()].map(|len| len.min(self.row_tokens_max));
        let (n_query, n_document) = share(*room, query_len, document_len);
        template.push(
            side.kept(query, n_query),
            side.kept(document, n_document),
            rows,
        );
        rows.end_row(Cut {
            query: *is_cut || n_query < query.len(),
            document: n_document < all.len(),
        });
        Ok(())
    }

    /// A row of exactly `n_tokens` tokens (bounded by the model's), for warming up.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn sample_row(&self, n_tokens: usize) -> Result<TokenRows, String> {
        let ids = self.ids("the", Side::Right)?;
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

    /// At least the tokens of `text` that a row can hold, and one more if there are more; those at `side` may
    /// be missing.
    fn ids(&self, text: &str, side: Side) -> Result<Vec<u32>, String> {
        let part = part(side, text, TOKEN_BYTES_MAX * self.row_tokens_max);
        let ids = self.encode(part)?;
        // Words without end make few tokens of many bytes: then the rest counts.
        if part.len() < text.len() && ids.len() <= 2 * self.row_tokens_max {
            return self.encode(text);
        }
        Ok(ids)
    }

    /// Where each of a document's tokens stands in it, and how many there are before it: of a prefix.
    pub(super) fn spans(
        &self,
        query: &Query,
        document: &str,
    ) -> Result<(usize, Vec<Span>), ScoreError> {
        let text = query.template.document_text(document);
        // Whitespace that the prompt has before it, and the prefix.
        let lead = text.len() - document.len() - query.template.document_end();
        let encoding = self.encoder.encode(&*text, false);
        let encoding = encoding.map_err(|error| failed(error.to_string()))?;
        let words = encoding.get_word_ids();
        let offsets = encoding.get_offsets();
        let n_before = offsets.partition_point(|&(_, end)| end <= lead);
        let places = offsets.iter().enumerate().skip(n_before);
        let spans = places.map(|(token, &(start, end))| {
            let [start, end] = [start, end].map(|at| at.saturating_sub(lead).min(document.len()));
            let is_first = token == n_before || words[token] != words[token - 1];
            Span {
                bytes: start..end.max(start),
                begins_word: is_first || words[token].is_none(),
            }
        });
        Ok((n_before, spans.collect()))
    }

    /// The tokens of a text, with those that the tokenizer itself puts around one if `special`.
    ///
    /// # Errors
    /// The encoder's own.
    pub fn pieces(&self, text: &str, special: bool) -> Result<Vec<Piece>, ScoreError> {
        let encoding = self.encoder.encode_char_offsets(text, special);
        let encoding = encoding.map_err(|error| failed(error.to_string()))?;
        // Where each character begins, and the end.
        let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
        let ends: Vec<usize> = ends.collect();
        let (ids, tokens) = (encoding.get_ids(), encoding.get_tokens());
        let (offsets, specials) = (encoding.get_offsets(), encoding.get_special_tokens_mask());
        let pieces = (0..ids.len()).map(|token| {
            let (start, end) = offsets[token];
            let place = (specials[token] == 0).then_some((start, end));
            let bytes = place.and_then(|(start, end)| text.get(*ends.get(start)?..*ends.get(end)?));
            let own = bytes.filter(|bytes| !bytes.is_empty());
            Piece {
                id: ids[token],
                text: own.unwrap_or(&tokens[token]).to_owned(),
                place,
            }
        });
        Ok(pieces.collect())
    }

    /// The text of tokens, without special ones if `plain`.
    ///
    /// # Errors
    /// The decoder's own.
    pub fn text(&self, ids: &[u32], plain: bool) -> Result<String, ScoreError> {
        let text = self.encoder.decode(ids, plain);
        text.map_err(|error| failed(error.to_string()))
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

fn or_all(bound: Option<u32>) -> usize {
    bound.map_or(usize::MAX, |max| max as usize)
}

fn failed(why: String) -> ScoreError {
    ScoreError::Internal {
        why: format!("the tokenizer failed: {why}"),
    }
}

#[cfg(test)]
mod tests;
