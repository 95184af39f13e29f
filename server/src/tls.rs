//! TLS: the certificate as it stands in its files now, asked for each connection.
//!
//! rustls with the provider that is in the tree already (aws-lc); TLS 1.2 and 1.3, HTTP/2 and
//! HTTP/1.1. A new pair of files is used from the next connection on; connections that are there
//! keep what they began with. A pair that does not fit, such as the one that is there for a moment
//! between the replacement of one file and the other, leaves the old one in use.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::reload::{ReloadError, Reloaded};

/// The protocols offered, the better one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why a certificate and a key cannot be used.
#[derive(Debug, thiserror::Error)]
enum PairError {
    #[error("there is no certificate (PEM) in the certificate file")]
    NoCertificate,
    #[error("the certificate file is no PEM: {0}")]
    Certificate(rustls::pki_types::pem::Error),
    #[error("the key file has no private key (PEM, not encrypted): {0}")]
    Key(rustls::pki_types::pem::Error),
    #[error("certificate and key do not work together: {0}")]
    Pair(rustls::Error),
}

/// Makes TLS out of connections.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    pair: Arc<Reloaded<ServerConfig>>,
}

impl Tls {
    /// Reads a certificate (with its chain) and its key. Blocks.
    ///
    /// # Errors
    /// They cannot be used.
    pub(crate) fn open(certificate: &Path, key: &Path) -> Result<Self, ReloadError> {
        let paths = vec![certificate.to_owned(), key.to_owned()];
        let pair = Reloaded::open(paths, |files| match files {
            [certificate, key] => Ok(server_config(certificate, key)?),
            _ => Err("two files were asked for".into()),
        })?;
        Ok(Self {
            pair: Arc::new(pair),
        })
    }

    /// Returns what takes the next connection.
    pub(crate) async fn acceptor(&self) -> Result<TlsAcceptor, Box<dyn Error + Send + Sync>> {
        let pair = Arc::clone(&self.pair);
        let config = tokio::task::spawn_blocking(move || pair.current()).await?;
        Ok(TlsAcceptor::from(config))
    }

    /// Reads the files again. Blocks.
    pub(crate) fn reload(&self) {
        self.pair.reload();
    }
}

/// A configuration of its own for each pair: with the old certificate go the sessions that could be
/// resumed under it.
fn server_config(certificate: &[u8], key: &[u8]) -> Result<ServerConfig, PairError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(PairError::Certificate)?;
    if chain.is_empty() {
        return Err(PairError::NoCertificate);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(PairError::Key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(PairError::Pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(PairError::Pair)?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}
