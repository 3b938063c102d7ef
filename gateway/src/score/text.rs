//! What rows are made of, and how texts are made to fit into them.

use std::sync::Arc;

/// What a row is made of: a query with a document, or a text alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Texts {
    /// Rows of one query share it; `None` where the document stands alone, to be classified.
    pub query: Option<Arc<str>>,
    /// What is scored.
    pub document: Arc<str>,
}

/// How a request's texts become rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// What the model is told to look for, in place of its own instruction; for models whose prompt has one.
    pub instruction: Option<Arc<str>>,
    /// Of a query no more tokens count.
    pub query_tokens_max: Option<u32>,
    /// Of a document no more tokens count.
    pub document_tokens_max: Option<u32>,
    /// A row has no more tokens, special ones included; at most the model's length.
    pub row_tokens_max: Option<u32>,
    /// Where texts that are too long are cut, in place of the side that the model's tokenizer names.
    pub side: Option<Side>,
    /// A document that is too long is not cut but read in windows that overlap; its score is the best one's.
    pub windows: bool,
}

/// An end of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Side {
    /// The end.
    #[default]
    Right,
    /// The beginning.
    Left,
}

// === impl Texts ===

impl Texts {
    /// A query with each of its documents.
    pub fn of_query(
        query: impl Into<Arc<str>>,
        documents: impl IntoIterator<Item = impl Into<Arc<str>>>,
    ) -> Vec<Self> {
        let query = query.into();
        let documents = documents.into_iter();
        documents
            .map(|document| Self {
                query: Some(Arc::clone(&query)),
                document: document.into(),
            })
            .collect()
    }

    /// Each with a query of its own.
    pub fn of_pairs(
        pairs: impl IntoIterator<Item = (impl Into<Arc<str>>, impl Into<Arc<str>>)>,
    ) -> Vec<Self> {
        let pair = |(query, document): (_, _)| Self {
            query: Some(Into::into(query)),
            document: Into::into(document),
        };
        pairs.into_iter().map(pair).collect()
    }

    /// Each alone.
    pub fn alone(documents: impl IntoIterator<Item = impl Into<Arc<str>>>) -> Vec<Self> {
        let documents = documents.into_iter();
        documents
            .map(|document| Self {
                query: None,
                document: document.into(),
            })
            .collect()
    }

    /// The query, empty where there is none.
    pub fn query(&self) -> &str {
        self.query.as_deref().unwrap_or_default()
    }

    /// Bytes of the pair.
    pub fn bytes(&self) -> usize {
        self.query().len() + self.document.len()
    }

    /// Whether both are rows of one query, which is encoded once.
    pub fn shares_query(&self, other: &Self) -> bool {
        match (&self.query, &other.query) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }
}

/// Bytes of all texts, each once: rows of one query stand together.
pub fn text_bytes<'a>(rows: impl IntoIterator<Item = &'a Texts>) -> usize {
    let (mut bytes, mut last) = (0, None);
    for row in rows {
        let is_new = last.is_none_or(|last| !row.shares_query(last));
        bytes += row.document.len() + if is_new { row.query().len() } else { 0 };
        last = Some(row);
    }
    bytes
}

// === impl Form ===

impl Form {
    /// As bytes of which no two forms have the same; none where everything is as the model has it. Windows
    /// are rows like others.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self {
            instruction,
            query_tokens_max,
            document_tokens_max,
            row_tokens_max,
            side,
            windows: _,
        } = self;
        let bounds = [query_tokens_max, document_tokens_max, row_tokens_max];
        let is_plain =
            instruction.is_none() && side.is_none() && bounds.iter().all(|bound| bound.is_none());
        if is_plain {
            return Vec::new();
        }
        let side = side.map_or(2, |side| side as u8);
        let mut bytes = vec![side, u8::from(instruction.is_some())];
        for bound in bounds {
            bytes.push(u8::from(bound.is_some()));
            bytes.extend(bound.unwrap_or_default().to_le_bytes());
        }
        bytes.extend(instruction.as_deref().unwrap_or_default().as_bytes());
        bytes
    }
}

// === impl Side ===

impl Side {
    /// The `n` items that are left of `items` when this side is cut.
    pub fn kept<T>(self, items: &[T], n: usize) -> &[T] {
        let n = n.min(items.len());
        match self {
            Self::Right => &items[..n],
            Self::Left => &items[items.len() - n..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_shared_query_counts_once_as_text() {
        let rows = Texts::of_query("abc", ["d", "ef"]);
        assert_eq!(text_bytes(&rows), 6);
        assert_eq!(rows.iter().map(Texts::bytes).sum::<usize>(), 9);
        let pairs = Texts::of_pairs([("abc", "d"), ("abc", "ef")]);
        assert_eq!(text_bytes(&pairs), 9);
        assert_eq!(text_bytes(&Texts::alone(["d", "ef"])), 3);
    }

    #[test]
    fn forms_that_differ_have_other_bytes() {
        let forms = [
            Form::default(),
            Form {
                instruction: Some("".into()),
                ..Form::default()
            },
            Form {
                instruction: Some("a".into()),
                ..Form::default()
            },
            Form {
                query_tokens_max: Some(1),
                ..Form::default()
            },
            Form {
                document_tokens_max: Some(1),
                ..Form::default()
            },
            Form {
                row_tokens_max: Some(1),
                ..Form::default()
            },
            Form {
                row_tokens_max: Some(0),
                ..Form::default()
            },
            Form {
                side: Some(Side::Left),
                ..Form::default()
            },
        ];
        let bytes: BTreeSet<_> = forms.iter().map(Form::to_bytes).collect();
        assert_eq!(bytes.len(), forms.len());
        assert!(forms[0].to_bytes().is_empty());
    }

    #[test]
    fn sides() {
        assert_eq!(Side::Right.kept(&[1, 2, 3], 2), [1, 2]);
        assert_eq!(Side::Left.kept(&[1, 2, 3], 2), [2, 3]);
        assert_eq!(Side::Left.kept(&[1], 2), [1]);
    }
}
