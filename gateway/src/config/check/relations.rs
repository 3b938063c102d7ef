//! Relations between values that have their forms already.

use super::Reader;
use crate::config::raw::Origin;
use crate::config::{Config, Server};
use std::net::IpAddr;

impl Reader<'_> {
    pub(super) fn check_relations(&mut self, config: &Config) {
        self.at_most(
            "intake.document_bytes_max",
            "intake.body_bytes_max",
            "a document is part of a body",
        );
        self.at_most(
            "intake.query_bytes_max",
            "intake.body_bytes_max",
            "a query is part of a body",
        );
        self.at_most(
            "intake.body_bytes_max",
            "intake.bytes_max",
            "one body must find room",
        );
        self.at_most(
            "intake.documents_max",
            "queue.rows_max",
            "the largest request must fit into an empty queue",
        );
        if self.is_said("batch.rows_preferred") {
            self.at_most(
                "batch.rows_preferred",
                "batch.rows_max",
                "the preferred batch must be allowed",
            );
        }
        if let Some(wait_max) = config.queue.wait_max
            && wait_max < config.batch.wait_max
        {
            let (small, large) = (
                self.raw.said("batch.wait_max"),
                self.raw.said("queue.wait_max"),
            );
            let why = "what is held back for its batch waits in the queue";
            self.errors
                .push(format!("{small}: expected at most {large}, because {why}"));
        }
        // Two values that the user named; with the default it depends on what the model reads.
        if self.is_said("batch.tokens_max") && self.has("model.max_length") {
            self.at_most(
                "model.max_length",
                "batch.tokens_max",
                "a row of full length must fit into a batch",
            );
        }

        self.check_ports(&config.server);
        self.check_admin(&config.server);
        self.check_public(&config.server);
    }

    /// TLS needs both files, and no two listeners share a socket's file.
    fn check_public(&mut self, server: &Server) {
        let pair = ["server.tls_cert", "server.tls_key"];
        for (one, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            if self.has(one) && !self.has(other) {
                let one = self.raw.said(one);
                self.errors
                    .push(format!("{one}: expected {other} beside it; TLS needs both"));
            }
        }
        if server.socket.is_some() && server.socket == server.admin_socket {
            let one = self.raw.said("server.socket");
            let other = self.raw.said("server.admin_socket");
            self.errors
                .push(format!("{one}: expected another path than {other}"));
        }
    }

    fn check_ports(&mut self, server: &Server) {
        let mut listeners = vec![
            ("server.port", &server.host, server.port),
            ("server.grpc_port", &server.host, server.grpc_port),
        ];
        if server.admin_socket.is_none() {
            listeners.push(("server.admin_port", &server.admin_host, server.admin_port));
        }
        for (i, (key, host, port)) in listeners.iter().enumerate() {
            for (other_key, other_host, other_port) in &listeners[i + 1..] {
                // Two zeros become two ports.
                if *port != 0 && port == other_port && is_same_place(host, other_host) {
                    self.refuse_port(key, other_key);
                }
            }
        }
    }

    /// Who calls the admin listener has the server load code: where others reach it, they show a key.
    fn check_admin(&mut self, server: &Server) {
        let (key, file) = ("server.admin_key", "server.admin_key_file");
        if self.has(key) && self.has(file) {
            let (key, file) = (self.raw.said(key), self.raw.said(file));
            self.errors
                .push(format!("{key}: expected either this or {file}, not both"));
        }
        let is_within = server.admin_socket.is_some() || is_loopback(&server.admin_host);
        if !is_within && !self.has(key) && !self.has(file) {
            let host = self.raw.said("server.admin_host");
            self.errors.push(format!(
                "{host}: others than this machine may reach it, and who calls it has the server load code; set \
                 server.admin_key (--admin-key or CROSSGATE_ADMIN_KEY) or server.admin_key_file, or listen on a \
                 Unix socket (server.admin_socket) or on 127.0.0.1"
            ));
        }
    }

    /// Whether the user named it.
    fn is_said(&self, key: &str) -> bool {
        let said = self.raw.get(key);
        said.is_some_and(|said| said.origin != Origin::Default)
    }

    fn at_most(&mut self, small: &str, large: &str, why: &str) {
        if self.number(large) < self.number(small) {
            let (small, large) = (self.raw.said(small), self.raw.said(large));
            self.errors
                .push(format!("{small}: expected at most {large}, because {why}"));
        }
    }

    fn refuse_port(&mut self, one: &str, other: &str) {
        let (one, other) = (self.raw.said(one), self.raw.said(other));
        let why = format!("expected another port than {other}, or 0 for any free one");
        self.errors.push(format!("{one}: {why}"));
    }
}

/// Whether listening on both would ask for the same port of the same address.
fn is_same_place(a: &str, b: &str) -> bool {
    let is_every = |host: &str| matches!(host, "0.0.0.0" | "::");
    is_every(a) || is_every(b) || a == b
}

/// A name may become any address by the time that it is listened on; `localhost` alone is promised to be loopback.
fn is_loopback(host: &str) -> bool {
    let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
    host.parse()
        .map_or(host.eq_ignore_ascii_case("localhost"), is_loopback)
}
