//! Mutual TLS whose files may change while it runs.
//!
//! *Promises*: new files are taken when they change or at SIGHUP, for new connections; old
//! connections then end with the request they are at. Files that cannot be used change
//! nothing and are reported.
//! *Refuses*: TLS below 1.3, clients without a certificate of their authority.
//! *Caller's duty*: replace a file by renaming, the key before the certificate.
//! *Standard*: RFC 8446, RFC 5280, RFC 7301 (`h2`, `http/1.1`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use webpki::EndEntityCert;

use super::config::Files;

/// How often files are looked at.
const LOOK_AT: Duration = Duration::from_secs(5);

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is no PEM of what it should be.
    #[error("{} has no {what} in PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A file has none of what it should have.
    #[error("{} has no certificates in PEM", .0.display())]
    Empty(PathBuf),
    /// Certificate and key do not work.
    #[error("certificate {} and its key cannot be used together", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Clients cannot be verified.
    #[error("the authorities in {} cannot be used", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Reads `files`.
///
/// # Errors
/// See [`TlsError`].
pub fn load(files: &Files) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let authority = |source: Box<dyn std::error::Error + Send + Sync>| TlsError::Authority {
        path: files.client_ca.clone(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for root in certificates(&files.client_ca)? {
        roots.add(root).map_err(|error| authority(error.into()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error| authority(error.into()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Pem {
        path: files.key.clone(),
        what: "private key",
        source,
    })?;
    let unusable = |source| TlsError::Unusable {
        path: files.certificate.clone(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.certificate)?, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would outlive the authority that vouched for it.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        source,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(wrong)?
        .collect();
    let found = found.map_err(wrong)?;
    if found.is_empty() {
        return Err(TlsError::Empty(path.to_owned()));
    }
    Ok(found)
}

/// The names in a certificate.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    match EndEntityCert::try_from(certificate) {
        Ok(certificate) => certificate
            .valid_dns_names()
            .map(ToOwned::to_owned)
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// Keeps what `current` tells as the files are, until nobody listens; `hangup` is told at
/// SIGHUP.
pub async fn keep(
    files: Files,
    current: watch::Sender<Arc<ServerConfig>>,
    mut hangup: watch::Receiver<u64>,
) {
    let mut seen = stamps(&files);
    loop {
        let is_told = tokio::select! {
            told = hangup.changed() => match told {
                Ok(()) => true,
                Err(_) => return,
            },
            () = tokio::time::sleep(LOOK_AT) => false,
            () = current.closed() => return,
        };
        let found = stamps(&files);
        if !is_told && found == seen {
            continue;
        }
        match load(&files) {
            Ok(config) => {
                current.send_replace(config);
                log::info!(
                    "{} and what belongs to it are new",
                    files.certificate.display()
                );
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                log::error!(
                    "the certificates stay as they were: {error}: {}",
                    cause.unwrap_or_default()
                );
            }
        }
        seen = found;
    }
}

/// When the files were changed.
fn stamps(files: &Files) -> [Option<SystemTime>; 3] {
    [&files.certificate, &files.key, &files.client_ca].map(|path| {
        std::fs::metadata(path)
            .and_then(|found| found.modified())
            .ok()
    })
}
