//! Certificates for servers of tests, by an authority of their own.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use circular_tests::store::TestStore;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Where certificate and key of a server are, and the certificate of who signed it; all in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Certified {
    /// Of the server.
    pub(crate) certificate: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// Whom its clients have to believe.
    pub(crate) authority: PathBuf,
}

/// Makes a certificate for a server that is called `name`, or has that address, and writes it beside `store`.
///
/// # Errors
/// It cannot be made or written.
pub(crate) fn certify(store: &TestStore, name: &str) -> Result<Certified> {
    let certified = Certified {
        certificate: store.beside("server.pem"),
        key: store.beside("server.key"),
        authority: store.beside("ca.pem"),
    };
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let certificate = authority.self_signed(&key)?;
    fs::write(&certified.authority, certificate.pem())?;
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let server = CertificateParams::new([name.to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(&certified.certificate, server.pem())?;
    fs::write(&certified.key, key.serialize_pem())?;
    Ok(certified)
}
