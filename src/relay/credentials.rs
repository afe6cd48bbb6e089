//! The relay's certificate and key, for TLS and for tokens, and its way to the upstream.
//!
//! *Promises*: what is loaded works: certificate and key belong together and name the host.
//! *Refuses*: keys of other kinds, an upstream without authorities to believe.
//! *Caller's duty*: load again when the files were renewed (SIGHUP does).
//! *Standard*: TLS 1.3 (RFC 8446), ALPN `h2` (RFC 9113 section 3.2), PEM (RFC 7468).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::config::Config;
use crate::api::identity::{Signer, SignerError};
use crate::api::passage::Door;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read, or has not what it should.
    #[error("cannot read {what} from {}", path.display())]
    File {
        /// What was wanted.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<pem::Error>,
    },
    /// They cannot sign.
    #[error("{}", path.display())]
    Signer {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: SignerError,
    },
    /// They cannot be used for TLS.
    #[error("{} cannot be used for TLS", path.display())]
    Tls {
        /// The certificate's or the authorities' file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Certificate and key, ready to use.
#[derive(Debug)]
pub struct Credentials {
    /// Signs tokens.
    pub signer: Signer,
    /// How the upstream is reached.
    pub way: Way,
}

/// How the upstream is reached with some credentials.
#[derive(Debug)]
pub enum Way {
    /// By TLS.
    Tls(Arc<ClientConfig>),
    /// By a unix socket, where they serve for tokens only.
    Socket,
    /// It is in this process, and knows whose connections these are.
    Door(Door),
}

impl Credentials {
    /// Loads what `config` names.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn load(config: &Config) -> Result<Self, CredentialsError> {
        let path = &config.relay.certificate;
        let chain = certificates("certificates", path)?;
        let key = PrivatePkcs8KeyDer::from_pem_file(&config.relay.key)
            .map_err(failed("a private key in PKCS #8", &config.relay.key))?;
        let own = chain
            .first()
            .ok_or_else(|| failed("a certificate", path)(pem::Error::NoItemsFound))?;
        let signer =
            Signer::new(&config.relay.host, own, key.secret_pkcs8_der()).map_err(|source| {
                CredentialsError::Signer {
                    path: path.clone(),
                    source,
                }
            })?;
        let way = match &config.upstream.ca {
            Some(ca) => Way::Tls(Arc::new(client(ca, path, chain, key.into())?)),
            None => Way::Socket,
        };
        Ok(Self { signer, way })
    }

    /// Those of a relay whose controller is behind `door`.
    pub fn inside(signer: Signer, door: Door) -> Self {
        let way = Way::Door(door);
        Self { signer, way }
    }
}

fn client(
    ca: &Path,
    path: &Path,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, CredentialsError> {
    let tls = |path: &Path| {
        let path = path.to_owned();
        move |source| CredentialsError::Tls { path, source }
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("authorities", ca)? {
        roots.add(certificate).map_err(tls(ca))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls(path))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(tls(path))?;
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(client)
}

/// All certificates of a file, at least one.
fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(failed(what, path))?;
    if found.is_empty() {
        return Err(failed(what, path)(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(pem::Error) -> CredentialsError {
    let path = path.to_owned();
    move |source| CredentialsError::File {
        what,
        path,
        source: Box::new(source),
    }
}
