//! The two tokens by whose logits a model that generates ranks.
//!
//! They come from the request's options, as ids or as texts, or from the request itself, or else from the
//! `classifier_from_token` of config.json, which is `[no, yes]`. Texts are looked up in tokenizer.json.

use crate::block::head::Head;
use crate::loader::{Loader, Token};
use crate::raw::{Piece, RawLinear};
use backend_api::Fault;
use serde_json::Value;

/// Their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    yes: u32,
    no: Option<u32>,
}

impl Tokens {
    /// The tokens that options or configuration name.
    pub(super) fn of(loader: &Loader<'_>) -> Result<Self, Fault> {
        let options = loader.options;
        let (yes, no) = match (&options.yes_token, &options.no_token) {
            (Some(yes), no) => (yes.clone(), no.clone()),
            (None, None) => named_by_config(loader).map(|(yes, no)| (yes, Some(no)))?,
            (None, Some(_)) => {
                let why = "no_token says what is compared with yes_token, which is missing";
                return Err(options.wrong_answers(why));
            }
        };
        let tokens = Self {
            yes: id(loader, &yes)?,
            no: no.map(|no| id(loader, &no)).transpose()?,
        };
        if tokens.no == Some(tokens.yes) {
            let why = format!("yes_token and no_token are both token {}", tokens.yes);
            return Err(options.wrong_answers(&why));
        }
        Ok(tokens)
    }

    /// A head whose one logit is the logit of `yes` less that of `no`, if there is one: its sigmoid is the
    /// probability of `yes`, of the two. `table` has a row for each token, whose logits are multiplied by `scale`.
    pub(super) fn head(
        self,
        loader: &Loader<'_>,
        table: &str,
        hidden: usize,
        scale: f32,
    ) -> Result<Head, Fault> {
        let vocab = loader.config.vocab()?;
        let kept = kept(loader);
        let row = |id: u32| match kept.iter().position(|&kept| kept == Some(id)) {
            Some(at) => loader.weights.read_row(KEPT, &[kept.len(), hidden], at),
            None => {
                let shape = [vocab, hidden];
                loader.weights.read_row(table, &shape, id as usize)
            }
        };
        let mut weights = row(self.yes)?;
        if let Some(no) = self.no {
            for (weight, no) in weights.iter_mut().zip(row(no)?) {
                *weight -= no;
            }
        }
        weights.iter_mut().for_each(|weight| *weight *= scale);
        let raw = RawLinear {
            n_in: hidden,
            weights: vec![Piece::Values(weights)],
            bias: Vec::new(),
        };
        Ok(Head::of(loader.hold_whole(raw)?))
    }
}

/// What llama.cpp's converter keeps of the output table of a model that ranks: rows of a few tokens, whose texts it
/// gives as labels. Where the output table is not also the table of words, nothing else of it is in the file.
const KEPT: &str = "cls.output.weight";

/// The tokens whose rows were kept, in order.
fn kept(loader: &Loader<'_>) -> Vec<Option<u32>> {
    if !loader.weights.are_llama_cpp() || !loader.weights.has(KEPT) {
        return Vec::new();
    }
    let labels = loader.weights.labels().iter();
    labels.map(|text| look_up(loader, text).ok()).collect()
}

fn named_by_config(loader: &Loader<'_>) -> Result<(Token, Token), Fault> {
    match loader.config.texts("classifier_from_token")?.as_slice() {
        [no, yes] => Ok((Token::Text(yes.clone()), Token::Text(no.clone()))),
        [] => Err(Fault::bad_model(
            "config.json: this model generates text and has no head that scores; to rank by the logits of two \
             tokens name them by the options yes_token and no_token (Qwen3-Reranker: \"yes\" and \"no\", \
             mxbai-rerank-v2: \"1\" and \"0\", monoT5: \"▁true\" and \"▁false\") or by classifier_from_token = \
             [no, yes] in config.json",
        )),
        other => Err(Fault::bad_model(format!(
            "config.json: classifier_from_token = {other:?}: not two tokens, [no, yes]"
        ))),
    }
}

/// A token's id, which the model must have.
fn id(loader: &Loader<'_>, token: &Token) -> Result<u32, Fault> {
    let id = match token {
        Token::Id(id) => *id,
        Token::Text(text) => look_up(loader, text)?,
    };
    let vocab = loader.config.vocab()?;
    if (id as usize) < vocab {
        return Ok(id);
    }
    let why = format!("token {id} is beyond the vocabulary's {vocab}");
    Err(loader.options.wrong_answers(&why))
}

/// The id of a text that is one token: of a vocabulary that is a table (BPE, WordPiece) or a list of pieces
/// (Unigram), or of the tokens added to it.
fn look_up(loader: &Loader<'_>, text: &str) -> Result<u32, Fault> {
    let path = loader.dir.join("tokenizer.json");
    let bad = |why: String| Fault::bad_model(format!("{}: {why}", path.display()));
    let json = std::fs::read_to_string(&path).map_err(|error| bad(error.to_string()))?;
    let tokenizer: Value = serde_json::from_str(&json).map_err(|error| bad(error.to_string()))?;
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let added = added
        .filter(|token| token["content"] == text)
        .find_map(|token| token["id"].as_u64());
    let vocab = || match &tokenizer["model"]["vocab"] {
        Value::Object(ids) => ids.get(text)?.as_u64(),
        Value::Array(pieces) => {
            let at = pieces.iter().position(|piece| piece[0] == text)?;
            Some(at as u64)
        }
        _ => None,
    };
    added
        .or_else(vocab)
        .and_then(|id| u32::try_from(id).ok())
        .ok_or_else(|| bad(format!("{text:?} is not one of its tokens")))
}
