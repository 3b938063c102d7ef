//! What a graph reads and says, found by name, type and shape.

use ort::value::{Outlet, TensorElementType, ValueType};
use std::ffi::CString;

/// The output's name in every export of transformers' classifiers.
const LOGITS: &str = "logits";
/// The most outlets that a refusal lists.
const LISTED_MAX: usize = 8;

/// What a graph's input holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Token ids.
    Ids,
    /// 1 on tokens, 0 on padding.
    Mask,
    /// Token types.
    Types,
    /// Each token's position.
    Positions,
}

/// An input: rows × width integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// What it holds.
    pub feed: Feed,
    /// Its name in the graph.
    pub name: CString,
    /// Whether it takes 32 bits instead of 64.
    pub is_short: bool,
}

/// The output that holds the logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name in the graph.
    pub name: CString,
    /// Whether it comes in halves.
    pub is_half: bool,
    /// Whether it has a dimension for labels; without one there is one label.
    pub has_labels: bool,
    /// Logits of a row.
    pub n_labels: usize,
}

pub(super) fn input(outlet: &Outlet) -> Result<Input, String> {
    let feed = match outlet.name() {
        "input_ids" => Feed::Ids,
        "attention_mask" => Feed::Mask,
        "token_type_ids" => Feed::Types,
        "position_ids" => Feed::Positions,
        _ => {
            return Err(format!(
                "it reads {}; this plugin has input_ids, attention_mask, token_type_ids and position_ids",
                written(outlet)
            ));
        }
    };
    let is_short = match outlet.dtype() {
        ValueType::Tensor {
            ty: TensorElementType::Int64,
            shape,
            ..
        } if shape.len() == 2 => false,
        ValueType::Tensor {
            ty: TensorElementType::Int32,
            shape,
            ..
        } if shape.len() == 2 => true,
        _ => {
            return Err(format!(
                "it reads {}; expected rows × tokens of int64 or int32",
                written(outlet)
            ));
        }
    };
    Ok(Input {
        feed,
        name: c_name(outlet)?,
        is_short,
    })
}

/// The output that is a row's logits: the one of that name, or the only one that is as wide as there are labels. An embedding is
/// as flat as logits, so without the name the configuration has to know.
pub(super) fn output(outlets: &[Outlet], n_labels: Option<usize>) -> Result<Output, String> {
    let by_name = outlets.iter().find(|outlet| outlet.name() == LOGITS);
    let found = match by_name {
        Some(outlet) => as_logits(outlet, n_labels)?,
        None => {
            let fitting = outlets
                .iter()
                .filter_map(|outlet| as_logits(outlet, None).transpose());
            let mut fitting = fitting
                .filter_map(Result::ok)
                .filter(|output| Some(output.n_labels) == n_labels);
            // Of two, none is known to be it.
            fitting.next().filter(|_| fitting.next().is_none())
        }
    };
    found.ok_or_else(|| {
        let expected = match n_labels {
            Some(n_labels) => format!("rows × {n_labels}, as config.json names the labels"),
            None => "rows × labels".to_owned(),
        };
        format!(
            "no classifier: expected an output {LOGITS} of {expected}; it has {}",
            list(outlets)
        )
    })
}

/// An output read as logits; `None` if it has another shape or type.
fn as_logits(outlet: &Outlet, n_labels: Option<usize>) -> Result<Option<Output>, String> {
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Ok(None);
    };
    let is_half = match ty {
        TensorElementType::Float32 => false,
        TensorElementType::Float16 => true,
        _ => return Ok(None),
    };
    let has_labels = shape.len() == 2;
    let n_labels = match shape.len() {
        1 => Some(1),
        2 => usize::try_from(shape[1])
            .ok()
            .filter(|&n_labels| 0 < n_labels)
            .or(n_labels),
        _ => None,
    };
    let Some(n_labels) = n_labels else {
        return Ok(None);
    };
    Ok(Some(Output {
        name: c_name(outlet)?,
        is_half,
        has_labels,
        n_labels,
    }))
}

fn c_name(outlet: &Outlet) -> Result<CString, String> {
    CString::new(outlet.name()).map_err(|_| format!("a name holds a NUL: {:?}", outlet.name()))
}

/// `last_hidden_state float32 [batch, sequence, 384]`.
fn written(outlet: &Outlet) -> String {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = outlet.dtype()
    else {
        return format!("{} {}", outlet.name(), outlet.dtype());
    };
    let dimensions = shape
        .iter()
        .enumerate()
        .map(|(at, &size)| match dimension_symbols.get(at) {
            Some(symbol) if size < 0 && !symbol.is_empty() => symbol.clone(),
            _ if size < 0 => "?".to_owned(),
            _ => size.to_string(),
        });
    let dimensions: Vec<_> = dimensions.collect();
    format!("{} {ty} [{}]", outlet.name(), dimensions.join(", "))
}

pub(super) fn list(outlets: &[Outlet]) -> String {
    let listed: Vec<_> = outlets.iter().take(LISTED_MAX).map(written).collect();
    let more = if LISTED_MAX < outlets.len() {
        ", …"
    } else {
        ""
    };
    format!("{}{more}", listed.join(", "))
}
