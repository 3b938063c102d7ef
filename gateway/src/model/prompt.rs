//! Prompts: the text in which a model was taught to find a query and a document, and for a model that generates
//! the tokens by which it answers.

use super::config::Config;
use super::weights::read_bounded;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as JinjaValue};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// Of configuration and templates.
const BYTES_MAX: u64 = 4 << 20;
/// What a template may compute, in minijinja's steps; those of today's models take a few hundred.
const TEMPLATE_STEPS_MAX: u64 = 1_000_000;
/// Stand where a text will: from Unicode's private use area, which no template writes.
const QUERY: &str = "\u{E000}query\u{E001}";
const DOCUMENT: &str = "\u{E000}document\u{E001}";
const INSTRUCTION: &str = "\u{E000}instruction\u{E001}";

/// The text around a query and a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Before the query.
    pub lead: String,
    /// Between both.
    pub middle: String,
    /// After the document.
    pub tail: String,
    /// What stands before the query around an instruction of the client's own; `None` where there is no
    /// place for one.
    pub instructed: Option<[String; 2]>,
}

/// The tokens by whose logits a model that generates answers: the score is the difference of the two, or
/// where there is no `no` the logit of `yes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Says that the document is relevant.
    pub yes: Token,
    /// Says that it is not.
    pub no: Option<Token>,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// By its id.
    Id(u32),
    /// By the text of which it is the only token.
    Text(String),
}

/// How a model reads a pair, and answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `None` where pairs are joined by the tokenizer's own template.
    pub prompt: Option<Prompt>,
    /// `None` where the model has a classifier.
    pub answers: Option<Answers>,
    /// Where the prompt was found, for the log.
    pub source: Option<String>,
}

/// What is known of models whose folder does not say it.
struct Known {
    /// In lower case; all of these are in the model's name.
    words: &'static [&'static str],
    prompt: &'static str,
    /// What of the prompt another instruction replaces, and by what.
    instructed: [&'static str; 2],
    yes: &'static str,
    no: &'static str,
}

/// From the model cards and from the packages that their authors publish (`mxbai-rerank` 0.1.6).
const KNOWN: [Known; 2] = [
    Known {
        words: &["qwen3-reranker"],
        prompt: "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the \
                 Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n\
                 <Instruct>: Given a web search query, retrieve relevant passages that answer the query\n\
                 <Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        instructed: [
            "Given a web search query, retrieve relevant passages that answer the query",
            "{instruction}",
        ],
        yes: "yes",
        no: "no",
    },
    Known {
        words: &["mxbai-rerank", "v2"],
        prompt: "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
                 <|im_start|>user\nquery: {query}\ndocument: {document}\nYou are a search relevance expert who \
                 evaluates how well documents match search queries. For each query-document pair, carefully analyze \
                 the semantic relationship between them, then provide your binary relevance judgment (0 for not \
                 relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n",
        instructed: [
            "query: {query}",
            "instruction: {instruction}\nquery: {query}",
        ],
        yes: "1",
        no: "0",
    },
];

/// Architectures that generate: without tokens that answer they score nothing.
const GENERATING: [&str; 3] = ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel"];

/// One line of `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// `config.json` of sentence-transformers' module `LogitScore`.
#[derive(Deserialize)]
struct LogitScore {
    true_token_id: u32,
    false_token_id: Option<u32>,
}

/// `sentence_bert_config.json`.
#[derive(Default, Deserialize)]
struct SentenceBert {
    #[serde(default)]
    modality_config: Map<String, Value>,
    #[serde(default)]
    processing_kwargs: Map<String, Value>,
}

/// `config_sentence_transformers.json`.
#[derive(Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: Map<String, Value>,
    default_prompt_name: Option<String>,
}

/// Whether a class of transformers generates text.
pub(super) fn generates(architecture: &str) -> bool {
    GENERATING.iter().any(|end| architecture.ends_with(end))
}

// === impl Prompt ===

impl Prompt {
    /// From a text in which `{query}` and `{document}` stand, once each and in this order.
    ///
    /// # Errors
    /// What is missing.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::between(text, "{query}", "{document}")
    }

    fn between(text: &str, query: &str, document: &str) -> Result<Self, String> {
        let n = |mark: &str| text.matches(mark).count();
        if (n(query), n(document)) != (1, 1) {
            return Err(format!(
                "the query stands in it {} times and the document {} times; expected once each",
                n(query),
                n(document)
            ));
        }
        let parts = text.split_once(query);
        let parts = parts.and_then(|(lead, rest)| Some((lead, rest.split_once(document)?)));
        let (lead, (middle, tail)) = parts.ok_or("the document stands in it before the query")?;
        Ok(Self {
            lead: lead.to_owned(),
            middle: middle.to_owned(),
            tail: tail.to_owned(),
            instructed: None,
        })
    }

    /// With the place that `text`, the same prompt with another instruction, has for that. None where it
    /// stands elsewhere than before the query, or changes more than itself.
    fn with_place(mut self, text: &str, marks: [&str; 3]) -> Self {
        let [instruction, query, document] = marks;
        let place = Self::between(text, query, document).ok().filter(|other| {
            (other.middle.as_str(), other.tail.as_str()) == (&self.middle, &self.tail)
                && other.lead.matches(instruction).count() == 1
        });
        let place = place
            .as_ref()
            .and_then(|other| other.lead.split_once(instruction));
        self.instructed = place.map(|(before, after)| [before, after].map(str::to_owned));
        self
    }
}

// === impl Reading ===

impl Reading {
    /// As the model's folder says, or as it is known of a model of one of these names.
    ///
    /// # Errors
    /// That it generates and nothing says how it answers; or what is wrong with a file.
    pub(super) fn of(
        folder: &Path,
        names: &[&str],
        architecture: &str,
        config: &Config,
    ) -> Result<Self, String> {
        let answers = answers(folder)?;
        let is_generating = generates(architecture);
        let is_decoder = is_generating || config.is_decoder();
        if !is_decoder {
            return Ok(Self::default());
        }
        let known = known(names);
        let template = if answers.is_some() || reads_messages(folder)? {
            chat_template(folder)?
        } else {
            None
        };
        let mut reading = Self {
            answers: answers.filter(|_| is_generating),
            ..Self::default()
        };
        if let Some((path, template)) = template {
            let prompt = render(&template, folder);
            let prompt = prompt.map_err(|why| format!("{}: {why}", path.display()))?;
            reading.prompt = Some(prompt);
            reading.source = Some(path.display().to_string());
        } else if let Some(known) = known {
            let [from, to] = known.instructed;
            let instructed = known.prompt.replacen(from, to, 1);
            let marks = ["{instruction}", "{query}", "{document}"];
            let prompt = Prompt::parse(known.prompt)?;
            reading.prompt = Some(prompt.with_place(&instructed, marks));
            reading.source = Some(format!("known of {}", known.words.join(" ")));
        }
        if is_generating && reading.answers.is_none() {
            reading.answers = known.map(|known| Answers {
                yes: Token::Text(known.yes.to_owned()),
                no: Some(Token::Text(known.no.to_owned())),
            });
        }
        if is_generating && (reading.answers.is_none() || reading.prompt.is_none()) {
            return Err(format!(
                "{architecture} generates text, and nothing says in which prompt it reads a pair and by which tokens it \
                 answers: no LogitScore in modules.json with a chat template, and no name that is known ({})",
                KNOWN.map(|known| known.words.join(" … ")).join(", ")
            ));
        }
        Ok(reading)
    }

    /// The files beside `config.json` on which scores depend.
    pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
        let names = [
            "modules.json",
            "sentence_bert_config.json",
            "chat_template.jinja",
        ];
        let mut files: Vec<_> = names.map(|name| folder.join(name)).into();
        files.extend(logit_score(folder).ok().flatten());
        files.retain(|path| path.is_file());
        files
    }
}

fn known(names: &[&str]) -> Option<&'static Known> {
    let names: Vec<_> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    KNOWN.iter().find(|known| {
        let has_all = |name: &String| known.words.iter().all(|word| name.contains(word));
        names.iter().any(has_all)
    })
}

/// Where the configuration of `LogitScore` is, if `modules.json` names one.
fn logit_score(folder: &Path) -> Result<Option<PathBuf>, String> {
    let modules: Option<Vec<Module>> = read_if_there(&folder.join("modules.json"))?;
    let mut modules = modules.into_iter().flatten();
    let is_one = |module: &Module| module.kind.rsplit('.').next() == Some("LogitScore");
    let Some(module) = modules.find(is_one) else {
        return Ok(None);
    };
    let file = format!("{}/config.json", module.path);
    super::hub::check_file_name(&file).map_err(|why| format!("modules.json: {why}"))?;
    Ok(Some(folder.join(file)))
}

fn answers(folder: &Path) -> Result<Option<Answers>, String> {
    let Some(path) = logit_score(folder)? else {
        return Ok(None);
    };
    let score: Option<LogitScore> = read_if_there(&path)?;
    let score = score.ok_or_else(|| format!("{} is missing", path.display()))?;
    Ok(Some(Answers {
        yes: Token::Id(score.true_token_id),
        no: score.false_token_id.map(Token::Id),
    }))
}

/// Whether sentence-transformers gives this model's pairs as messages to its chat template.
fn reads_messages(folder: &Path) -> Result<bool, String> {
    let config: Option<SentenceBert> = read_if_there(&folder.join("sentence_bert_config.json"))?;
    Ok(config.is_some_and(|config| config.modality_config.contains_key("message")))
}

/// The template's text and the file in which it stands.
fn chat_template(folder: &Path) -> Result<Option<(PathBuf, String)>, String> {
    let own = folder.join("chat_template.jinja");
    if own.is_file() {
        let bytes = read_bounded(&own, BYTES_MAX).map_err(|error| error.to_string())?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|error| format!("{}: {error}", own.display()))?;
        return Ok(Some((own, text)));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = folder.join(name);
        let json: Option<Value> = read_if_there(&path)?;
        let template = json.and_then(|mut json| Some(json.get_mut("chat_template")?.take()));
        match template {
            Some(Value::String(text)) => return Ok(Some((path, text))),
            // Several, by name: pairs take the first that is called so.
            Some(Value::Array(templates)) => {
                let named = |template: &&Value| template["name"] == "default";
                let default = templates.iter().find(named);
                if let Some(text) = default.and_then(|default| default["template"].as_str()) {
                    return Ok(Some((path, text.to_owned())));
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// As transformers and sentence-transformers render a pair: a message of the role `query`, one of the role
/// `document`, and before them the default prompt as the system's.
fn render(template: &str, folder: &Path) -> Result<Prompt, String> {
    let default = default_prompt(folder)?;
    let text = render_pair(template, folder, default.as_deref())?;
    let prompt = Prompt::between(&text, QUERY, DOCUMENT).map_err(|why| {
        format!("the chat template makes no prompt of a query and a document: {why}")
    })?;
    // A template that takes no system's message has no place for an instruction.
    let instructed = render_pair(template, folder, Some(INSTRUCTION)).unwrap_or_default();
    Ok(prompt.with_place(&instructed, [INSTRUCTION, QUERY, DOCUMENT]))
}

fn render_pair(template: &str, folder: &Path, system: Option<&str>) -> Result<String, String> {
    let message = |role: &str, content: &str| {
        context! { role => role, content => content }
    };
    let system = system.map(|system| message("system", system));
    let messages: Vec<_> = system
        .into_iter()
        .chain([message("query", QUERY), message("document", DOCUMENT)])
        .collect();
    let sentence: Option<SentenceBert> = read_if_there(&folder.join("sentence_bert_config.json"))?;
    let said = sentence.and_then(|mut sentence| sentence.processing_kwargs.remove("chat_template"));
    let said = JinjaValue::from(Serde(said.unwrap_or_else(|| Value::Object(Map::new()))));
    let tokens: Map<String, Value> =
        read_if_there(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let token = |name: &str| match tokens.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other["content"].as_str().unwrap_or_default().to_owned(),
        None => String::new(),
    };
    let mut jinja = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    jinja.set_syntax(syntax.map_err(|error| error.to_string())?);
    jinja.set_undefined_behavior(UndefinedBehavior::Chainable);
    jinja.set_fuel(Some(TEMPLATE_STEPS_MAX));
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.add_function(
        "raise_exception",
        |why: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
        },
    );
    let defaults = context! {
        messages => messages,
        add_generation_prompt => false,
        bos_token => token("bos_token"),
        eos_token => token("eos_token"),
        pad_token => token("pad_token"),
        unk_token => token("unk_token"),
    };
    jinja
        .render_str(template, context! { ..said, ..defaults })
        .map_err(|error| {
            format!("the chat template does not take a query and a document: {error:#}")
        })
}

/// The instruction that stands before every pair.
fn default_prompt(folder: &Path) -> Result<Option<String>, String> {
    let path = folder.join("config_sentence_transformers.json");
    let said: Option<Prompts> = read_if_there(&path)?;
    let Some(Prompts {
        prompts,
        default_prompt_name: Some(name),
    }) = said
    else {
        return Ok(None);
    };
    match prompts.get(&name).and_then(Value::as_str) {
        Some("") => Ok(None),
        Some(prompt) => Ok(Some(prompt.to_owned())),
        None => Err(format!("{}: there is no prompt {name:?}", path.display())),
    }
}

fn read_if_there<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, String> {
    if !fs::exists(path).unwrap_or(false) {
        return Ok(None);
    }
    let bytes = read_bounded(path, BYTES_MAX).map_err(|error| error.to_string())?;
    let read = serde_json::from_slice(&bytes);
    read.map(Some)
        .map_err(|error| format!("{} is not what it should be: {error}", path.display()))
}

#[cfg(test)]
mod tests;
