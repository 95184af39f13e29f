//! Whom TLS believes: one judgement for all connections of a store, made when it is first needed.
//!
//! Reading the system's authorities takes longer than opening an image in a local network, so a store
//! behind plain HTTP, whose servers can only be behind TLS after a redirect, does without until then.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

/// Whose certificates count.
#[derive(Clone, Debug, Default)]
pub(super) struct Believed {
    /// These do.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Whether the system's authorities do not.
    pub(super) only: bool,
}

/// Judges servers by what is [`Believed`].
#[derive(Debug)]
pub(super) struct Judge {
    believed: Believed,
    provider: Arc<CryptoProvider>,
    verifier: OnceLock<Arc<dyn ServerCertVerifier>>,
}

impl Judge {
    /// One that has not read anything yet.
    pub(super) fn new(believed: Believed) -> Arc<Self> {
        Arc::new(Self {
            believed,
            provider: Arc::new(aws_lc_rs::default_provider()),
            verifier: OnceLock::new(),
        })
    }

    /// Whether it is known already that TLS is needed.
    pub(super) const fn is_asked_for(&self) -> bool {
        self.believed.only || !self.believed.certificates.is_empty()
    }

    /// What TLS does with it.
    ///
    /// # Errors
    ///
    /// Never with the versions and ciphers that this program is built with.
    pub(super) fn client(self: &Arc<Self>) -> Result<ClientConfig, Error> {
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as _)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(client)
    }

    /// Reads what is needed to judge, if that was not done before.
    ///
    /// # Errors
    ///
    /// When there is no authority to believe, or one of those named cannot be used. The next call looks
    /// again.
    pub(super) fn prepare(&self) -> Result<&dyn ServerCertVerifier, Error> {
        if let Some(verifier) = self.verifier.get() {
            return Ok(verifier.as_ref());
        }
        let loaded = self.load()?;
        Ok(self.verifier.get_or_init(|| loaded).as_ref())
    }

    fn load(&self) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        let named = self.believed.certificates.iter().cloned();
        let provider = Arc::clone(&self.provider);
        if !self.believed.only {
            return Ok(Arc::new(Verifier::new_with_extra_roots(named, provider)?));
        }
        let mut roots = RootCertStore::empty();
        for certificate in named {
            roots.add(certificate)?;
        }
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let built = builder.build();
        Ok(built.map_err(|error| Error::General(error.to_string()))?)
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = self.prepare().map_err(|error| {
            tracing::warn!(%error, "no certificate can be believed");
            Error::InvalidCertificate(CertificateError::UnknownIssuer)
        })?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_before_it_is_needed() {
        let judge = Judge::new(Believed::default());
        judge.client().unwrap();
        assert!(judge.verifier.get().is_none() && !judge.is_asked_for());
    }

    #[test]
    fn what_is_no_certificate_is_told_when_it_is_read() {
        let certificates = vec![CertificateDer::from_slice(b"no certificate").into_owned()];
        for only in [true, false] {
            let judge = Judge::new(Believed {
                certificates: certificates.clone(),
                only,
            });
            assert!(judge.is_asked_for());
            judge.prepare().unwrap_err();
        }
    }
}
