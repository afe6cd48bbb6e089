//! Mutual TLS, of servers and clients, whose files may change while it runs.
//!
//! *Promises*: new files are taken when they change or at SIGHUP, for new connections; old
//! connections then end with the request they are at. Files that cannot be used change
//! nothing and are reported.
//! *Refuses*: TLS below 1.3, peers without a certificate of their authority.
//! *Caller's duty*: replace a file by renaming, the key before the certificate.
//! *Standard*: RFC 8446, RFC 5280, RFC 7301 (`h2`, `http/1.1`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::sync::watch;
use webpki::EndEntityCert;

/// How often files are looked at.
const LOOK_AT: Duration = Duration::from_secs(5);

/// What mutual TLS is made of, PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// The own certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of peers.
    pub authorities: PathBuf,
}

/// Why TLS cannot be used.
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
    /// Peers cannot be verified.
    #[error("the authorities in {} cannot be used", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a server serves with `files`.
///
/// # Errors
/// See [`TlsError`].
pub fn server(files: &Files) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = roots(files)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error| authority(files)(error.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable(files))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.certificate)?, key(files)?)
        .map_err(unusable(files))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A resumed session would outlive the authority that vouched for it.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a client connects with.
///
/// # Errors
/// See [`TlsError`].
pub fn client(files: &Files) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable(files))?
        .with_root_certificates(roots(files)?)
        .with_client_auth_cert(certificates(&files.certificate)?, key(files)?)
        .map_err(unusable(files))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn roots(files: &Files) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(&files.authorities)? {
        let added = roots.add(root);
        added.map_err(|error| authority(files)(error.into()))?;
    }
    Ok(roots)
}

fn key(files: &Files) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::Pem {
        path: files.key.clone(),
        what: "private key",
        source,
    })
}

fn authority(files: &Files) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> TlsError {
    |source| TlsError::Authority {
        path: files.authorities.clone(),
        source,
    }
}

fn unusable(files: &Files) -> impl Fn(rustls::Error) -> TlsError {
    |source| TlsError::Unusable {
        path: files.certificate.clone(),
        source,
    }
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

/// Keeps what `current` tells as the files are, until nobody listens; `load` makes it of them,
/// and `hangup` is told at SIGHUP.
pub async fn keep<T>(
    files: Files,
    load: fn(&Files) -> Result<T, TlsError>,
    current: watch::Sender<T>,
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
    [&files.certificate, &files.key, &files.authorities].map(|path| {
        std::fs::metadata(path)
            .and_then(|found| found.modified())
            .ok()
    })
}
