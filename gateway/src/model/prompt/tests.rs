use super::*;

/// As sentence-transformers 6 writes a reranker that generates.
const MODULES: &str = r#"[
  {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
  {"idx": 1, "name": "1", "path": "1_LogitScore",
   "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}]"#;
const TEMPLATE: &str = r#"{%- if messages[0].role == 'system' %}
    {%- set instruction = messages[0].content %}
{%- else %}
    {%- set instruction = 'find passages' %}
{%- endif %}
{%- set query = messages | selectattr('role', 'equalto', 'query') | map(attribute='content') | first %}
{%- set document = messages | selectattr('role', 'equalto', 'document') | map(attribute='content') | first %}
<s>{{ instruction }}
<Query>: {{ query.strip() }}
<Document>: {{ document }}</s>
{% if add_generation_prompt %}
<answer>
{% endif %}
"#;

/// A folder with these files, and what is read there of a model of that name.
fn reading(name: &str, architecture: &str, files: &[(&str, &str)]) -> Result<Reading, String> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let config = serde_json::from_str(r#"{"model_type": "qwen3"}"#).unwrap();
    Reading::of(folder.path(), &[name], architecture, &config)
}

fn modular<'a>(files: &[(&'a str, &'a str)]) -> Result<Reading, String> {
    let mut all = vec![
        ("modules.json", MODULES),
        (
            "1_LogitScore/config.json",
            r#"{"true_token_id": 7, "false_token_id": 3}"#,
        ),
        ("chat_template.jinja", TEMPLATE),
    ];
    for (name, text) in files {
        all.retain(|(known, _)| known != name);
        all.push((name, text));
    }
    reading("mine", "Qwen3ForCausalLM", &all)
}

#[test]
fn a_modular_reranker_is_read_as_it_is_written() {
    let read = modular(&[]).unwrap();
    let answers = Answers {
        yes: Token::Id(7),
        no: Some(Token::Id(3)),
    };
    assert_eq!(read.answers, Some(answers));
    let prompt = read.prompt.unwrap();
    assert_eq!(prompt.lead, "<s>find passages\n<Query>: ");
    assert_eq!(prompt.middle, "\n<Document>: ");
    assert_eq!(prompt.tail, "</s>\n");
    // What its configuration says of the template and of instructions.
    let read = modular(&[
        (
            "sentence_bert_config.json",
            r#"{"processing_kwargs": {"chat_template": {"add_generation_prompt": true}}}"#,
        ),
        (
            "config_sentence_transformers.json",
            r#"{"prompts": {"web": "search the web"}, "default_prompt_name": "web"}"#,
        ),
        (
            "1_LogitScore/config.json",
            r#"{"true_token_id": 7, "false_token_id": null}"#,
        ),
    ]);
    let read = read.unwrap();
    assert_eq!(read.answers.unwrap().no, None);
    let prompt = read.prompt.unwrap();
    assert_eq!(prompt.lead, "<s>search the web\n<Query>: ");
    assert_eq!(prompt.tail, "</s>\n<answer>\n");
}

#[test]
fn known_models_need_no_files_of_their_own() {
    let read = reading("Qwen/Qwen3-Reranker-0.6B", "Qwen3ForCausalLM", &[]).unwrap();
    let prompt = read.prompt.unwrap();
    assert!(prompt.lead.ends_with("<Query>: ") && prompt.tail.ends_with("</think>\n\n"));
    assert_eq!(read.answers.unwrap().yes, Token::Text("yes".to_owned()));
    let read = reading(
        "mixedbread-ai/mxbai-rerank-base-v2",
        "Qwen2ForCausalLM",
        &[],
    )
    .unwrap();
    assert!(read.prompt.unwrap().lead.ends_with("query: "));
    assert_eq!(read.answers.unwrap().yes, Token::Text("1".to_owned()));
    // The same with a classifier made of those two tokens.
    let name = "tomaarsen/Qwen3-Reranker-0.6B-seq-cls";
    let read = reading(name, "Qwen3ForSequenceClassification", &[]).unwrap();
    assert!(read.prompt.is_some() && read.answers.is_none());
    // Not all that is called so.
    let read = reading(
        "mixedbread-ai/mxbai-rerank-base-v1",
        "Qwen2ForCausalLM",
        &[],
    );
    assert!(read.is_err());
}

#[test]
fn what_only_generates_is_refused_with_the_reason() {
    let why = reading(
        "Qwen/Qwen3-0.6B",
        "Qwen3ForCausalLM",
        &[("chat_template.jinja", TEMPLATE)],
    );
    let why = why.unwrap_err();
    for word in ["generates text", "LogitScore", "qwen3-reranker"] {
        assert!(why.contains(word), "{why} does not say {word}");
    }
    for (file, text, word) in [
        (
            "chat_template.jinja",
            "{{ messages[0].content }}",
            "the document 0 times",
        ),
        (
            "chat_template.jinja",
            "{{ raise_exception('only user') }}",
            "only user",
        ),
        (
            "chat_template.jinja",
            "{% for i in range(100000) %}{% for i in range(100000) %}x{% endfor %}{% endfor %}",
            "fuel",
        ),
        (
            "chat_template.jinja",
            "{{ messages[1].content }} {{ messages[0].content }}",
            "before the query",
        ),
        ("chat_template.jinja", "{% if %}", "syntax error"),
        ("1_LogitScore/config.json", "{}", "true_token_id"),
        ("modules.json", "{}", "modules.json is not"),
        (
            "config_sentence_transformers.json",
            r#"{"default_prompt_name": "web"}"#,
            "no prompt \"web\"",
        ),
    ] {
        let why = modular(&[(file, text)]).unwrap_err();
        assert!(why.contains(word), "{file}: {why} does not say {word}");
    }
    let outside = MODULES.replace("1_LogitScore", "../elsewhere");
    let why = modular(&[("modules.json", &outside)]).unwrap_err();
    assert!(why.contains("leaves its folder"), "{why}");
}

#[test]
fn an_encoder_needs_no_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::from_str(r#"{"model_type": "bert"}"#).unwrap();
    let read = Reading::of(
        folder.path(),
        &["m"],
        "BertForSequenceClassification",
        &config,
    );
    assert_eq!(read.unwrap(), Reading::default());
}
