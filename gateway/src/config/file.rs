//! The YAML file as a list of dotted keys with their texts and lines.
//!
//! Read from the parser's events, because these still have what the user wrote: the scalar's text
//! (`0x1F90`, `on` and `1e3` are not turned into something else first), its line, and a key that
//! stands there twice. Anchors are refused: no setting needs one, and they can multiply.

use super::setting::Kind;
use super::table::find;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use serde_json::{Map, Value};

/// A mapping inside a mapping inside …: settings need two levels, plugin options a few more.
const DEPTH_MAX: usize = 16;

/// One key of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Dotted: `server.port`.
    pub key: String,
    /// From 1.
    pub line: usize,
    /// What stands there, a list joined by commas; `None` for nothing. The error says why what
    /// stands there cannot be a value of this key.
    pub text: Result<Option<String>, String>,
}

/// A line and what is wrong there.
pub type FileError = (usize, String);

struct Node {
    line: usize,
    tree: Tree,
}

enum Tree {
    Scalar { text: String, is_plain: bool },
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Reads one document. Fails where the text is no YAML, or not a mapping.
pub fn read(text: &str) -> Result<Vec<Entry>, FileError> {
    // Editors on Windows begin a file with a byte-order mark.
    let mut events = Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut entries = Vec::new();
    let mut has_document = false;
    loop {
        let (event, line) = next(&mut events)?;
        match event {
            Event::StreamEnd => return Ok(entries),
            Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
            Event::DocumentStart(_) if has_document => {
                return Err((line, "there is a second document; one is read".into()));
            }
            Event::DocumentStart(_) => has_document = true,
            first => {
                let root = read_node(&mut events, first, line, 0)?;
                match root.tree {
                    Tree::Map(_) => flatten(String::new(), root, &mut entries),
                    // A file of comments only.
                    Tree::Scalar {
                        ref text,
                        is_plain: true,
                    } if is_null(text) => {}
                    _ => {
                        return Err((
                            line,
                            "expected a mapping such as `server: {port: 8000}`".into(),
                        ));
                    }
                }
            }
        }
    }
}

type Events<'a> = Parser<'a, StrInput<'a>>;

fn next<'a>(events: &mut Events<'a>) -> Result<(Event<'a>, usize), FileError> {
    match events.next_event() {
        Some(Ok((event, span))) => Ok((event, line_of(&span))),
        Some(Err(error)) => Err(explain(&error)),
        None => Ok((Event::StreamEnd, 0)),
    }
}

fn line_of(span: &Span) -> usize {
    span.start.line()
}

fn explain(error: &ScanError) -> FileError {
    (
        error.marker().line(),
        format!("this is not YAML: {}", error.info()),
    )
}

fn read_node<'a>(
    events: &mut Events<'a>,
    first: Event<'a>,
    line: usize,
    depth: usize,
) -> Result<Node, FileError> {
    if depth == DEPTH_MAX {
        return Err((line, format!("there are more than {DEPTH_MAX} levels")));
    }
    let tree = match first {
        Event::Scalar(text, style, ..) => Tree::Scalar {
            text: text.into_owned(),
            is_plain: style == ScalarStyle::Plain,
        },
        Event::SequenceStart(..) => Tree::List(read_list(events, depth + 1)?),
        Event::MappingStart(..) => Tree::Map(read_map(events, depth + 1)?),
        Event::Alias(_) => return Err((line, "aliases (*name) are not supported".into())),
        _ => return Err((line, "expected a value".into())),
    };
    Ok(Node { line, tree })
}

fn read_list(events: &mut Events<'_>, depth: usize) -> Result<Vec<Node>, FileError> {
    let mut items = Vec::new();
    loop {
        match next(events)? {
            (Event::SequenceEnd, _) => return Ok(items),
            (first, line) => items.push(read_node(events, first, line, depth)?),
        }
    }
}

fn read_map(events: &mut Events<'_>, depth: usize) -> Result<Vec<(String, Node)>, FileError> {
    let mut pairs: Vec<(String, Node)> = Vec::new();
    loop {
        let (key, line) = match next(events)? {
            (Event::MappingEnd, _) => return Ok(pairs),
            (Event::Scalar(key, ..), line) => (key.into_owned(), line),
            (_, line) => return Err((line, "a key must be a text".into())),
        };
        let (first, _) = next(events)?;
        // The key's line is where a reader looks; its value may stand lower.
        let node = Node {
            line,
            ..read_node(events, first, line, depth)?
        };
        pairs.push((key, node));
    }
}

/// A mapping is a group of keys, unless it stands where a key expects JSON.
fn flatten(key: String, node: Node, entries: &mut Vec<Entry>) {
    let setting = find(&key);
    let is_json = setting.is_some_and(|setting| matches!(setting.kind, Kind::Json));
    let is_list = setting.is_some_and(|setting| setting.is_list());
    let line = node.line;
    let text = match node.tree {
        Tree::Map(pairs) if setting.is_none() => {
            for (name, node) in pairs {
                let key = if key.is_empty() {
                    name
                } else {
                    format!("{key}.{name}")
                };
                flatten(key, node, entries);
            }
            return;
        }
        Tree::Scalar {
            text,
            is_plain: true,
        } if is_null(&text) => Ok(None),
        Tree::Scalar { text, .. } => Ok(Some(text)),
        tree if is_json => Ok(Some(to_json(tree).to_string())),
        Tree::List(items) if is_list || setting.is_none() => join(items).map(Some),
        Tree::List(_) => Err("expected one value, not a list".into()),
        Tree::Map(_) => Err("expected a value, not a mapping".into()),
    };
    entries.push(Entry { key, line, text });
}

fn join(items: Vec<Node>) -> Result<String, String> {
    let texts: Option<Vec<String>> = items
        .into_iter()
        .map(|item| match item.tree {
            Tree::Scalar { text, .. } if !text.contains(',') => Some(text),
            _ => None,
        })
        .collect();
    texts
        .map(|texts| texts.join(","))
        .ok_or_else(|| "expected a list of texts without commas".into())
}

fn is_null(plain: &str) -> bool {
    matches!(plain, "" | "~" | "null" | "Null" | "NULL")
}

fn to_json(tree: Tree) -> Value {
    match tree {
        Tree::Scalar {
            text,
            is_plain: true,
        } if is_null(&text) => Value::Null,
        // What is a number or a boolean in JSON is one here; anything else is a text.
        Tree::Scalar {
            text,
            is_plain: true,
        } => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        Tree::Scalar { text, .. } => Value::String(text),
        Tree::List(items) => items.into_iter().map(|item| to_json(item.tree)).collect(),
        Tree::Map(pairs) => Value::Object(
            pairs
                .into_iter()
                .map(|(key, node)| (key, to_json(node.tree)))
                .collect::<Map<_, _>>(),
        ),
    }
}
