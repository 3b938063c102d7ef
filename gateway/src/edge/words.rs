//! How a dialect calls what the core speaks of.

use crate::score::ScoreError;

/// Fields of the core's with what they are called in a dialect; others keep their names. `[]` stands for any index,
/// which goes over to the dialect's name.
pub(super) struct Words(pub(super) &'static [(&'static str, &'static str)]);

impl Words {
    /// The same failure of the field that the client has sent.
    pub(super) fn say(&self, error: ScoreError) -> ScoreError {
        let param_of = |param: String| self.param(&param).unwrap_or(param);
        match error {
            ScoreError::Invalid { param, why } => ScoreError::Invalid {
                param: param_of(param),
                why,
            },
            ScoreError::TooLarge { param, why } => ScoreError::TooLarge {
                param: param_of(param),
                why,
            },
            other => other,
        }
    }

    /// `documents[3]` as `texts[3]`, or as `pairs[3].document`.
    fn param(&self, param: &str) -> Option<String> {
        self.0.iter().find_map(|(core, dialect)| {
            if let Some(list) = core.strip_suffix("[]") {
                let rest = param.strip_prefix(list)?.strip_prefix('[')?;
                let (index, rest) = rest.split_once(']')?;
                return Some(dialect.replace("[]", &format!("[{index}]")) + rest);
            }
            let rest = param.strip_prefix(core)?;
            let is_whole = rest.is_empty() || rest.starts_with(['[', '.', ':']);
            is_whole.then(|| format!("{dialect}{rest}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_whole() {
        let say_in =
            |words: &Words, param: &str| match words.say(ScoreError::invalid(param, "is wrong")) {
                ScoreError::Invalid { param, .. } => param,
                other => panic!("{other:?}"),
            };
        let words = Words(&[("documents", "texts"), ("query", "source")]);
        let say = |param: &str| say_in(&words, param);
        assert_eq!(say("documents[3].text"), "texts[3].text");
        assert_eq!(say("documents"), "texts");
        assert_eq!(say("query"), "source");
        assert_eq!(say("query_tokens_max"), "query_tokens_max");
        let pairs = Words(&[("documents[]", "pairs[].document"), ("documents", "pairs")]);
        assert_eq!(say_in(&pairs, "documents[3].x"), "pairs[3].document.x");
        assert_eq!(say_in(&pairs, "documents"), "pairs");
    }
}
