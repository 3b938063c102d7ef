//! The same questions in every dialect, of the starter model: what comes out are the same logits.

use crate::server::Server;
use serde_json::{Value, json};

/// Questions, each asked in every dialect.
const N_REQUESTS: usize = 200;

/// How a dialect shows a logit.
#[derive(Clone, Copy)]
enum Shown {
    Logit,
    Sigmoid,
}

/// A dialect: its route, its body for a query and its documents, how it shows scores, and which score it gives to
/// which document.
struct Dialect {
    path: &'static str,
    body: fn(&str, &[String]) -> Value,
    shown: Shown,
    scores: fn(&Value) -> Vec<(usize, f64)>,
}

const DIALECTS: [Dialect; 15] = [
    Dialect {
        path: "/v2/rerank",
        body: |query, documents| json!({"query": query, "documents": documents}),
        shown: Shown::Sigmoid,
        scores: |answer| indexed(&answer["results"], "relevance_score"),
    },
    Dialect {
        path: "/v1/rerank",
        body: |query, documents| json!({"query": query, "documents": documents, "raw_scores": true}),
        shown: Shown::Logit,
        scores: |answer| indexed(&answer["results"], "relevance_score"),
    },
    Dialect {
        path: "/infinity/rerank",
        body: |query, documents| json!({"query": query, "documents": documents}),
        shown: Shown::Sigmoid,
        scores: |answer| indexed(&answer["results"], "relevance_score"),
    },
    Dialect {
        path: "/rerank",
        body: |query, documents| json!({"query": query, "texts": documents}),
        shown: Shown::Sigmoid,
        scores: |answer| indexed(answer, "score"),
    },
    Dialect {
        path: "/reranking",
        body: |query, documents| json!({"query": query, "input": documents}),
        shown: Shown::Sigmoid,
        scores: |answer| indexed(&answer["data"], "score"),
    },
    Dialect {
        path: "/rerank",
        body: |query, documents| json!({"query": query, "documents": documents, "property": ""}),
        shown: Shown::Sigmoid,
        scores: |answer| in_order(&answer["scores"], |one| &one["score"]),
    },
    Dialect {
        path: "/score",
        body: |query, documents| json!({"queries": query, "documents": documents}),
        shown: Shown::Sigmoid,
        scores: |answer| indexed(&answer["data"], "score"),
    },
    Dialect {
        path: "/v1/score",
        body: |query, documents| {
            let queries = vec![query; documents.len()];
            json!({"text_1": queries, "text_2": documents, "use_activation": false})
        },
        shown: Shown::Logit,
        scores: |answer| indexed(&answer["data"], "score"),
    },
    Dialect {
        path: "/v1/ranking",
        body: |query, documents| json!({"query": {"text": query}, "passages": documents}),
        shown: Shown::Logit,
        scores: |answer| indexed(&answer["rankings"], "logit"),
    },
    Dialect {
        path: "/v1/retrieval/starter/reranking",
        body: |query, documents| json!({"query": query, "passages": documents}),
        shown: Shown::Logit,
        scores: |answer| indexed(&answer["rankings"], "logit"),
    },
    Dialect {
        path: "/predict",
        body: |query, documents| json!({"texts": query, "text_pairs": documents}),
        shown: Shown::Sigmoid,
        scores: |answer| in_order(&answer["results"], |one| &one["probabilities"][0]),
    },
    Dialect {
        path: "/predict",
        body: |query, documents| {
            let texts = vec![query; documents.len()];
            json!({"texts": texts, "text_pairs": documents, "raw_scores": true})
        },
        shown: Shown::Logit,
        scores: |answer| in_order(&answer["results"], |one| &one["probabilities"][0]),
    },
    Dialect {
        path: "/predict",
        body: |query, documents| json!({"inputs": pairs(query, documents)}),
        shown: Shown::Sigmoid,
        scores: |answer| in_order(answer, |one| &one[0]["score"]),
    },
    Dialect {
        path: "/predict",
        body: |query, documents| json!({"inputs": pairs(query, documents), "raw_scores": true}),
        shown: Shown::Logit,
        scores: |answer| in_order(answer, |one| &one[0]["score"]),
    },
    Dialect {
        path: "/rerank",
        body: |query, documents| json!({"query": query, "texts": documents, "raw_scores": true}),
        shown: Shown::Logit,
        scores: |answer| indexed(answer, "score"),
    },
];

fn pairs(query: &str, documents: &[String]) -> Vec<[String; 2]> {
    let pair = |document: &String| [query.to_owned(), document.clone()];
    documents.iter().map(pair).collect()
}

fn indexed(list: &Value, score: &str) -> Vec<(usize, f64)> {
    let list = list.as_array().expect("a list").iter();
    let of = |one: &Value| {
        let index = one["index"].as_u64().expect("an index");
        (index as usize, one[score].as_f64().expect("a score"))
    };
    list.map(of).collect()
}

fn in_order(list: &Value, score: fn(&Value) -> &Value) -> Vec<(usize, f64)> {
    let list = list.as_array().expect("a list").iter().enumerate();
    list.map(|(index, one)| (index, score(one).as_f64().expect("a score")))
        .collect()
}

/// One to four documents of words that the model knows, none like another.
fn request(n: usize) -> (String, Vec<String>) {
    const WORDS: [&str; 12] = [
        "plants", "energy", "sunlight", "water", "market", "Berlin", "capital", "glucose",
        "Germany", "stock", "carbon", "make",
    ];
    let text = |seed: usize, n_words: usize| -> String {
        let words = (0..n_words).map(|idx| WORDS[(seed * 7 + idx * (seed % 5 + 1)) % WORDS.len()]);
        words.collect::<Vec<_>>().join(" ")
    };
    let documents = (0..1 + n % 4).map(|idx| text(n + 31 * idx, 3 + (n + idx) % 17));
    (text(n * 3 + 1, 2 + n % 5), documents.collect())
}

#[test]
fn every_dialect_gives_the_same_logits() {
    let settings = [
        ("model.backend", "cpu-int8"),
        ("model.options", "{}"),
        ("model.activation", "sigmoid"),
        // What one dialect has asked, the others find: if they ask the same.
        ("cache.enabled", "true"),
    ];
    let server = Server::start("{}", &settings);
    let n_documents: usize = (0..N_REQUESTS).map(|n| check(&server, n)).sum();
    let n_computed = server.metric_of("crossgate_cache_rows_total", "outcome=\"miss\"");
    assert!(
        0.0 < n_computed && n_computed <= n_documents as f64,
        "{n_computed} rows were computed for {n_documents} documents: a dialect asks something else"
    );
    // What the server counted meanwhile.
    let summary: Value =
        serde_json::from_str(&server.get("/metrics?format=json").text).expect("JSON");
    assert_eq!(
        summary["total_requests"],
        N_REQUESTS * DIALECTS.len(),
        "{summary}"
    );
    assert_eq!(summary["success_rate"], 1.0);
    assert!(
        summary["p99_process_time_ms"].as_f64() > Some(0.0),
        "{summary}"
    );
}

/// One request in every dialect, logits first: they are what the others are compared with. How many documents it has.
fn check(server: &Server, n: usize) -> usize {
    let (query, documents) = request(n);
    let mut wanted: Option<Vec<f64>> = None;
    for dialect in DIALECTS.iter().rev() {
        let body = (dialect.body)(&query, &documents);
        let answer = server.post(dialect.path, &body);
        assert_eq!(answer.status, 200, "{}: {answer:?}", dialect.path);
        let answer: Value = serde_json::from_str(&answer.text).expect("JSON");
        let mut scores = (dialect.scores)(&answer);
        scores.sort_by_key(|(index, _)| *index);
        let logits: Vec<f64> = scores
            .into_iter()
            .map(|(_, score)| dialect.shown.logit(score))
            .collect();
        let wanted = wanted.get_or_insert_with(|| logits.clone());
        assert_eq!(logits.len(), documents.len(), "{}", dialect.path);
        for (found, wanted) in logits.iter().zip(wanted) {
            assert!(
                (found - *wanted).abs() <= dialect.shown.tolerance(),
                "request {n}: {} {body}: {found} for {wanted}",
                dialect.path
            );
        }
    }
    documents.len()
}

// === impl Shown ===

impl Shown {
    fn logit(self, score: f64) -> f64 {
        match self {
            Self::Logit => score,
            Self::Sigmoid => (score / (1.0 - score)).ln(),
        }
    }

    fn tolerance(self) -> f64 {
        match self {
            // Bit for bit.
            Self::Logit => 0.0,
            // A probability has 24 bits, of which a logit of 5 leaves 17.
            Self::Sigmoid => 1e-4,
        }
    }
}
