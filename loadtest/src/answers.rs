//! Is an answer right? Its shape always, its scores where they are known. Pure.

use std::fmt;

/// The scores of one answer, as they came.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    pub entries: Vec<Entry>,
    pub sorting: Sorting,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// The document's place in the request.
    pub index: u64,
    pub score: f32,
}

/// The order that an answer promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sorting {
    /// Falling scores; equal ones in any order, since dialects differ there.
    ByScore,
    /// The documents' order in the request.
    ByIndex,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    Count {
        documents: usize,
        results: usize,
    },
    IndexOutOfRange {
        index: u64,
        documents: usize,
    },
    IndexRepeated {
        index: u64,
    },
    NotFinite {
        document: usize,
        score: f32,
    },
    Unsorted {
        position: usize,
    },
    Score {
        document: usize,
        expected: f32,
        got: f32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { documents, results } => {
                write!(formatter, "{results} results for {documents} documents")
            }
            Self::IndexOutOfRange { index, documents } => {
                write!(formatter, "index {index} of {documents} documents")
            }
            Self::IndexRepeated { index } => write!(formatter, "index {index} twice"),
            Self::NotFinite { document, score } => {
                write!(formatter, "document {document} has the score {score}")
            }
            Self::Unsorted { position } => write!(formatter, "result {position} is out of order"),
            Self::Score {
                document,
                expected,
                got,
            } => {
                write!(
                    formatter,
                    "document {document}: expected {expected}, got {got}"
                )
            }
        }
    }
}

/// The scores in document order, if every document has exactly one, finite and in the promised order.
pub fn in_document_order(scores: &Scores, documents: usize) -> Result<Vec<f32>, Fault> {
    if scores.entries.len() != documents {
        return Err(Fault::Count {
            documents,
            results: scores.entries.len(),
        });
    }
    let mut placed = vec![None; documents];
    for entry in &scores.entries {
        let place = usize::try_from(entry.index)
            .ok()
            .and_then(|index| placed.get_mut(index));
        let place = place.ok_or(Fault::IndexOutOfRange {
            index: entry.index,
            documents,
        })?;
        if place.replace(entry.score).is_some() {
            return Err(Fault::IndexRepeated { index: entry.index });
        }
    }
    // As many entries as places and none taken twice: every place is filled.
    let placed: Vec<f32> = placed.into_iter().flatten().collect();
    if let Some(document) = placed.iter().position(|score| !score.is_finite()) {
        return Err(Fault::NotFinite {
            document,
            score: placed[document],
        });
    }
    let in_order = |pair: &[Entry]| match scores.sorting {
        Sorting::ByScore => pair[0].score >= pair[1].score,
        Sorting::ByIndex => pair[0].index < pair[1].index,
    };
    match scores.entries.windows(2).position(|pair| !in_order(pair)) {
        Some(position) => Err(Fault::Unsorted {
            position: position + 1,
        }),
        None => Ok(placed),
    }
}

/// The largest absolute difference, if none exceeds `tolerance`; otherwise the first that does.
/// Both slices have a score for each document.
pub fn compare(got: &[f32], expected: &[f32], tolerance: f32) -> Result<f32, Fault> {
    let mut largest = 0.0_f32;
    for (document, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let difference = (got - expected).abs();
        // Written so that a NaN among the expected scores is a difference too.
        if difference.is_nan() || difference > tolerance {
            return Err(Fault::Score {
                document,
                expected,
                got,
            });
        }
        largest = largest.max(difference);
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sorting: Sorting, entries: &[(u64, f32)], wanted: Result<&[f32], Fault>) {
        let entries = entries
            .iter()
            .map(|&(index, score)| Entry { index, score })
            .collect();
        let got = in_document_order(&Scores { entries, sorting }, 3);
        assert_eq!(got, wanted.map(<[f32]>::to_vec));
    }

    #[test]
    fn a_right_answer_is_put_in_document_order() {
        check(
            Sorting::ByScore,
            &[(2, 3.0), (0, 1.0), (1, 1.0)],
            Ok(&[1.0, 1.0, 3.0]),
        );
        check(
            Sorting::ByScore,
            &[(2, 3.0), (1, 1.0), (0, 1.0)],
            Ok(&[1.0, 1.0, 3.0]),
        );
        check(
            Sorting::ByIndex,
            &[(0, 1.0), (1, 3.0), (2, 2.0)],
            Ok(&[1.0, 3.0, 2.0]),
        );
    }

    #[test]
    fn each_fault_is_named() {
        let sorting = Sorting::ByScore;
        check(
            sorting,
            &[(0, 1.0)],
            Err(Fault::Count {
                documents: 3,
                results: 1,
            }),
        );
        check(
            sorting,
            &[(0, 3.0), (1, 2.0), (3, 1.0)],
            Err(Fault::IndexOutOfRange {
                index: 3,
                documents: 3,
            }),
        );
        check(
            sorting,
            &[(0, 3.0), (1, 2.0), (u64::MAX, 1.0)],
            Err(Fault::IndexOutOfRange {
                index: u64::MAX,
                documents: 3,
            }),
        );
        check(
            sorting,
            &[(0, 3.0), (1, 2.0), (0, 1.0)],
            Err(Fault::IndexRepeated { index: 0 }),
        );
        check(
            sorting,
            &[(0, 1.0), (1, 2.0), (2, 0.0)],
            Err(Fault::Unsorted { position: 1 }),
        );
        check(
            Sorting::ByIndex,
            &[(0, 1.0), (2, 2.0), (1, 0.0)],
            Err(Fault::Unsorted { position: 2 }),
        );
        check(
            sorting,
            &[(0, 1.0), (1, f32::INFINITY), (2, 0.0)],
            Err(Fault::NotFinite {
                document: 1,
                score: f32::INFINITY,
            }),
        );
        let nan = [(0, 1.0), (1, f32::NAN), (2, 0.0)].map(|(index, score)| Entry { index, score });
        let got = in_document_order(
            &Scores {
                entries: nan.to_vec(),
                sorting,
            },
            3,
        );
        assert!(
            matches!(got, Err(Fault::NotFinite { document: 1, .. })),
            "{got:?}"
        );
    }

    #[test]
    fn scores_are_compared_within_the_tolerance() {
        assert_eq!(compare(&[1.0, 2.0], &[1.0, 2.25], 0.25), Ok(0.25));
        assert_eq!(
            compare(&[1.0, 2.0], &[1.0, 2.5], 0.25),
            Err(Fault::Score {
                document: 1,
                expected: 2.5,
                got: 2.0
            })
        );
        assert!(compare(&[1.0], &[f32::NAN], 1.0).is_err());
        assert_eq!(compare(&[1.0], &[1.0], 0.0), Ok(0.0));
    }
}
