//! An authority and the certificates of one test.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The host that the relay speaks for.
pub const HOST: &str = "host1.example.net";

/// An authority.
pub struct Pki(CertifiedIssuer<'static, KeyPair>);

impl Pki {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.as_ref().der().clone()
    }

    /// Writes `ca.pem`, and a new `relay.pem` and `relay.key`.
    pub fn write(&self, dir: &Path) {
        let (certificate, key) = self.issue(HOST);
        std::fs::write(dir.join("ca.pem"), self.0.as_ref().pem()).unwrap();
        std::fs::write(dir.join("relay.pem"), certificate.pem()).unwrap();
        std::fs::write(dir.join("relay.key"), key.serialize_pem()).unwrap();
    }

    /// A certificate for `name`, as rustls takes it.
    pub fn server(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let (certificate, key) = self.issue(name);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (certificate.der().clone(), key.into())
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.0).unwrap(), key)
    }
}
