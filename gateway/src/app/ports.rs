//! Where the server listens, and what it serves there.

use super::{StartError, plugins};
use crate::config::Config;
use crate::edge::{
    self, Connections, Edge, HealthReport, Key, Keyring, Listener, Listening, Socket, Tls,
};
use crate::host::Host;
use crate::runtime::Runtime;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often health that gRPC clients watch is refreshed.
const HEALTH_PERIOD: Duration = Duration::from_millis(500);
/// How often files that may be renewed are looked at.
const FILES_PERIOD: Duration = Duration::from_secs(2);

/// The listeners, bound before anything is loaded.
pub(super) struct Ports {
    pub(super) http: Listener,
    pub(super) grpc: Listener,
    pub(super) admin: Listening,
    /// Whether HTTP and gRPC listen by TLS.
    pub(super) has_tls: bool,
    /// For HTTP and gRPC together.
    socket: Option<Socket>,
}

impl Ports {
    /// HTTP and gRPC by TLS, where that is configured.
    pub(super) async fn bind(
        config: &Config,
        runtime: &Runtime,
        stop: &CancellationToken,
    ) -> Result<Self, StartError> {
        let server = config.server();
        let tls = tls(config)?;
        if let Some(tls) = tls.clone() {
            let refresh = move || tls.refresh();
            runtime.task(stay_fresh(runtime.clone(), refresh, stop.clone()));
        }
        let open = async |host: &str, port: u16, [host_key, port_key]: [&'static str; 2]| {
            Listener::bind(host, port).await.map_err(|error| {
                let key = if error.is_host() { host_key } else { port_key };
                StartError::Config(config.refuse(key, error.to_string()))
            })
        };
        let http = open(&server.host, server.port, ["server.host", "server.port"]);
        let grpc = open(
            &server.host,
            server.grpc_port,
            ["server.host", "server.grpc_port"],
        );
        let admin = async {
            let Some(path) = &server.admin_socket else {
                let keys = ["server.admin_host", "server.admin_port"];
                let listener = open(&server.admin_host, server.admin_port, keys).await?;
                return Ok(listener.into());
            };
            let refuse = |why| StartError::Config(config.refuse("server.admin_socket", why));
            Socket::bind(path)
                .await
                .map(Listening::from)
                .map_err(refuse)
        };
        let (http, grpc, admin) = (http.await?, grpc.await?, admin.await?);
        let socket = match &server.socket {
            None => None,
            Some(path) => {
                let refuse = |why| StartError::Config(config.refuse("server.socket", why));
                Some(Socket::bind_for_group(path).await.map_err(refuse)?)
            }
        };
        Ok(Self {
            has_tls: tls.is_some(),
            http: http.with_tls(tls.clone()),
            grpc: grpc.with_tls(tls),
            admin,
            socket,
        })
    }

    pub(super) async fn serve(
        self,
        (edge, key): (Edge, Option<Key>),
        host: &Arc<Host>,
        connections: &Connections,
        runtime: &Runtime,
        stop: &CancellationToken,
    ) -> Result<(), StartError> {
        let (grpc, health) = edge::grpc(edge.clone(), runtime.clone())
            .await
            .map_err(|error| {
                StartError::Other(format!("the gRPC descriptors are wrong: {error}"))
            })?;
        let host = Arc::clone(host);
        let admin = edge::admin(edge.clone(), key, move || {
            host.files().iter().map(plugins::row).collect()
        });
        let http = edge::http(edge);
        if let Some(socket) = self.socket {
            tracing::info!(path = %socket.path().display(), "listening on a socket, too");
            connections.serve(socket, edge::both(http.clone(), grpc.clone()));
        }
        connections.serve(self.http, http);
        connections.serve(self.grpc, grpc);
        connections.serve(self.admin, admin);
        runtime.task(watch_health(health, stop.clone()));
        Ok(())
    }
}

async fn watch_health(health: HealthReport, stop: CancellationToken) {
    while stop
        .run_until_cancelled(tokio::time::sleep(HEALTH_PERIOD))
        .await
        .is_some()
    {
        health.refresh().await;
    }
}

/// The certificate and key that are named, if any are.
///
/// # Errors
/// A file that cannot be used.
fn tls(config: &Config) -> Result<Option<Tls>, StartError> {
    let Some(files) = &config.server().tls else {
        return Ok(None);
    };
    let tls = Tls::read(&files.cert, &files.key).map_err(|error| {
        let key = if error.is_key() {
            "server.tls_key"
        } else {
            "server.tls_cert"
        };
        StartError::Config(config.refuse(key, error))
    })?;
    Ok(Some(tls))
}

/// What clients must show, if anything.
///
/// # Errors
/// A file of keys that cannot be used.
pub(super) fn keys(
    config: &Config,
    runtime: &Runtime,
    stop: &CancellationToken,
) -> Result<Option<Keyring>, StartError> {
    let server = config.server();
    if server.api_keys.is_empty() && server.api_key_file.is_none() {
        return Ok(None);
    }
    let of = config.clone();
    let keys = Keyring::new(move || of.api_keys()).map_err(StartError::Config)?;
    if server.api_key_file.is_some() {
        let fresh = keys.clone();
        let refresh = move || fresh.refresh();
        runtime.task(stay_fresh(runtime.clone(), refresh, stop.clone()));
    }
    Ok(Some(keys))
}

/// Reads files again and again, until told to stop.
async fn stay_fresh(
    runtime: Runtime,
    refresh: impl Fn() + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let refresh = Arc::new(refresh);
    while stop
        .run_until_cancelled(tokio::time::sleep(FILES_PERIOD))
        .await
        .is_some()
    {
        let refresh = Arc::clone(&refresh);
        // A panic has said so itself.
        _ = runtime.blocking(move || refresh()).await;
    }
}
