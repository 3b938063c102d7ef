//! How a tokenizer joins a query and a document: learned once, so that the query is encoded once.

use super::tokenizer::TokenRows;
use tokenizers::{Encoding, Tokenizer as Encoder};

/// `lead query middle document tail`, each special token with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
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
