//! How a tokenizer joins a query and a document: learned once, so that the query is encoded once.

use super::prompt::Prompt;
use super::rows::TokenRows;
use std::borrow::Cow;
use tokenizers::{Encoding, Tokenizer as Encoder};

/// `lead query middle document tail`, each special token with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// Whitespace that a prompt has around each of the texts, and what is configured to stand before them:
    /// encoders take it together with them.
    query_space: [String; 2],
    document_space: [String; 2],
    lead: Specials,
    query_type: u32,
    middle: Specials,
    document_type: u32,
    tail: Specials,
    /// Where an instruction of the client's own stands, in place of the whole lead.
    instructed: Option<Box<Instructed>>,
}

/// A prompt's lead around an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Instructed {
    before: Specials,
    space: [String; 2],
    after: Specials,
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

    /// The same for texts that stand alone.
    ///
    /// # Errors
    /// When the encoder does not frame a text by a fixed frame.
    pub(super) fn learn_alone(encoder: &Encoder, n_types: u32) -> Result<Self, String> {
        let framed = frame(encoder, "a")?;
        let mut template =
            Self::of_alone(&framed).ok_or("its post-processor takes a text apart")?;
        for text in ["Photosynthesis turns light into sugar.", "x y"] {
            let mut rows = TokenRows::none();
            template.push(&[], &encode(encoder, text)?, &mut rows);
            let expected = frame(encoder, text)?;
            if rows.input_ids != expected.get_ids() || rows.type_ids != expected.get_type_ids() {
                return Err(
                    "its post-processor frames texts in a way that depends on them".to_owned(),
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
        let specials = |text: &str| encode(encoder, text).map(|ids| Specials::of_one_type(ids, 0));
        let instructed = match &prompt.instructed {
            None => None,
            Some([before, after]) => {
                let (before, space_before) = split_end(before);
                let (space_after, after) = split_start(after);
                // The query's own whitespace is encoded with the query.
                let (after, _) = split_end(after);
                Some(Box::new(Instructed {
                    before: specials(before)?,
                    space: [space_before, space_after].map(str::to_owned),
                    after: specials(after)?,
                }))
            }
        };
        let template = Self {
            instructed,
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
            template.prove(encoder, prompt, None, query, document)?;
            template.prove(
                encoder,
                prompt,
                Some("Judge how well it fits."),
                query,
                document,
            )?;
        }
        Ok(template)
    }

    /// That the pieces of a pair make the tokens of the whole.
    fn prove(
        &self,
        encoder: &Encoder,
        prompt: &Prompt,
        instruction: Option<&str>,
        query: &str,
        document: &str,
    ) -> Result<(), String> {
        let Prompt {
            lead,
            middle,
            tail,
            instructed,
        } = prompt;
        let encode = |text: &str| encode(encoder, text);
        let (lead, own) = match (instruction, instructed) {
            (None, _) => (lead.clone(), None),
            (Some(text), Some([before, after])) => {
                let own = self.with_instruction(text, encode)?;
                (format!("{before}{text}{after}"), own)
            }
            (Some(_), None) => return Ok(()),
        };
        let template = own.as_ref().unwrap_or(self);
        let whole = encode(&format!("{lead}{query}{middle}{document}{tail}"))?;
        let mut rows = TokenRows::none();
        let query = encode(&template.query_text(query))?;
        let document = encode(&template.document_text(document))?;
        template.push(&query, &document, &mut rows);
        if rows.input_ids == whole {
            return Ok(());
        }
        Err("its tokens of a prompt depend on more than its pieces".to_owned())
    }

    /// The same with another instruction, encoded by `encode`; `None` where there is no place for one.
    ///
    /// # Errors
    /// `encode`'s.
    pub(super) fn with_instruction(
        &self,
        text: &str,
        encode: impl Fn(&str) -> Result<Vec<u32>, String>,
    ) -> Result<Option<Self>, String> {
        let Some(instructed) = &self.instructed else {
            return Ok(None);
        };
        let mut ids = instructed.before.ids.clone();
        ids.extend(encode(&within(&instructed.space, text))?);
        ids.extend_from_slice(&instructed.after.ids);
        Ok(Some(Self {
            lead: Specials::of_one_type(ids, 0),
            ..self.clone()
        }))
    }

    /// What is encoded for a query.
    pub(super) fn query_text<'a>(&self, query: &'a str) -> Cow<'a, str> {
        within(&self.query_space, query)
    }

    /// What is encoded for a document.
    pub(super) fn document_text<'a>(&self, document: &'a str) -> Cow<'a, str> {
        within(&self.document_space, document)
    }

    /// The same with texts before each query and each document, encoded together with them.
    pub(super) fn with_prefixes(mut self, query: &str, document: &str) -> Self {
        self.query_space[0].push_str(query);
        self.document_space[0].push_str(document);
        self
    }

    /// Bytes that the prompt has behind a document, encoded together with it.
    pub(super) fn document_end(&self) -> usize {
        self.document_space[1].len()
    }

    /// Whether an instruction has a place in it.
    pub(super) fn is_instructed(&self) -> bool {
        self.instructed.is_some()
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
            instructed: None,
            query_space: [String::new(), String::new()],
            document_space: [String::new(), String::new()],
            lead: specials(0..query.start),
            query_type: types[query.start],
            middle: specials(query.end..document.start),
            document_type: types[document.start],
            tail: specials(document.end..ids.len()),
        })
    }

    fn of_alone(framed: &Encoding) -> Option<Self> {
        let (ids, types) = (framed.get_ids(), framed.get_type_ids());
        let text = span(&framed.get_sequence_ids(), 0)?;
        let specials = |range: std::ops::Range<usize>| Specials {
            ids: ids[range.clone()].to_vec(),
            types: types[range].to_vec(),
        };
        Some(Self {
            query_space: [String::new(), String::new()],
            document_space: [String::new(), String::new()],
            lead: specials(0..text.start),
            query_type: 0,
            middle: Specials::default(),
            document_type: types[text.start],
            tail: specials(text.end..ids.len()),
            instructed: None,
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
    fn of_one_type(ids: Vec<u32>, segment: u32) -> Self {
        let types = vec![segment; ids.len()];
        Self { ids, types }
    }

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

fn frame(encoder: &Encoder, text: &str) -> Result<Encoding, String> {
    encoder
        .encode(text, true)
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
