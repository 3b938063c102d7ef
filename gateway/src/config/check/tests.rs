use super::*;

fn set(key: &str, text: &str) -> Result<Config, String> {
    Config::of(&[(key, text)]).map_err(|error| error.to_string())
}

#[track_caller]
fn check_error(got: Result<Config, String>, words: &[&str]) {
    let error = got.expect_err("this is wrong");
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn model_names() {
    let cases: [(&str, &[(&str, &str)]); 6] = [
        (
            "a=./x,b=org/name@rev",
            &[("a", "./x"), ("b", "org/name@rev")],
        ),
        ("org/name@rev", &[("org/name@rev", "org/name@rev")]),
        ("./x=y", &[("./x=y", "./x=y")]),
        ("a=./x=y", &[("a", "./x=y")]),
        (
            "org/name = ./mine , starter",
            &[("org/name", "./mine"), ("starter", "starter")],
        ),
        (
            "same=starter,other=starter",
            &[("same", "starter"), ("other", "starter")],
        ),
    ];
    for (text, want) in cases {
        let config = set("model.sources", text).unwrap();
        let sources = config.models().sources.iter();
        let got: Vec<_> = sources
            .map(|m| (m.name.as_str(), m.source.as_str()))
            .collect();
        assert_eq!(got, want, "{text:?}");
    }
    let key = "model.sources";
    check_error(
        set(key, "a=./x,a=./y"),
        &[key, "a=./x,a=./y", "--models", "\"a\"", "two models"],
    );
    check_error(set(key, "starter,starter"), &["two models"]);
    check_error(set(key, "=./x"), &["NAME=SOURCE"]);
    check_error(set(key, "a="), &["NAME=SOURCE"]);
    check_error(set(key, "a,,b"), &["single commas"]);
    check_error(set(key, ""), &["none of them empty"]);
    check_error(set(key, "./my models"), &["without spaces", "NAME=SOURCE"]);
    check_error(set(key, &vec!["x"; 65].join(",")), &["at most 64 models"]);
    set(key, "mine=./my models").unwrap();
}

#[test]
fn spellings_of_one_meaning() {
    let device = |text| set("model.device", text).unwrap().models().device.clone();
    assert_eq!(
        ["mps", "Metal", "CUDA:1", "auto", "cuda:0,2", "cuda:all"].map(device),
        ["metal", "metal", "cuda:1", "auto", "cuda:0,2", "cuda:all"]
    );
    for wrong in ["cuda:", "cuda:0,", "cuda:x", "cuda:1000"] {
        check_error(set("model.device", wrong), &["cuda:N", "cuda:all"]);
    }
    let dtype = |text| set("model.dtype", text).unwrap().models().dtype.clone();
    assert_eq!(
        ["float16", "FP32", "bfloat16", "q4_0"].map(dtype),
        ["f16", "f32", "bf16", "q4_0"]
    );
    let host = |text| set("server.host", text).unwrap().server().host.clone();
    assert_eq!(
        ["[::1]", "localhost", "10.0.0.1"].map(host),
        ["::1", "localhost", "10.0.0.1"]
    );
    let backend = |text| set("model.backend", text).unwrap().models().backend.clone();
    assert_eq!(
        ["auto", "cpu-int8"].map(backend),
        [None, Some("cpu-int8".into())]
    );
}

#[test]
fn threads_that_are_not_said_follow_the_cpus() {
    let threads = |total, workers, tokenizers| {
        let said = [
            ("threads.total", total),
            ("threads.workers", workers),
            ("threads.tokenizers", tokenizers),
        ];
        let threads = Config::of(&said).unwrap().threads().resolve(8);
        [threads.total, threads.workers, threads.tokenizers]
    };
    assert_eq!(threads("0", "0", "0"), [8, 8, 8]);
    assert_eq!(threads("4", "0", "2"), [4, 4, 2]);
    assert_eq!(threads("0", "1", "0"), [8, 1, 8]);
    assert_eq!(Config::of(&[]).unwrap().threads().resolve(0).total, 1);
}

#[test]
fn hashes_are_hashes() {
    let upper = "AB".repeat(32);
    let config = set("plugins.sha256", &upper).unwrap();
    assert_eq!(config.plugins().sha256, [upper.to_lowercase()]);
    for wrong in ["abc", &"g".repeat(64), &"a".repeat(63)] {
        let error = set("plugins.sha256", wrong).unwrap_err().to_string();
        assert!(
            error.contains("plugins.sha256") && error.contains(wrong),
            "{error}"
        );
    }
}
