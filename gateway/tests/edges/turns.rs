//! Tokens of texts and texts of tokens are looked up in turn, and for nobody who has gone.

use crate::fixture::{Fixture, USUAL};
use crate::grpc::connect;
use crate::grpc::tei::proto::tokenize_client::TokenizeClient;
use crate::grpc::tei::proto::{DecodeRequest, EncodeRequest};
use gateway::load::{Catalog, ModelState, Piece};
use gateway::score::ScoreError;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

/// Requests at once, more than there are turns.
const N_REQUESTS: usize = 8;
/// Turns: the fixture's tokenizer threads.
const N_TURNS: usize = 2;
/// No step takes this long unless something is broken.
const LONG: Duration = Duration::from_secs(30);

/// What is called.
#[derive(Clone, Copy, Debug)]
enum Method {
    Tokenize,
    TokenizeStream,
    Decode,
}

/// A tokenizer before which whoever comes waits at a gate.
#[derive(Default)]
struct Gated {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    is_open: bool,
    n_entered: usize,
    n_inside: usize,
    n_inside_most: usize,
}

// === impl Gated ===

impl Gated {
    fn state(&self) -> State {
        *self.state.lock().expect("no panic")
    }

    fn open(&self) {
        self.state.lock().expect("no panic").is_open = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().expect("no panic");
        state.n_entered += 1;
        state.n_inside += 1;
        state.n_inside_most = state.n_inside_most.max(state.n_inside);
        let shut = |state: &mut State| !state.is_open;
        let passed = self.changed.wait_timeout_while(state, LONG, shut);
        passed.expect("no panic").0.n_inside -= 1;
    }
}

impl Catalog for Gated {
    fn models(&self) -> Vec<ModelState> {
        Vec::new()
    }

    fn not_ready(&self) -> Vec<String> {
        Vec::new()
    }

    fn encode(&self, _: &str, _: bool) -> Result<Vec<Piece>, ScoreError> {
        self.pass();
        Ok(Vec::new())
    }

    fn decode(&self, _: &[u32], _: bool) -> Result<String, ScoreError> {
        self.pass();
        Ok(String::new())
    }
}

// === impl Method ===

impl Method {
    /// So many requests, each by a client of its own; on a stream by one.
    fn ask(self, channel: &Channel, n: usize) -> Vec<JoinHandle<Result<(), Status>>> {
        let n_clients = match self {
            Self::Tokenize | Self::Decode => n,
            Self::TokenizeStream => 1,
        };
        let clients = (0..n_clients).map(|_| {
            let client = TokenizeClient::new(channel.clone());
            tokio::spawn(self.call(client, n))
        });
        clients.collect()
    }

    async fn call(self, mut client: TokenizeClient<Channel>, n: usize) -> Result<(), Status> {
        match self {
            Self::Tokenize => drop(client.tokenize(EncodeRequest::default()).await?),
            Self::Decode => drop(client.decode(DecodeRequest::default()).await?),
            Self::TokenizeStream => {
                let all = tokio_stream::iter(vec![EncodeRequest::default(); n]);
                let mut answers = client.tokenize_stream(all).await?.into_inner();
                while answers.message().await?.is_some() {}
            }
        }
        Ok(())
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not in time");
        tokio::task::yield_now().await;
    }
}

async fn check(method: Method) {
    let mut fixture = Fixture::within(USUAL);
    let gate = Arc::new(Gated::default());
    fixture.edge.catalog = Arc::<Gated>::clone(&gate);
    let door = &fixture.edge.door;
    let (channel, _) = connect(&fixture).await;

    let clients = method.ask(&channel, N_REQUESTS);
    until("all are let in", || door.inside() == N_REQUESTS).await;
    until("turns are taken", || N_TURNS <= gate.state().n_entered).await;
    for client in clients {
        client.abort();
    }
    until("all have gone", || door.inside() == 0).await;

    // Whose turn it was is not done yet, and nobody else begins before that.
    let mut late = method.ask(&channel, 1);
    until("the late one is let in", || door.inside() == 1).await;
    let busy = State {
        is_open: false,
        n_entered: N_TURNS,
        n_inside: N_TURNS,
        n_inside_most: N_TURNS,
    };
    assert_eq!(gate.state(), busy, "{method:?}");
    gate.open();
    let answered = late.pop().expect("one client").await;
    answered.expect("no panic").expect("an answer");
    let State {
        n_entered,
        n_inside_most,
        ..
    } = gate.state();
    // Nothing was begun for who had gone before his turn.
    assert_eq!(
        (n_entered, n_inside_most),
        (N_TURNS + 1, N_TURNS),
        "{method:?}"
    );
}

#[tokio::test]
async fn texts_become_tokens_in_turn() {
    check(Method::Tokenize).await;
}

#[tokio::test]
async fn texts_of_a_stream_become_tokens_in_turn() {
    check(Method::TokenizeStream).await;
}

#[tokio::test]
async fn tokens_become_text_in_turn() {
    check(Method::Decode).await;
}
