//! TLS at the ports: who we are, and the handshake.

use super::fresh::{Fresh, read_file};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// What is spoken inside, the best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate with its key, from files that may be renewed.
#[derive(Clone)]
pub struct Tls(Arc<Fresh<Pem, ServerConfig, TlsError>>);

/// Which file makes no sense, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsError {
    /// The certificate's.
    Cert(String),
    /// The key's.
    Key(String),
}

/// What the files say, with their names.
#[derive(PartialEq)]
struct Pem {
    cert: (PathBuf, Vec<u8>),
    key: (PathBuf, Vec<u8>),
}

// === impl Tls ===

impl Tls {
    /// Of two files in PEM: a certificate with those that vouch for it, and its key.
    ///
    /// # Errors
    /// Names the file that cannot be used, and says why.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let (cert, key) = (cert.to_owned(), key.to_owned());
        let read = move || {
            Ok(Pem {
                cert: (cert.clone(), read_file(&cert).map_err(TlsError::Cert)?),
                key: (key.clone(), read_file(&key).map_err(TlsError::Key)?),
            })
        };
        let fresh = Fresh::new("tls", read, |pem, _| pem.config())?;
        Ok(Self(Arc::new(fresh)))
    }

    /// Reads the files again, for connections to come; blocks as files do. What makes no sense is logged, and
    /// the old certificate stays.
    pub fn refresh(&self) {
        self.0.refresh();
    }

    /// The handshake; whoever awaits it bounds its time.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.value()).accept(stream).await
    }
}

// === impl Pem ===

impl Pem {
    fn config(&self) -> Result<ServerConfig, TlsError> {
        let in_cert = |why: &dyn fmt::Display| {
            let path = self.cert.0.display();
            TlsError::Cert(format!("{path}: {why}; expected a certificate in PEM"))
        };
        let in_key = |why: &dyn fmt::Display| {
            let path = self.key.0.display();
            TlsError::Key(format!(
                "{path}: {why}; expected the certificate's private key in PEM, without a password"
            ))
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.cert.1).collect();
        let chain = chain.map_err(|error| in_cert(&error))?;
        if chain.is_empty() {
            return Err(in_cert(&"there is none in it"));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key.1).map_err(|error| in_key(&error))?;
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| in_cert(&error))?;
        let mut config = builder
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| in_key(&error))?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(config)
    }
}

// === impl TlsError ===

impl TlsError {
    /// The key's file is at fault, not the certificate's.
    pub fn is_key(&self) -> bool {
        matches!(self, Self::Key(_))
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cert(why) | Self::Key(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for TlsError {}
