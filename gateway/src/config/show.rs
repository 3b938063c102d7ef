//! The configuration as people and programs read it: what is set and by whom, and the reference.

use super::older;
use super::raw::{Raw, Said};
use super::setting::Setting;
use super::table::{GROUPS, SETTINGS};
use super::value;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Values longer than this do not push the origins of all others aside.
const VALUE_CHARS_MAX: usize = 40;

/// Names that servers of this kind share, with their meaning: a configuration that was written for another
/// one keeps working.
pub const SHARED_NAMES: &[&str] = &[
    "PORT",
    "HOST",
    "MAX_PARALLEL_REQUESTS",
    "MAX_QUEUE_SIZE",
    "QUEUE_TIMEOUT_SECONDS",
    "BATCH_SIZE",
    "WORKER_TIMEOUT",
    "MAX_RETRIES",
    "ENABLE_PREDICTION_CACHE",
    "CACHE_TTL_SECONDS",
    "CLEAR_CACHE_INTERVAL",
    "ENABLE_DISTRIBUTED",
    "REDIS_URL",
    "DEVICE_PREFERENCE",
    "--models",
    "--cache-dir",
    "--host",
    "--port",
    "--workers",
    "--log-level",
    "--max-parallel-requests",
    "--max-queue-size",
    "--queue-timeout-seconds",
    "--batch-size",
    "--max-batch-size",
    "--max-wait-time",
    "--preferred-batch-size",
    "--disable-adaptive-batching",
    "--max-sequence-length",
    "--worker-timeout",
    "--max-retries",
    "--disable-flash-attention",
    "--disable-compile",
    "--disable-better-transformer",
    "--benchmark",
    "--benchmark-texts",
];

/// Of those, the ones that are a command.
const COMMANDS: [(&str, &str); 2] = [
    (
        "--benchmark",
        "`crossgate bench --stage pipeline --texts 1000`",
    ),
    ("--benchmark-texts", "`crossgate bench --texts`"),
];

/// Every key with its value and who said it, in columns.
#[must_use]
pub fn text(raw: &Raw) -> String {
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or_default();
    let key_width = width(&mut SETTINGS.iter().map(|setting| setting.key.len()));
    let values = SETTINGS
        .iter()
        .map(|setting| shown(raw, setting).chars().count());
    let value_width = width(&mut values.map(|n_chars| n_chars.min(VALUE_CHARS_MAX)));
    let mut out = String::new();
    for setting in SETTINGS {
        let (value, origin) = (shown(raw, setting), origin(raw, setting));
        let key = setting.key;
        _ = writeln!(out, "{key:key_width$}  {value:value_width$}  {origin}");
    }
    out
}

/// The same as a JSON object by key: `{"server.port": {"value", "from", "name"}}`.
#[must_use]
pub fn json(raw: &Raw) -> String {
    let entry = |setting: &Setting| {
        let said = raw.get(setting.key);
        let value = said
            .map(|said| setting.shown(said.text.trim()))
            .filter(|text| !text.is_empty());
        let from = said.map_or("default", |said| said.origin.kind());
        let name = said
            .map(|said| said.origin.name())
            .filter(|name| !name.is_empty());
        (
            setting.key.to_owned(),
            json!({ "value": value, "from": from, "name": name }),
        )
    };
    let object: Map<String, Value> = SETTINGS.iter().map(entry).collect();
    format!("{:#}\n", Value::Object(object))
}

/// `CONFIG.md`: every setting in Markdown tables, with the rules that hold for all of them.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(REFERENCE_START);
    for (group, title) in GROUPS {
        _ = write!(out, "\n## {title}\n\n");
        out.push_str("| key | flag | environment | unit, bounds | default | meaning |\n");
        out.push_str("|---|---|---|---|---|---|\n");
        for setting in SETTINGS.iter().filter(|setting| setting.group() == *group) {
            out.push_str(&reference_row(setting));
        }
    }
    out.push_str(SHARED_START);
    for name in SHARED_NAMES {
        out.push_str(&shared_row(name));
    }
    out.push_str(REFERENCE_END);
    out
}

/// The text of `--help`: meaning, then default and variables in a line of their own.
#[must_use]
pub fn help(setting: &Setting) -> String {
    let default = match setting.default {
        "" => String::new(),
        default => format!("[default: {default}] "),
    };
    format!(
        "{}\n{default}[env: {}]",
        setting.help,
        setting.env.join(", ")
    )
}

fn shown(raw: &Raw, setting: &Setting) -> String {
    match raw.get(setting.key).map(|said| said.text.trim()) {
        None | Some("") => "(unset)".into(),
        // A value of several lines stays in its line.
        Some(text) => setting.shown(text).replace(['\n', '\r', '\t'], " "),
    }
}

fn origin(raw: &Raw, setting: &Setting) -> String {
    raw.get(setting.key)
        .map_or("default".into(), |Said { origin, .. }| origin.to_string())
}

fn reference_row(setting: &Setting) -> String {
    let short = setting.short.map(|letter| format!("`-{letter}`"));
    let others = setting.also.iter().chain(setting.off);
    let long = [setting.flag].into_iter().chain(others.copied());
    let flags: Vec<String> = long
        .map(|flag| format!("`--{flag}`"))
        .chain(short)
        .collect();
    let env: Vec<String> = setting.env.iter().map(|name| format!("`{name}`")).collect();
    let default = match setting.default {
        "" => "unset".into(),
        default => format!("`{default}`"),
    };
    let unit = match value::bounds(&setting.kind) {
        Some((min, max)) => format!("{}, {min} to {max}", setting.kind.unit()),
        None => setting.kind.unit(),
    };
    format!(
        "| `{}` | {} | {} | {unit} | {default} | {} |\n",
        setting.key,
        flags.join(" "),
        env.join(" "),
        setting.help
    )
}

/// Where the name leads, as [`SHARED_NAMES`] spells it.
fn shared_row(name: &str) -> String {
    let flag = name.strip_prefix("--");
    let is_its = |setting: &&Setting| match flag {
        Some(flag) => {
            let flags = setting
                .also
                .iter()
                .chain(setting.off)
                .chain([&setting.flag]);
            flags.into_iter().any(|own| *own == flag)
        }
        None => setting.env.contains(&name),
    };
    let Some(setting) = SETTINGS.iter().find(is_its) else {
        let command = COMMANDS.iter().find(|(own, _)| *own == name);
        let command = command.map(|(_, command)| (*command).to_owned());
        let older = older::FLAGS.iter().find(|(own, _)| Some(*own) == flag);
        let older = older.map(|(_, why)| format!("passed over: {why}"));
        let leads = command.or(older).unwrap_or_else(|| "none".to_owned());
        return format!("| `{name}` | {leads} | | |\n");
    };
    let key = match flag {
        Some(flag) if setting.off.contains(&flag) => format!("`{}` = false", setting.key),
        _ => format!("`{}`", setting.key),
    };
    let default = match setting.default {
        "" => "unset".into(),
        default => format!("`{default}`"),
    };
    format!(
        "| `{name}` | {key} | {} | {default} |\n",
        setting.kind.unit()
    )
}

const SHARED_START: &str = "
## Names that other servers know

A configuration that was written for another reranking server keeps its meaning; units and defaults are
ours. `MAX_PARALLEL_REQUESTS` bounds what is computed at the same time, so it counts workers; requests that
wait are `MAX_QUEUE_SIZE`, and `QUEUE_TIMEOUT_SECONDS` ends their waiting. What is passed over says so in the log.

| name | key | unit | default |
|---|---|---|---|
";

const REFERENCE_START: &str = "\
# Settings

<!-- Made by `crossgate config --reference`; a test compares. Edit src/config/table.rs instead. -->

Each setting can be given in four ways; the first that is there counts:

1. a flag: `crossgate --port 8080`
2. a variable of the environment: `PORT=8080 crossgate`; of several names the first one that is set
   counts, and one that is set to nothing counts as not set
3. a YAML file: `crossgate --config crossgate.yaml`
4. the default

`crossgate config`, with the same flags, environment and file, prints what holds and where it comes
from. A value that cannot be right stops the program, with exit code 2, before a port is opened: a form,
a bound, a relation, an address, a folder of plugins that is none, the name of a plugin, a device or a data
type that no plugin has. What depends on the model's files or on the plugin is found while the model is
loaded, when the ports are open and `/readyz` says no; then the program ends as well, with 2 for a value of
`max_length`, `batch.tokens_max`, `activation` or `backend-options`, and 1 for anything else, such as a GPU
that is not there. Exit code 3: `drain_timeout` passed before every request was answered.

A variable that begins with `CROSSGATE_` and is no setting is named in a warning at the start.

```yaml
# crossgate.yaml: groups and keys of the tables below.
model:
  sources:
    - small=cross-encoder/ms-marco-MiniLM-L6-v2
    - large=./models/bge-reranker-v2-m3
server:
  port: 8080
  request_timeout: 5s
intake:
  document_bytes_max: 1MiB
```

- **Sizes** are bytes: `4096`, `64KiB`, `1MiB` (1024²), `2MB` (1000²), `1GiB`.
- **True** is also `1`, `yes` or `on`, **false** `0`, `no` or `off`.
- **Times** are `500us`, `250ms`, `10s`, `2m`, `1h`, or a bare number of the unit in the table.
- **Numbers** may be grouped: `2_097_152`.
- **Lists** are separated by commas; a flag of a list may be given several times, and in the file a
  list can be a YAML list.
- **Switches** are `true`, `1`, `yes`, `on` or `false`, `0`, `no`, `off`; on the command line
  `--distributed` alone is true, and a value stands behind `=`: `--distributed=false`.
- **Passwords** in a URL are written escaped (`%40` for `@`) and never shown, as the admin key. Other users
  of the machine see a flag's, but not the environment's, nor those in a file that they may not read.
- **Paths** may begin with `~/`; others that are relative start at the working directory, those in
  the file as well.
- Of any other flag that is given twice, the last one counts.
- A port such as `tcp://10.0.0.1:8000` in the environment is passed over: Kubernetes sets
  `CROSSGATE_PORT` to that beside a service called `crossgate`.

Relations that are checked: `document_bytes_max` and `query_bytes_max` ≤ `body_bytes_max` ≤
`intake.bytes_max`; `documents_max` ≤ `queue.rows_max`; `rows_preferred`, if it is set, ≤ `batch.rows_max`;
`batch.wait_max` ≤ `queue.wait_max`, if it is set; `max_length`, as far as the model reads it, ≤
`batch.tokens_max`; the three ports differ where they share an address; `admin_host` is loopback where
there is neither a key nor a socket; of `admin_key` and `admin_key_file` at most one is set.

Who calls admin can have the server load code. So that no web page does, an `Origin` must be `localhost` or an
IP address, and the `Host`, too, where there is no key to show. Its port speaks plain HTTP, which tells the key
to whoever listens in: beyond loopback it belongs in a network that is trusted. Over a socket
(`curl --unix-socket PATH http://localhost/models`) it is the same API; a key that is set is wanted there, too.
The socket's file has the mode 0600, replaces what a dead server left, and goes when the server stops.
`crossgate swap` reads `CROSSGATE_ADMIN_SOCKET`, `CROSSGATE_ADMIN_KEY` and `CROSSGATE_ADMIN_KEY_FILE` as well.

Bounds that nobody should need to change are no settings but constants in the code, named with their
unit and `_MAX`, such as the number of labels of a model.
";

const REFERENCE_END: &str = "
`USE_MLX=true`, which asked for Apple's chips, is `CROSSGATE_DEVICE=metal` on a Mac unless another device is
named, and is passed over elsewhere; the log says which.

## Also read

Downloads of models follow the hub's own variables of the environment: `HF_TOKEN`, `HF_TOKEN_PATH`,
`HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
`HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT`, and `HTTPS_PROXY`, `NO_PROXY`, `SSL_CERT_FILE`.
";
