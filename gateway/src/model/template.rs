//! How a tokenizer joins a query and a document: learned once, so that the query is encoded once.

use super::prompt::Prompt;
use super::tokenizer::TokenRows;
use std::borrow::Cow;
use tokenizers::{Encoding, Tokenizer as Encoder};

/// `lead query middle document tail`, each special token with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// Whitespace that a prompt has around each of the texts: encoders take it together with them.
    query_space: [String; 2],
    document_space: [String; 2],
    lead: Specials,
    query_type: u32,
    middle: Specials,
    document_type: u32,
    tail: Specials,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Specials {
    ids: Vec<u32>,
    types: Vec<u32>,
}

impl Template {
    /// Learns the template from pairs that the encoder joins itself, and proves it on others.
    ///
    /// # Errors
    /// When the encoder does not join by a fixed frame.
    pub(super) fn learn(encoder: &Encoder, n_types: u32) -> Result<Self, String> {
        let joined = join(encoder, "a", "b")?;
        let mut template =
            Self::of(&joined).ok_or("its post-processor does not put a query before a document")?;
        for (query, document) in [
            (
                "how do plants make energy",
                "Photosynthesis turns light into sugar.",
            ),
            ("x y", "z"),
        ] {
            let expected = join(encoder, query, document)?;
            let mut rows = TokenRows::none();
            let [query, document] = [query, document].map(|text| encoder.encode(text, false));
            let (query, document) = (
                query.map_err(|e| e.to_string())?,
                document.map_err(|e| e.to_string())?,
            );
            template.push(query.get_ids(), document.get_ids(), &mut rows);
            if rows.input_ids != expected.get_ids() || rows.type_ids != expected.get_type_ids() {
                return Err(
                    "its post-processor joins pairs in a way that depends on their text".to_owned(),
                );
            }
        }
        template.clamp_types(n_types.max(1));
        Ok(template)
    }

    /// The template of a prompt, proved on pairs that the encoder takes as one text.
    ///
    /// # Errors
    /// When the encoder does not take a prompt piece by piece as it takes it whole.
    pub(super) fn of_prompt(encoder: &Encoder, prompt: &Prompt) -> Result<Self, String> {
        let (lead, query_before) = split_end(&prompt.lead);
        let (query_after, middle) = split_start(&prompt.middle);
        let (middle, document_before) = split_end(middle);
        let (document_after, tail) = split_start(&prompt.tail);
        let specials = |text: &str| -> Result<Specials, String> {
            let ids = encode(encoder, text)?;
            let types = vec![0; ids.len()];
            Ok(Specials { ids, types })
        };
        let template = Self {
            query_space: [query_before, query_after].map(str::to_owned),
            document_space: [document_before, document_after].map(str::to_owned),
            lead: specials(lead)?,
            query_type: 0,
            middle: specials(middle)?,
            document_type: 0,
            tail: specials(tail)?,
        };
        for (query, document) in [
            (
                "how do plants make energy?",
                "Photosynthesis turns light into sugar.",
            ),
            ("x y", "1969"),
            ("\"quoted\"", "(brackets)"),
        ] {
            let Prompt { lead, middle, tail } = prompt;
            let whole = encode(encoder, &format!("{lead}{query}{middle}{document}{tail}"))?;
            let mut rows = TokenRows::none();
            let query = encode(encoder, &template.query_text(query))?;
            let document = encode(encoder, &template.document_text(document))?;
            template.push(&query, &document, &mut rows);
            if rows.input_ids != whole {
                return Err("its tokens of a prompt depend on more than its pieces".to_owned());
            }
        }
        Ok(template)
    }

    /// What is encoded for a query.
    pub(super) fn query_text<'a>(&self, query: &'a str) -> Cow<'a, str> {
        within(&self.query_space, query)
    }

    /// What is encoded for a document.
    pub(super) fn document_text<'a>(&self, document: &'a str) -> Cow<'a, str> {
        within(&self.document_space, document)
    }

    /// Special tokens of a pair.
    pub(super) fn n_special(&self) -> usize {
        self.lead.ids.len() + self.middle.ids.len() + self.tail.ids.len()
    }

    /// The ids of the special tokens.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        let all = [&self.lead, &self.middle, &self.tail].into_iter();
        all.flat_map(|specials| specials.ids.iter().copied())
    }

    /// Appends the tokens of a row.
    pub(super) fn push(&self, query: &[u32], document: &[u32], rows: &mut TokenRows) {
        self.lead.push(rows);
        push(query, self.query_type, rows);
        self.middle.push(rows);
        push(document, self.document_type, rows);
        self.tail.push(rows);
    }

    fn of(joined: &Encoding) -> Option<Self> {
        let (ids, types, owners) = (
            joined.get_ids(),
            joined.get_type_ids(),
            joined.get_sequence_ids(),
        );
        let query = span(&owners, 0)?;
        let document = span(&owners, 1)?;
        let specials = |range: std::ops::Range<usize>| Specials {
            ids: ids[range.clone()].to_vec(),
            types: types[range].to_vec(),
        };
        (query.end <= document.start).then(|| Self {
            query_space: [String::new(), String::new()],
            document_space: [String::new(), String::new()],
            lead: specials(0..query.start),
            query_type: types[query.start],
            middle: specials(query.end..document.start),
            document_type: types[document.start],
            tail: specials(document.end..ids.len()),
        })
    }

    /// A model with fewer token types than its tokenizer makes was trained with zeros.
    fn clamp_types(&mut self, n_types: u32) {
        let Self {
            lead,
            query_type,
            middle,
            document_type,
            tail,
            ..
        } = self;
        let specials = [lead, middle, tail]
            .into_iter()
            .flat_map(|specials| specials.types.iter_mut());
        for segment in specials.chain([query_type, document_type]) {
            if n_types <= *segment {
                *segment = 0;
            }
        }
    }
}

impl Specials {
    fn push(&self, rows: &mut TokenRows) {
        rows.input_ids.extend_from_slice(&self.ids);
        rows.type_ids.extend_from_slice(&self.types);
    }
}

fn push(ids: &[u32], segment: u32, rows: &mut TokenRows) {
    rows.input_ids.extend_from_slice(ids);
    rows.type_ids.resize(rows.input_ids.len(), segment);
}

fn within<'a>([before, after]: &[String; 2], text: &'a str) -> Cow<'a, str> {
    match (before.as_str(), after.as_str()) {
        ("", "") => Cow::Borrowed(text),
        _ => Cow::Owned(format!("{before}{text}{after}")),
    }
}

/// A text and the whitespace at its end.
fn split_end(text: &str) -> (&str, &str) {
    text.split_at(text.trim_end().len())
}

/// The whitespace at the start of a text, and the rest.
fn split_start(text: &str) -> (&str, &str) {
    text.split_at(text.len() - text.trim_start().len())
}

fn encode(encoder: &Encoder, text: &str) -> Result<Vec<u32>, String> {
    let encoding = encoder.encode_fast(text, false);
    let encoding = encoding.map_err(|error| error.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

fn join(encoder: &Encoder, query: &str, document: &str) -> Result<Encoding, String> {
    encoder
        .encode((query, document), true)
        .map_err(|error| error.to_string())
}

/// Where the tokens of one sequence stand, if they stand together.
fn span(owners: &[Option<usize>], sequence: usize) -> Option<std::ops::Range<usize>> {
    let start = owners.iter().position(|&owner| owner == Some(sequence))?;
    let end = owners.iter().rposition(|&owner| owner == Some(sequence))? + 1;
    owners[start..end]
        .iter()
        .all(|&owner| owner == Some(sequence))
        .then_some(start..end)
}
